"""Runs that are kept between measurements, because starting one may take longer than measuring it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import torch

from greenroom import measure
from greenroom.config import RunConfig
from greenroom.errors import UserError
from greenroom.measure import Rate, Work, interleaved
from greenroom.threads import limited


@dataclass(frozen=True, slots=True)
class _Care:
    """How thoroughly something is measured, in shares of the time given."""

    seconds: float
    """Of each run."""
    repeats: int
    """Slices that these are divided into."""
    at_most: float
    """All runs together: no slice is begun after so long."""


_ALONE, _TRIAL, _VERDICT = _Care(0.03, 4, 0.2), _Care(0.015, 3, 0.1), _Care(0.045, 6, 0.3)
_STEADY = _Care(0.1, 4, 0.15)
_GLANCE = _Care(0.0, 1, 0.0)
_LAST_START = 0.7
"""Share of the time given after which nothing is started any more that can be left out."""
_LONGEST_UPDATE = 0.01
"""Share of the time given that one update may take."""


class OpenRuns:
    """A context manager; within, the rates of runs measured in turn.

    Args:
        seconds: about how long all measurements of one diagnosis may take.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._begin = seconds, time.monotonic()
        self._open: dict[str, tuple[Work, int]] = {}

    def __enter__(self) -> OpenRuns:
        """Nothing is open yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close every run."""
        self._close(list(self._open))

    def alone(self, config: RunConfig) -> dict[str, Rate]:
        """Rates of `single` simulator, `environment`, `learner` and the `own` run, in turn.

        Raises:
            UserError: one of them cannot be built.
        """
        works = {
            "single": measure.single(config.env, config.env_kwargs),
            "environment": measure.environment(config),
            "learner": measure.learner(config),
            "own": self._work(config),
        }
        return self._measure(works, _ALONE)

    def trial(self, configs: Sequence[RunConfig]) -> list[Rate | UserError]:
        """Rates of whole runs, in turn; an error for one that cannot be built. The first and the fastest stay open."""
        rates = self._rates(configs, _TRIAL)
        fastest = max(range(len(rates)), key=lambda place: _speed(rates[place]))
        self._close(set(self._open) - {_key(configs[0]), _key(configs[fastest])})
        return rates

    def verdict(self, needed: Sequence[RunConfig], others: Sequence[RunConfig]) -> list[Rate | UserError]:
        """The same, measured longer; of `others` those that there is time to start."""
        return self._rates([*needed, *others], _VERDICT, needed=len(needed))

    def steady(self, config: RunConfig) -> Rate:
        """The rate of one run once no other is in its way: measured longest, all others are closed."""
        self._close(set(self._open) - {_key(config)})
        return self._measure({"it": self._work(config)}, _STEADY)["it"]

    @property
    def elapsed(self) -> float:
        """Share of the time given that has passed."""
        return (time.monotonic() - self._begin) / self._seconds

    def measurable(self, config: RunConfig) -> tuple[RunConfig, str]:
        """The run, or where its updates take too long one with shorter rollouts, and in words what is shorter.

        Fewer minibatches of the same size cost an agent step as much. Without minibatches there is no such way.
        """
        shorter = [config, *_shortened(config)]
        if len(shorter) == 1:
            return config, ""
        [rate] = self._rates(shorter[-1:], _GLANCE)
        if isinstance(rate, UserError):
            raise rate
        longest = _LONGEST_UPDATE * self._seconds * rate.steps_per_second
        fit = next((one for one in shorter if one.steps_per_update <= longest), shorter[-1])
        if fit == config:
            return config, ""
        algorithm: Any = fit.algorithm
        update = config.steps_per_update / rate.steps_per_second
        return fit, (
            f"{algorithm.minibatches} minibatches of {fit.rollout_length} steps an actor, because one of your updates "
            f"takes {update:.1f} s"
        )

    def settled(self, config: RunConfig) -> RunConfig:
        """The run with the number of threads that it takes by itself, where it was not told one."""
        if config.threads:
            return config
        alike = replace(config, collect="sync", lag=1)  # of `overlap`, the learner has one thread fewer
        self._work(alike)
        return replace(config, threads=self._open[_key(alike)][1])

    def _rates(self, configs: Sequence[RunConfig], care: _Care, needed: int | None = None) -> list[Rate | UserError]:
        works: dict[str, Work] = {}
        problems: dict[str, UserError] = {}
        for place, config in enumerate(configs):
            try:
                if needed is not None and place >= needed and self.elapsed > _LAST_START:
                    raise UserError("no time was left to try it")
                works[repr(config)] = self._work(config)
            except UserError as problem:
                problems[repr(config)] = problem
        rates = self._measure(works, care)
        found: dict[str, Rate | UserError] = {**rates, **problems}
        return [found[repr(config)] for config in configs]

    def _measure(self, works: dict[str, Work], care: _Care) -> dict[str, Rate]:
        given = self._seconds
        return interleaved(works, seconds=care.seconds * given, repeats=care.repeats, at_most=care.at_most * given)

    def _work(self, config: RunConfig) -> Work:
        """A run's work; closing it leaves the run open."""
        key = _key(config)
        if key not in self._open:
            with limited(torch.get_num_threads()):
                work = measure.whole(config)
                next(work)
                self._open[key] = work, torch.get_num_threads()
        work, threads = self._open[key]
        if config.collect != "overlap":
            threads = config.threads or threads
        return _lent(work, threads)

    def _close(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._open.pop(key)[0].close()


def _lent(work: Work, threads: int) -> Work:
    while True:
        torch.set_num_threads(threads)
        yield next(work)


def _key(config: RunConfig) -> str:
    """Runs that differ in their threads alone are the same run, unless the learner has not all of them."""
    return repr(config if config.collect == "overlap" else replace(config, threads=0))


def _speed(rate: Rate | UserError) -> float:
    return rate.steps_per_second if isinstance(rate, Rate) else 0.0


def _shortened(config: RunConfig) -> list[RunConfig]:
    """The run with ever shorter rollouts in ever fewer minibatches of the same size."""
    algorithm: Any = config.algorithm
    minibatches = getattr(algorithm, "minibatches", 1)
    if config.policy.memory.memory != "none":  # minibatches are of whole sequences then
        return []
    found: list[RunConfig] = []
    for count in range(minibatches - 1, 0, -1):
        length, rest = divmod(config.rollout_length * count, minibatches)
        if rest == 0:
            found.append(replace(config, rollout_length=length, algorithm=replace(algorithm, minibatches=count)))
    return found
