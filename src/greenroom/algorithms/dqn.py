"""DQN: values of actions learned from a replay, with the improvements that Rainbow puts together, each an option."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from greenroom.algorithms.exploration import EpsilonGreedy
from greenroom.algorithms.lessons import Lesson, SequenceConfig, of_sequences, of_transitions
from greenroom.algorithms.parts import Parts, Saved
from greenroom.algorithms.replaying import Drawing, Report
from greenroom.algorithms.rows import learn_normalisation
from greenroom.algorithms.targets import TargetNetwork
from greenroom.compiling import compilable
from greenroom.errors import UserError
from greenroom.maths.values import sequence_priority
from greenroom.optim import Adam, OptimizerConfig, Schedule, Updater
from greenroom.policy import PolicyConfig, Precision
from greenroom.replay import ReplayConfig
from greenroom.seeding import generator
from greenroom.spec import EnvSpec
from greenroom.types import Rollout
from greenroom.values import HeadConfig, QPolicy


@dataclass(frozen=True, kw_only=True)
class DQNConfig:
    """Deep Q-network (Mnih et al. 2015) on many actors (Stooke & Abbeel 2018), with Rainbow's options (Hessel 2018)."""

    gamma: float = 0.99
    """Discount per step, in [0, 1]."""
    reward_scale: float = 1.0
    """Multiplies rewards before they are learned from. A memory needs values that are not large: some 10 at most."""
    drawing: Drawing = field(default_factory=lambda: Drawing(batch_size=128, replay_ratio=8.0, learning_starts=1000))
    """How much is drawn from the replay."""
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    """What is remembered."""
    target: TargetNetwork = field(default_factory=lambda: TargetNetwork(target_every=500))
    """The network that says what the future is worth."""
    double: bool = True
    """The policy says which action is best in the future, the target network what it is worth (van Hasselt 2016)."""
    head: HeadConfig = field(default_factory=HeadConfig)
    """What is learned about each action."""
    exploration: EpsilonGreedy = field(default_factory=lambda: EpsilonGreedy(epsilon_final=(0.01,)))
    """How often actors act at random."""
    sequences: SequenceConfig = field(default_factory=SequenceConfig)
    """With a memory: what is drawn."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: Adam(learning_rate=5e-4, max_grad_norm=10.0, schedule=Schedule(anneal=False))
    )
    """The optimiser."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma <= 1.0:
            raise UserError(f"gamma must lie in [0, 1], not {self.gamma}")
        if not 0.0 < self.reward_scale < float("inf"):  # NaN included
            raise UserError(f"reward_scale must be a finite number greater than 0, not {self.reward_scale}")

    def policy(self, settings: PolicyConfig, spec: EnvSpec, precision: Precision) -> QPolicy:
        """The kind of policy it teaches."""
        settings.only_actor_critic("dqn")
        return QPolicy(settings, spec, precision, head=self.head, epsilon=self.exploration.start)

    def build(
        self, policy: QPolicy, *, spec: EnvSpec, num_envs: int, rollout_length: int, total_steps: int, seed: int
    ) -> DQN:
        """The algorithm; `seed` is of what is drawn from the replay and of the head's noise."""
        if policy.remembers:
            self.sequences.check(self.drawing, self.replay, num_envs=num_envs, rollout_length=rollout_length)
        return DQN(self, policy, spec=spec, num_envs=num_envs, total_steps=total_steps, seed=seed)


class DQN(Saved):
    """Takes in each rollout, then learns from as many draws of the replay as are due."""

    def __init__(
        self, config: DQNConfig, policy: QPolicy, *, spec: EnvSpec, num_envs: int, total_steps: int, seed: int
    ) -> None:
        self.config, self.policy = config, policy
        device = policy.epsilon.device
        self.replay = config.replay.build(
            spec, num_envs=num_envs, gamma=config.gamma, total_steps=total_steps, seed=seed, device=device
        )
        self.target = config.target.build(policy)
        self.updater = Updater(config.optimizer, policy, num_envs=num_envs, total_steps=total_steps)
        self.updaters = (self.updater,)
        self.draws = config.drawing.build()
        self._generator = generator(seed, "learning", device=device)
        self._report = Report("loss", "q_mean", "error", "grad_norm", device=device)
        self._parts = Parts(
            policy=policy,
            replay=self.replay,
            target=self.target,
            updater=self.updater,
            draws=self.draws,
            generator=self._generator,
            report=self._report,
        )

    def learn(self, rollout: Rollout) -> dict[str, Tensor]:
        """The updates that are due; returns their mean metrics, scalars on the device, at first zeros."""
        self.replay.add(rollout, self.config.reward_scale * rollout.reward)
        rate = self.updater.advance(rollout.reward.numel())
        metrics = self._report([self._update(self._draw()) for _ in range(self.draws.due(rollout.reward.numel()))])
        self.policy.explore(self.config.exploration.at(self.updater.env_steps, self.updater.total_steps))
        learn_normalisation(self.policy, rollout)
        return metrics | {
            "learning_rate": rate,
            "epsilon": self.policy.epsilon.mean(),
            "replay_size": torch.tensor(float(len(self.replay))),
            "updates": torch.tensor(float(self.target.updates)),
        }

    def _draw(self) -> Lesson:
        config, target = self.config, self.target.network
        judge = self.policy if config.double else target
        if self.policy.body.memory is None:
            batch = self.replay.sample(config.drawing.batch_size)
            return of_transitions(batch, self.policy, target, judge, self._generator)
        count = config.drawing.batch_size // config.sequences.sequence_length
        return of_sequences(
            self.replay.sample_sequences(count, config.sequences.length),
            self.policy,
            target,
            judge,
            self._generator,
            burn_in=config.sequences.burn_in,
            n_step=config.replay.n_step,
            gamma=config.gamma,
        )

    def _update(self, lesson: Lesson) -> dict[str, Tensor]:
        loss, priority, metrics = self._loss(lesson)
        grad_norm = self.updater.step(loss)
        self.target.follow()
        # Of a sequence that must not be learned from, nothing may be learned this way either.
        self.replay.update_priorities(lesson.index, priority * (lesson.weight > 0.0))
        return metrics | {"grad_norm": grad_norm}

    @compilable
    def _loss(self, lesson: Lesson) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The loss, new priorities of the draws, and metrics."""
        returns = self.policy.returns
        losses, errors = returns.loss(lesson.outputs, lesson.successor, lesson.reward, lesson.discount)
        draws = len(lesson.index)
        loss = (lesson.weight * losses.view(-1, draws)).mean()
        priority = sequence_priority(errors.view(-1, draws))
        q_mean = returns.mean(lesson.outputs).detach().mean()
        return loss, priority, {"loss": loss.detach(), "q_mean": q_mean, "error": errors.mean()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        super().load_state_dict(state)
        if not len(self.replay):
            self.draws.start_anew()
