"""Losses: each takes tensors `[N]` and returns a scalar to minimise."""

from __future__ import annotations

import torch
from torch import Tensor


def policy_gradient(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """`-mean(log_prob * advantage)` (A3C, Mnih et al. 2016). No gradient flows into `advantage`."""
    return -(log_prob * advantage.detach()).mean()


def clipped_surrogate(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, *, clip: float) -> Tensor:
    """PPO's objective, negated (Schulman et al. 2017, equation 7). The probability ratio counts within 1 ± `clip`."""
    ratio = (log_prob - old_log_prob).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()


def squared_error(value: Tensor, target: Tensor) -> Tensor:
    """`0.5 * mean((target - value)²)`. No gradient flows into `target`."""
    return 0.5 * (value - target.detach()).square().mean()


def clipped_squared_error(value: Tensor, old_value: Tensor, target: Tensor, *, clip: float) -> Tensor:
    """The larger of `0.5·(target - value)²` and the same with `value` held within ± `clip` of `old_value`.

    As in the code that accompanied PPO (Schulman et al. 2017; Huang et al. 2022, detail 9). Elementwise, then the mean.
    """
    held = old_value + (value - old_value).clamp(-clip, clip)
    target = target.detach()
    return 0.5 * torch.maximum((value - target).square(), (held - target).square()).mean()
