"""An environment that fails now and then, by its own random numbers. Loads no torch: worker processes import it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Flaky(gymnasium.Env[Any, Any]):
    """Three random numbers, episodes of 20 steps; each step pays 1, and goes wrong with probability `chance`.

    Args:
        fault: what goes wrong.
        chance: how often.
        log: a file that is told when, by the machine's monotonic clock.
    """

    observation_space = spaces.Box(-1.0, 1.0, (3,))
    action_space = spaces.Discrete(2)

    def __init__(self, fault: str = "raise", chance: float = 0.02, log: str = "") -> None:
        self.fault, self.chance, self.log, self.t, self.jammed = fault, chance, log, 0, False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if self.jammed and self.fault == "reset":
            raise ValueError("the conveyor stays jammed")
        self.t = 0
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        if self.np_random.random() >= self.chance:
            return self._observe(), 1.0, False, self.t >= 20, {}
        self.jammed = True
        if self.log:
            Path(self.log).write_text(repr(time.monotonic()))
        match self.fault:
            case "raise":
                raise ValueError("the conveyor jammed")
            case "nan":
                return np.full(3, np.nan, np.float32), 1.0, False, False, {}
            case "outside":
                return np.full(3, 7.0, np.float32), 1.0, False, False, {}
            case "shape":
                return np.zeros(4, np.float32), 1.0, False, False, {}
            case "reward":
                return self._observe(), float("inf"), False, False, {}
            case "reset":
                return self._observe(), 1.0, True, False, {}
            case "exit":
                os._exit(3)
            case "leave":
                sys.exit()
            case "hang":
                time.sleep(600)
        raise AssertionError(self.fault)

    def _observe(self) -> Any:
        return self.np_random.uniform(-1.0, 1.0, 3).astype(np.float32)


class NeverAgain(Flaky):
    """Once it has failed, no other of its kind can be reset."""

    broken = False

    def step(self, action: Any) -> Any:
        try:
            return super().step(action)
        except ValueError:
            type(self).broken = True
            raise

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if type(self).broken:
            raise RuntimeError("no licence left")
        return super().reset(seed=seed)


class Relapse(Flaky):
    """Once one has failed, the next attempts of its kind fail as well: in turn a reset, and being built at all."""

    relapses = 0
    """How many are still to come; one of them is used up by each attempt."""

    def __init__(self, *, relapses: int = 5, **given: Any) -> None:
        super().__init__(**given)
        self.ahead = relapses
        if type(self).relapses % 2:
            type(self).relapses -= 1
            raise RuntimeError("no licence left")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if type(self).relapses:
            type(self).relapses -= 1
            raise RuntimeError("the conveyor does not start")
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        try:
            return super().step(action)
        except ValueError:
            type(self).relapses = self.ahead
            raise


class FalseStart(Flaky):
    """Goes wrong in resets instead, with probability `chance`: raises, observes what is outside its space, or exits."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        start = super().reset(seed=seed, options=options)
        if self.np_random.random() >= self.chance or seed == 0:  # with 0 it is only looked at
            return start
        match self.fault:
            case "raise":
                raise ValueError("the conveyor does not start")
            case "outside":
                return np.full(3, 7.0, np.float32), {}
            case "exit":
                os._exit(3)
        raise AssertionError(self.fault)

    def step(self, action: Any) -> Any:
        self.t += 1
        return self._observe(), 1.0, False, self.t >= 20, {}
