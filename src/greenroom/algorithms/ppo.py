"""PPO: several epochs of minibatch updates on each rollout, held near the acting policy by clipping."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from greenroom.algorithms.actor_critic import advantage_of, explained_variance, standardise, steps_of
from greenroom.algorithms.parts import Parts, Saved
from greenroom.algorithms.rewards import Discounting, Rewards
from greenroom.algorithms.rows import Rows, check_minibatches, learn_normalisation, mean_metrics
from greenroom.compiling import compilable
from greenroom.errors import UserError
from greenroom.maths.losses import clipped_squared_error, clipped_surrogate, squared_error
from greenroom.optim import Adam, OptimizerConfig, Updater
from greenroom.policy import ActorCritic, PolicyConfig, Precision
from greenroom.seeding import generator
from greenroom.spec import EnvSpec
from greenroom.types import Rollout


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """Proximal policy optimisation (Schulman et al. 2017)."""

    epochs: int = 4
    """Passes over each rollout."""
    minibatches: int = 4
    """Updates per pass, on parts of the rollout's T·B steps (with a memory: of its B sequences) of even size."""
    clip: float = 0.2
    """The probability ratio counts only within 1 ± clip."""
    value_clip: float = 0.0
    """A new value counts only within ± this of the acting one, as in the authors' code; 0: without limit."""
    target_kl: float = 0.0
    """Leave out the rest of a rollout's updates once the policy has moved so far (KL, in nats); 0: never."""
    discounting: Discounting = Discounting()
    """Discount, λ and reward scale."""
    entropy_coef: float = 0.01
    """Weight of the entropy bonus."""
    value_coef: float = 1.0
    """Weight of the value loss `0.5·(R-V)²`."""
    standardise_advantage: bool = True
    """Bring the advantages of a minibatch to zero mean and unit standard deviation."""
    optimizer: OptimizerConfig = field(default_factory=Adam)
    """The optimiser."""

    def __post_init__(self) -> None:
        if min(self.epochs, self.minibatches) < 1 or self.clip <= 0:
            raise UserError("epochs and minibatches must be at least 1, and clip greater than 0")
        if self.value_clip < 0 or self.target_kl < 0:
            raise UserError(f"value_clip and target_kl must not be negative, not {self.value_clip}, {self.target_kl}")

    def policy(self, settings: PolicyConfig, spec: EnvSpec, precision: Precision) -> ActorCritic:
        """The kind of policy it teaches."""
        return ActorCritic(settings, spec, precision)

    def build(
        self, policy: ActorCritic, *, spec: EnvSpec, num_envs: int, rollout_length: int, total_steps: int, seed: int
    ) -> PPO:
        """The algorithm; `seed` orders the minibatches."""
        check_minibatches(self.minibatches, whole=policy.remembers, num_envs=num_envs, rollout_length=rollout_length)
        return PPO(self, policy, num_envs=num_envs, total_steps=total_steps, seed=seed)


class PPO(Saved):
    """Clipped policy gradient over epochs of minibatches."""

    def __init__(self, config: PPOConfig, policy: ActorCritic, *, num_envs: int, total_steps: int, seed: int) -> None:
        self.config, self.policy = config, policy
        self.rewards = Rewards(config.discounting, policy, num_envs)
        self.updater = Updater(config.optimizer, policy, num_envs=num_envs, total_steps=total_steps)
        self.updaters = (self.updater,)
        self._generator = generator(seed, "learning", device=next(policy.parameters()).device)
        self._parts = Parts(policy=policy, rewards=self.rewards, updater=self.updater, generator=self._generator)

    def learn(self, rollout: Rollout) -> dict[str, Tensor]:
        """Up to `epochs × minibatches` updates; returns their mean metrics, scalars on the device."""
        rate = self.updater.advance(rollout.reward.numel())
        value = rollout.extras["value"]
        advantage = advantage_of(rollout, self.policy, self.rewards, self.config.discounting.lam)
        target = value + advantage
        rows = steps_of(rollout, advantage=advantage, target=target, old_value=value)
        updates: list[dict[str, Tensor]] = []
        for _ in range(self.config.epochs):
            updates += [self._update(part) for part in rows.minibatches(self.config.minibatches, self._generator)]
            # Only those who ask for it wait for the device here.
            if self.config.target_kl and bool(updates[-1]["approx_kl"] > self.config.target_kl):
                break
        learn_normalisation(self.policy, rollout)
        return mean_metrics(updates) | {
            "learning_rate": rate,
            "explained_variance": explained_variance(rows["old_value"], rows["target"]),
        }

    def _update(self, rows: Rows) -> dict[str, Tensor]:
        loss, metrics = self._loss(rows)
        return metrics | {"grad_norm": self.updater.step(loss)}

    @compilable
    def _loss(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        config, advantage = self.config, rows["advantage"]
        distribution, value = self.policy.evaluate(rows.obs, rows.state, rows.cut)
        log_prob = distribution.log_prob(rows["sample"])
        weight = standardise(advantage) if config.standardise_advantage else advantage
        policy_loss = clipped_surrogate(log_prob, rows["old_log_prob"], weight, clip=config.clip)
        value_loss = (
            clipped_squared_error(value, rows["old_value"], rows["target"], clip=config.value_clip)
            if config.value_clip
            else squared_error(value, rows["target"])
        )
        entropy = distribution.entropy().mean()
        loss = policy_loss + config.value_coef * value_loss - config.entropy_coef * entropy
        with torch.no_grad():
            log_ratio = log_prob - rows["old_log_prob"]
            ratio = log_ratio.exp()
            return loss, {
                "policy_loss": policy_loss.detach(),
                "value_loss": value_loss.detach(),
                "entropy": entropy.detach(),
                # k3 estimator of KL(acting || current), Schulman 2020: unbiased and never negative.
                "approx_kl": (ratio - 1.0 - log_ratio).mean(),
                "clip_fraction": ((ratio - 1.0).abs() > config.clip).float().mean(),
            }
