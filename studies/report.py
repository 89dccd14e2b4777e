"""How the studies tell: scores over seeds, tables in Markdown, learning curves."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

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
    """Of the mean. Bootstrap over seeds; with five seeds it is rather too narrow."""
    iqm_ci95: tuple[float, float]
    """Of the interquartile mean, in the same way."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Scores:
        """The scores of `values`, at least one."""
        sample = np.asarray(values, dtype=np.float64)
        return cls(
            mean=float(statistics.mean(sample)),
            std=float(statistics.std(sample)),
            iqm=float(statistics.iqm(sample)),
            ci95=_interval(statistics.mean, sample),
            iqm_ci95=_interval(statistics.iqm, sample),
        )

    def cells(self, digits: int) -> list[str]:
        """Mean ± standard deviation, interquartile mean, interval: the cells of a table."""
        low, high = self.ci95
        return [
            f"{self.mean:.{digits}f} ± {self.std:.{digits}f}",
            f"{self.iqm:.{digits}f}",
            f"[{low:.{digits}f}, {high:.{digits}f}]",
        ]

    def robust(self, digits: int) -> str:
        """Interquartile mean and its interval, in one cell."""
        low, high = self.iqm_ci95
        return f"{self.iqm:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _interval(statistic: Callable[..., statistics.Floats], *samples: statistics.Floats) -> tuple[float, float]:
    return statistics.bootstrap_interval(statistic, *samples, generator=np.random.default_rng(0))


def improvement(values: Sequence[float], others: Sequence[float]) -> str:
    """Probability that one of `values` is higher than one of `others`, ties counted half, and its 95 % interval."""
    samples = [np.asarray(group, dtype=np.float64) for group in (values, others)]
    low, high = _interval(statistics.probability_of_improvement, *samples)
    return f"{float(statistics.probability_of_improvement(*samples)):.2f} [{low:.2f}, {high:.2f}]"


SCORE_HEADINGS = ["mean ± std over seeds", "IQM", "95 % interval"]
"""The headings of `Scores.cells`."""


def findings(seeds: Sequence[Record]) -> str:
    """How many findings of health checks the runs have in all, and which; empty where that was not recorded."""
    told: list[list[str]] = [record["findings"] for record in seeds if record.get("findings") is not None]
    if len(told) < len(seeds):
        return ""
    names = [name for one in told for name in one]
    return f"{len(names)} {', '.join(sorted(set(names)))}".strip()


def group(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    """The records of each task and method, in the order of their first record."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record["task"], record["method"]), []).append(record)
    return groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A further table of the same page."""

    title: str
    explanation: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def lines(self, level: str = "##") -> list[str]:
        """Markdown, ending with an empty line."""
        table = [_row(self.headings), _row(["---"] * len(self.headings)), *map(_row, self.rows)]
        return [f"{level} {self.title}", "", self.explanation, "", *table, ""]


def write_table(
    chosen: Options,
    *,
    title: str,
    explanation: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    records: Sequence[Record],
    further: Sequence[Section] = (),
) -> None:
    """Write and print `table.md`: the rows, further tables, and under them how they were made."""
    kinds = [record["machine"] for record in records]
    machines = sorted({f"{kind['cpu']}, {kind['cores']} cores, {kind['jobs']} runs side by side" for kind in kinds})
    command = shlex.join(["python", f"studies/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    lines = [
        *Section(title=title, explanation=explanation, headings=headings, rows=rows).lines("#"),
        *(line for section in further for line in section.lines()),
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
    dashed: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    """The seeds of what is beside the method of the same name, to be drawn in its colour."""
    landmarks: Mapping[str, float] = field(default_factory=dict)
    """Returns to draw as level lines."""


def plot_curves(path: Path, panels: Sequence[Panel], *, score: str = "mean training return") -> None:
    """Write a PNG: each record's curve of `score` over agent steps, their mean as a line and their range as a band."""
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.9 * rows), layout="constrained")
    for number, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, number)
        for color, (label, records) in enumerate(panel.groups.items()):
            _draw(axes, f"{label} ({len(records)} seeds)", f"C{color}", records)
            _draw(axes, "", f"C{color}", panel.dashed.get(label, ()), line="--")
        for label, level in panel.landmarks.items():
            axes.axhline(level, color="0.5", linewidth=0.8, linestyle=":")
            axes.annotate(label, (1, level), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7)
        axes.set(title=panel.title, xlabel="agent steps", ylabel=score)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 200k: the digits of 200000 run into each other
        axes.grid(alpha=0.2)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def _draw(axes: Axes, label: str, color: str, records: Sequence[Record], line: str = "-") -> None:
    """Each seed's curve on one grid that all of them cover."""
    curves = [np.asarray(record["curve"], dtype=np.float64) for record in records if record["curve"]]
    if not curves:
        return
    grid = np.linspace(max(curve[0, 0] for curve in curves), min(curve[-1, 0] for curve in curves), 200)
    heights = np.stack([np.interp(grid, curve[:, 0], curve[:, 2]) for curve in curves])
    axes.plot(grid, heights.mean(axis=0), label=label, color=color, linestyle=line)
    axes.fill_between(grid, heights.min(axis=0), heights.max(axis=0), color=color, alpha=0.2, linewidth=0)
