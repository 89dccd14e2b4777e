"""What is drawn from a replay: single transitions, or stretches of experience."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from greenroom.types import Obs, State


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """N transitions, on the learner's device."""

    obs: Obs
    """`[N, ...]`."""
    action: Tensor
    """`[N, ...]`."""
    reward: Tensor
    """float32 `[N]`: the discounted sum of the m ≤ `n_step` rewards that are folded."""
    discount: Tensor
    """float32 `[N]`: what `next_obs` counts: gamma**m, or 0 where the task terminated."""
    next_obs: Obs
    """`[N, ...]`: what truly came m steps later; the last observation where the episode was cut."""
    index: Tensor
    """int64 `[N]`, for `update_priorities`: the transitions' numbers, counted from the run's first."""
    weight: Tensor
    """float32 `[N]`: importance weights, the largest 1; all 1 if drawn uniformly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequences:
    """L steps of N stretches of experience, time first, on the learner's device. Episodes may end inside."""

    obs: Obs
    """`[L+1, N, ...]`: what was acted on, and what comes next."""
    action: Tensor
    """`[L, N, ...]`."""
    reward: Tensor
    """float32 `[L, N]`: of single steps."""
    terminated: Tensor
    """bool `[L, N]`."""
    truncated: Tensor
    """bool `[L, N]`."""
    final_obs: Obs
    """`[K, ...]`: true last observations where `cut`, ordered by time, then by stretch."""
    state: State
    """`[N, ...]` each: what `obs[0]` was acted on with."""
    index: Tensor
    """int64 `[N]`, for `update_priorities`: the numbers of the first transitions."""
    weight: Tensor
    """float32 `[N]`: importance weights, the largest 1; all 1 if drawn uniformly."""

    @property
    def cut(self) -> Tensor:
        """bool `[L, N]`: an episode ended here, for whichever reason."""
        return self.terminated | self.truncated
