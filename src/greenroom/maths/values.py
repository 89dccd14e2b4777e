"""Action values: exploration, dueling, and losses of returns as numbers, as categories and as quantiles.

A table of action values is float `[..., A, Z]`: A actions, and Z numbers that describe the return of each; a plain
Q-function is `[..., A]`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def chosen(table: Tensor, action: Tensor) -> Tensor:
    """What a table says of one action: `[..., A]` or `[..., A, Z]` and int64 `[...]` to `[...]` or `[..., Z]`."""
    axis = action.ndim
    index = action.reshape(*action.shape, *[1] * (table.ndim - axis))
    return torch.take_along_dim(table, index, axis).squeeze(axis)


def best(table: Tensor, action: Tensor) -> Tensor:
    """The highest value of each row `[..., A]`; whatever the action was."""
    return table.amax(-1)


def epsilon_greedy(q: Tensor, mask: Tensor | None, epsilon: Tensor, generator: torch.Generator) -> Tensor:
    """The best action, or with probability ε any allowed one, each as likely.

    Args:
        q: float `[N, A]`, lowest where an action is forbidden.
        mask: bool `[N, A]`, which actions are allowed; None if all are.
        epsilon: float `[N]`, in [0, 1].
        generator: of the draws, on the device of `q`.

    Returns:
        int64 `[N]`.
    """
    lots = torch.rand(q.shape, generator=generator, device=q.device)
    drawn = (lots if mask is None else lots.masked_fill(~mask, -1.0)).argmax(-1)
    explores = torch.rand(epsilon.shape, generator=generator, device=q.device) < epsilon
    return torch.where(explores, drawn, q.argmax(-1))


def dueling(value: Tensor, advantage: Tensor) -> Tensor:
    """`V + A - mean_a A` (Wang et al. 2016, equation 9; for distributions Hessel et al. 2018).

    Args:
        value: float `[N, 1, Z]`.
        advantage: float `[N, A, Z]`.
    """
    return value + advantage - advantage.mean(dim=-2, keepdim=True)


def categorical_projection(probability: Tensor, support: Tensor, reward: Tensor, discount: Tensor) -> Tensor:
    """The distribution of `reward + discount · return`, back on the support (Bellemare et al. 2017, equation 7).

    Args:
        probability: float `[N, Z]`, of the successor's return.
        support: float `[Z]`, evenly spaced, ascending; what falls outside counts at the nearer end.
        reward: float `[N]`.
        discount: float `[N]`.

    Returns:
        float `[N, Z]`, each row summing to 1.
    """
    moved = reward.unsqueeze(-1) + discount.unsqueeze(-1) * support
    moved = moved.clamp(support[0], support[-1])
    # Each atom's mass is shared between its two neighbours, in proportion to how near they are.
    distance = (moved.unsqueeze(-1) - support).abs() / (support[1] - support[0])
    return torch.einsum("nj,nji->ni", probability, (1.0 - distance).clamp(min=0.0))


def quantile_midpoints(count: int) -> Tensor:
    """τ̂, float `[count]`: the levels (i + 1/2) / count at which quantiles are learned (Dabney et al. 2018)."""
    return (torch.arange(count, dtype=torch.float32) + 0.5) / count


def quantile_huber(quantile: Tensor, target: Tensor, levels: Tensor) -> Tensor:
    """Quantile Huber loss with threshold 1 (Dabney et al. 2018, equation 10).

    Args:
        quantile: float `[N, Z]`, at the `levels`.
        target: float `[N, M]`, draws of the return, each as likely.
        levels: float `[Z]`.

    Returns:
        float `[N]`: summed over quantiles, averaged over draws.
    """
    error = target.detach().unsqueeze(-2) - quantile.unsqueeze(-1)  # [N, Z, M]
    huber = torch.where(error.abs() <= 1.0, 0.5 * error.square(), error.abs() - 0.5)
    weight = (levels.unsqueeze(-1) - (error < 0).float()).abs()
    return (weight * huber).mean(-1).sum(-1)


def sequence_priority(error: Tensor, *, weight: float = 0.9) -> Tensor:
    """`weight · max + (1 - weight) · mean` over time of errors float `[L, N]` (R2D2, Kapturowski et al. 2019)."""
    return weight * error.amax(0) + (1.0 - weight) * error.mean(0)
