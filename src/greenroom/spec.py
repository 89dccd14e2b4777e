"""What an environment looks like: the shapes, types and ranges that cross the boundary."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySpec:
    """One observation array of one environment (no batch axis)."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    """float32 for vectors and one-hot encoded categories, uint8 for images."""
    low: float = float("-inf")
    """Lowest value over all elements."""
    high: float = float("inf")
    """Highest value over all elements."""
    stack: int = 1
    """How many consecutive frames the first axis holds, newest last: each step shifts it by `shape[0] // stack`."""

    @property
    def is_image(self) -> bool:
        """Whether this is a picture: three axes of bytes."""
        return len(self.shape) == 3 and self.dtype == torch.uint8

    @property
    def colour_last(self) -> bool:
        """Whether this is a picture `(H, W, C)`: with a last axis of at most 4 beside a longer first one."""
        return len(self.shape) == 3 and self.shape[2] <= 4 < self.shape[0]


ObsSpec = ArraySpec | dict[str, ArraySpec]
"""One array, or a flat dict of arrays (nested Gymnasium spaces are flattened: `{"a": {"b": …}}` becomes `"a.b"`)."""

MASK = "action_mask"
"""Key of a dict observation that is not seen but obeyed: float32 `[n]` (`[sum(nvec)]`), 1 where one may act so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Discrete:
    """One choice among `n`. Action tensor: int64 `[B]`, values `0 … n-1`."""

    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiDiscrete:
    """Several independent choices. Action tensor: int64 `[B, len(nvec)]`."""

    nvec: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounded:
    """Continuous actions with finite bounds. Action tensor: float32 `[B, *shape]`, in the environment's own units."""

    shape: tuple[int, ...]
    low: tuple[float, ...]
    """Lower bounds, flattened, one per element of `shape`."""
    high: tuple[float, ...]
    """Upper bounds, flattened, one per element of `shape`."""


ActionSpec = Discrete | MultiDiscrete | Bounded


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvSpec:
    """What every consumer of an environment may know about it."""

    name: str
    obs: ObsSpec
    action: ActionSpec
    signals: tuple[str, ...] = ()
    """Names of the per-step numbers in `Step.signals` (a safety cost, the parts of a reward)."""
