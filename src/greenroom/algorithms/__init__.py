"""The algorithms, and the one table that names them."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from greenroom.algorithms.actor_critic import A2CConfig, PPOConfig
from greenroom.policy import ActorCritic
from greenroom.types import Rollout

AlgorithmConfig = A2CConfig | PPOConfig

ALGORITHMS: dict[str, type[A2CConfig] | type[PPOConfig]] = {"a2c": A2CConfig, "ppo": PPOConfig}
"""Name → config; the config builds the algorithm."""


class Algorithm(Protocol):
    """Owns parameters, optimisers and whatever else learning needs."""

    @property
    def policy(self) -> ActorCritic:
        """The module that acts and learns."""
        ...

    def learn(self, rollout: Rollout) -> dict[str, Tensor]:
        """Improve the policy by one rollout; returns scalar metrics on the device."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        ...
