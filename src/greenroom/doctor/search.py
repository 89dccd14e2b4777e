"""A small search for faster settings: one kind of setting after the other, whatever wins is kept.

What is tried leaves what is learned alone: the same number of actors, on-policy data on-policy. What would change that
(`beyond`), be it in rounding, is measured, but never suggested in the same breath.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from greenroom.algorithms.replaying import drawing_of
from greenroom.config import RunConfig
from greenroom.envs.base import Stage
from greenroom.envs.choose import largest_divisor
from greenroom.envs.device import model_of
from greenroom.envs.native import native_for
from greenroom.errors import UserError
from greenroom.measure import Rate
from greenroom.networks import Mlp

Measure = Callable[[Sequence[RunConfig]], Sequence[Rate | UserError]]
"""Rates of several runs, measured in turn; an error for a run that cannot be."""

WORTH_IT = 1.05
"""How many times as fast another setting must be: less may be noise."""
OPTIONS = ("stage", "num_workers", "threads", "collect", "lag", "num_envs", "compile")
"""Fields of a `RunConfig` that are tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One setting that was tried, and the one it had to beat in the same minute."""

    config: RunConfig
    against: RunConfig
    found: Rate | UserError
    beat: Rate
    """Of `against`."""

    @property
    def gain(self) -> float:
        """How many times as fast; 0 where it cannot be."""
        return self.found.steps_per_second / self.beat.steps_per_second if isinstance(self.found, Rate) else 0.0


def search(
    config: RunConfig, measure: Measure, *, cores: int, in_time: Callable[[], bool] = lambda: True
) -> tuple[RunConfig, list[Trial], bool]:
    """The fastest settings found that learn the same, everything that was tried, and whether there was time for all.

    Args:
        config: where to start; its stage is a particular one, not `auto`.
        measure: gives rates.
        cores: of this machine.
        in_time: whether there is time for another kind of setting; later ones are left out.
    """
    best, trials = config, list[Trial]()
    # Threads that get into each other's way slow everything many times over: fewer are tried before anything else,
    # and in any case.
    for kind in (fewer_threads, stages, collections, more_threads):
        if kind is not fewer_threads and not in_time():
            return best, trials, False
        tried = _trials(best, list(kind(best, cores)), measure)
        trials += tried
        fastest = max(tried, key=lambda trial: trial.gain, default=None)
        if fastest is not None and fastest.gain > WORTH_IT:
            best = fastest.config
    return best, trials, True


def _trials(against: RunConfig, others: list[RunConfig], measure: Measure) -> list[Trial]:
    if not others:
        return []
    beat, *found = measure([against, *others])
    if isinstance(beat, UserError):
        raise beat
    return [
        Trial(config=other, against=against, found=rate, beat=beat) for other, rate in zip(others, found, strict=True)
    ]


def stages(config: RunConfig, cores: int) -> Iterator[RunConfig]:
    """Other places to step the same environments in, and other numbers of workers or of C++ threads."""
    if model_of(config.env):
        return
    counts = {max(1, cores // 2), cores, 2 * cores}
    if native_for(config.env):
        counts |= {config.num_workers or cores}
        yield from (
            replace(config, num_workers=count) for count in sorted(counts) if count != (config.num_workers or cores)
        )
        return
    if config.stage != "inline":
        yield replace(config, stage="inline", num_workers=0)
    per_group = config.num_envs // (2 if config.collect == "double" else 1)
    several: list[tuple[Stage, int]] = [
        ("workers", count) for count in sorted({largest_divisor(per_group, count) for count in counts})
    ]
    if (processes := largest_divisor(per_group, cores)) > 1:
        several.insert(0, ("joint", processes))
    for stage, count in several:
        if (config.stage, config.num_workers) != (stage, count):
            yield replace(config, stage=stage, num_workers=count)


def fewer_threads(config: RunConfig, cores: int) -> Iterator[RunConfig]:
    """Fewer threads for tensor operations."""
    yield from (replace(config, threads=count) for count in _thread_counts(cores) if count < _threads_of(config))


def more_threads(config: RunConfig, cores: int) -> Iterator[RunConfig]:
    """More threads for tensor operations, up to one a core."""
    yield from (replace(config, threads=count) for count in _thread_counts(cores) if count > _threads_of(config))


def _thread_counts(cores: int) -> list[int]:
    return sorted({1, max(1, cores // 2), cores})


def _threads_of(config: RunConfig) -> int:
    return config.threads or torch.get_num_threads()


def collections(config: RunConfig, cores: int) -> Iterator[RunConfig]:
    """Other ways to collect that teach the same."""
    for mode in ("sync", "double", *(() if minds_lag(config) else ("overlap",))):
        if mode != config.collect:
            yield from _if_valid(config, collect=mode, lag=1)


def beyond(config: RunConfig, cores: int) -> Iterator[RunConfig]:
    """Settings that may be faster and change what is learned: more actors, or rollouts from older weights.

    And compiled losses, which change its rounding, where compiling may pay and does not take minutes.
    """
    for factor in (2, 4):
        yield from _if_valid(config, num_envs=factor * config.num_envs)
    if config.collect != "overlap" and minds_lag(config):
        yield replace(config, collect="overlap")
    if not config.compile and isinstance(config.policy.network, Mlp) and config.policy.memory.memory == "none":
        yield replace(config, compile=True)


def minds_lag(config: RunConfig) -> bool:
    """Whether the algorithm takes its data to come from the weights that learn: neither corrected nor replayed."""
    return config.algo != "vtrace" and drawing_of(config.algorithm) is None


def _if_valid(config: RunConfig, **changes: Any) -> Iterator[RunConfig]:
    try:
        yield replace(config, **changes)
    except UserError:  # an odd number of actors has no halves
        return


def changed(before: RunConfig, after: RunConfig) -> dict[str, Any]:
    """The options that differ, with their values after; `num_workers` only where there are workers."""
    different = {name: getattr(after, name) for name in OPTIONS if getattr(after, name) != getattr(before, name)}
    if after.stage == "inline":
        different.pop("num_workers", None)
    return different


def words(before: RunConfig, after: RunConfig) -> str:
    """What to type behind `greenroom train …` to come from one to the other; "" for nothing."""
    different = changed(before, after).items()
    return " ".join(f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}") for name, value in different)
