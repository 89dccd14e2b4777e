"""A run explained from its folder: where its time went, whether it slowed down, what bound it, what to try."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Group
from rich.text import Text

from greenroom.curves import algorithm_of, environment_of, read_config
from greenroom.doctor.table import count, split_table
from greenroom.errors import UserError
from greenroom.folder import RunFolder, read_environment
from greenroom.lines import read_lines, record_of

PARTS = ("env", "act", "learn", "wait")
_FALLING, _RISING = 0.9, 1.1
"""The end's rate as a share of the beginning's: what counts as a trend."""
_WAITS = 0.1
"""Share of the time that a learner may wait for rollouts and still be called the bottleneck."""

_STARVED = 0.7
"""Share of the cores that acting and learning alone have work for: less means that others have them."""

Bottleneck = Literal["the environment", "acting", "learning", "the loop itself"]
_REMEDIES: dict[Bottleneck, tuple[str, ...]] = {
    "the environment": (
        "`greenroom doctor ENV` looks for a better stage and number of workers, and for what hurts in the environment",
        "--collect double lets half of the environments simulate while the policy decides for the others",
        "--collect overlap simulates while learning, from older weights: with vtrace, or an algorithm with a replay",
    ),
    "acting": (
        "more actors (--num-envs): a decision for many costs little more than one for few; it changes learning",
        "--threads: small networks decide faster with one; `greenroom doctor ENV` measures it",
        "a smaller network",
    ),
    "learning": (
        "fewer epochs or samples: --epochs, --replay-ratio; it changes learning",
        "fewer, larger minibatches (--minibatches); it changes learning",
        "a GPU (--device cuda), a smaller network, or --threads: `greenroom doctor ENV` measures it",
        "--collect overlap lets the environments work meanwhile",
    ),
    "the loop itself": (
        "larger batches: more actors, or a longer --rollout-length; it changes learning",
        "`greenroom train … --profile` shows what the time between the parts goes to",
    ),
}
_UNCROWD = "end what else is running, or give the run one thread (--threads 1), which has nobody to wait for"


@dataclass(frozen=True, kw_only=True)
class Period:
    """Some lines of a log, taken together."""

    steps: int
    seconds: float
    split: dict[str, float]
    """Seconds in each part."""
    cpu: float | None = None
    """Seconds that cores worked for the process, all its threads together, evaluations included; None: not known."""

    @property
    def rate(self) -> float:
        """Agent steps per second."""
        return self.steps / self.seconds

    @property
    def microseconds(self) -> dict[str, float]:
        """What each part cost an agent step."""
        return {name: 1e6 * spent / self.steps for name, spent in self.split.items()}


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What a run's log says about its speed."""

    env: str
    algo: str
    collect: str
    whole: Period
    first: Period
    """The first third of the log lines …"""
    last: Period
    """… and the last third; the same as `first` where there are too few lines."""
    bottleneck: Bottleneck
    gpu: bool
    """Whether there was one, and so a process that waits for it."""

    @property
    def starved(self) -> tuple[float, float] | None:
        """Cores that the process had and could have used for acting and learning alone, where it had too little."""
        whole = self.whole
        if whole.cpu is None or self.gpu:
            return None
        had = whole.cpu / whole.seconds
        wanted = min(1.0, (whole.split["act"] + whole.split["learn"]) / whole.seconds)
        return (had, wanted) if had < _STARVED * wanted else None

    @property
    def trend(self) -> float:
        """Rate of the last third as a share of the first third's."""
        return self.last.rate / self.first.rate

    @property
    def slower(self) -> str:
        """The part whose cost per agent step grew most from the first third to the last."""
        before, after = self.first.microseconds, self.last.microseconds
        return max(after, key=lambda name: after[name] - before[name])

    @property
    def remedies(self) -> tuple[str, ...]:
        """What to try."""
        lines = _REMEDIES[self.bottleneck] if self.starved is None else (_UNCROWD, *_REMEDIES[self.bottleneck])
        return tuple(line for line in lines if f"--collect {self.collect}" not in line)

    def to_json(self) -> dict[str, object]:
        """All of it as plain values."""
        return {
            "env": self.env,
            "algo": self.algo,
            "collect": self.collect,
            "env_steps": self.whole.steps,
            "seconds": self.whole.seconds,
            "steps_per_second": self.whole.rate,
            "time": self.whole.split,
            "microseconds": self.whole.microseconds,
            "trend": self.trend,
            "slower": self.slower if self.trend < _FALLING else None,
            "bottleneck": self.bottleneck,
            "cpu_seconds": self.whole.cpu,
            "starved": self.starved is not None,
            "remedies": list(self.remedies),
        }

    def report(self) -> Group:
        """All of it for the terminal."""
        whole = self.whole
        title = f"{self.env} with {self.algo}: {count(whole.rate)} steps/s over {count(whole.steps)} steps"
        lines = [f"bound by {self.bottleneck}"]
        if self.starved is not None:
            had, wanted = self.starved
            lines.append(
                f"starved: it had {had:.2f} of a core, where acting and learning alone had work for {wanted:.2f}: "
                "other programs have the cores, and threads wait for each other"
            )
        if self.trend < _FALLING:
            before, after = self.first.microseconds[self.slower], self.last.microseconds[self.slower]
            lines.append(
                f"slowing down: {count(self.first.rate)} steps/s in the first third, {count(self.last.rate)} in the "
                f"last; {self.slower} went from {before:.1f} to {after:.1f} µs a step"
            )
        elif self.trend > _RISING:
            lines.append(f"speeding up: {count(self.first.rate)} steps/s at first, {count(self.last.rate)} at last")
        lines += [f"try: {remedy}" for remedy in self.remedies]
        return Group(split_table(whole.microseconds, whole.rate, title), Text(), *(Text(line) for line in lines))


