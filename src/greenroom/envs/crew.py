"""A crew of worker processes as their parent sees it: started, told to step, waited for, found dead, sent home."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

from greenroom.envs.board import Board
from greenroom.envs.worker import ANSWER, CALL, CLOSE, DONE, FAULT, STEP, Line, wait_readable
from greenroom.errors import EnvironmentFault, UserError

_GOODBYE_SECONDS = 2.0  # for closing environments; then the process is killed
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_BOOT = (
    "import json, sys; given = json.loads(sys.argv[1]); sys.path[:] = given.pop('path'); "
    "from greenroom.envs.worker import main; main(**given)"
)


class RemoteTraceback(Exception):
    """What a worker saw: the cause of the fault that is raised in the parent."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class Crew:
    """`count` workers with `share` environments each, and one anonymous file that all of them can map.

    Workers are fresh interpreters: nothing is forked, and the caller's main module is not run again, so notebooks and
    scripts without a main guard work.

    Attributes:
        memory: File descriptor of the shared file, empty at first.
        board: Set once it exists; tells which environment a silent worker was stepping.
    """

    def __init__(self, count: int, share: int, spin_seconds: float, timeout: float) -> None:
        self.memory = _anonymous_file()
        self.board: Board | None = None
        self._share, self._spin, self._timeout = share, spin_seconds, timeout
        self._lines: list[Line] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._pending: set[int] = set()
        self._poll = select.poll()
        try:
            for worker in range(count):
                self._hire(worker)
        except BaseException:
            self.dismiss()
            raise
        self._worker_of = {line.descriptor: worker for worker, line in enumerate(self._lines)}

    def _hire(self, worker: int) -> None:
        ours, theirs = socket.socketpair()
        given = {
            "path": sys.path,
            "worker": worker,
            "descriptor": theirs.fileno(),
            "memory": self.memory,
            "parent": os.getpid(),
            "tied": threading.current_thread() is threading.main_thread(),
        }
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, json.dumps(given)],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), self.memory),
                env=os.environ | dict.fromkeys(_THREADS, "1"),
                process_group=0,  # Ctrl-C in the terminal reaches the parent alone
            )
        self._processes.append(process)
        self._lines.append(Line(ours.detach()))
        self._poll.register(self._lines[-1].descriptor, select.POLLIN)

    def step(self) -> None:
        """Tell every worker to step its environments once."""
        for worker in range(len(self._lines)):
            self._send(worker, STEP, None)

    def call(self, name: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Have every worker run `name` with its own arguments; returns the answers in the order of the workers."""
        self.wait()  # answers that nobody took because Ctrl-C came in between
        for worker, given in enumerate(arguments):
            self._send(worker, CALL, (name, given))
        answers = self.wait()
        return [answers[worker] for worker in range(len(self._lines))]

    def wait(self) -> dict[int, Any]:
        """Wait until every worker has done what it was told last; returns what they answered, by worker.

        Raises:
            EnvironmentFault: An environment failed, or a worker died or stayed silent.
            UserError: The environments could not be built as asked.
        """
        answers: dict[int, Any] = {}
        deadline = time.monotonic() + self._timeout
        while self._pending:
            ready = wait_readable(self._poll, self._spin, max(deadline - time.monotonic(), 0.0))
            if not ready:
                worker = min(self._pending)
                raise EnvironmentFault(
                    f"{self._who(worker)} has been silent for {self._timeout:g} s{self._where(worker)}"
                )
            for descriptor, _ in ready:
                worker = self._worker_of[descriptor]
                tag = self._lines[worker].read_tag()
                if tag == FAULT:
                    _raise_fault(*self._lines[worker].read_frame())
                elif tag == ANSWER:
                    answers[worker] = self._lines[worker].read_frame()
                elif tag != DONE:
                    raise self._death(worker)
                self._pending.discard(worker)
        return answers

    def dismiss(self) -> None:
        """Let every worker close its environments and end; kill those that do not. May be called twice."""
        for line in self._lines:
            with contextlib.suppress(OSError):
                line.tag(CLOSE)
        deadline = time.monotonic() + _GOODBYE_SECONDS
        for process in self._processes:
            try:
                process.wait(max(deadline - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for line in self._lines:
            line.close()
        if self.memory >= 0:
            os.close(self.memory)
        self._lines, self._processes, self.memory = [], [], -1

    def _send(self, worker: int, tag: bytes, content: Any) -> None:
        try:
            if content is None:
                self._lines[worker].tag(tag)
            else:
                self._lines[worker].frame(tag, content)
        except (BrokenPipeError, ConnectionResetError):
            # It may have said why before it ended; `wait` reads that first.
            pass
        self._pending.add(worker)

    def _death(self, worker: int) -> EnvironmentFault:
        try:
            code = self._processes[worker].wait(1.0)
        except subprocess.TimeoutExpired:
            return EnvironmentFault(f"{self._who(worker)} hung up{self._where(worker)}")
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return EnvironmentFault(f"{self._who(worker)} {how}{self._where(worker)}")

    def _who(self, worker: int) -> str:
        first = worker * self._share
        return f"worker {worker} (environments {first} to {first + self._share - 1})"

    def _where(self, worker: int) -> str:
        current = -1 if self.board is None else int(self.board.current[worker, 0])
        return f" while it stepped environment {current}" if current >= 0 else ""


def _raise_fault(kind: str, message: str, trace: str) -> None:
    error = UserError(message) if kind == "UserError" else EnvironmentFault(message)
    raise error from RemoteTraceback(trace)


def _anonymous_file() -> int:
    """A file without a name: it ends with the last process that holds it."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("greenroom")
    descriptor, path = tempfile.mkstemp(prefix="greenroom-")
    os.unlink(path)
    return descriptor
