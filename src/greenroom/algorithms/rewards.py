"""Rewards as learners see them: discounted, and perhaps on a scale of their own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from greenroom.errors import UserError
from greenroom.normalize import RewardScaler
from greenroom.policy import Policy
from greenroom.types import Rollout


@dataclass(frozen=True, kw_only=True)
class Discounting:
    """How rewards of the future count, and on which scale the learner sees them."""

    gamma: float = 0.99
    """Discount per step, in [0, 1]."""
    lam: float = 0.95
    """λ of the returns (generalised advantages, Q(λ)), in [0, 1]; 1 is the longest n-step return."""
    scale_rewards: bool = False
    """Divide rewards by the running standard deviation of the discounted return."""

    def __post_init__(self) -> None:
        if not (0.0 <= self.gamma <= 1.0 and 0.0 <= self.lam <= 1.0):
            raise UserError(f"gamma and lam must lie in [0, 1], not {self.gamma} and {self.lam}")


class Rewards:
    """Rewards and discounts as the learner sees them. Owns the reward scale."""

    def __init__(self, config: Discounting, policy: Policy, num_envs: int) -> None:
        self.gamma = config.gamma
        device = next(policy.parameters()).device
        self._scaler = RewardScaler(num_envs, config.gamma).to(device) if config.scale_rewards else None

    @property
    def scale(self) -> float:
        """What rewards are multiplied with now."""
        return 1.0 if self._scaler is None else float(self._scaler.scale)

    def __call__(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Reward and discount, float `[T, B]`."""
        reward = rollout.reward if self._scaler is None else self._scaler(rollout.reward, rollout.cut, rollout.kept)
        return reward, self.gamma * (~rollout.terminated).float()

    def state_dict(self) -> dict[str, Tensor]:
        """The reward scale, if there is one."""
        return {} if self._scaler is None else self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue with a saved reward scale."""
        if self._scaler is not None:
            self._scaler.load_state_dict(state)
