"""Environments that break a promise, for the tests of bad input. Loads no torch: worker processes import it."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from gym_envs import Counter, Spaces


def wrong_shape() -> gymnasium.Env[Any, Any]:
    """Declares two numbers and observes three."""

    class WrongShape(Counter):
        def step(self, action: Any) -> Any:
            return np.zeros(3, np.float32), *super().step(action)[1:]

    return WrongShape()


def gives_nan() -> gymnasium.Env[Any, Any]:
    """Observes NaN after two steps."""

    class GivesNan(Counter):
        def step(self, action: Any) -> Any:
            obs, *rest = super().step(action)
            obs[1] = np.nan if self.t == 2 else obs[1]
            return obs, *rest

    return GivesNan()


def nan_reward() -> gymnasium.Env[Any, Any]:
    """Pays NaN."""

    class NanReward(Counter):
        def step(self, action: Any) -> Any:
            obs, _, *rest = super().step(action)
            return obs, float("nan"), *rest

    return NanReward()


def observes_text() -> gymnasium.Env[Any, Any]:
    """Has an observation space that no network takes."""
    return Spaces(obs=spaces.Text(5))


def unbounded_action() -> gymnasium.Env[Any, Any]:
    """Has an action space without bounds."""
    return Spaces(action=spaces.Box(-np.inf, np.inf, (2,)))
