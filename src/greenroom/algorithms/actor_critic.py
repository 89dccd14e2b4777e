"""A2C and PPO: what differs between them is how often, and with which objective, one rollout is used."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from greenroom.errors import UserError
from greenroom.maths.losses import clipped_surrogate, policy_gradient, squared_error
from greenroom.maths.returns import gae
from greenroom.normalize import RewardScaler
from greenroom.optim import Adam, OptimizerConfig, RMSprop, Updater
from greenroom.policy import ActorCritic
from greenroom.seeding import generator
from greenroom.types import Rollout, map_obs


class _Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Discounting:
    """How rewards of the future count, and on which scale the learner sees them."""

    gamma: float = 0.99
    """Discount per step, in [0, 1]."""
    lam: float = 0.95
    """λ of the generalised advantage, in [0, 1]; 1 is the longest n-step return."""
    scale_rewards: bool = False
    """Divide rewards by the running standard deviation of the discounted return."""

    def __post_init__(self) -> None:
        if not (0.0 <= self.gamma <= 1.0 and 0.0 <= self.lam <= 1.0):
            raise UserError(f"gamma and lam must lie in [0, 1], not {self.gamma} and {self.lam}")


class Advantages:
    """From a rollout to what both algorithms learn from. Owns the reward scale."""

    def __init__(self, config: Discounting, policy: ActorCritic, num_envs: int) -> None:
        self.config, self.policy = config, policy
        device = next(policy.parameters()).device
        self.scaler = RewardScaler(num_envs, config.gamma).to(device) if config.scale_rewards else None

    def __call__(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Advantage and value target, float `[T, B]`. The values are those that the acting weights gave."""
        value = rollout.extras["value"]
        last = self.policy.value(map_obs(lambda part: part[-1], rollout.obs))
        next_value = rollout.bootstrap(torch.cat([value, last.unsqueeze(0)]), self.policy.value)
        reward = rollout.reward if self.scaler is None else self.scaler(rollout.reward, rollout.cut)
        discount = self.config.gamma * (~rollout.terminated).float()
        advantage = gae(reward, discount, rollout.cut, value, next_value, lam=self.config.lam)
        return advantage, value + advantage

    def state_dict(self) -> dict[str, Tensor]:
        """The reward scale, if there is one."""
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue with a saved reward scale."""
        if self.scaler is not None:
            self.scaler.load_state_dict(state)


class Stateful(Protocol):
    """Something whose state belongs in the checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """What has to be saved."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Continue from what was saved."""
        ...


def _flat(rollout: Rollout) -> dict[str, Any]:
    """The T·B transitions as rows."""
    return {
        "obs": map_obs(lambda part: part[:-1].flatten(0, 1), rollout.obs),
        "sample": rollout.extras["sample"].flatten(0, 1),
        "old_log_prob": rollout.extras["log_prob"].flatten(),
    }


def standardise(advantage: Tensor) -> Tensor:
    """Zero mean and unit standard deviation over all elements; a single one becomes zero."""
    return (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)


def explained_variance(value: Tensor, target: Tensor) -> Tensor:
    """`1 - Var(target - value) / Var(target)`: 1 is a perfect critic, 0 one that knows only the mean."""
    return 1.0 - (target - value).var(correction=0) / (target.var(correction=0) + 1e-8)


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

    def build(self, policy: ActorCritic, *, num_envs: int, total_steps: int, seed: int) -> A2C:
        """The algorithm. `seed` is not used: A2C draws nothing."""
        return A2C(self, policy, num_envs=num_envs, total_steps=total_steps)


