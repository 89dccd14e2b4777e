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


def change_learning_rate(algorithm: Algorithm, *, to: float | None = None, by: float | None = None) -> float:
    """Change the learning rate that is in force; schedules go on from it, and all updaters keep their proportions.

    Args:
        algorithm: whose.
        to: the new rate, greater than 0.
        by: without `to`, what the rate is multiplied by, greater than 0.

    Returns:
        The new rate, of the first updater.

    Raises:
        UserError: the algorithm does not let it be changed, or the schedule has come to zero.
    """
    updaters = updaters_of(algorithm)
    now = updaters[0].learning_rate
    if now == 0.0:
        raise UserError("the schedule of the learning rate has come to zero; no factor makes it anything else")
    factor = to / now if to is not None else 1.0 if by is None else by
    for updater in updaters:
        updater.scale *= factor
    return updaters[0].learning_rate


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
