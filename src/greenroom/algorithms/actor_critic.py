"""Advantage actor-critic: A2C learns from each rollout once, V-trace does when the rollout comes from older weights."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from greenroom.algorithms.parts import Parts, Saved
from greenroom.algorithms.rewards import Discounting, Rewards
from greenroom.algorithms.rows import Rows, learn_normalisation, rows_of
from greenroom.compiling import compilable
from greenroom.errors import UserError
from greenroom.maths.losses import policy_gradient, squared_error
from greenroom.maths.returns import gae, vtrace, vtrace_advantage
from greenroom.optim import OptimizerConfig, RMSprop, Updater
from greenroom.policy import ActorCritic, PolicyConfig, Precision
from greenroom.spec import EnvSpec
from greenroom.types import Rollout, map_obs


def next_values(rollout: Rollout, policy: ActorCritic, value: Tensor) -> Tensor:
    """Value of every step's true successor, float `[T, B]`, from the values `[T, B]` of what was acted on."""
    last = policy.value(map_obs(lambda part: part[-1], rollout.obs), rollout.next_state)
    return rollout.bootstrap(torch.cat([value, last.unsqueeze(0)]), policy.value)


def advantage_of(rollout: Rollout, policy: ActorCritic, rewards: Rewards, lam: float) -> Tensor:
    """Generalised advantage, float `[T, B]`, over the values that the acting weights gave."""
    reward, discount = rewards(rollout)
    value = rollout.extras["value"]
    return gae(reward, discount, rollout.cut, value, next_values(rollout, policy, value), lam=lam)


def steps_of(rollout: Rollout, **more: Tensor) -> Rows:
    """What to learn from: the steps with what an actor-critic's loss asks for, and `more`; dropped ones are left out.

    If the policy has a memory, whole sequences.
    """
    return _all_steps_of(rollout, **more).without(rollout.dropped)


def _all_steps_of(rollout: Rollout, **more: Tensor) -> Rows:
    sample, log_prob = rollout.extras["sample"], rollout.extras["log_prob"]
    return rows_of(rollout, whole=bool(rollout.state), sample=sample, old_log_prob=log_prob, **more)


def standardise(advantage: Tensor) -> Tensor:
    """Zero mean and unit standard deviation over all elements; a single one becomes zero."""
    return (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)


def explained_variance(value: Tensor, target: Tensor) -> Tensor:
    """`1 - Var(target - value) / Var(target)`: 1 is a perfect critic, 0 one that knows only the mean."""
    return 1.0 - (target - value).var(correction=0) / (target.var(correction=0) + 1e-8)


