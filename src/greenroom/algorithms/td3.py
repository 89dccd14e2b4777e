"""TD3: one action for every state, improved through twin values that are learned from a replay."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from greenroom.algorithms.critics import CriticConfig, steady_adam
from greenroom.algorithms.parts import Parts, Saved
from greenroom.algorithms.replaying import Report
from greenroom.continuous import ContinuousPolicy, DeterministicHead, NoisyAction
from greenroom.errors import UserError
from greenroom.optim import OptimizerConfig, Updater
from greenroom.policy import PolicyConfig, Precision
from greenroom.seeding import generator
from greenroom.spec import EnvSpec
from greenroom.types import Rollout


@dataclass(frozen=True, kw_only=True)
class TD3Config:
    """Twin delayed deep deterministic policy gradient (Fujimoto et al. 2018). Noise is in half the action range."""

    critics: CriticConfig = field(default_factory=CriticConfig)
    """The state-action values and the replay."""
    exploration_noise: float = 0.1
    """Standard deviation of what is added to actions while training."""
    target_noise: float = 0.2
    """Standard deviation of what is added to the actions whose values are learned from."""
    target_noise_clip: float = 0.5
    """The most of it."""
    policy_delay: int = 2
    """Updates of the values for one of the policy and of the slow copies."""
    optimizer: OptimizerConfig = field(default_factory=steady_adam)
    """The optimiser of the policy and of the values: each has its own."""

    def __post_init__(self) -> None:
        if self.policy_delay < 1:
            raise UserError(f"policy_delay must be at least 1, not {self.policy_delay}")
        for name in ("exploration_noise", "target_noise", "target_noise_clip"):
            if not getattr(self, name) >= 0.0:  # NaN included
                raise UserError(f"{name} must not be negative, and is {getattr(self, name)}")

    def policy(self, settings: PolicyConfig, spec: EnvSpec, precision: Precision) -> ContinuousPolicy:
        """The kind of policy it teaches."""
        head = partial(DeterministicHead, noise=self.exploration_noise)
        return ContinuousPolicy(settings, spec, precision, algo="td3", head=head)

    def build(
        self,
        policy: ContinuousPolicy,
        *,
        spec: EnvSpec,
        num_envs: int,
        rollout_length: int,
        total_steps: int,
        seed: int,
    ) -> TD3:
        """The algorithm; `seed` is for the values' first weights, the replay's draws and the noise learned with."""
        return TD3(self, policy, spec=spec, num_envs=num_envs, total_steps=total_steps, seed=seed)


class TD3(Saved):
    """For every batch from the replay one step of the values; now and then one of the policy and the slow copies."""

    def __init__(
        self, config: TD3Config, policy: ContinuousPolicy, *, spec: EnvSpec, num_envs: int, total_steps: int, seed: int
    ) -> None:
        self.config, self.policy = config, policy
        device = policy.at_random.device
        self.critics = config.critics.build(
            policy, config.optimizer, spec=spec, num_envs=num_envs, total_steps=total_steps, seed=seed
        )
        self.target = config.critics.target.build(policy.actor)
        self._updater = Updater(config.optimizer, policy.actor, num_envs=num_envs, total_steps=total_steps)
        self.updaters = (self._updater, self.critics.updater)
        self._generator = generator(seed, "learning", device=device)
        self._report = Report("critic_loss", "q_mean", "grad_norm", "actor_loss", device=device)
        self._parts = Parts(
            policy=policy,
            critics=self.critics,
            target=self.target,
            updater=self._updater,
            generator=self._generator,
            report=self._report,
        )

    def learn(self, rollout: Rollout) -> dict[str, Tensor]:
        """The updates that are due; returns their mean metrics, scalars on the device, at first zeros."""
        rate, _ = [updater.advance(rollout.reward.numel()) for updater in self.updaters]
        metrics = self._report([self._update(number) for number in self.critics.take_in(rollout)])
        return metrics | {"learning_rate": rate, "replay_size": torch.tensor(float(len(self.critics.replay)))}

    def _update(self, number: int) -> dict[str, Tensor]:
        config, samples = self.config, self.critics.draw()
        with torch.no_grad():
            best: NoisyAction = self.target.network(samples.next_inputs)
            near = replace(best, noise=config.target_noise, clip=config.target_noise_clip).sample(self._generator)
            next_value = self.critics.target.network(samples.next_inputs, near).amin(0)
        metrics = self.critics.update(samples, next_value)
        if (number + 1) % config.policy_delay:
            return metrics

        decided: NoisyAction = self.policy.actor(samples.inputs)
        actor_loss = -self.critics.of_action(samples.inputs, decided.mode())[0].mean()
        self._updater.step(actor_loss)
        self.critics.target.follow()
        self.target.follow()
        return metrics | {"actor_loss": actor_loss.detach()}
