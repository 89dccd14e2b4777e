"""How the studies tell: scores over seeds, tables in Markdown, learning curves."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from greenroom import folder
from greenroom.maths import statistics
from harness import Options, Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """One number from each of N seeds, and what they amount to."""

    mean: float
    std: float
    iqm: float
    ci95: tuple[float, float]
    """Bootstrap over seeds; with five seeds it is rather too narrow."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Scores:
        """The scores of `values`, at least one."""
        sample = np.asarray(values, dtype=np.float64)
        return cls(
            mean=float(statistics.mean(sample)),
            std=float(statistics.std(sample)),
            iqm=float(statistics.iqm(sample)),
            ci95=statistics.bootstrap_interval(statistics.mean, sample, generator=np.random.default_rng(0)),
        )

    def cells(self, digits: int) -> list[str]:
        """Mean ± standard deviation, interquartile mean, interval: the cells of a table."""
        low, high = self.ci95
        return [
            f"{self.mean:.{digits}f} ± {self.std:.{digits}f}",
            f"{self.iqm:.{digits}f}",
            f"[{low:.{digits}f}, {high:.{digits}f}]",
        ]


SCORE_HEADINGS = ["mean ± std over seeds", "IQM", "95 % interval"]
"""The headings of `Scores.cells`."""


def group(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    """The records of each task and method, in the order of their first record."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record["task"], record["method"]), []).append(record)
    return groups


def write_table(
    chosen: Options,
    *,
    title: str,
    explanation: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    records: Sequence[Record],
) -> None:
    """Write and print `table.md`: the rows, and under them how they were made."""
    kinds = [record["machine"] for record in records]
    machines = sorted({f"{kind['cpu']}, {kind['cores']} cores, {kind['jobs']} runs side by side" for kind in kinds})
    command = shlex.join(["python", f"studies/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    lines = [
        f"# {title}",
        "",
        explanation,
        "",
        _row(headings),
        _row(["---"] * len(headings)),
        *map(_row, rows),
        "",
        f"Made by `{command}`. Machine: {'; '.join(machines)}.",
        f"Training took {sum(record['seconds'] for record in records) / 3600:.1f} hours in all.",
        "Every run's commands, seed, evaluation and curve: [results.json](results.json).",
        "",
        "The commands of the first run:",
        "",
        "```sh",
        *records[0]["commands"],
        "```",
    ]
    text = "\n".join(lines) + "\n"
    folder.write_text(chosen.out / "table.md", text)
    print(text)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One of a picture's panels: the curves of one task."""

    title: str
    groups: Mapping[str, Sequence[Record]]
    """The seeds of each method."""
    landmarks: Mapping[str, float] = field(default_factory=dict)
    """Returns to draw as level lines."""


def plot_curves(path: Path, panels: Sequence[Panel]) -> None:
    """Write a PNG: mean training return over agent steps, its mean over seeds as a line and its range as a band."""
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.9 * rows), layout="constrained")
    for number, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, number)
        for color, (label, records) in enumerate(panel.groups.items()):
            _draw(axes, f"{label} ({len(records)} seeds)", f"C{color}", records)
        for label, level in panel.landmarks.items():
            axes.axhline(level, color="0.5", linewidth=0.8, linestyle=":")
            axes.annotate(label, (1, level), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7)
        axes.set(title=panel.title, xlabel="agent steps", ylabel="mean training return")
        axes.grid(alpha=0.2)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def _draw(axes: Axes, label: str, color: str, records: Sequence[Record]) -> None:
    """Each seed's curve on one grid that all of them cover."""
    curves = [np.asarray(record["curve"], dtype=np.float64) for record in records if record["curve"]]
    if not curves:
        return
    grid = np.linspace(max(curve[0, 0] for curve in curves), min(curve[-1, 0] for curve in curves), 200)
    heights = np.stack([np.interp(grid, curve[:, 0], curve[:, 2]) for curve in curves])
    axes.plot(grid, heights.mean(axis=0), label=label, color=color)
    axes.fill_between(grid, heights.min(axis=0), heights.max(axis=0), color=color, alpha=0.2, linewidth=0)
