"""Numbers one can defend: robust means, intervals and comparisons of scores, in NumPy.

"Agarwal 2021" is Agarwal et al., *Deep Reinforcement Learning at the Edge of the Statistical Precipice* (NeurIPS 2021).
Functions of samples reduce the last axis, so that a bootstrap takes all its resamples `[R, N]` in one call.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_CHUNK = 1 << 22
"""Resampled values held in memory at once by the bootstrap."""


def mean(samples: Floats) -> Floats:
    """Arithmetic mean over the last axis of `[..., N]`."""
    return np.asarray(samples.mean(axis=-1))


def std(samples: Floats) -> Floats:
    """Sample standard deviation (divisor N - 1) over the last axis of `[..., N]`; zero where N is 1."""
    if samples.shape[-1] == 1:
        return np.zeros(samples.shape[:-1])
    return np.asarray(samples.std(axis=-1, ddof=1))


def iqm(samples: Floats) -> Floats:
    """Interquartile mean (Agarwal 2021): the mean without the ⌊N/4⌋ lowest and the ⌊N/4⌋ highest of `[..., N]`.

    Whole samples are dropped, as by `scipy.stats.trim_mean(x, 0.25)`, which the paper's own library uses.
    """
    size = samples.shape[-1]
    drop = size // 4
    return np.asarray(np.sort(samples, axis=-1)[..., drop : size - drop].mean(axis=-1))


def cvar(samples: Floats, fraction: float = 0.05) -> Floats:
    """Conditional value at risk: the mean of the ⌈fraction · N⌉ lowest of `[..., N]`, with `fraction` in (0, 1]."""
    worst = max(1, math.ceil(fraction * samples.shape[-1] - 1e-9))  # 0.07 * 100 is a hair over 7
    return np.asarray(np.sort(samples, axis=-1)[..., :worst].mean(axis=-1))


def probability_of_improvement(x: Floats, y: Floats) -> Floats:
    """P(X > Y) with ties counted half, over all pairs of `[..., N]` and `[..., M]`: U/NM of Mann and Whitney."""
    difference = x[..., :, None] - y[..., None, :]
    return np.asarray((0.5 * (np.sign(difference) + 1.0)).mean(axis=(-2, -1)))


def bootstrap_interval(
    statistic: Callable[..., Floats],
    *strata: Floats,
    generator: np.random.Generator,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> tuple[float, float]:
    """Stratified percentile bootstrap (Efron 1979; stratified as in Agarwal 2021).

    Each stratum is resampled with replacement on its own, so that every group keeps its size. With one stratum this is
    the ordinary bootstrap.

    Args:
        statistic: called with one array `[R, N_i]` per stratum; gives `[R]`.
        strata: float `[N_i]` each, at least one sample in each.
        generator: source of the resampling.
        confidence: probability mass between the two ends, in (0, 1).
        resamples: how many times to resample.

    Returns:
        The lower and the upper end.
    """
    total = sum(len(stratum) for stratum in strata)
    chunk = max(1, _CHUNK // total)
    values: list[Floats] = []
    for first in range(0, resamples, chunk):
        count = min(chunk, resamples - first)
        drawn = [stratum[generator.integers(len(stratum), size=(count, len(stratum)))] for stratum in strata]
        values.append(statistic(*drawn))
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(np.concatenate(values), (tail, 1.0 - tail))
    return float(low), float(high)


def area_under_curve(x: Floats, y: Floats, start: float | None = None, end: float | None = None) -> float:
    """Mean height of the piecewise linear curve `y(x)` between `start` and `end` (trapezoid rule over the range).

    Args:
        x: float `[N]`, increasing, at least one point.
        y: float `[N]`.
        start: left end, by default the curve's first point; left of that the curve is held at its first value.
        end: right end, by default the curve's last point; right of that the curve is held at its last value.

    Returns:
        The area divided by `end - start`; the height at `start` where the range is empty.
    """
    left = float(x[0]) if start is None else start
    right = float(x[-1]) if end is None else end
    if right <= left:
        return float(np.interp(left, x, y))
    grid = np.concatenate(([left], x[(x > left) & (x < right)], [right]))
    height = np.interp(grid, x, y)
    return float((np.diff(grid) * (height[1:] + height[:-1])).sum() / (2.0 * (right - left)))


def first_crossing(x: Floats, y: Floats, level: float) -> float | None:
    """Where the piecewise linear curve `y(x)` first reaches `level` from below.

    Args:
        x: float `[N]`, increasing, at least one point.
        y: float `[N]`.
        level: the height to reach.

    Returns:
        `x`, linearly interpolated; `x[0]` where the curve starts at or above `level`; None if it never gets there.
    """
    reached = np.flatnonzero(y >= level)
    if len(reached) == 0:
        return None
    after = int(reached[0])
    if after == 0:
        return float(x[0])
    before = after - 1
    share = (level - y[before]) / (y[after] - y[before])
    return float(x[before] + share * (x[after] - x[before]))
