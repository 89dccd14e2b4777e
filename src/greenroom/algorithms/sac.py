"""Soft actor-critic: bounded continuous actions, learned from a replay, as random as the reward allows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from greenroom.algorithms.critics import CriticConfig, steady_adam
from greenroom.algorithms.parts import Parts, Saved
from greenroom.algorithms.replaying import Report
from greenroom.continuous import ContinuousPolicy, GaussianHead, TanhGaussian
from greenroom.errors import UserError
from greenroom.optim import OptimizerConfig, Updater
from greenroom.policy import PolicyConfig, Precision
from greenroom.seeding import generator
from greenroom.spec import EnvSpec
from greenroom.types import Obs, Rollout


@dataclass(frozen=True, kw_only=True)
class SACConfig:
    """Soft actor-critic with twin values and an automatic temperature (Haarnoja et al. 2018, arXiv 1812.05905)."""

    critics: CriticConfig = field(default_factory=CriticConfig)
    """The state-action values and the replay."""
    temperature: float = 1.0
    """α, the worth of a nat of entropy; what it starts with, if it is learned."""
    learn_temperature: bool = True
    """Let the temperature move so that the policy keeps `target_entropy`."""
    target_entropy: float = -1.0
    """Entropy aimed at, in nats per dimension of the action, on [-1, 1], where uniform draws have log 2 = 0.69."""
    optimizer: OptimizerConfig = field(default_factory=steady_adam)
    """The optimiser of the policy, of the values and of the temperature: each has its own."""

    def __post_init__(self) -> None:
        if not 0.0 < self.temperature < math.inf:  # NaN included
            raise UserError(f"temperature must be a finite number greater than 0, not {self.temperature}")
        if not -math.inf < self.target_entropy < math.log(2.0):
            raise UserError(f"target_entropy must be less than log 2 = 0.693, not {self.target_entropy}")

    def policy(self, settings: PolicyConfig, spec: EnvSpec, precision: Precision) -> ContinuousPolicy:
        """The kind of policy it teaches."""
        return ContinuousPolicy(settings, spec, precision, algo="sac", head=GaussianHead)

    def build(
        self,
        policy: ContinuousPolicy,
        *,
        spec: EnvSpec,
        num_envs: int,
        rollout_length: int,
        total_steps: int,
        seed: int,
    ) -> SAC:
        """The algorithm; `seed` is for the values' first weights, the replay's draws and the actions learned with."""
        return SAC(self, policy, spec=spec, num_envs=num_envs, total_steps=total_steps, seed=seed)


class Temperature(nn.Module):
    """α > 0, learned by its logarithm."""

    def __init__(self, initial: float) -> None:
        super().__init__()
        # Not a scalar: a resumed optimiser tells its step counters, which are, from slots by their shape.
        self.log = nn.Parameter(torch.tensor([math.log(initial)]))

    def forward(self) -> Tensor:
        """α, a scalar without gradient."""
        return self.log.detach().squeeze(0).exp()

    def loss(self, log_prob: Tensor, target_entropy: float) -> Tensor:
        """Falls as α grows while the entropy, `-mean(log_prob)`, is below the target, and the other way round."""
        return -self.log.squeeze(0) * (log_prob.detach().mean() + target_entropy)


class SAC(Saved):
    """For every batch from the replay: one step of the values, of the policy and of the temperature."""

    def __init__(
        self, config: SACConfig, policy: ContinuousPolicy, *, spec: EnvSpec, num_envs: int, total_steps: int, seed: int
    ) -> None:
        self.config, self.policy = config, policy
        device = policy.at_random.device
        self.critics = config.critics.build(
            policy, config.optimizer, spec=spec, num_envs=num_envs, total_steps=total_steps, seed=seed
        )
        self.temperature = Temperature(config.temperature).to(device)
        self.target_entropy = config.target_entropy * policy.size
        self._actor_updater, self._temperature_updater = (
            Updater(config.optimizer, module, num_envs=num_envs, total_steps=total_steps)
            for module in (policy.actor, self.temperature)
        )
        self.updaters = (self.critics.updater, self._actor_updater, self._temperature_updater)
        self._generator = generator(seed, "learning", device=device)
        self._report = Report(
            "critic_loss", "q_mean", "grad_norm", "actor_loss", "entropy", "temperature", device=device
        )
        self._parts = Parts(
            policy=policy,
            critics=self.critics,
            temperature=self.temperature,
            actor_updater=self._actor_updater,
            temperature_updater=self._temperature_updater,
            generator=self._generator,
            report=self._report,
        )

    def learn(self, rollout: Rollout) -> dict[str, Tensor]:
        """The updates that are due; returns their mean metrics, scalars on the device, at first zeros."""
        rate, *_ = [updater.advance(rollout.reward.numel()) for updater in self.updaters]
        metrics = self._report([self._update() for _ in self.critics.take_in(rollout)])
        return metrics | {"learning_rate": rate, "replay_size": torch.tensor(float(len(self.critics.replay)))}

    def _update(self) -> dict[str, Tensor]:
        samples, alpha = self.critics.draw(), self.temperature()
        with torch.no_grad():
            action, log_prob = self._act(samples.next_inputs)
            soft_value = self.critics.target.network(samples.next_inputs, action).amin(0) - alpha * log_prob
        metrics = self.critics.update(samples, soft_value)

        action, log_prob = self._act(samples.inputs)
        actor_loss = (alpha * log_prob - self.critics.of_action(samples.inputs, action).amin(0)).mean()
        self._actor_updater.step(actor_loss)
        if self.config.learn_temperature:
            self._temperature_updater.step(self.temperature.loss(log_prob, self.target_entropy))
        self.critics.target.follow()
        return metrics | {
            "actor_loss": actor_loss.detach(),
            "entropy": -log_prob.detach().mean(),
            "temperature": alpha,
        }

    def _act(self, inputs: Obs) -> tuple[Tensor, Tensor]:
        actions: TanhGaussian = self.policy.actor(inputs)
        return actions.sample_with_log_prob(self._generator)
