"""Environments that fail: what the user wants done about it, and what is remembered to tell how it came about.

Loads no torch, so that worker processes do not.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from greenroom.envs.spaces import Array
from greenroom.errors import EnvironmentFault, Fault, UserError

_TRAIL_BYTES = 16 << 20
"""Memory for a stage's last actions. The system hands it out as it is written."""
_TRAIL_STEPS = (256, 65_536)
"""The fewest and the most steps that are remembered, whatever that takes."""


@dataclass(frozen=True, kw_only=True)
class FaultConfig:
    """What to do about environments that raise, hang, die or break their contract. docs/operations.md: which can."""

    on_env_error: Literal["stop", "restart"] = "stop"
    """Stop the run, or restart the environment and drop what its unfinished episode would still have taught."""
    max_env_restarts: int = 100
    """Failures in one sitting that `restart` puts up with; the next one stops the run."""
    step_timeout: float = 120.0
    """Seconds that one step of one environment may take; 0: for ever. In workers only: nothing else ends a step."""
    reset_timeout: float = 300.0
    """The same for one reset, and for building one environment."""
    check_bounds: bool = True
    """Whether an observation outside the bounds of its space is a failure."""

    def __post_init__(self) -> None:
        if self.max_env_restarts < 0:
            raise UserError(f"max_env_restarts must not be negative, and is {self.max_env_restarts}")
        for name in ("step_timeout", "reset_timeout"):
            if not 0.0 <= getattr(self, name) < float("inf"):  # NaN included
                raise UserError(f"{name} must be a finite number of at least 0, not {getattr(self, name)}")

    @property
    def restarts(self) -> bool:
        """Whether failed environments are started anew."""
        return self.on_env_error == "restart"

    @property
    def limited(self) -> bool:
        """Whether other time limits than by default were asked for: they call for workers."""
        return (self.step_timeout, self.reset_timeout) != (BY_DEFAULT.step_timeout, BY_DEFAULT.reset_timeout)


BY_DEFAULT = FaultConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What whoever mended a failure tells of it: the process that owns the environment, or the parent of a lost one."""

    index: int
    what: str
    traceback: str
    seeds: dict[int, int]
    """What each environment that was started anew got."""


def report_of(error: EnvironmentFault, index: int, seed: int) -> Report:
    """The report of an exception; `seed` is that of the new environment."""
    return Report(index=index, what=str(error), traceback=traceback_of(error), seeds={index: seed})


def traceback_of(error: EnvironmentFault) -> str:
    """The environment's own traceback; empty if it did not raise."""
    if error.own_traceback is not None:
        return error.own_traceback
    cause = error.__cause__
    return "" if cause is None else "".join(traceback.format_exception(cause)).strip("\n") + "\n"


def next_seed(seed: int) -> int:
    """What an environment is started anew with: 31 bits, because that is what simulators take."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0] >> 1)


class Tolerance:
    """Counts the failures that are mended.

    Args:
        limit: how many may be.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self.failures = limit, 0

    def count(self, fault: Fault, *, mended: Sequence[Fault] = ()) -> None:
        """One more.

        Args:
            fault: what failed.
            mended: what else did and nobody has heard of yet, should this one end the run.

        Raises:
            EnvironmentFault: it was one too many.
        """
        self.failures += 1
        if self.failures > self._limit:
            limit = f"max_env_restarts is {self._limit}"
            message = f"{fault.what}; that is failure number {self.failures} of this sitting, {limit}"
            error = EnvironmentFault(message, index=fault.index, fault=fault)
            error.mended = tuple(mended)
            raise error


class History:
    """Seeds, last actions and failures of a stage's B environments.

    Args:
        action: the board's actions, `[B, ...]`.
        limit: how many failures may pass.
    """

    def __init__(self, action: Array, limit: int) -> None:
        self._action, self._tolerance = action, Tolerance(limit)
        fewest, most = _TRAIL_STEPS
        length = min(max(_TRAIL_BYTES // action.nbytes, fewest), most)
        self._trail = np.empty((length, *action.shape), action.dtype)
        self._time = 0
        self._seeds: list[int | None] = [None] * len(action)
        self._since = [0] * len(action)
        self._finished = [0] * len(action)

    def seeded(self, index: int, seed: int | None) -> None:
        """Environment number `index` starts from a seed now, or goes on from a checkpoint (None)."""
        self._seeds[index], self._since[index], self._finished[index] = seed, self._time, 0

    def finished(self, indices: Iterable[int]) -> None:
        """These environments have each finished an episode."""
        for index in indices:
            self._finished[index] += 1

    def acted(self) -> None:
        """The actions on the board are about to be taken."""
        self._trail[self._time % len(self._trail)] = self._action
        self._time += 1

    def seeds(self, indices: Iterable[int]) -> dict[int, int]:
        """With what to start these environments anew."""
        return {index: next_seed(index if (seed := self._seeds[index]) is None else seed) for index in indices}

    def fault(self, index: int, what: str, trace: str, *, step: int, restarted: tuple[int, ...] = ()) -> Fault:
        """What is to be told of a failure; see `Fault`.

        Raises:
            EnvironmentFault: the environment was restarted, and that was once too often.
        """
        steps = self._time - self._since[index]
        reach = range(self._time - min(steps, len(self._trail)), self._time)
        actions = tuple(self._trail[time % len(self._trail), index].tolist() for time in reach)
        fault = Fault(
            what=what,
            traceback=trace,
            index=index,
            episode=self._finished[index],
            step=min(step, steps),  # one that failed again in the reset has taken none
            seed=self._seeds[index],
            steps=steps,
            actions=actions,
            restarted=restarted,
        )
        if restarted:
            self._tolerance.count(fault)
        return fault
