"""The algorithms, and the one table that names them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from greenroom.algorithms.actor_critic import A2CConfig, VTraceConfig
from greenroom.algorithms.dqn import DQNConfig
from greenroom.algorithms.ppo import PPOConfig
from greenroom.algorithms.q_learning import NStepQConfig, NStepSarsaConfig, PQNConfig
from greenroom.algorithms.sac import SACConfig
from greenroom.algorithms.td3 import TD3Config
from greenroom.errors import UserError
from greenroom.optim import Updater
from greenroom.policy import Policy, PolicyConfig, Precision
from greenroom.spec import EnvSpec
from greenroom.types import Rollout


class Algorithm(Protocol):
    """Owns parameters, optimisers and whatever else learning needs.

    One that also has `updaters`, all its `Updater`s, lets its learning rate be changed while a run goes on.
    """

    @property
    def policy(self) -> Policy:
        """The module that acts and learns."""
        ...

    def learn(self, rollout: Rollout) -> dict[str, Tensor]:
        """Improve the policy by one rollout; returns scalar metrics on the device."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs; the policy's state under `policy`."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        ...


def updaters_of(algorithm: Algorithm) -> Sequence[Updater]:
    """Those that move the algorithm's parameters, at least one; the first has the learning rate that is reported.

    Raises:
        UserError: it is an algorithm of a user's own that does not tell them.
    """
    found: Sequence[Updater] = getattr(algorithm, "updaters", ())
    if not found:
        raise UserError(
            f"the learning rate of {type(algorithm).__qualname__} cannot be changed while it runs: it has no attribute "
            "`updaters` with its Updaters; see docs/extend.md"
        )
    return found


class AlgorithmConfig(Protocol):
    """What every algorithm's config offers: a frozen dataclass that builds both halves."""

    def policy(self, settings: PolicyConfig, spec: EnvSpec, precision: Precision) -> Any:
        """The `Policy` it teaches, on the CPU, drawn from torch's global generator.

        Raises:
            UserError: the settings or the environment's actions are not for this algorithm.
        """
        ...

    def build(
        self, policy: Any, *, spec: EnvSpec, num_envs: int, rollout_length: int, total_steps: int, seed: int
    ) -> Algorithm:
        """The `Algorithm` for that policy, on the policy's device."""
        ...


ALGORITHMS: dict[str, type[AlgorithmConfig]] = {
    "a2c": A2CConfig,
    "ppo": PPOConfig,
    "vtrace": VTraceConfig,
    "nstep-q": NStepQConfig,
    "nstep-sarsa": NStepSarsaConfig,
    "pqn": PQNConfig,
    "dqn": DQNConfig,
    "sac": SACConfig,
    "td3": TD3Config,
}
"""Name → config; the config builds the algorithm."""
