"""Gymnasium environments for tests of an ability: `greenroom train greenroom.envs.tasks:NAME`.

Loads no torch, so that worker processes do not.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces, wrappers
from numpy.typing import NDArray

_POSITION_AND_ANGLE = [0, 2]  # of position, velocity, angle, angular velocity


def cartpole_without_velocity(
    render_mode: str | None = None, max_episode_steps: int | None = None
) -> gymnasium.Env[Any, Any]:
    """CartPole-v1 that shows where cart and pole are, but not how fast they move: solvable only with a memory.

    Args:
        render_mode: How it draws itself; Gymnasium's own.
        max_episode_steps: Steps until truncation; 500 by default, as in CartPole-v1.
    """
    env = gymnasium.make(
        "CartPole-v1", render_mode=render_mode, max_episode_steps=max_episode_steps, disable_env_checker=True
    )
    whole = env.observation_space
    assert isinstance(whole, spaces.Box)
    shown = spaces.Box(whole.low[_POSITION_AND_ANGLE], whole.high[_POSITION_AND_ANGLE], dtype=np.float32)
    return wrappers.TransformObservation(env, _without_velocity, shown)


def _without_velocity(observation: NDArray[np.float32]) -> NDArray[np.float32]:
    return observation[_POSITION_AND_ANGLE]