def explain(run_dir: str | Path) -> Explanation:
    """Explain a finished or running run.

    Args:
        run_dir: its folder.

    Raises:
        UserError: not a run, or it has not logged enough yet to tell a rate.
    """
    folder = RunFolder.open(Path(run_dir))
    config = read_config(folder)
    windows = _windows(folder.metrics)
    collect = str(config.get("collect", "sync"))
    third = max(1, len(windows) // 3)
    whole = _together(windows)
    return Explanation(
        env=environment_of(config),
        algo=algorithm_of(config),
        collect=collect,
        whole=whole,
        first=_together(windows[:third]),
        last=_together(windows[-third:]),
        bottleneck=bottleneck(whole, collect),
        gpu=config.get("device") != "cpu" and bool(read_environment(folder.environment).get("gpus")),
    )


def bottleneck(period: Period, collect: str) -> Bottleneck:
    """What the run's time went to most.

    With `overlap` simulating and acting pass beside learning: they are the bottleneck if the learner waits. With
    `double` a wait is one for simulators.
    """
    env, act, learn, wait = (period.split.get(name, 0.0) for name in PARTS)
    if collect == "overlap":
        if wait <= _WAITS * period.seconds:
            return "learning"
        return "the environment" if env >= act else "acting"
    spent: dict[Bottleneck, float] = {"the environment": env + wait, "acting": act, "learning": learn}
    spent["the loop itself"] = period.seconds - sum(spent.values())
    return max(spent, key=lambda name: spent[name])


def _windows(path: Path) -> list[Period]:
    """What passed between the lines of a log. The first line's includes warming up and counts only if it is alone.

    Raises:
        UserError: as from `read_lines`; or nothing is logged yet.
    """
    windows: list[Period] = []
    steps, seconds = 0, 0.0
    for so_far in read_lines(path, _so_far):
        window = replace(so_far, steps=so_far.steps - steps, seconds=so_far.seconds - seconds)
        steps, seconds = so_far.steps, so_far.seconds
        if window.steps > 0 and window.seconds > 0:
            windows.append(window)
    if not windows:
        raise UserError(f"{path.parent} has logged nothing yet; let it train a little longer")
    return windows[1:] or windows


def _so_far(line: str) -> Period:
    """A line as it is: its steps and seconds are those since the run began, the rest since the line before."""
    record = record_of(line)
    return Period(
        steps=int(record["env_steps"]),
        seconds=float(record["seconds"]),
        split={name: float(record[f"time/{name}"]) for name in PARTS},
        cpu=record.get("time/cpu"),  # older logs do not tell
    )


def _together(windows: Sequence[Period]) -> Period:
    known = [window.cpu for window in windows if window.cpu is not None]
    return Period(
        steps=sum(window.steps for window in windows),
        seconds=sum(window.seconds for window in windows),
        split={name: sum(window.split[name] for window in windows) for name in PARTS},
        cpu=sum(known) if len(known) == len(windows) else None,
    )
