"""Several runs, or groups of seeds, side by side: how high, how soon, how surely.

A run's curve is the mean return of its evaluations if every run compared has two or more of them, else of its training
episodes: greedy and exploring scores are never set against each other. All milestones are on one scale, the *progress*
`(score - start) / (reference - start)`, where `start` is the lowest first value of any group: 0 is where the worst
group began, 1 is the reference. So 90 % means the same whether returns are positive or negative.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from greenroom.curves import Curve, algorithm_of, environment_of, read_config, read_curve
from greenroom.errors import UserError
from greenroom.folder import RunFolder
from greenroom.maths import statistics
from greenroom.maths.statistics import Floats
from greenroom.plots import Band, comparison_picture, format_count, format_seconds

MILESTONES = (0.5, 0.9, 0.95)
"""Shares of the way from the start to the reference."""

_PICTURE_FORMATS = (".pdf", ".png", ".svg")


@dataclass(frozen=True, slots=True, kw_only=True)
class Milestone:
    """When the runs of a group first got as far as a share of the way."""

    share: float
    """Progress, in (0, 1)."""
    env_steps: float | None
    """Median over runs, a run that never gets there counting as infinitely late; None if that median is infinite."""
    seconds: float | None
    """The same, on the wall-clock."""
    reached: int
    """How many runs got there."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """Runs that differ only in their seed: S of them."""

    name: str
    runs: tuple[Path, ...]
    environment: str
    final: Floats
    """`[S]`: each run's final score, the mean of the last tenth of its curve's points (at least one)."""
    ci95: tuple[float, float] | None
    """95 % bootstrap interval of the mean final score over seeds; None for a single run, which says nothing of it."""
    area: float | None
    """Mean score over the steps that all runs of the comparison share (area under the curve over its width); None if
    they share none."""
    milestones: tuple[Milestone, ...]
    improvement: float
    """Probability that a run of this group ends higher than one of the first group, ties counted half."""
    improvement_ci95: tuple[float, float] | None
    """Its 95 % interval, both groups resampled; None for the first group, and where either has a single run."""

    @property
    def mean(self) -> float:
        """Mean final score."""
        return float(statistics.mean(self.final))

    def to_json(self) -> dict[str, object]:
        """Plain numbers, lists and dicts."""
        return {
            "name": self.name,
            "runs": [str(run) for run in self.runs],
            "environment": self.environment,
            "final": self.final.tolist(),
            "mean": self.mean,
            "std": float(statistics.std(self.final)),
            "iqm": float(statistics.iqm(self.final)),
            "ci95": None if self.ci95 is None else list(self.ci95),
            "area": self.area,
            "milestones": [
                {"share": m.share, "env_steps": m.env_steps, "seconds": m.seconds, "reached": m.reached}
                for m in self.milestones
            ],
            "probability_of_improvement": self.improvement,
            "probability_of_improvement_ci95": None if self.improvement_ci95 is None else list(self.improvement_ci95),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What `compare` found. The first group is the one that others are measured against."""

    groups: tuple[Group, ...]
    score: str
    """What was compared: "evaluation return" or "training return"."""
    start: float
    """Progress 0."""
    reference: float
    """Progress 1."""
    warning: str
    """What a reader must know before believing the table; empty if nothing."""
    picture: Path | None
    """Where the picture is, if one was asked for."""

    def to_json(self) -> dict[str, object]:
        """Plain numbers, lists and dicts."""
        return {
            "score": self.score,
            "start": self.start,
            "reference": self.reference,
            "warning": self.warning,
            "picture": None if self.picture is None else str(self.picture),
            "groups": [group.to_json() for group in self.groups],
        }

    def table(self) -> Table:
        """For the terminal."""
        environments = " / ".join(dict.fromkeys(group.environment for group in self.groups))
        title = escape(f"{environments}: {self.score}")
        table = Table(
            box=box.SIMPLE_HEAD,
            title=f"{title}\n[bold red]{escape(self.warning)}[/]" if self.warning else title,
            caption="x %: when the median run had come that share of the way\n"
            f"from {self.start:.5g} (lowest start) to {self.reference:.5g} (reference).\n"
            "Area: mean height of the curve over the steps that all runs share.",
        )
        table.add_column("group")
        shares = (f"to {100 * share:g} %" for share in MILESTONES)
        for heading in ("final mean\n95 % interval", "area", *shares, "beats first"):
            table.add_column(heading, justify="right")
        for group in self.groups:
            table.add_row(
                f"{escape(group.name)}\n{len(group.runs)} run{'s' * (len(group.runs) > 1)}",
                f"{group.mean:.5g}{_interval(group.ci95, '.5g')}",
                "—" if group.area is None else f"{group.area:.5g}",
                *(_milestone_cell(milestone, len(group.runs)) for milestone in group.milestones),
                "" if group is self.groups[0] else f"{group.improvement:.2f}{_interval(group.improvement_ci95, '.2f')}",
            )
        return table


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    folder: RunFolder
    config: dict[str, object]

    @property
    def environment(self) -> str:
        return environment_of(self.config)


