"""Whether observations lie inside the space that their environment declares. Loads no torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from greenroom.envs.spaces import Array, Leaf

Bounds = tuple[Array, Array]
"""The lowest and the highest value of every element of a leaf, float32, of the leaf's shape. All are finite."""

_SLACK = 1e-5
"""Of a bound's size (at least 1): what rounding on the way to float32 may add."""


def bounds_of(space: Any, leaf: Leaf) -> Bounds | None:
    """The bounds of a leaf's part of the observation space `space`; None where every value that can be written fits."""
    if leaf.in_info or leaf.count:
        return None
    for key in leaf.path:
        space = space[key]
    if not isinstance(space, spaces.Box) or (
        leaf.dtype == "uint8" and space.low.max() == 0 and space.high.min() == 255
    ):
        return None
    # No bound stands for the largest number there is, so that one comparison also finds infinity (and NaN).
    largest = np.finfo(np.float32).max
    low, high = (np.asarray(side, np.float64).reshape(leaf.shape) for side in (space.low, space.high))
    low = np.clip(low - _SLACK * np.maximum(1.0, np.abs(low)), -largest, largest)
    high = np.clip(high + _SLACK * np.maximum(1.0, np.abs(high)), -largest, largest)
    return low.astype(np.float32), high.astype(np.float32)


def within(rows: Array, bounds: Bounds | None) -> bool:
    """Whether all values of `rows`, `[..., leaf's shape]`, are finite and, where there are bounds, inside."""
    if bounds is None:
        return bool(np.isfinite(rows).all())
    low, high = bounds
    return bool(((rows >= low) & (rows <= high)).all())


def outside(row: Array, bounds: Bounds) -> str:
    """In words, where one observation leaves its bounds first."""
    low, high = bounds
    where = tuple(np.argwhere((row < low) | (row > high))[0].tolist())
    place = f"element {list(where)}" if where else "it"
    return f"is outside its space: {place} is {row[where]:.4g}, not in {low[where]:.4g} … {high[where]:.4g}"
