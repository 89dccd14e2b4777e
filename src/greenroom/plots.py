"""The pictures of what runs wrote.

Figures are built from objects, not through `pyplot`: no window system, no state shared with a notebook.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.typing import LineStyleType

from greenroom.curves import Curve, algorithm_of, environment_of, read_config, read_curve
from greenroom.folder import RunFolder, replacing
from greenroom.maths.statistics import Floats

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
"""Okabe and Ito's palette, which colour-blind readers can tell apart."""

_INK, _FAINT = "#333333", "#888888"
_DASHES: tuple[LineStyleType, ...] = ("-", (0, (5, 2)), (0, (2, 2)), (0, (5, 2, 1, 2)))
_UNITS = ((86400.0, "d", "days"), (3600.0, "h", "hours"), (60.0, "min", "minutes"), (1.0, "s", "seconds"))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Band:
    """Mean over a group of runs and how far they spread, along one axis."""

    x: Floats
    """`[N]`."""
    mean: Floats
    """`[N]`."""
    spread: Floats
    """`[N]`: half the band's height; zero for a single run."""


def format_count(value: float) -> str:
    """Three digits and a magnitude: `1.5 M`, `250 k`, `42`."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")
    size, letter = next(((s, n) for s, n in ((1e9, " G"), (1e6, " M"), (1e3, " k")) if abs(rounded) >= s), (1.0, ""))
    return f"{rounded / size:.3g}{letter}".replace("-", "\N{MINUS SIGN}")


def format_seconds(seconds: float) -> str:
    """Three digits and a unit: `35 s`, `12.5 min`, `3.2 h`, `2 d`."""
    size, letter, _ = _unit_of(seconds)
    return f"{seconds / size:.3g} {letter}"


def learning_curve(run_dir: Path) -> Path:
    """Draw a run's return over environment steps as `curve.png` in its folder, in place of an earlier one.

    Training returns are faint, their moving average on top; evaluations are points with their 95 % interval.

    Args:
        run_dir: the run's folder.

    Returns:
        Where the picture is.

    Raises:
        UserError: `run_dir` is not a run folder, or its files cannot be read.
    """
    folder = RunFolder.open(run_dir)
    config = read_config(folder)
    training = read_curve(folder.metrics, "return_mean")
    evaluations = read_curve(folder.evaluations, "mean")
    figure = Figure(figsize=(8.0, 4.8), layout="constrained")
    axes = figure.add_subplot()
    _style(axes)
    axes.set_xlabel("environment steps", color=_INK)
    axes.set_ylabel("mean return", color=_INK)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda steps, _: format_count(steps)))
    if len(training) + len(evaluations):
        _draw_training(axes, training)
        _draw_evaluations(axes, evaluations)
        axes.set_xlim(left=0.0)
        _frame_scores(axes, np.concatenate((training.score, evaluations.score)))
        _add_seconds(axes, training if len(training) else evaluations)
        axes.legend(loc="best", frameon=False, fontsize=9, labelcolor=_INK)
    else:
        axes.text(0.5, 0.5, "no episode has finished yet", transform=axes.transAxes, ha="center", color=_FAINT)
        axes.set(xticks=[], yticks=[])
    title = f"{environment_of(config)} · {algorithm_of(config)} · seed {config.get('seed')}"
    figure.suptitle(title, fontsize=12, color=_INK)
    _save(figure, folder.curve)
    return folder.curve


def comparison_picture(
    path: Path,
    *,
    title: str,
    score_name: str,
    by_steps: Mapping[str, Band],
    by_seconds: Mapping[str, Band],
    reference: float,
) -> None:
    """Draw several groups' curves over environment steps (left) and over wall-clock (right).

    Args:
        path: where to write; the ending names the format (`.png`, `.pdf`, `.svg`).
        title: what stands above.
        score_name: what the vertical axis shows.
        by_steps: each group's band over environment steps.
        by_seconds: the same groups over seconds.
        reference: a score, drawn as a dashed line.
    """
    figure = Figure(figsize=(11.0, 4.8), layout="constrained")
    left = figure.add_subplot(1, 2, 1)
    right = figure.add_subplot(1, 2, 2, sharey=left)
    size, _, unit = _unit_of(max(float(band.x[-1]) for band in by_seconds.values()))
    for axes, bands, scale, label in (
        (left, by_steps, 1.0, "environment steps"),
        (right, by_seconds, size, f"wall-clock ({unit})"),
    ):
        _style(axes)
        for number, (name, band) in enumerate(bands.items()):
            colour, dash = COLOURS[number % len(COLOURS)], _DASHES[number // len(COLOURS) % len(_DASHES)]
            marker = "o" if len(band.x) == 1 else ""
            x, low, high = band.x / scale, band.mean - band.spread, band.mean + band.spread
            axes.plot(x, band.mean, color=colour, linestyle=dash, linewidth=1.8, marker=marker, label=name)
            if np.any(band.spread > 0):
                axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.axhline(reference, color=_INK, linestyle=(0, (4, 3)), linewidth=1.0, label="reference")
        axes.set_xlabel(label, color=_INK)
        axes.set_xlim(left=0.0)
    left.set_ylabel(score_name, color=_INK)
    _frame_scores(left, np.concatenate([band.mean for band in by_steps.values()]), [reference])
    left.xaxis.set_major_formatter(FuncFormatter(lambda steps, _: format_count(steps)))
    right.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 3, 5, 6, 10]))
    right.tick_params(labelleft=False)
    handles, labels = left.get_legend_handles_labels()
    columns = max(1, min(4, len(labels), 110 // max(len(label) + 6 for label in labels)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=12, color=_INK)
    _save(figure, path)


def _draw_training(axes: Axes, curve: Curve) -> None:
    """The moving average over a twentieth of the curve, or the raw curve where there is too little of it to smooth."""
    if len(curve) < 20:
        axes.plot(curve.env_steps, curve.score, color=COLOURS[0], linewidth=1.8, label="training")
        return
    axes.plot(curve.env_steps, curve.score, color=COLOURS[0], linewidth=0.8, alpha=0.3)
    smooth = _moving_average(curve.score, max(1, len(curve) // 40))
    axes.plot(curve.env_steps, smooth, color=COLOURS[0], linewidth=1.8, label="training, moving average")


def _draw_evaluations(axes: Axes, curve: Curve) -> None:
    if len(curve) == 0:
        return
    reach = np.maximum(0.0, (curve.score - curve.low, curve.high - curve.score))
    axes.errorbar(
        curve.env_steps,
        curve.score,
        reach,
        fmt="o",
        color=COLOURS[1],
        markersize=4.5,
        elinewidth=1.3,
        zorder=4,
        label="evaluation, 95 % interval",
    )


def _frame_scores(axes: Axes, scores: Floats, references: Collection[float] = ()) -> None:
    """Frame scores and references; leave a bad start out where it would press all else into a line at the top."""
    shown = np.concatenate((scores, np.array(list(references))))
    low, high = float(shown.min()), float(shown.max())
    bulk = min(float(np.quantile(scores, 0.1)), *references, high)
    if low < high and high - low > 4.0 * (high - bulk) > 0.0:
        axes.set_ylabel(f"{axes.get_ylabel()} (from {_format_score(low)}, below the frame)")
        low = bulk - 0.1 * (high - bulk)
    margin = 0.05 * (high - low)
    if margin > 0.0:
        axes.set_ylim(low - margin, high + margin)


def _add_seconds(axes: Axes, curve: Curve) -> None:
    """Wall-clock along the top: round times, put where the curve passed them."""
    size, _, unit = _unit_of(float(curve.seconds[-1]))
    times = np.array(MaxNLocator(6, steps=[1, 2, 3, 5, 6, 10]).tick_values(0.0, curve.seconds[-1] / size))
    times = times[(times * size >= curve.seconds[0]) & (times * size <= curve.seconds[-1])]
    top = axes.twiny()
    _style(top)
    top.grid(visible=False)
    top.spines["top"].set(visible=True, color=_FAINT)
    top.set_xlim(axes.get_xlim())
    top.set_xticks(np.interp(times * size, curve.seconds, curve.env_steps), [f"{time:g}" for time in times])
    top.set_xlabel(f"wall-clock ({unit})", color=_INK)


def _moving_average(values: Floats, reach: int) -> Floats:
    """Mean over `reach` neighbours on either side, fewer at the ends."""
    total = np.concatenate(([0.0], np.cumsum(values)))
    place = np.arange(len(values))
    first, last = np.maximum(place - reach, 0), np.minimum(place + reach + 1, len(values))
    return np.asarray((total[last] - total[first]) / (last - first))


def _unit_of(seconds: float) -> tuple[float, str, str]:
    """The largest unit of time of which `seconds` holds two (seconds, if none): its size, letter and name."""
    return next((unit for unit in _UNITS if seconds >= 2 * unit[0]), _UNITS[-1])


def _format_score(score: float, digits: int = 5) -> str:
    return f"{score:,.{digits}g}".replace("-", "\N{MINUS SIGN}")


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(colors=_INK, labelsize=9)
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda score, _: _format_score(score, 10)))


def _save(figure: Figure, path: Path) -> None:
    """Write the picture so that a crash leaves the old one or the new one."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix("."), dpi=150)