def compare(runs: Sequence[str | Path], *, reference: float | None = None, output: Path | None = None) -> Comparison:
    """Compare runs: final scores, areas, milestones, and a picture if `output` is given.

    Args:
        runs: run folders, of which those whose configurations differ only in the seed become one group; or
            `NAME=RUN,RUN` to name a group oneself.
        reference: the score that counts as 100 %; by default the best mean final score of any group.
        output: where to write the picture (`.png`, `.pdf` or `.svg`). An existing file is not overwritten.

    Raises:
        UserError: nothing to compare, something that is no run, a run given twice or without scores, a group that mixes
            environments, a `reference` not above the start, or an `output` that exists or cannot be written.
    """
    if output is not None:
        _check_output(output)
    members = _group(runs)
    score, curves = _read_curves(members)
    start = min(float(np.mean([curve.score[0] for curve in group])) for group in curves.values())
    if reference is not None and not reference > start:  # NaN included
        raise UserError(f"reference {reference:g} is not above {start:g}, where the lowest group started; raise it")
    finals = {name: np.array([_final_score(curve) for curve in group]) for name, group in curves.items()}
    goal = max(float(final.mean()) for final in finals.values()) if reference is None else reference
    warnings = []
    if len({run.environment for group in members.values() for run in group}) > 1:
        warnings.append("the groups ran in different environments: their returns may not be comparable")
    if goal <= start:
        warnings.append("no group ended above the lowest start: there is no progress to measure")
    comparison = Comparison(
        groups=_measure(members, curves, finals, start, goal),
        score=score,
        start=start,
        reference=goal,
        warning="; ".join(warnings),
        picture=output,
    )
    if output is not None:
        _draw(comparison, curves, output)
    return comparison


def _measure(
    members: dict[str, list[_Run]], curves: dict[str, list[Curve]], finals: dict[str, Floats], start: float, goal: float
) -> tuple[Group, ...]:
    shared = _shared_range([curve.env_steps for group in curves.values() for curve in group])
    first = next(iter(finals))
    better = statistics.probability_of_improvement
    generator = np.random.default_rng(0)
    return tuple(
        Group(
            name=name,
            runs=tuple(run.folder.path for run in members[name]),
            environment=members[name][0].environment,
            final=final,
            ci95=_interval_over_seeds(statistics.mean, final, generator=generator),
            area=_mean_area(curves[name], shared),
            milestones=tuple(_milestone(curves[name], share, start, goal) for share in MILESTONES),
            improvement=float(better(final, finals[first])),
            improvement_ci95=None
            if name == first
            else _interval_over_seeds(better, final, finals[first], generator=generator),
        )
        for name, final in finals.items()
    )


def _check_output(output: Path) -> None:
    if output.suffix not in _PICTURE_FORMATS:
        raise UserError(f"{output} has no picture ending; use one of {', '.join(_PICTURE_FORMATS)}")
    if output.exists():
        raise UserError(f"{output} exists already and was not overwritten; delete it or give another name")
    if not output.parent.is_dir():
        raise UserError(f"there is no folder {output.parent} to write {output.name} into; make it first")


def _group(runs: Sequence[str | Path]) -> dict[str, list[_Run]]:
    """Runs by the name of their group, in the order given."""
    groups: dict[str, list[_Run]] = {}
    unnamed: list[str] = []
    seen: set[Path] = set()
    for item in runs:
        name, equals, paths = str(item).partition("=")
        if equals and not Path(item).exists():
            if name in groups:
                raise UserError(f"group {name!r} is given twice; put all its runs in one list, {name}=RUN,RUN")
            groups[name] = [_open(Path(path), seen) for path in paths.split(",")]
            _check_one_environment(name, groups[name])
        else:
            run = _open(Path(item), seen)
            # Runs that differ only in the seed share this key, which no group name looks like.
            key = json.dumps({**run.config, "seed": None}, sort_keys=True, default=str)
            if key not in groups:
                unnamed.append(key)
            groups.setdefault(key, []).append(run)
    if not groups:
        raise UserError("nothing to compare; give run folders, or NAME=RUN,RUN")
    names = dict(zip(unnamed, _names([groups[key][0] for key in unnamed]), strict=True))
    named = {names.get(key, key): group for key, group in groups.items()}
    if len(named) < len(groups):
        clash = next(name for name in names.values() if name in groups)
        raise UserError(f"another group is also called {clash!r}; choose another name than {clash}=…")
    return named


def _open(path: Path, seen: set[Path]) -> _Run:
    folder = RunFolder.open(path)
    if path.resolve() in seen:
        raise UserError(f"run {path} is given twice; a run counts once")
    seen.add(path.resolve())
    return _Run(folder=folder, config=read_config(folder))


def _check_one_environment(name: str, group: list[_Run]) -> None:
    environments = sorted({run.environment for run in group})
    if len(environments) > 1:
        raise UserError(
            f"group {name!r} mixes environments ({', '.join(environments)}): a mean over them says nothing; "
            "make a group of each"
        )


