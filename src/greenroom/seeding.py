"""One seed, many named generators: every random draw has an owner, and every owner's state is in the checkpoint."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor


def derive(seed: int, *path: str | int) -> int:
    """A 63-bit seed for the owner named by `path`, independent of every other owner's (NumPy's SeedSequence)."""
    keys = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in path]
    word = np.random.SeedSequence(entropy=seed, spawn_key=tuple(keys)).generate_state(1, np.uint64)[0]
    return int(word >> np.uint64(1))


def generator(seed: int, *path: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for the owner named by `path`."""
    return torch.Generator(device=device).manual_seed(derive(seed, *path))


def generator_state(source: torch.Generator) -> Tensor:
    """The generator's state as a uint8 CPU tensor."""
    return source.get_state().clone()


def restore(target: torch.Generator, state: Tensor) -> None:
    """Continue from a saved state.

    A processor's says nothing to a GPU's generator, nor the other way round: chance then begins anew, and does so in
    the same way every time.
    """
    state = state.cpu()
    if state.numel() == target.get_state().numel():
        target.set_state(state)
    else:
        target.manual_seed(derive(zlib.crc32(state.numpy().tobytes()), "another device"))