class A2C:
    """One gradient step on all of a rollout, then the rollout is forgotten."""

    def __init__(self, config: A2CConfig, policy: ActorCritic, *, num_envs: int, total_steps: int) -> None:
        self.config, self.policy = config, policy
        self.advantages = Advantages(config.discounting, policy, num_envs)
        self.updater = Updater(config.optimizer, policy, num_envs=num_envs, total_steps=total_steps)
        self._parts: dict[str, Stateful] = {"policy": policy, "advantages": self.advantages, "updater": self.updater}

    def learn(self, rollout: Rollout) -> dict[str, Tensor]:
        """One update; returns scalars on the device."""
        config, rows = self.config, _flat(rollout)
        rate = self.updater.advance(rollout.reward.numel())
        advantage, target = (part.flatten() for part in self.advantages(rollout))
        weight = standardise(advantage) if config.standardise_advantage else advantage

        distribution, value = self.policy.evaluate(rows["obs"])
        policy_loss = policy_gradient(distribution.log_prob(rows["sample"]), weight)
        value_loss = squared_error(value, target)
        entropy = distribution.entropy().mean()
        loss = policy_loss + config.value_coef * value_loss - config.entropy_coef * entropy
        grad_norm = self.updater.step(config.loss_scale * loss)

        self.policy.normalizer.update(rows["obs"])
        return {
            "policy_loss": policy_loss.detach(),
            "value_loss": value_loss.detach(),
            "entropy": entropy.detach(),
            "grad_norm": grad_norm,
            "learning_rate": rate,
            "explained_variance": explained_variance(value.detach(), target),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {name: part.state_dict() for name, part in self._parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        for name, part in self._parts.items():
            part.load_state_dict(state[name])


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """Proximal policy optimisation (Schulman et al. 2017)."""

    epochs: int = 4
    """Passes over each rollout."""
    minibatches: int = 4
    """Updates per pass, on parts of the rollout's T·B steps that differ in size by at most one."""
    clip: float = 0.2
    """The probability ratio counts only within 1 ± clip."""
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

    def build(self, policy: ActorCritic, *, num_envs: int, total_steps: int, seed: int) -> PPO:
        """The algorithm; `seed` orders the minibatches."""
        return PPO(self, policy, num_envs=num_envs, total_steps=total_steps, seed=seed)


class PPO:
    """Several epochs of minibatch updates on each rollout, held near the acting policy by clipping."""

    def __init__(self, config: PPOConfig, policy: ActorCritic, *, num_envs: int, total_steps: int, seed: int) -> None:
        self.config, self.policy = config, policy
        self.advantages = Advantages(config.discounting, policy, num_envs)
        self.updater = Updater(config.optimizer, policy, num_envs=num_envs, total_steps=total_steps)
        self._parts: dict[str, Stateful] = {"policy": policy, "advantages": self.advantages, "updater": self.updater}
        self._generator = generator(seed, "learning")

    def learn(self, rollout: Rollout) -> dict[str, Tensor]:
        """`epochs × minibatches` updates; returns their mean metrics, scalars on the device."""
        rows = _flat(rollout)
        rate = self.updater.advance(rollout.reward.numel())
        advantage, target = (part.flatten() for part in self.advantages(rollout))
        rows |= {"advantage": advantage, "target": target}
        count = target.numel()
        sums: dict[str, Tensor] = {}
        for _ in range(self.config.epochs):
            order = torch.randperm(count, generator=self._generator).to(target.device)
            for index in order.tensor_split(self.config.minibatches):
                minibatch = {name: map_obs(lambda part, at=index: part[at], part) for name, part in rows.items()}  # type: ignore[misc]
                for name, value in self._update(minibatch).items():
                    sums[name] = sums[name] + value if name in sums else value
        updates = self.config.epochs * self.config.minibatches
        self.policy.normalizer.update(rows["obs"])
        return {name: total / updates for name, total in sums.items()} | {
            "learning_rate": rate,
            "explained_variance": explained_variance(rollout.extras["value"].flatten(), target),
        }

    def _update(self, rows: dict[str, Any]) -> dict[str, Tensor]:
        config, advantage = self.config, rows["advantage"]
        distribution, value = self.policy.evaluate(rows["obs"])
        log_prob = distribution.log_prob(rows["sample"])
        weight = standardise(advantage) if config.standardise_advantage else advantage
        policy_loss = clipped_surrogate(log_prob, rows["old_log_prob"], weight, clip=config.clip)
        value_loss = squared_error(value, rows["target"])
        entropy = distribution.entropy().mean()
        grad_norm = self.updater.step(policy_loss + config.value_coef * value_loss - config.entropy_coef * entropy)
        with torch.no_grad():
            log_ratio = log_prob - rows["old_log_prob"]
            ratio = log_ratio.exp()
            return {
                "policy_loss": policy_loss.detach(),
                "value_loss": value_loss.detach(),
                "entropy": entropy.detach(),
                "grad_norm": grad_norm,
                # k3 estimator of KL(acting || current), Schulman 2020: unbiased and never negative.
                "approx_kl": (ratio - 1.0 - log_ratio).mean(),
                "clip_fraction": ((ratio - 1.0).abs() > config.clip).float().mean(),
            }

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        parts = {name: part.state_dict() for name, part in self._parts.items()}
        return parts | {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        self._generator.set_state(state["generator"])
