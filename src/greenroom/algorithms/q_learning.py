"""Values of actions, learned from each rollout, which is then forgotten: n-step Q-learning, n-step Sarsa and PQN.

They differ in what the future is worth (its best action, or the one taken) and in how often a rollout is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from greenroom.algorithms.exploration import EpsilonGreedy
from greenroom.algorithms.parts import Parts, Saved
from greenroom.algorithms.rewards import Discounting, Rewards
from greenroom.algorithms.rows import Rows, check_minibatches, learn_normalisation, mean_metrics, rows_of
from greenroom.algorithms.targets import Target, TargetNetwork
from greenroom.compiling import compilable
from greenroom.errors import UserError
from greenroom.maths.losses import squared_error
from greenroom.maths.returns import gae
from greenroom.maths.values import best, chosen
from greenroom.optim import OptimizerConfig, RAdam, RMSprop, Schedule, Updater
from greenroom.policy import PolicyConfig, Precision, one_step
from greenroom.seeding import generator
from greenroom.spec import EnvSpec
from greenroom.types import Obs, Rollout, State, map_obs
from greenroom.values import HeadConfig, QPolicy


@dataclass(frozen=True, kw_only=True)
class NStepQConfig:
    """n-step Q-learning (Mnih et al. 2016, algorithm S2), synchronous: the future is worth its best action."""

    discounting: Discounting = field(default_factory=lambda: Discounting(lam=1.0))
    """Discount, λ and reward scale. λ 1 is the paper's; with 0, or rollouts of one step, it is 1-step Q-learning."""
    exploration: EpsilonGreedy = field(default_factory=EpsilonGreedy)
    """How often actors act at random."""
    target: TargetNetwork = field(default_factory=TargetNetwork)
    """The network that says what the future is worth."""
    optimizer: OptimizerConfig = field(default_factory=RMSprop)
    """The optimiser."""

    def policy(self, settings: PolicyConfig, spec: EnvSpec, precision: Precision) -> QPolicy:
        """The kind of policy it teaches."""
        settings.only_actor_critic("nstep-q")
        return QPolicy(settings, spec, precision, head=HeadConfig(), epsilon=self.exploration.start)

    def build(
        self, policy: QPolicy, *, spec: EnvSpec, num_envs: int, rollout_length: int, total_steps: int, seed: int
    ) -> QLearner:
        """The algorithm; nothing depends on the draws that `seed` is for."""
        target = self.target.build(policy)
        return QLearner(self, policy, best, target, num_envs=num_envs, total_steps=total_steps, seed=seed)


@dataclass(frozen=True, kw_only=True)
class NStepSarsaConfig:
    """n-step Sarsa (Rummery & Niranjan 1994; Mnih et al. 2016), synchronous: the future is worth the action taken."""

    discounting: Discounting = field(default_factory=lambda: Discounting(lam=1.0))
    """Discount, λ and reward scale. With λ 0, or rollouts of one step, it is 1-step Sarsa."""
    exploration: EpsilonGreedy = field(default_factory=EpsilonGreedy)
    """How often actors act at random."""
    target: TargetNetwork = field(default_factory=TargetNetwork)
    """The network that says what the future is worth."""
    optimizer: OptimizerConfig = field(default_factory=RMSprop)
    """The optimiser."""

    def policy(self, settings: PolicyConfig, spec: EnvSpec, precision: Precision) -> QPolicy:
        """The kind of policy it teaches."""
        settings.only_actor_critic("nstep-sarsa")
        return QPolicy(settings, spec, precision, head=HeadConfig(), epsilon=self.exploration.start)

    def build(
        self, policy: QPolicy, *, spec: EnvSpec, num_envs: int, rollout_length: int, total_steps: int, seed: int
    ) -> QLearner:
        """The algorithm; `seed` draws the action that follows where a rollout ends."""
        target = self.target.build(policy)
        return QLearner(self, policy, chosen, target, num_envs=num_envs, total_steps=total_steps, seed=seed)


