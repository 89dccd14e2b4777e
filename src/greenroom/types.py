"""The values that flow through greenroom: `Step` → `Decision` → `Rollout` → `Progress`.

All are frozen and complete when they exist. Axes: T = rollout length, B = num_envs, K = number of things that ended
(varies). An observation is one tensor or a flat dict of tensors (`spec.ObsSpec`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from greenroom.errors import Fault

Part = TypeVar("Part")
Obs = Tensor | dict[str, Tensor]
State = dict[str, Tensor]
"""What a policy carries from step to step, `[B, ...]` each, one row per actor; empty for most policies."""


def map_obs(function: Callable[[Tensor], Tensor], obs: Obs) -> Obs:
    """Apply `function` to every array of an observation."""
    if isinstance(obs, dict):
        return {name: function(part) for name, part in obs.items()}
    return function(obs)


def parts_of(obs: Part | dict[str, Part]) -> dict[str, Part]:
    """The arrays of an observation, or of its spec, by name; "" where it is just one."""
    return obs if isinstance(obs, dict) else {"": obs}


def len_obs(obs: Obs) -> int:
    """The length of an observation's leading axis."""
    return len(next(iter(obs.values())) if isinstance(obs, dict) else obs)


def cat_obs(parts: Sequence[Obs]) -> Obs:
    """Concatenate observations (at least one, all of one structure) along their leading axis."""
    first = parts[0]
    if isinstance(first, dict):
        return {name: torch.cat([part[name] for part in parts if isinstance(part, dict)]) for name in first}
    return torch.cat([part for part in parts if isinstance(part, Tensor)])


def restart(state: State, initial: State, ended: Tensor) -> State:
    """`state` with the rows of `initial` where an episode `ended` (bool `[B]`)."""
    return {
        name: torch.where(ended.reshape(-1, *[1] * (part.ndim - 1)), initial[name], part)
        for name, part in state.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Episodes:
    """K finished episodes, in the order in which they ended."""

    index: Tensor
    """int64 `[K]`: which environment."""
    returns: Tensor
    """float32 `[K]`: undiscounted sum of the environment's own rewards, before any clipping or scaling."""
    lengths: Tensor
    """int64 `[K]`: agent steps."""
    signals: dict[str, Tensor]
    """float32 `[K]` each: the named signals summed over the episode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What B environments say after one action each. Reset convention: same-step.

    Its tensors may be the stage's own memory: they are valid until the next `send` to that stage.
    """

    obs: Obs
    """`[B, ...]`: what to act on next. Where an episode ended, already the first observation of the next one."""
    reward: Tensor
    """float32 `[B]`: what the learner sees (clipped if the stage was told to clip)."""
    terminated: Tensor
    """bool `[B]`: the task itself ended; the future is worth nothing."""
    truncated: Tensor
    """bool `[B]`: the episode was cut from outside (a time limit); the future is worth the value of `final_obs`."""
    final_obs: Obs
    """`[K, ...]`: the true last observation of every environment with `terminated | truncated`, in index order."""
    episodes: Episodes
    """The episodes that finished now: those that are cut, unless a cut is only a learning signal (a lost life)."""
    signals: dict[str, Tensor]
    """float32 `[B]` each: the environment's named numbers for this step."""
    faults: tuple[Fault, ...] = ()
    """What failed in this step and was mended. The environments that were started anew are truncated with reward 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a policy chose for B observations."""

    action: Tensor
    """In the environment's own units (`spec.ActionSpec` gives the shape)."""
    extras: dict[str, Tensor]
    """`[B, ...]` each: what the policy wants to find in the rollout (log-probability, value, …)."""
    state: State
    """What to act on the next observation with, unless the episode ends before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """T steps of B environments, time first. Its tensors are the collector's memory: valid until the next rollout."""

    obs: Obs
    """`[T+1, B, ...]`: what was acted on, and what comes next."""
    action: Tensor
    """`[T, B, ...]`."""
    reward: Tensor
    """float32 `[T, B]`."""
    terminated: Tensor
    """bool `[T, B]`."""
    truncated: Tensor
    """bool `[T, B]`."""
    final_obs: Obs
    """`[K, ...]`: true last observations where `cut`, ordered by time, then by environment index."""
    extras: dict[str, Tensor]
    """`[T, B, ...]` each: as the policy returned them."""
    state: State
    """`[B, ...]` each: what `obs[0]` was acted on with. Where an episode ends, the policy's initial state follows."""
    next_state: State
    """`[B, ...]` each: what `obs[T]` will be acted on with."""
    final_state: State
    """`[K, ...]` each: what goes with `final_obs`."""
    version: int
    """Number of updates the acting weights had seen."""
    episodes: Episodes
    """Everything that finished during these T steps; on the processor, wherever the rest is."""
    faults: tuple[Fault, ...] = ()
    """What failed during them and was mended."""
    dropped: Tensor | None = None
    """bool `[T, B]`: not to be learned from, because the environment failed before the episode ended. None: nothing.

    Some step is left; where the policy has a memory, some environment has no such step at all. Each stretch of them
    ends with a truncation.
    """

    @property
    def cut(self) -> Tensor:
        """bool `[T, B]`: an episode ended here, for whichever reason."""
        return self.terminated | self.truncated

    def kept(self, steps: Tensor) -> Tensor:
        """Of steps `[T·B, ...]` in the order of time, those to learn from."""
        return steps if self.dropped is None else steps[~self.dropped.flatten()]

    def bootstrap(self, value: Tensor, value_of: Callable[[Obs, State], Tensor]) -> Tensor:
        """Value of the true successor of every step: the one place where time limits are handled.

        Args:
            value: float32 `[T+1, B]`, the values of `obs`.
            value_of: gives float32 `[N]` for N observations and their states; called on all last ones.

        Returns:
            float32 `[T, B]`. Where an episode ended by truncation, the value of its true last observation; where it
            terminated, zero (a discount of zero hides it in any case); elsewhere the value of the next observation.
        """
        next_value = value[1:]
        if len_obs(self.final_obs):
            last = value_of(self.final_obs, self.final_state).to(value.dtype)
            next_value = next_value.masked_scatter(self.cut, last)  # unlike an index, it does not wait for the device
        return next_value.masked_fill(self.terminated, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One update's news, from the loop to whoever watches."""

    env_steps: int
    """Agent steps so far, summed over environments."""
    updates: int
    """Calls of `learn` so far."""
    seconds: float
    """Wall-clock of the run so far, earlier sittings included."""
    rollout: Rollout
    """What was learned from; its memory is valid until the next one is asked for."""
    metrics: dict[str, Tensor]
    """Scalars on the learner's device; reading one waits for the device."""
    time_split: dict[str, float]
    """Seconds spent in `env`, `act`, `learn` and `wait` so far in this sitting."""

    @property
    def lag(self) -> int:
        """Updates between the weights that acted and those that learned."""
        return self.updates - 1 - self.rollout.version
