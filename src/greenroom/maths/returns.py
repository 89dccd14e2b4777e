"""One backward recursion that every return estimator in greenroom is a named case of.

Time runs first: all arguments are `[T, B]`. `discount = gamma * ~terminated` and `cut = terminated | truncated` keep
apart *the future is worth nothing* and *the recursion must not cross into the next episode*. Only `fold`, of which a
replay makes its transitions, looks at nothing but rewards, and forwards.
"""

from __future__ import annotations

import torch
from torch import Tensor


def corrected_advantage(
    reward: Tensor,
    discount: Tensor,
    cut: Tensor,
    value: Tensor,
    next_value: Tensor,
    *,
    rho: Tensor | float = 1.0,
    c: Tensor | float = 1.0,
) -> Tensor:
    """The kernel: `acc[t] = rho[t] * delta[t] + discount[t] * c[t] * ~cut[t] * acc[t+1]`, with `acc[T] = 0`.

    `delta[t] = reward[t] + discount[t] * next_value[t] - value[t]`. The learning target is `value + acc`.

    Args:
        reward: float `[T, B]`.
        discount: float `[T, B]`, zero where the task terminated.
        cut: bool `[T, B]`, an episode ended here for whichever reason.
        value: float `[T, B]`, of the state acted in.
        next_value: float `[T, B]`, of the *true* successor (`Rollout.bootstrap`).
        rho: weight of each step's own error; a number or `[T, B]`.
        c: how much of the later errors reaches back past step t; a number or `[T, B]`.

    Returns:
        float `[T, B]`, the estimated advantage over `value`.
    """
    delta = rho * (reward + discount * next_value - value)
    carry = (discount * c).masked_fill(cut, 0.0)
    acc = torch.empty_like(delta)
    last = torch.zeros_like(delta[0])
    for t in range(delta.shape[0] - 1, -1, -1):
        last = torch.addcmul(delta[t], carry[t], last, out=acc[t])
    return acc


def gae(reward: Tensor, discount: Tensor, cut: Tensor, value: Tensor, next_value: Tensor, *, lam: float) -> Tensor:
    """Generalised advantage (Schulman et al. 2016, equation 16). `lam` in [0, 1].

    With 1 it is `R[t] - value[t]`, R the longest n-step return in the segment (A3C, Mnih et al. 2016; PAAC, algorithm
    1).
    """
    return corrected_advantage(reward, discount, cut, value, next_value, c=lam)


def vtrace(
    reward: Tensor,
    discount: Tensor,
    cut: Tensor,
    value: Tensor,
    next_value: Tensor,
    ratio: Tensor,
    *,
    lam: float = 1.0,
    rho_max: float = 1.0,
    c_max: float = 1.0,
) -> Tensor:
    """V-trace error `v_s - V(x_s)` (IMPALA, Espeholt et al. 2018, equation 1 and remark 2).

    `ratio`: float `[T, B]`, learner's probability of the action over the actor's. With all ratios 1 it is TD(lam).
    """
    rho, c = ratio.clamp(max=rho_max), lam * ratio.clamp(max=c_max)
    return corrected_advantage(reward, discount, cut, value, next_value, rho=rho, c=c)


def vtrace_advantage(
    reward: Tensor,
    discount: Tensor,
    cut: Tensor,
    value: Tensor,
    next_value: Tensor,
    ratio: Tensor,
    target: Tensor,
    rho_max: float = 1.0,
) -> Tensor:
    """`ρ[t]·(r[t] + discount[t]·v[t+1] - V(x[t]))` with V-trace's own `target` v (IMPALA, section 4.2).

    Where an episode is cut and at the segment's end v[t+1] is `next_value`. With all ratios 1 and lam 1 this is
    `gae` with lam 1.
    """
    inside = torch.cat([target[1:], next_value[-1:]])
    following = torch.where(cut, next_value, inside)
    return ratio.clamp(max=rho_max) * (reward + discount * following - value)


def fold(reward: Tensor, cut: Tensor, *, n_step: int, gamma: float) -> tuple[Tensor, Tensor]:
    """n-step returns without their bootstrap: `Σ_{k<m} gamma**k * reward[t+k]` (Sutton & Barto 2018, equation 7.1).

    Args:
        reward: float `[T, B]`.
        cut: bool `[T, B]`: an episode ended here; the sum does not go on.
        n_step: the most rewards in a sum.
        gamma: discount per step.

    Returns:
        The sums, float `[T, B]`, and how many rewards they are of, m, int64 `[T, B]`: from 1 to `n_step`.
    """
    folded, steps = torch.zeros_like(reward), torch.zeros_like(cut, dtype=torch.int64)
    goes_on = torch.ones_like(cut)
    for k in range(min(n_step, len(reward))):
        early = slice(len(reward) - k)  # those that have a k-th successor
        folded[early] += torch.where(goes_on[early], gamma**k * reward[k:], 0.0)
        steps[early] += goes_on[early]
        goes_on[early] &= ~cut[k:]
    return folded, steps