def _names(runs: list[_Run]) -> list[str]:
    """A name for each group, by one run of each: the first option that tells all apart, else the folders' names."""
    for title in ([run.environment for run in runs], [algorithm_of(run.config) for run in runs]):
        if len(set(title)) == len(runs) > 1:
            return title
    options = [_leaves(run.config) for run in runs]
    for key in options[0] if len(runs) > 1 else ():
        values = [option.get(key) for option in options]
        if len(set(values)) == len(runs):
            return [f"{key}={value}" for value in values]
    names = [run.folder.path.resolve().name for run in runs]
    return names if len(set(names)) == len(runs) else [str(run.folder.path) for run in runs]


def _leaves(config: dict[str, object], prefix: str = "") -> dict[str, str]:
    """`{"a": {"b": 1}, "seed": 2}` becomes `{"a.b": "1"}`."""
    leaves: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            leaves |= _leaves(value, f"{prefix}{key}.")
        elif key != "seed":
            leaves[f"{prefix}{key}"] = str(value)
    return leaves


def _read_curves(members: dict[str, list[_Run]]) -> tuple[str, dict[str, list[Curve]]]:
    """Every run's curve, and what it is a curve of."""
    evaluations = {
        name: [read_curve(run.folder.evaluations, "mean") for run in group] for name, group in members.items()
    }
    if all(len(curve) >= 2 for group in evaluations.values() for curve in group):
        return "evaluation return", evaluations
    training = {
        name: [read_curve(run.folder.metrics, "return_mean") for run in group] for name, group in members.items()
    }
    for name, curves in training.items():
        for run, curve in zip(members[name], curves, strict=True):
            if len(curve) == 0:
                raise UserError(
                    f"{run.folder.metrics} holds no return of a finished episode; train that run longer or leave it out"
                )
    return "training return", training


def _final_score(curve: Curve) -> float:
    return float(curve.score[-max(1, len(curve) // 10) :].mean())


def _shared_range(axes: list[Floats]) -> tuple[float, float]:
    """From where the last curve starts to where the first one ends, which is earlier if they share nothing."""
    return max(float(axis[0]) for axis in axes), min(float(axis[-1]) for axis in axes)


def _mean_area(curves: list[Curve], shared: tuple[float, float]) -> float | None:
    start, end = shared
    if end < start:
        return None
    return float(np.mean([statistics.area_under_curve(curve.env_steps, curve.score, start, end) for curve in curves]))


def _milestone(curves: list[Curve], share: float, start: float, goal: float) -> Milestone:
    if goal <= start:
        return Milestone(share=share, env_steps=None, seconds=None, reached=0)
    level = start + share * (goal - start)
    env_steps = [statistics.first_crossing(curve.env_steps, curve.score, level) for curve in curves]
    seconds = [statistics.first_crossing(curve.seconds, curve.score, level) for curve in curves]
    return Milestone(
        share=share, env_steps=_median(env_steps), seconds=_median(seconds), reached=len(curves) - env_steps.count(None)
    )


def _median(values: list[float | None]) -> float | None:
    median = float(np.median([np.inf if value is None else value for value in values]))
    return median if np.isfinite(median) else None


def _interval_over_seeds(
    statistic: Callable[..., Floats], *finals: Floats, generator: np.random.Generator
) -> tuple[float, float] | None:
    if min(len(final) for final in finals) < 2:
        return None
    return statistics.bootstrap_interval(statistic, *finals, generator=generator)


def _draw(comparison: Comparison, curves: dict[str, list[Curve]], output: Path) -> None:
    several = any(len(group) > 1 for group in curves.values())
    comparison_picture(
        output,
        title=" / ".join(dict.fromkeys(group.environment for group in comparison.groups)),
        score_name=f"{comparison.score}, mean ± std over runs" if several else comparison.score,
        by_steps={name: _band([(curve.env_steps, curve.score) for curve in group]) for name, group in curves.items()},
        by_seconds={name: _band([(curve.seconds, curve.score) for curve in group]) for name, group in curves.items()},
        reference=comparison.reference,
    )


def _band(curves: list[tuple[Floats, Floats]]) -> Band:
    """Mean and standard deviation at every point of any curve, over the range that all curves of the group share."""
    start, end = _shared_range([x for x, _ in curves])
    points = np.unique(np.concatenate([x for x, _ in curves]))
    inside = points[(points >= start) & (points <= end)]
    grid = inside if len(inside) else points
    scores = np.stack([np.interp(grid, x, score) for x, score in curves], axis=-1)
    return Band(x=grid, mean=statistics.mean(scores), spread=statistics.std(scores))


def _interval(ends: tuple[float, float] | None, style: str) -> str:
    return "" if ends is None else f"\n{ends[0]:{style}} … {ends[1]:{style}}"


def _milestone_cell(milestone: Milestone, runs: int) -> str:
    share = "" if milestone.reached in (0, runs) else f" ({milestone.reached}/{runs})"
    if milestone.env_steps is None or milestone.seconds is None:
        return f"—{share}"
    return f"{format_count(milestone.env_steps)}{share}\n{format_seconds(milestone.seconds)}"
