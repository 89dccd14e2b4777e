"""`greenroom bench`: suites of measurements, as tables or as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from tyro.conf import Positional

from greenroom.display import new_console
from greenroom.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure how fast greenroom is on this machine: ratios within one run. Let nothing else run meanwhile."""

    suites: Positional[tuple[str, ...]]
    """Suites of `--list`; all of them if none is named."""
    seconds: float | None = None
    """For each thing that is measured; by default the suite's own."""
    repeats: int | None = None
    """Slices of each thing, taken in turn; by default the suite's own."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where greenroom learns."""
    output: Path | None = None
    """A folder for one JSON file a suite."""
    json: bool = False
    """Print one JSON object a suite and nothing else."""
    list: bool = False
    """Show the suites and stop."""
    debug: bool = False
    """Show the traceback of an error."""


_WIDTH = 110
"""Columns that its tables need: a narrower terminal breaks their lines, which is better than hiding digits."""


def bench(words: list[str]) -> None:
    """Run the command on the words after its name."""
    options = tyro.cli(Bench, args=words, prog="greenroom bench")
    from greenroom.bench.suites import SUITES, run, settings_for

    console = new_console()
    if options.list:
        for name, suite in SUITES.items():
            console.print(f"[bold]{name}[/bold]: {suite.about}", highlight=False)
        return
    # All that may be wrong is found before anything is measured.
    chosen = {
        name: settings_for(name, seconds=options.seconds, repeats=options.repeats, device=options.device)
        for name in options.suites or SUITES
    }
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
    console = new_console(width=max(console.width, _WIDTH))
    failed: list[str] = []
    for name, settings in chosen.items():
        try:
            report = run(name, settings)
        except Exception as problem:
            if options.debug or len(chosen) == 1:
                raise
            failed.append(f"{name} ({type(problem).__name__}: {problem})")  # what others took minutes for is not lost
            continue
        if options.json:
            print(json.dumps(report.to_json()))
        else:
            for table in report.findings.tables:
                console.print(table.rich())
        if options.output is not None:
            report.write(options.output)
    if failed:
        raise UserError(f"failed: {'; '.join(failed)}; --debug shows where")
