"""CartPole as batched tensor code: Gymnasium's CartPole-v1 (Barto, Sutton & Anderson 1983), thousands at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from greenroom.envs.model import State, Transition
from greenroom.errors import UserError
from greenroom.spec import ArraySpec, Discrete, EnvSpec

_GRAVITY, _CART_MASS, _POLE_MASS, _HALF_LENGTH = 9.8, 1.0, 0.1, 0.5
_TOTAL_MASS, _POLE_MOMENT = _CART_MASS + _POLE_MASS, _POLE_MASS * _HALF_LENGTH
_FORCE, _SECONDS = 10.0, 0.02
_FARTHEST, _STEEPEST = 2.4, math.radians(12)
_START = 0.05


@dataclass(frozen=True, kw_only=True)
class CartPole:
    """Push a cart left or right so that the pole on it stays up; the reward is 1 for every step."""

    horizon: int = 500
    """Steps until an episode is truncated; 0 for never."""

    def __post_init__(self) -> None:
        if not isinstance(self.horizon, int) or self.horizon < 0:
            raise UserError(f"cartpole: horizon must be a whole number, 0 or more, not {self.horizon!r}")

    @property
    def spec(self) -> EnvSpec:
        """Observation: position, velocity, angle, angular velocity (m, s, rad). Action: push left (0) or right (1)."""
        return EnvSpec(name="cartpole", obs=ArraySpec(shape=(4,)), action=Discrete(n=2))

    @property
    def terminates(self) -> bool:
        """The pole may fall, the cart may leave the track."""
        return True

    def initial(self, num_envs: int, generator: torch.Generator, device: torch.device) -> State:
        """State: `motion` float32 `[B, 4]`, uniform within ±0.05."""
        drawn = torch.rand(num_envs, 4, generator=generator, device=device)
        return {"motion": (2 * drawn - 1) * _START}

    def step(self, state: State, action: Tensor, generator: torch.Generator) -> Transition:
        """One Euler step of 0.02 s; terminates beyond ±2.4 m or ±12°. Nothing is random."""
        position, velocity, angle, spin = state["motion"].unbind(1)
        force = (2 * action - 1) * _FORCE
        sine, cosine = angle.sin(), angle.cos()
        push = (force + _POLE_MOMENT * spin.square() * sine) / _TOTAL_MASS
        inertia = _HALF_LENGTH * (4.0 / 3.0 - _POLE_MASS * cosine.square() / _TOTAL_MASS)
        spin_rate = (_GRAVITY * sine - cosine * push) / inertia
        velocity_rate = push - _POLE_MOMENT * spin_rate * cosine / _TOTAL_MASS
        rate = torch.stack([velocity, velocity_rate, spin, spin_rate], dim=1)
        motion = state["motion"] + _SECONDS * rate
        fallen = (motion[:, 0].abs() > _FARTHEST) | (motion[:, 2].abs() > _STEEPEST)
        return Transition(state={"motion": motion}, reward=torch.ones_like(position), terminated=fallen, signals={})

    def observe(self, state: State) -> Tensor:
        """float32 `[B, 4]`."""
        return state["motion"]
