"""Environments that fall ill when they are told to: what `diseases.py` trains on.

`OUTBREAK` names what they suffer from now. They live in the process that trains, or it would not reach them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import gymnasium
import torch
from torch import Tensor

from greenroom.envs.device import DEVICE_ENVIRONMENTS
from greenroom.envs.lost_sales import LostSales
from greenroom.envs.model import State, Transition

OUTBREAK = {"disease": ""}
"""`nan reward`, `flipped reward`, `huge reward`, `frozen observations`, `dead actor`; empty: all are well."""
VICTIM = 3
"""The actor that dies."""
_born = {"count": 0}


def nobody_is_born() -> None:
    """Before a run's environments are built: so that exactly one of them is the victim."""
    _born["count"] = 0


class Patient(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Any Gymnasium environment."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.number = _born["count"]
        _born["count"] += 1
        self.seen: Any = None

    def reset(self, **given: Any) -> Any:
        obs, info = self.env.reset(**given)
        return self._see(obs), info

    def _see(self, obs: Any) -> Any:
        dead = OUTBREAK["disease"] == "dead actor" and self.number == VICTIM
        if self.seen is None or not (dead or OUTBREAK["disease"] == "frozen observations"):
            self.seen = obs
        return self.seen

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = self.env.step(action)
        if OUTBREAK["disease"] == "dead actor" and self.number == VICTIM:
            return self._see(obs), 0.0, False, False, info
        return self._see(obs), ill(float(reward)), terminated, truncated, info


def ill(reward: Any) -> Any:
    """What becomes of a reward, or of a tensor of them."""
    return {"nan reward": math.nan, "flipped reward": -1.0, "huge reward": 1000.0}.get(
        OUTBREAK["disease"], 1.0
    ) * reward


def gym(env_id: str) -> gymnasium.Env[Any, Any]:
    """A patient of this kind."""
    return Patient(gymnasium.make(env_id))


class PatientModel:
    """Lost sales, as tensors."""

    def __init__(self) -> None:
        self.inner = LostSales()
        self.spec, self.horizon, self.terminates = self.inner.spec, self.inner.horizon, self.inner.terminates
        self._seen: Tensor | None = None

    def initial(self, num_envs: int, generator: torch.Generator, device: torch.device) -> State:
        return self.inner.initial(num_envs, generator, device)

    def step(self, state: State, action: Tensor, generator: torch.Generator) -> Transition:
        transition = self.inner.step(state, action, generator)
        reward = ill(transition.reward)
        if OUTBREAK["disease"] == "dead actor":
            reward = reward.clone()
            reward[VICTIM] = 0.0
        return dataclasses.replace(transition, reward=reward)

    def observe(self, state: State) -> Tensor:
        obs = self.inner.observe(state)
        if self._seen is not None and self._seen.shape == obs.shape:
            if OUTBREAK["disease"] == "frozen observations":
                return self._seen
            if OUTBREAK["disease"] == "dead actor":
                obs = obs.clone()
                obs[VICTIM] = self._seen[VICTIM]
        self._seen = obs
        return obs


DEVICE_ENVIRONMENTS["lost-sales-patients"] = PatientModel
