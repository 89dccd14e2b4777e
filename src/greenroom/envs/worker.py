"""The worker process of the workers stage: builds its share of the environments and steps them when told to.

Parent and worker talk over one socket. Every message begins with one byte, its tag. A step is that byte alone, its
answer too; everything rare (set-up, reset, snapshots, faults) is a tag followed by one frame of a
`multiprocessing.Connection`. Arrays travel through the shared board. The bytes on the socket also order the memory:
what one side wrote to the board before its byte, the other sees after reading it.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import pickle
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from greenroom.envs.board import Board
from greenroom.envs.faults import FaultConfig, Report, traceback_of
from greenroom.envs.gym import Cast
from greenroom.envs.snapshot import NotSnapshotable
from greenroom.errors import EnvironmentFault, UserError
from greenroom.forks import GROUP_SIGNALS, undo_in_forks

STEP, DONE, CALL, ANSWER, FAULT, CLOSE = b"s", b"d", b"c", b"a", b"f", b"x"
"""Tags. Parent to worker: STEP, CALL, CLOSE. Worker to parent: DONE, ANSWER, FAULT."""


class Line:
    """One end of the socket between parent and worker."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._connection = Connection(descriptor)

    def tag(self, tag: bytes) -> None:
        """Send a message that is only a tag."""
        os.write(self.descriptor, tag)

    def frame(self, tag: bytes, content: Any) -> None:
        """Send a tag and plain values."""
        self.tag(tag)
        self._connection.send(content)

    def read_tag(self) -> bytes:
        """Wait for a message; empty when the other side is gone."""
        try:
            return os.read(self.descriptor, 1)
        except ConnectionResetError:
            return b""

    def read_frame(self) -> Any:
        """The values that follow a tag."""
        return self._connection.recv()

    def deafen(self) -> None:
        """Read no more: who is writing to us, or will, is told that nobody listens; we may still write."""
        with socket.socket(fileno=os.dup(self.descriptor)) as ours:
            ours.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


def wait_readable(poll: select.poll, spin_seconds: float, timeout: float | None) -> list[tuple[int, int]]:
    """Poll in a loop for `spin_seconds`, because going to sleep and waking costs more than a short wait; then block.

    Args:
        poll: Has the descriptors registered.
        spin_seconds: 0 where processors are scarce: spinning would take them from who is waited for.
        timeout: Seconds to block at most; None waits for ever.
    """
    if spin_seconds:
        until = time.perf_counter() + spin_seconds
        while time.perf_counter() < until:
            if ready := poll.poll(0):
                return ready
    return poll.poll(None if timeout is None else timeout * 1e3)


def main(worker: int, descriptor: int, memory: int, parent: int, tied: bool) -> None:
    """Run worker number `worker` until the parent hangs up.

    Args:
        worker: Its number.
        descriptor: Its end of the socket.
        memory: File descriptor of the shared board.
        parent: Process id of the parent.
        tied: Whether the kernel may end this process with the parent's thread that started it.
    """
    line = obey(descriptor, parent, tied)
    service = _Service(worker, line, memory)
    try:
        service.run()
    except (BrokenPipeError, ConnectionResetError, EOFError):
        pass  # the parent is gone, and nobody is left to tell
    except Exception as error:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            line.frame(FAULT, describe(error, worker))
    finally:  # only now: to close may take long, and simulators outside of this process would outlive it
        service.close()


def describe(error: Exception, worker: int) -> tuple[str, str, str, int | None, str]:
    """Kind, message and traceback of an exception, and which environment is to blame with its own traceback."""
    fault = error if isinstance(error, EnvironmentFault) else None
    kind = "UserError" if isinstance(error, UserError) and fault is None else "EnvironmentFault"
    told = isinstance(error, UserError)
    message = str(error) if told else f"worker {worker}: {type(error).__name__}: {error}"
    blame, own = (None, "") if fault is None else (fault.index, traceback_of(fault))
    return kind, message, "".join(traceback.format_exception(error)), blame, own


class _Service:
    def __init__(self, worker: int, line: Line, memory: int) -> None:
        self._worker, self._line, self._memory = worker, line, memory
        self._poll = select.poll()
        self._poll.register(line.descriptor, select.POLLIN)
        self._spin = 0.0

    def run(self) -> None:
        calls: dict[str, Callable[..., Any]] = {"build": self._build, "enter": self._enter}
        while True:
            wait_readable(self._poll, self._spin, None)
            tag = self._line.read_tag()
            if tag == STEP:
                for index in self._cast.step():
                    self._current[0] = index
                self._current[0] = -1
                if reports := self._cast.reports():
                    self._line.frame(ANSWER, reports)
                else:
                    self._line.tag(DONE)
            elif tag == CALL:
                name, arguments = self._line.read_frame()
                self._line.frame(ANSWER, calls[name](*arguments))
                if name == "build":
                    calls |= {"reset": self._reset, "capture": self._capture, "restore": self._restore}
            else:  # CLOSE, or the parent is gone
                break

    def close(self) -> None:
        """Close the environments, if they were built."""
        if hasattr(self, "_cast"):
            self._cast.close()

    def _build(self, factory: bytes, first: int, count: int, spin: float, faults: FaultConfig) -> Any:
        self._spin = spin
        self._cast = Cast(pickle.loads(factory), first, count, faults)
        return self._cast.layout

    def _enter(self, num_envs: int, num_workers: int) -> None:
        board = Board(self._cast.layout, num_envs, num_workers, mmap.mmap(self._memory, 0))
        os.close(self._memory)
        self._current = board.current[self._worker]
        self._current[0] = -1
        self._cast.enter(board)

    def _reset(self, seeds: list[int]) -> list[Report]:
        """Start all environments anew; returns the failures that were mended meanwhile."""
        self._cast.reset(seeds)
        return self._cast.reports()

    def _capture(self) -> Any:
        """The states of all environments, or in words why there are none: no reason to end the stage."""
        try:
            return self._cast.capture()
        except NotSnapshotable as error:
            return str(error)

    def _restore(self, states: list[dict[str, Any]]) -> str | None:
        """Continue from these states, or say in words why that cannot be."""
        try:
            self._cast.restore(states)
        except NotSnapshotable as error:
            return str(error)
        return None


def obey(descriptor: int, parent: int, tied: bool) -> Line:
    """What a process does first that a parent has started: obey it alone, and never outlive it, even in endless steps.

    Args:
        descriptor: Our end of the line.
        parent: Process id of the parent.
        tied: Whether the kernel may end this process with the parent's thread that started it.
    """
    # What a terminal or a cluster tells the whole group of processes is for the parent to act upon. Not `SIG_IGN`: what
    # an environment starts as a process of its own would inherit it, and could not be told to end.
    for number in GROUP_SIGNALS:
        signal.signal(number, lambda number, frame: None)
    if tied and sys.platform == "linux":
        # The signal comes when the *thread* that started this process ends, so only a main thread may ask for it.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)

    def watch() -> None:
        hangup = select.poll()
        hangup.register(descriptor, 0)  # a hang-up is reported without being asked for
        while not hangup.poll(1000) and os.getppid() == parent:
            pass
        time.sleep(1.0)  # an idle worker sees the end by itself and closes its environments
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    line = Line(descriptor)
    os.set_inheritable(descriptor, False)

    def leave() -> None:
        line.close()
        for number in GROUP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)

    undo_in_forks(leave)
    return line
