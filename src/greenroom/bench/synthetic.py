"""A simulator that does nothing but take a known time, in pure Python: what most users' simulators are made of."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

BUSY = "greenroom.bench.synthetic:Busy"
"""`Busy`, as `greenroom train` calls it."""
_EPISODE = 200
"""Steps after which an episode is truncated."""
_TRIALS = 7
_TRIAL_SECONDS = 0.01


class Busy(gymnasium.Env[NDArray[Any], np.int64]):
    """Counts to `loops` at every step. Observation: float32 `[8]`, or a picture of 28 KB, uint8 `[4, 84, 84]`."""

    def __init__(self, loops: int = 1000, picture: bool = False) -> None:
        shape, low, high, dtype = ((4, 84, 84), 0, 255, np.uint8) if picture else ((8,), -1, 1, np.float32)
        self.observation_space = gymnasium.spaces.Box(low, high, shape, dtype)
        self.action_space = gymnasium.spaces.Discrete(4)
        self._loops, self._age = loops, 0
        self._obs = np.zeros(shape, dtype)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        self._age = 0
        return self._obs.copy(), {}

    def step(self, action: np.int64) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        """Be busy, then show the same as ever."""
        spin(self._loops)
        self._age += 1
        return self._obs.copy(), 1.0, False, self._age == _EPISODE, {}


def spin(loops: int) -> int:
    """Arithmetic that the interpreter cannot leave out."""
    value = 1
    for _ in range(loops):
        value = (value * 1664525 + 1013904223) & 0xFFFFFFFF
    return value


def loops_for(seconds: float, clock: Callable[[], float] = time.perf_counter) -> int:
    """How many loops `spin` needs to take `seconds` on this machine, now: at least 1."""
    loops = 1000
    while (taken := _time(loops, clock)) < _TRIAL_SECONDS:
        loops *= 2
    rates = [loops / taken, *(loops / _time(loops, clock) for _ in range(_TRIALS - 1))]
    return max(1, round(seconds * statistics.median(rates)))


def _time(loops: int, clock: Callable[[], float]) -> float:
    begin = clock()
    spin(loops)
    return clock() - begin
