"""Exploration by random actions: less and less often, and not equally often by all actors."""

from __future__ import annotations

import math
from dataclasses import dataclass

from greenroom.errors import UserError
from greenroom.maths.schedules import linear_decay


@dataclass(frozen=True, kw_only=True)
class EpsilonGreedy:
    """Act at random with probability ε, else greedily."""

    epsilon_start: float = 1.0
    """ε of all actors at the beginning."""
    epsilon_final: tuple[float, ...] = (0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.5, 0.5, 0.5)
    """ε at the end: actor i has the one at i modulo their number. These are A3C's shares (Mnih et al. 2016)."""
    epsilon_fraction: float = 0.1
    """Share of the run's agent steps over which ε moves linearly from start to final."""

    def __post_init__(self) -> None:
        if not self.epsilon_final:
            raise UserError("epsilon_final must be one or more probabilities; give 0 to explore in no other way")
        for name, value in (
            ("epsilon_start", self.epsilon_start),
            ("epsilon_fraction", self.epsilon_fraction),
            *(("epsilon_final", final) for final in self.epsilon_final),
        ):
            if not 0.0 <= value <= 1.0:
                raise UserError(f"{name} must lie in [0, 1], not {value}")

    @property
    def start(self) -> tuple[float, ...]:
        """The ε of each kind of actor before the first step."""
        return self.at(0, 1)

    def at(self, env_steps: int, total_steps: int) -> tuple[float, ...]:
        """The ε of each kind of actor after `env_steps` of a run of `total_steps`."""
        horizon = math.ceil(self.epsilon_fraction * total_steps)
        left = linear_decay(env_steps, horizon) if horizon else 0.0
        return tuple(final + (self.epsilon_start - final) * left for final in self.epsilon_final)
