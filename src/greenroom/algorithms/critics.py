"""What SAC and TD3 share: twin state-action values with slow copies, learned from a replay."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from greenroom.algorithms.parts import Parts, Saved
from greenroom.algorithms.replaying import Drawing
from greenroom.algorithms.rows import learn_normalisation
from greenroom.algorithms.targets import TargetNetwork
from greenroom.compiling import compilable
from greenroom.continuous import ContinuousPolicy
from greenroom.errors import UserError
from greenroom.linear import Linear
from greenroom.networks import Mlp, initialise, of_ones_own
from greenroom.optim import Adam, OptimizerConfig, Schedule, Updater
from greenroom.policy import Body, one_step, visible
from greenroom.replay import ReplayConfig
from greenroom.seeding import derive
from greenroom.spec import ArraySpec, EnvSpec
from greenroom.types import Obs, Rollout, parts_of


class StateActionValue(nn.Module):
    """Q(s, a): what is seen and the action go together through fully connected layers, which are the policy's `Mlp`.

    Where pictures are seen, or by a network of the user's own, a body of the policy's kind makes features of all that
    is seen before the action joins.
    """

    def __init__(self, policy: ContinuousPolicy, spec: EnvSpec) -> None:
        super().__init__()
        settings, seen = policy.settings, visible(spec.obs)
        parts = parts_of(seen)
        flat = isinstance(settings.network, Mlp)
        pictures = any(part.is_image for part in parts.values()) if isinstance(seen, dict) else not flat
        needed = pictures or of_ones_own(settings.network)
        self.body = Body(settings, spec.obs, policy.precision) if needed else None
        self.names = tuple(sorted(parts))
        width = sum(math.prod(part.shape) for part in parts.values()) if self.body is None else self.body.features
        network = settings.network if isinstance(settings.network, Mlp) else Mlp(hidden=(256, 256), activation="relu")
        self.joint, features = network.build(ArraySpec(shape=(width + policy.size,)))
        self.head = Linear(features, 1)
        initialise(self, settings.initialisation, math.sqrt(2.0))
        initialise(self.head, settings.initialisation, 1.0)

    def forward(self, inputs: Obs, action: Tensor) -> Tensor:
        """float `[N]` for normalised observations `[N, ...]` and actions `[N, D]` within [-1, 1]."""
        if self.body is not None:
            seen = [self.body(one_step(inputs), {}, None)[0]]
        else:
            parts = parts_of(inputs)
            seen = [parts[name].flatten(1) for name in self.names]
        value: Tensor = self.head(self.joint(torch.cat([*seen, action], dim=1)))
        return value.squeeze(-1)


class Twins(nn.Module):
    """Two values of the same thing, learned alike from different beginnings: the smaller one overrates less."""

    def __init__(self, policy: ContinuousPolicy, spec: EnvSpec) -> None:
        super().__init__()
        self.both = nn.ModuleList([StateActionValue(policy, spec) for _ in range(2)])

    def forward(self, inputs: Obs, action: Tensor) -> Tensor:
        """float `[2, N]`."""
        return torch.stack([one(inputs, action) for one in self.both])


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """N transitions as the networks see them."""

    inputs: Obs
    """float `[N, ...]`: normalised observations."""
    action: Tensor
    """float `[N, D]` within [-1, 1]."""
    reward: Tensor
    """float `[N]`."""
    discount: Tensor
    """float `[N]`: what the value of `next_inputs` counts; 0 where the task terminated."""
    next_inputs: Obs
    """float `[N, ...]`."""
    weight: Tensor
    """float `[N]`: of each sample's error in the loss."""
    index: Tensor
    """int64 `[N]`: where the samples are in the replay."""


def steady_adam() -> Adam:
    """Adam at a constant rate, with gradients hardly ever clipped: what both papers learn with."""
    return Adam(schedule=Schedule(anneal=False), eps=1e-8, max_grad_norm=1000.0)


