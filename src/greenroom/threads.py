"""How many CPU threads an operation is worth sharing among.

Torch takes one for each core, whatever there is to compute. Threads wait for each other after every operation: in a
small network that costs more than they save, and where another program has one of the cores, many times more.
"""

from __future__ import annotations

import copy
import inspect
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from greenroom.policy import Actor
from greenroom.spec import ArraySpec, EnvSpec, ObsSpec
from greenroom.types import Obs

_WORTH_A_THREAD = 2**24
"""Floating-point operations of one forward pass for each thread: with half of that, two were slower than one."""

_SQUARE = 256
"""Side of the matrices that `crowding` multiplies."""


def worthwhile(policy: Actor, spec: EnvSpec, rows: int, *, device: torch.device) -> int:
    """Threads for passing so many `rows` at a time through a policy's network; no more than torch takes now.

    It depends on sizes alone, so that the same run gets the same number, and the same bits, every time.

    Args:
        policy: on `device`.
        spec: of its environment.
        rows: observations that are computed together.
        device: where; what another one than the CPU computes is not counted.
    """
    most = torch.get_num_threads()
    if device.type != "cpu" or most == 1:
        return most
    return max(1, min(most, rows * operations(policy, spec) // _WORTH_A_THREAD))


def operations(policy: Actor, spec: EnvSpec) -> int:
    """Floating-point operations of acting on one observation, by torch's own formulas."""
    counter = _Counter()
    with torch.no_grad(), counter:
        # On a copy: whatever a user's policy keeps of what it sees, the run begins without it.
        copy.deepcopy(policy).act(_zeros(spec.obs), policy.initial_state(1), None)
    return counter.operations


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # it has no annotations
        self.operations: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if (formula := flop_registry.get(func.overloadpacket)) is not None:
            self.operations += formula(*args, **kwargs, out_val=result)
        return result


# Like torch's optimisers (see `optim`) the method, and so torch's own `FlopCounterMode`, would import torch's compiler.
_Counter.__torch_dispatch__ = inspect.unwrap(_Counter.__torch_dispatch__)  # type: ignore[method-assign]


def crowding(threads: int) -> float:
    """How many times as long a small operation takes with so many threads as with one.

    Less than 1 on a machine that has nothing else to do; far more where other programs keep threads from their cores.
    Takes some hundredths of a second, or on a crowded machine some tenths.
    """
    seconds = {count: _seconds_with(count) for count in (1, threads)}
    return seconds[threads] / seconds[1]


def _seconds_with(threads: int) -> float:
    square = torch.ones(_SQUARE, _SQUARE)
    with limited(threads):
        square @ square  # threads are started when there is something to do
        tries = []
        for _ in range(5):
            begin = time.perf_counter()
            for _ in range(10):
                square @ square
            tries.append(time.perf_counter() - begin)
    return statistics.median(tries)  # one hiccup is no crowd


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """Within, tensor operations of this thread use so many."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _zeros(spec: ObsSpec) -> Obs:
    if isinstance(spec, ArraySpec):
        return torch.zeros(1, *spec.shape, dtype=spec.dtype)
    return {name: torch.zeros(1, *part.shape, dtype=part.dtype) for name, part in spec.items()}
