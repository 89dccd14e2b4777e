"""Prioritised experience replay (Schaul et al. 2016): draws in proportion to the last known errors, by a sum tree."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

BRANCHES = 32
"""Children of a node: a million leaves are four levels, so that few tensor operations do."""

LEAST_ERROR = 1e-6
"""Schaul et al.'s ε: added to every error, so that what is predicted exactly may still be drawn."""


class Priorities:
    """Priorities `(|error| + ε) ** exponent` of the rows of a replay; rows that may not be drawn have none."""

    def __init__(self, rows: int, exponent: float, device: torch.device) -> None:
        self.exponent, self.device = exponent, device
        self._spare = rows
        self._tree = SumTree(rows + 1, device)
        self._largest = torch.ones((), dtype=torch.float64, device=device)

    def add(self, row: Tensor) -> None:
        """New rows int64 `[N]`: nothing is known of them, so they are as important as any ever was."""
        self._tree[row] = self._largest.expand(len(row))

    def drop(self, row: Tensor) -> None:
        """Rows int64 `[N]` that may no longer be drawn."""
        self._tree[row] = torch.zeros(len(row), dtype=torch.float64, device=self.device)

    def update(self, row: Tensor, error: Tensor, here: Tensor) -> None:
        """Set rows int64 `[N]` by their errors float `[N]`, as far as they are still `here`, bool `[N]`."""
        # A learner that has diverged must not take the tree with it: NaN counts as 0.
        size = error.detach().to(self.device, torch.float64).abs().nan_to_num(posinf=torch.finfo(torch.float32).max)
        priority = (size + LEAST_ERROR) ** self.exponent
        # The others go to a leaf that is no row's: to sort them out would make the host wait for the device.
        self._tree[torch.where(here, row, self._spare)] = priority.masked_fill(~here, 0.0)
        self._largest = self._largest.maximum(priority.amax())

    def draw(self, count: int, draws: torch.Generator) -> Tensor:
        """Rows int64 `[count]`, in proportion to their priorities: one from each of `count` equal shares of the sum."""
        return self._tree.find(strata(count, draws) * self._tree.total)

    def draw_among(self, row: Tensor, count: int, draws: torch.Generator) -> Tensor:
        """The same among rows int64 `[N]`: places in `row`, int64 `[count]`."""
        upto = self._tree[row].cumsum(0)
        return torch.searchsorted(upto, strata(count, draws) * upto[-1], right=True).clamp(max=len(row) - 1)

    def weight(self, row: Tensor, beta: float) -> Tensor:
        """Importance weights `(N·P)^-β` over their largest in this batch, float32: N and the sum in P cancel out."""
        priority = self._tree[row]
        return ((priority / priority.amin()) ** -beta).float()

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return self._tree.nbytes

    def state_dict(self) -> dict[str, Any]:
        """The tree, and the largest priority ever."""
        return {"levels": list(self._tree.levels), "largest": self._largest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`, of as many rows."""
        self._tree.load(state["levels"])
        self._largest = state["largest"].to(self.device, copy=True)


class SumTree:
    """Priorities of `size` leaves, at first all zero, and their sums: float64, whole batches at a time."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.levels: list[Tensor] = []
        """Leaves first, root last; `[nodes, BRANCHES]` each: a row's sum is one element of the next level."""
        width = size
        while not self.levels or width > 1:
            width = -(-width // BRANCHES)
            self.levels.append(torch.zeros(width, BRANCHES, dtype=torch.float64, device=device))

    def __getitem__(self, index: Tensor) -> Tensor:
        """Priorities float64 of the leaves `index`."""
        return self.levels[0].view(-1)[index]

    def __setitem__(self, index: Tensor, priority: Tensor) -> None:
        """Give the leaves int64 `[N]` priorities float64 `[N]`, at least 0; where a leaf is named twice, the larger."""
        # A plain assignment would leave to chance which of two priorities stays.
        self.levels[0].view(-1).scatter_reduce_(0, index, priority, "amax", include_self=False)
        for below, above in itertools.pairwise(self.levels):
            index = index // BRANCHES
            above.view(-1)[index] = below[index].sum(-1)

    @property
    def total(self) -> Tensor:
        """Sum of all priorities, a scalar on the device."""
        return self.levels[-1].sum()

    def find(self, mass: Tensor) -> Tensor:
        """The leaves int64 `[N]` at which the running sum of priorities first exceeds `mass`, float64 `[N]`.

        Never a leaf of priority zero, unless all are.
        """
        node = torch.zeros_like(mass, dtype=torch.int64)
        order = torch.arange(BRANCHES, device=mass.device)
        for level in reversed(self.levels):
            children = level[node]
            upto = torch.nn.functional.pad(children.cumsum(-1), (1, 0))
            child = (upto[:, 1:] <= mass.unsqueeze(-1)).sum(-1, keepdim=True)
            # Sums are rounded: what falls behind the end belongs to the last child that has any priority.
            child = child.minimum(((children > 0) * order).amax(-1, keepdim=True))
            mass = mass - upto.gather(-1, child).squeeze(-1)
            node = node * BRANCHES + child.squeeze(-1)
        return node

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return sum(level.nbytes for level in self.levels)

    def load(self, levels: Sequence[Tensor]) -> None:
        """Take over another tree's `levels`, of the same size."""
        for level, saved in zip(self.levels, levels, strict=True):
            level.copy_(saved)


def strata(count: int, draws: torch.Generator) -> Tensor:
    """One uniform draw from each of `count` equal parts of [0, 1]: float64, ascending."""
    within = torch.rand(count, dtype=torch.float64, generator=draws, device=draws.device)
    return (torch.arange(count, device=draws.device) + within) / count
