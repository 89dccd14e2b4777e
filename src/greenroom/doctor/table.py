"""Numbers for people, as both kinds of examination show them."""

from __future__ import annotations

from collections.abc import Mapping

from rich.markup import escape
from rich.table import Table


def count(number: float) -> str:
    """Three significant digits are meant; thousands apart: `12 345`."""
    return f"{number:,.0f}".replace(",", " ")


def split_table(microseconds: Mapping[str, float], rate: float, title: str) -> Table:
    """Where an agent step's time goes.

    Args:
        microseconds: what each part costs an agent step.
        rate: agent steps per second.
        title: of the table.
    """
    table = Table("an agent step", "µs", "share", box=None, title=escape(title), title_justify="left")
    whole = 1e6 / rate
    beside = sum(microseconds.values()) > whole
    rest = {} if beside else {"the loop's own": whole - sum(microseconds.values())}
    for name, spent in {**microseconds, **rest}.items():
        table.add_row(name, f"{spent:.2f}", f"{100 * spent / whole:.0f} %")
    table.add_row("in all", f"{whole:.2f}", "parts run beside each other" if beside else "")
    return table