@dataclass(frozen=True, kw_only=True)
class CriticConfig:
    """How the state-action values are learned."""

    gamma: float = 0.99
    """Discount per step, in [0, 1]."""
    target: TargetNetwork = field(default_factory=lambda: TargetNetwork(target_every=1, tau=0.005))
    """The slow copies that say what the future is worth."""
    drawing: Drawing = field(default_factory=Drawing)
    """How often to learn from the replay."""
    replay: ReplayConfig = field(default_factory=lambda: ReplayConfig(capacity=1_000_000))
    """The replay."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma <= 1.0:
            raise UserError(f"gamma must lie in [0, 1], not {self.gamma}")

    def build(
        self,
        policy: ContinuousPolicy,
        optimizer: OptimizerConfig,
        *,
        spec: EnvSpec,
        num_envs: int,
        total_steps: int,
        seed: int,
    ) -> Critics:
        """The values of `policy`, untaught, and an empty replay, on the policy's device."""
        return Critics(self, policy, optimizer, spec=spec, num_envs=num_envs, total_steps=total_steps, seed=seed)


class Critics(Saved):
    """Twin values, their slow copies, the replay they learn from, and the clock of its draws."""

    def __init__(
        self,
        config: CriticConfig,
        policy: ContinuousPolicy,
        optimizer: OptimizerConfig,
        *,
        spec: EnvSpec,
        num_envs: int,
        total_steps: int,
        seed: int,
    ) -> None:
        self.config, self.policy = config, policy
        device = policy.at_random.device
        self.replay = config.replay.build(
            spec, num_envs=num_envs, gamma=config.gamma, total_steps=total_steps, seed=seed, device=device
        )
        self.draws = config.drawing.build()
        policy.at_random.fill_(not self.draws.started)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "initialisation", "critics"))
            self.online = Twins(policy, spec).to(device)
        self.target = config.target.build(self.online)
        self.updater = Updater(optimizer, self.online, num_envs=num_envs, total_steps=total_steps)
        self._parts = Parts(
            online=self.online, target=self.target, updater=self.updater, replay=self.replay, draws=self.draws
        )

    def take_in(self, rollout: Rollout) -> range:
        """Remember a rollout. Returns the numbers of the updates that are due, counted from 0 over the whole run."""
        self.replay.add(rollout)
        # Before the draws: nothing is learned from what the policy thought when it acted.
        learn_normalisation(self.policy, rollout)
        due = self.draws.due(rollout.reward.numel())
        if self.draws.started:
            self.policy.at_random.fill_(False)
        return range(self.draws.batches - due, self.draws.batches)

    def draw(self) -> Samples:
        """A batch from the replay, with observations normalised by the newest statistics."""
        batch, normalizer = self.replay.sample(self.config.drawing.batch_size), self.policy.normalizer
        return Samples(
            inputs=normalizer(batch.obs),
            action=self.policy.to_unit(batch.action),
            reward=batch.reward,
            discount=batch.discount,
            next_inputs=normalizer(batch.next_obs),
            weight=batch.weight,
            index=batch.index,
        )

    def update(self, samples: Samples, next_value: Tensor) -> dict[str, Tensor]:
        """One step of both values towards `reward + discount·next_value`, with `next_value` float `[N]`.

        Returns:
            Scalar metrics: `critic_loss` (of both values together), `q_mean`, `grad_norm`.
        """
        loss, priority, metrics = self._loss(samples, next_value)
        grad_norm = self.updater.step(loss)
        self.replay.update_priorities(samples.index, priority)
        return metrics | {"grad_norm": grad_norm}

    @compilable
    def _loss(self, samples: Samples, next_value: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The loss, new priorities of the samples, and metrics."""
        value = self.online(samples.inputs, samples.action)
        error = value - (samples.reward + samples.discount * next_value).detach()
        loss = 0.5 * (samples.weight * error.square()).mean(1).sum()
        priority = error.detach().abs().mean(0)
        return loss, priority, {"critic_loss": loss.detach(), "q_mean": value.detach().mean()}

    def of_action(self, inputs: Obs, action: Tensor) -> Tensor:
        """float `[2, N]`: the values as functions of the action alone, to improve the action by."""
        self.online.requires_grad_(False)
        value: Tensor = self.online(inputs, action)
        self.online.requires_grad_(True)
        return value

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        super().load_state_dict(state)
        if not len(self.replay):
            self.draws.start_anew()
