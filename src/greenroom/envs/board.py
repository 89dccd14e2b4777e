"""The memory of a stage: one row per environment in arrays that may be private or shared between processes."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator

import numpy as np

from greenroom.envs.spaces import Array, Layout

_LINE = 64  # bytes of a cache line: no two arrays share one


class Board:
    """Arrays of B environments, all inside one block of memory that every process of a stage maps.

    Attributes:
        obs: `[B, ...]` per leaf of the layout, in its order: what to act on next.
        final: `[B, ...]` per leaf: the last observation of an ended episode; other rows hold old values.
        action: `[B, ...]`.
        reward: float32 `[B]`; `terminated`, `truncated`: bool `[B]`; `signals`: float32 `[number of signals, B]`.
        resetting: bool `[B]`: whether the environment is in the middle of a reset.
        current: int64 `[num_workers, 8]`, first column used: index of the environment that each worker steps now.
    """

    def __init__(self, layout: Layout, num_envs: int, num_workers: int, memory: mmap.mmap | None = None) -> None:
        block = memory if memory is not None else mmap.mmap(-1, board_bytes(layout, num_envs, num_workers))
        offset = 0
        arrays: dict[str, Array] = {}
        for name, shape, dtype in _arrays(layout, num_envs, num_workers):
            arrays[name] = np.ndarray(shape, dtype, buffer=block, offset=offset)
            offset += _padded(shape, dtype)
        self.obs = [arrays[f"obs.{leaf.name}"] for leaf in layout.leaves]
        self.final = [arrays[f"final.{leaf.name}"] for leaf in layout.leaves]
        self.action, self.reward, self.signals = arrays["action"], arrays["reward"], arrays["signals"]
        self.terminated, self.truncated = arrays["terminated"], arrays["truncated"]
        self.resetting, self.current = arrays["resetting"], arrays["current"]

    def lose(self, index: int) -> None:
        """Environment number `index` has begun a new episode in the middle of a step: what is left of the old one."""
        self.reward[index], self.signals[:, index] = 0.0, 0.0
        self.terminated[index], self.truncated[index] = False, True
        for final, obs in zip(self.final, self.obs, strict=True):
            final[index] = obs[index]  # the true last observation may not even be one


def board_bytes(layout: Layout, num_envs: int, num_workers: int) -> int:
    """Size of the block of memory behind a `Board`."""
    return sum(_padded(shape, dtype) for _, shape, dtype in _arrays(layout, num_envs, num_workers))


def _padded(shape: tuple[int, ...], dtype: str) -> int:
    return -(-math.prod(shape) * np.dtype(dtype).itemsize // _LINE) * _LINE


def _arrays(layout: Layout, num_envs: int, num_workers: int) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, shape and type of every array, in the order in which they lie in memory."""
    for leaf in layout.leaves:
        yield f"obs.{leaf.name}", (num_envs, *leaf.shape), leaf.dtype
        yield f"final.{leaf.name}", (num_envs, *leaf.shape), leaf.dtype
    yield "action", (num_envs, *layout.action.shape), layout.action.dtype
    yield "reward", (num_envs,), "float32"
    yield "terminated", (num_envs,), "bool"
    yield "truncated", (num_envs,), "bool"
    yield "signals", (len(layout.signals), num_envs), "float32"
    yield "resetting", (num_envs,), "bool"
    yield "current", (num_workers, 8), "int64"