def loss_of(
    config: A2CConfig | VTraceConfig,
    log_prob: Tensor,
    entropy: Tensor,
    value: Tensor,
    advantage: Tensor,
    target: Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The actor-critic loss.

    Args:
        config: weights of the loss's terms.
        log_prob: of the actions taken, float `[N]`, differentiable, as the next two.
        entropy: of the policy.
        value: of what was acted on.
        advantage: float `[N]`.
        target: of the value, float `[N]`.

    Returns:
        The loss, and scalar metrics.
    """
    policy_loss = policy_gradient(log_prob, standardise(advantage) if config.standardise_advantage else advantage)
    value_loss = squared_error(value, target)
    mean_entropy = entropy.mean()
    loss = policy_loss + config.value_coef * value_loss - config.entropy_coef * mean_entropy
    return config.loss_scale * loss, {
        "policy_loss": policy_loss.detach(),
        "value_loss": value_loss.detach(),
        "entropy": mean_entropy.detach(),
        "explained_variance": explained_variance(value.detach(), target),
    }


@dataclass(frozen=True, kw_only=True)
class A2CConfig:
    """Advantage actor-critic: one update per rollout (Mnih et al. 2016, synchronous; PAAC, Clemente et al. 2017)."""

    discounting: Discounting = Discounting(lam=1.0)
    """Discount, λ and reward scale."""
    entropy_coef: float = 0.01
    """Weight of the entropy bonus."""
    value_coef: float = 0.5
    """Weight of the value loss `0.5·(R-V)²`."""
    loss_scale: float = 1.0
    """Multiplies the whole loss, before gradients are clipped."""
    standardise_advantage: bool = False
    """Bring the advantages of an update to zero mean and unit standard deviation."""
    optimizer: OptimizerConfig = field(default_factory=RMSprop)
    """The optimiser."""

    def policy(self, settings: PolicyConfig, spec: EnvSpec, precision: Precision) -> ActorCritic:
        """The kind of policy it teaches."""
        return ActorCritic(settings, spec, precision)

    def build(
        self, policy: ActorCritic, *, spec: EnvSpec, num_envs: int, rollout_length: int, total_steps: int, seed: int
    ) -> A2C:
        """The algorithm. `seed` is not used: it draws nothing."""
        return A2C(self, policy, num_envs=num_envs, total_steps=total_steps)


class A2C(Saved):
    """One gradient step on all of a rollout, then the rollout is forgotten."""

    def __init__(self, config: A2CConfig, policy: ActorCritic, *, num_envs: int, total_steps: int) -> None:
        self.config, self.policy = config, policy
        self.rewards = Rewards(config.discounting, policy, num_envs)
        self.updater = Updater(config.optimizer, policy, num_envs=num_envs, total_steps=total_steps)
        self.updaters = (self.updater,)
        self._parts = Parts(policy=policy, rewards=self.rewards, updater=self.updater)

    def learn(self, rollout: Rollout) -> dict[str, Tensor]:
        """One update; returns scalars on the device. The advantage rests on the values that the acting weights gave."""
        rate = self.updater.advance(rollout.reward.numel())
        advantage = advantage_of(rollout, self.policy, self.rewards, self.config.discounting.lam)
        loss, metrics = self._loss(steps_of(rollout, advantage=advantage, target=rollout.extras["value"] + advantage))
        grad_norm = self.updater.step(loss)
        learn_normalisation(self.policy, rollout)
        return metrics | {"grad_norm": grad_norm, "learning_rate": rate}

    @compilable
    def _loss(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        distribution, value = self.policy.evaluate(rows.obs, rows.state, rows.cut)
        log_prob, entropy = distribution.log_prob(rows["sample"]), distribution.entropy()
        return loss_of(self.config, log_prob, entropy, value, rows["advantage"], rows["target"])


@dataclass(frozen=True, kw_only=True)
class VTraceConfig:
    """Actor-critic on rollouts from older weights, corrected by V-trace (IMPALA, Espeholt et al. 2018)."""

    discounting: Discounting = Discounting(lam=1.0)
    """Discount, λ and reward scale."""
    rho_max: float = 1.0
    """ρ̄: a step's own error counts at most so many times its probability's ratio."""
    c_max: float = 1.0
    """c̄: the same for how far errors reach back."""
    entropy_coef: float = 0.01
    """Weight of the entropy bonus."""
    value_coef: float = 0.5
    """Weight of the value loss `0.5·(v-V)²`."""
    loss_scale: float = 1.0
    """Multiplies the whole loss, before gradients are clipped."""
    standardise_advantage: bool = False
    """Bring the advantages of an update to zero mean and unit standard deviation."""
    optimizer: OptimizerConfig = field(default_factory=RMSprop)
    """The optimiser."""

    def __post_init__(self) -> None:
        if not (self.c_max > 0.0 and self.rho_max > 0.0):
            raise UserError(f"rho_max and c_max must be greater than 0, not {self.rho_max} and {self.c_max}")

    def policy(self, settings: PolicyConfig, spec: EnvSpec, precision: Precision) -> ActorCritic:
        """The kind of policy it teaches."""
        return ActorCritic(settings, spec, precision)

    def build(
        self, policy: ActorCritic, *, spec: EnvSpec, num_envs: int, rollout_length: int, total_steps: int, seed: int
    ) -> VTrace:
        """The algorithm. `seed` is not used: it draws nothing."""
        return VTrace(self, policy, num_envs=num_envs, total_steps=total_steps)


class VTrace(Saved):
    """A2C's step, with advantages and targets that allow for the weights having moved on since the rollout."""

    def __init__(self, config: VTraceConfig, policy: ActorCritic, *, num_envs: int, total_steps: int) -> None:
        self.config, self.policy = config, policy
        self.rewards = Rewards(config.discounting, policy, num_envs)
        self.updater = Updater(config.optimizer, policy, num_envs=num_envs, total_steps=total_steps)
        self.updaters = (self.updater,)
        self._parts = Parts(policy=policy, rewards=self.rewards, updater=self.updater)

    def learn(self, rollout: Rollout) -> dict[str, Tensor]:
        """One update; returns scalars on the device. The values are those of the weights that learn."""
        config = self.config
        rate = self.updater.advance(rollout.reward.numel())
        reward, discount = self.rewards(rollout)
        rows = _all_steps_of(rollout)
        log_prob, entropy, new_value = self._look(rows)
        shape = reward.shape
        ratio = (log_prob.detach() - rows["old_log_prob"]).exp().view(shape)
        value = new_value.detach().view(shape)
        next_value = next_values(rollout, self.policy, value)
        error = vtrace(
            reward,
            discount,
            rollout.cut,
            value,
            next_value,
            ratio,
            lam=config.discounting.lam,
            rho_max=config.rho_max,
            c_max=config.c_max,
        )
        target = value + error
        advantage = vtrace_advantage(reward, discount, rollout.cut, value, next_value, ratio, target, config.rho_max)
        steps = (log_prob, entropy, new_value, advantage.flatten(), target.flatten())
        loss, metrics = self._loss(*map(rollout.kept, steps))
        grad_norm = self.updater.step(loss)
        learn_normalisation(self.policy, rollout)
        return metrics | {
            "grad_norm": grad_norm,
            "learning_rate": rate,
            "ratio_mean": ratio.mean(),
            "ratio_max": ratio.max(),
        }

    @compilable
    def _look(self, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probability of what was done, entropy and value, float `[N]`, by the weights that learn."""
        distribution, value = self.policy.evaluate(rows.obs, rows.state, rows.cut)
        return distribution.log_prob(rows["sample"]), distribution.entropy(), value

    @compilable
    def _loss(
        self, log_prob: Tensor, entropy: Tensor, value: Tensor, advantage: Tensor, target: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return loss_of(self.config, log_prob, entropy, value, advantage, target)