@dataclass(frozen=True, kw_only=True)
class PQNConfig:
    """Parallelised Q-network (Gallici et al. 2024): Q(λ) from many actors, without replay and without target network.

    It relies on a network with `layer_norm`. The authors' rollouts are 128 actors × 32 steps.
    """

    discounting: Discounting = field(default_factory=lambda: Discounting(lam=0.65))
    """Discount, λ and reward scale."""
    exploration: EpsilonGreedy = field(default_factory=lambda: EpsilonGreedy(epsilon_final=(0.001,)))
    """How often actors act at random."""
    epochs: int = 2
    """Passes over each rollout."""
    minibatches: int = 32
    """Updates per pass, on parts of the rollout's T·B steps (with a memory: of its B sequences) of even size."""
    optimizer: OptimizerConfig = field(default_factory=lambda: RAdam(schedule=Schedule(anneal=False)))
    """The optimiser."""

    def __post_init__(self) -> None:
        if min(self.epochs, self.minibatches) < 1:
            raise UserError(f"epochs and minibatches must be at least 1, not {self.epochs} and {self.minibatches}")

    def policy(self, settings: PolicyConfig, spec: EnvSpec, precision: Precision) -> QPolicy:
        """The kind of policy it teaches."""
        settings.only_actor_critic("pqn")
        return QPolicy(settings, spec, precision, head=HeadConfig(), epsilon=self.exploration.start)

    def build(
        self, policy: QPolicy, *, spec: EnvSpec, num_envs: int, rollout_length: int, total_steps: int, seed: int
    ) -> QLearner:
        """The algorithm; `seed` orders the minibatches."""
        check_minibatches(self.minibatches, whole=policy.remembers, num_envs=num_envs, rollout_length=rollout_length)
        return QLearner(
            self,
            policy,
            best,
            TargetNetwork().build(policy),
            num_envs=num_envs,
            total_steps=total_steps,
            seed=seed,
            epochs=self.epochs,
            minibatches=self.minibatches,
        )


class QLearner(Saved):
    """Q(λ) or Sarsa(λ): targets once per rollout, then epochs of minibatches towards them."""

    def __init__(
        self,
        config: NStepQConfig | NStepSarsaConfig | PQNConfig,
        policy: QPolicy,
        follow: Callable[[Tensor, Tensor], Tensor],
        target: Target[QPolicy],
        *,
        num_envs: int,
        total_steps: int,
        seed: int,
        epochs: int = 1,
        minibatches: int = 1,
    ) -> None:
        """`follow` says what a situation is worth, float `[...]`, from its Q-values `[..., A]` and the action taken."""
        self.config, self.policy, self.follow, self.target = config, policy, follow, target
        self.epochs, self.minibatches = epochs, minibatches
        self.rewards = Rewards(config.discounting, policy, num_envs)
        self.updater = Updater(config.optimizer, policy, num_envs=num_envs, total_steps=total_steps)
        self.updaters = (self.updater,)
        self._generator = generator(seed, "learning", device=policy.epsilon.device)
        self._parts = Parts(
            policy=policy, target=target, rewards=self.rewards, updater=self.updater, generator=self._generator
        )

    def learn(self, rollout: Rollout) -> dict[str, Tensor]:
        """`epochs × minibatches` updates; returns their mean metrics, scalars on the device."""
        rate = self.updater.advance(rollout.reward.numel())
        rows = rows_of(
            rollout, whole=self.policy.remembers, action=rollout.action, target=self._targets(rollout)
        ).without(rollout.dropped)
        updates: list[dict[str, Tensor]] = []
        for _ in range(self.epochs):
            updates += [self._update(part) for part in rows.minibatches(self.minibatches, self._generator)]
        self.policy.explore(self.config.exploration.at(self.updater.env_steps, self.updater.total_steps))
        learn_normalisation(self.policy, rollout)
        return mean_metrics(updates) | {"learning_rate": rate, "epsilon": self.policy.epsilon.mean()}

    @torch.no_grad()
    def _targets(self, rollout: Rollout) -> Tensor:
        """What each action was worth, float `[T, B]`: λ-returns over the values that the acting weights gave."""
        reward, discount = self.rewards(rollout)
        acted_on = map_obs(lambda part: part[:-1], rollout.obs)
        q = self._trusted(rollout.extras["q"], acted_on, rollout.state, rollout.cut)
        value = self.follow(q, rollout.action)
        beyond = self._value(map_obs(lambda part: part[-1], rollout.obs), rollout.next_state)
        next_value = rollout.bootstrap(torch.cat([value, beyond.unsqueeze(0)]), self._value)
        return value + gae(reward, discount, rollout.cut, value, next_value, lam=self.config.discounting.lam)

    def _value(self, obs: Obs, state: State) -> Tensor:
        """float `[N]` of observations that nobody has acted on yet: as if one did now."""
        decision = self.policy.act(obs, state, self._generator)
        return self.follow(self._trusted(decision.extras["q"], one_step(obs), state, None), decision.action)

    def _trusted(self, q: Tensor, obs: Obs, state: State, cut: Tensor | None) -> Tensor:
        """The policy's own `q`, or in its place the target network's, if there is one."""
        return self.target.network.values(obs, state, cut).view_as(q) if self.target.exists else q

    def _update(self, rows: Rows) -> dict[str, Tensor]:
        loss, metrics = self._loss(rows)
        grad_norm = self.updater.step(loss)
        self.target.follow()
        return metrics | {"grad_norm": grad_norm}

    @compilable
    def _loss(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        q = chosen(self.policy.values(rows.obs, rows.state, rows.cut), rows["action"])
        loss = squared_error(q, rows["target"])
        return loss, {"loss": loss.detach(), "q_mean": q.detach().mean()}
