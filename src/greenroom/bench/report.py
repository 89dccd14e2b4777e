"""What a suite found: tables of numbers as JSON, and the one way in which they are shown, here and in the documents."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import rich.table

from greenroom import folder
from greenroom.errors import UserError
from greenroom.measure import Rate

_SPACE = "\N{NARROW NO-BREAK SPACE}"
Cell = str | float | None
"""A word, a number, or nothing to say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Numbers side by side, unrounded."""

    title: str
    about: str
    """What was measured, and the target where there is one."""
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.headings):
                raise ValueError(f"{self.title}: {len(row)} cells under {len(self.headings)} headings: {row}")

    def markdown(self) -> list[str]:
        """A heading, what it is about, and the table."""
        lines = [
            list(self.headings),
            ["---"] * len(self.headings),
            *([shown(cell) for cell in row] for row in self.rows),
        ]
        return [f"### {self.title}", "", self.about, "", *(f"| {' | '.join(line)} |" for line in lines), ""]

    def rich(self) -> rich.table.Table:
        """The same for the terminal."""
        made = rich.table.Table(
            title=f"\n{self.title}", caption=self.about, title_justify="left", caption_justify="left", box=None
        )
        for column, heading in enumerate(self.headings):
            words = any(isinstance(row[column], str) for row in self.rows)
            made.add_column(heading, justify="left" if words else "right", no_wrap=column < len(self.headings) - 1)
        for row in self.rows:
            made.add_row(*(shown(cell) for cell in row))
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a suite, or a part of one, found."""

    tables: tuple[Table, ...] = ()
    slices: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Agent steps per second of every slice of whatever was measured, by name."""

    def __add__(self, other: Findings) -> Findings:
        """Both, in this order."""
        return Findings(tables=self.tables + other.tables, slices={**self.slices, **other.slices})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a suite measures."""

    seconds: float
    """For each thing that is measured, all its slices together; in a process of its own, each time."""
    repeats: int
    """Slices of each, taken in turn; of what has a process of its own, how many times it is started."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where greenroom learns."""

    def __post_init__(self) -> None:
        if not self.seconds > 0 or self.repeats < 1:
            raise UserError(
                f"seconds must be greater than 0 and repeats at least 1, not {self.seconds} and {self.repeats}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One suite's findings, when and where they were made."""

    suite: str
    findings: Findings
    device: str
    """`cpu` or `cuda`."""
    seconds: float
    """How long the suite took."""
    environment: Mapping[str, Any] = field(default_factory=folder.describe_environment)
    """What it ran on, versions and command included."""

    def to_json(self) -> dict[str, Any]:
        """Everything, for a file."""
        return {
            "suite": self.suite,
            "device": self.device,
            "seconds": self.seconds,
            "environment": dict(self.environment),
            "tables": [dataclasses.asdict(table) for table in self.findings.tables],
            "slices": {name: list(rates) for name, rates in self.findings.slices.items()},
        }

    @property
    def name(self) -> str:
        """Of its file: the suite's, and the GPU's where one was used: `atari`, `atari-nvidia-h200`."""
        gpu = f" {self.environment['gpus'][0]}" if self.device == "cuda" else ""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.suite}{gpu}".lower()).strip("-")

    def write(self, where: Path) -> Path:
        """Write `<name>.json` into the folder `where`.

        Raises:
            UserError: it cannot be written.
        """
        path = where / f"{self.name}.json"
        try:
            where.mkdir(parents=True, exist_ok=True)
            folder.write_json(path, self.to_json())
        except OSError as problem:
            raise UserError(f"cannot write {path}: {problem.strerror}; give another --output") from problem
        return path

    def markdown(self) -> str:
        """The tables, and under them what they were made by and on."""
        made = self.environment
        where = f"{made['cpu']}, {made['cores']} cores"
        where += "".join(f", {gpu}" for gpu in made["gpus"])
        versions = ", ".join(f"{name} {made[name]}" for name in ("python", "torch", "numpy", "gymnasium", "ale-py"))
        footer = f"Made by `{made['command']}` in {self.seconds / 60:.1f} minutes. Machine: {where}; {versions}."
        return "\n".join([*(line for table in self.findings.tables for line in table.markdown()), footer]) + "\n"


def read(path: Path) -> Report:
    """The report that `Report.write` wrote.

    Raises:
        UserError: there is no such report in the file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        tables = tuple(
            Table(**{**table, "headings": tuple(table["headings"]), "rows": tuple(map(tuple, table["rows"]))})
            for table in found.pop("tables")
        )
        findings = Findings(tables=tables, slices=found.pop("slices"))
        return Report(**found, findings=findings)
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise UserError(f"{path} holds no report of greenroom bench: {problem}; measure it anew") from problem


def shown(cell: Cell) -> str:
    """A cell as people read it: numbers with three significant digits, at most four decimals, thousands apart."""
    if cell is None:
        return "–"
    if isinstance(cell, str):
        return cell
    if not cell:
        return "0"
    digits = min(4, 2 - math.floor(math.log10(abs(cell))))
    return f"{round(cell, digits):,.{max(0, digits)}f}".replace(",", _SPACE)


def ratio(rate: Rate, whole: float) -> float | None:
    """How many times `whole` the rate is; None where `whole` was not measured, and so is 0."""
    return rate.steps_per_second / whole if whole else None
