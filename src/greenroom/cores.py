"""Which core a thread computes on, where that cannot be left to the system.

Linux wakes a thread where it slept, or where it is woken from, and looks for an idle core only among those that it
knows to share a cache. On some virtual machines it knows of none. Then threads that work at the same time may have one
core between them, for as long as each of them sleeps now and then, while another core has nothing to do.

Only as many threads as this process has cores are placed here: fewer go where there is room. On systems other than
Linux nothing happens.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch

from greenroom.machine import available_cores, own_cores

_local = threading.local()
"""`seats`: those of the team of whoever asks."""


@contextmanager
def one_core_each() -> Iterator[None]:
    """Threads that start within stay each on a core of its own."""
    before = _threads()
    yield
    _seat(sorted(_threads() - before), _cores())


def make_room() -> None:
    """After a wait, which may have moved it: no thread that shares this one's tensor operations keeps its core."""
    if (count := torch.get_num_threads()) == 1:
        return
    seats: _Seats | None = getattr(_local, "seats", None)
    if seats is None or seats.count != count:
        seats = _local.seats = _Seats(count)
    seats.make_room()


class _Seats:
    """A core for each of the threads that share this one's tensor operations, but for its own."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._seated: dict[int, int] = {}
        """Threads by the core that each stays on."""
        if len(cores := _cores()) == count == len(team := _team(count)):
            self._here: Callable[[], int] = ctypes.CDLL(None).sched_getcpu
            self._free = self._here()
            cores.remove(self._free)
            team.remove(threading.get_native_id())
            self._seated = dict(zip(cores, team, strict=True))
            _seat(team, cores)

    def make_room(self) -> None:
        """The thread on this one's core, if there is one, takes the core that this one left."""
        if self._seated and (here := self._here()) in self._seated:
            self._seated[self._free] = thread = self._seated.pop(here)
            _seat([thread], [self._free])
            self._free = here


def _seat(threads: list[int], cores: list[int]) -> None:
    """Keep each on its core, if there are as many of both; those that have ended are left out."""
    if len(threads) == len(cores):
        alive = _threads()  # or the number may be another program's by now
        for thread, core in zip(threads, cores, strict=True):
            with suppress(OSError):  # the core is no longer ours
                if thread in alive:
                    os.sched_setaffinity(thread, {core})


def _cores() -> list[int]:
    """The numbers of this process's cores; none where the system does not tell, or a quota leaves it fewer."""
    cores = sorted(own_cores())
    return cores if len(cores) == available_cores() else []


def _threads() -> set[int]:
    """The system's numbers of this process's threads; none where it does not tell."""
    try:
        return {int(name) for name in os.listdir("/proc/self/task")}
    except OSError:
        return set()


def _team(count: int) -> list[int]:
    """The system's numbers of the threads that share this one's tensor operations, itself included.

    Each is asked by name: OpenMP keeps a team for every thread that asks for one. None where torch's is another one.
    """
    parallel = getattr(ctypes.CDLL(torch._C.__file__), "GOMP_parallel", None)
    told: list[int] = []
    if parallel is not None:
        tell = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: told.append(threading.get_native_id()))
        parallel(tell, None, count, 0)
    return told
