"""What belongs to this process alone: an environment may fork processes of its own, and those must not inherit it.

A helper that holds a run's lock, its socket or a worker's line keeps them open after we are gone; one that has our
signal handlers cannot be told to end. `multiprocessing` forks by default on many systems. Loads no torch.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress

GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""What a terminal or a cluster tells a whole group of processes, ours and those of environments."""

_UNDO: dict[object, Callable[[], object]] = {}


def undo_in_forks(undo: Callable[[], object]) -> Callable[[], None]:
    """Let whatever is forked from now on begin with `undo()`. Returns what puts an end to that."""
    key = object()
    _UNDO[key] = undo

    def forget() -> None:
        _UNDO.pop(key, None)  # a forked process may come here too

    return forget


def _begin() -> None:
    for undo in reversed(list(_UNDO.values())):
        with suppress(OSError):
            undo()
    _UNDO.clear()


os.register_at_fork(after_in_child=_begin)
