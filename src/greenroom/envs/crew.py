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
from collections.abc import Callable, Sequence
from typing import Any

from greenroom.envs.board import Board
from greenroom.envs.worker import ANSWER, CALL, CLOSE, DONE, FAULT, STEP, Line, wait_readable
from greenroom.errors import EnvironmentFault, UserError

_START_SECONDS = 60.0  # for the interpreter and its imports, on a busy machine
_GLANCE_SECONDS = 0.25  # between two looks at workers that nobody waits for
_GOODBYE_SECONDS = 2.0  # for closing environments; then the process is killed
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_BOOT = (
    "import importlib, json, sys; given = json.loads(sys.argv[1]); sys.path[:] = given.pop('path'); "
    "importlib.import_module(given.pop('module')).main(**given)"
)


def hire(module: str, memory: int, **given: Any) -> tuple[subprocess.Popen[bytes], Line]:
    """Start a fresh interpreter that runs `module.main(descriptor=…, memory=…, parent=…, tied=…, **given)`.

    Nothing is forked, and the caller's main module is not run again, so that notebooks and scripts without a main guard
    work. Numerical libraries get one thread there.

    Args:
        module: whose `main` lives as long as the line is open; see `worker.obey` for its arguments.
        memory: descriptor of a file that it may map.
        given: more for `main`, as JSON has it.

    Returns:
        The process, and our end of the line to it.
    """
    ours, theirs = socket.socketpair()
    given |= {
        "path": [entry for entry in sys.path if isinstance(entry, str)],  # what else there is Python passes over, too
        "module": module,
        "descriptor": theirs.fileno(),
        "memory": memory,
        "parent": os.getpid(),
        "tied": threading.current_thread() is threading.main_thread(),
    }
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, json.dumps(given)],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), memory),
            env=os.environ | dict.fromkeys(_THREADS, "1"),
            process_group=0,  # Ctrl-C in the terminal reaches the parent alone
        )
    return process, Line(ours.detach())


class RemoteTraceback(Exception):
    """What a worker saw: the cause of the fault that is raised in the parent."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class WorkerLost(EnvironmentFault):
    """A worker died or fell silent: no more is to be expected of it, but others may go on. Killed or not."""

    def __init__(self, message: str, *, worker: int, index: int) -> None:
        super().__init__(message, index=index)
        self.worker = worker


class Crew:
    """`count` workers with `share` environments each, and one anonymous file that all of them can map.

    Attributes:
        memory: File descriptor of the shared file, empty at first.
        board: Set once it exists; tells which environment a silent worker was stepping.

    Args:
        count: Workers.
        share: Environments of each.
        first: Number of the first worker's first one; those before it are not the crew's.
        spin_seconds: See `wait_readable`.
        step_timeout: Seconds that one step of one environment may take; 0: for ever.
        reset_timeout: The same for a reset, and for building one.
        alert: Hears at once of a worker that dies while nobody waits for it, as during a long update.
    """

    def __init__(
        self,
        count: int,
        share: int,
        first: int,
        spin_seconds: float,
        *,
        step_timeout: float,
        reset_timeout: float,
        alert: Callable[[str], None] | None = None,
    ) -> None:
        self.memory = anonymous_file()
        self.board: Board | None = None
        self.step_timeout, self.reset_timeout = step_timeout, reset_timeout
        self._share, self._first, self._spin = share, first, spin_seconds
        self._lines: list[Line] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._pending: set[int] = set()
        self._answers: dict[int, Any] = {}
        self._seen: dict[int, tuple[tuple[int, bool], float]] = {}
        """By pending worker: what it was doing when looked at last, and since when."""
        self._worker_of: dict[int, int] = {}
        """By the descriptor of its line."""
        self._poll = select.poll()
        limits = [limit for limit in (step_timeout, reset_timeout) if limit]
        self._glance = min(min(limits) / 10, 1.0) if limits else None
        """Seconds between two looks for silence."""
        self._awaited = self._dismissed = False
        try:
            for worker in range(count):
                self._hire(worker)
        except BaseException:
            self.dismiss()
            raise
        if alert is not None:
            threading.Thread(target=self._keep_watch, args=(alert,), name="workers", daemon=True).start()

    def _keep_watch(self, alert: Callable[[str], None]) -> None:
        """Tell of each death once. What follows from it follows when the worker is next waited for."""
        told: set[int] = set()
        while not self._dismissed:
            time.sleep(_GLANCE_SECONDS)
            for worker, process in enumerate(tuple(self._processes)):
                if process.poll() is None or process.pid in told or self._awaited or self._dismissed:
                    continue
                told.add(process.pid)
                alert(f"{self._who(worker)} {manner_of(process.returncode)}; this is dealt with after the update")

    def replace(self, worker: int) -> None:
        """End a worker, whatever it does, and start a new process in its place."""
        self._processes[worker].kill()
        self._processes[worker].wait()
        gone = self._lines[worker]
        self._poll.unregister(gone.descriptor)
        del self._worker_of[gone.descriptor]
        gone.close()
        self._pending.discard(worker)
        if self.board is not None:
            share = self.share_of(worker)
            self.board.current[worker, 0], self.board.resetting[share.start : share.stop] = -1, False
        self._hire(worker)

    def _hire(self, worker: int) -> None:
        """Start a process; it takes the place of the worker of that number, or comes last."""
        process, line = hire("greenroom.envs.worker", self.memory, worker=worker)
        self._processes[worker : worker + 1], self._lines[worker : worker + 1] = [process], [line]
        self._worker_of[line.descriptor] = worker
        self._poll.register(line.descriptor, select.POLLIN)

    def share_of(self, worker: int) -> range:
        """The environments of a worker."""
        first = self._first + worker * self._share
        return range(first, first + self._share)

    def step(self) -> None:
        """Tell every worker to step its environments once."""
        for worker in range(len(self._lines)):
            self._send(worker, STEP, None)

    def ask(self, worker: int, name: str, arguments: tuple[Any, ...]) -> Any:
        """Have one worker run `name`, while others may still be busy; returns its answer."""
        self._send(worker, CALL, (name, arguments))
        self._wait_for({worker})
        return self._answers.pop(worker)

    def call(self, name: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Have every worker run `name` with its own arguments; returns the answers in the order of the workers."""
        self.wait()  # answers that nobody took because Ctrl-C came in between
        self.tell(name, arguments)
        answers = self.wait()
        return [answers[worker] for worker in range(len(self._lines))]

    def tell(self, name: str, arguments: Sequence[tuple[Any, ...]]) -> None:
        """The same without waiting for the answers; nobody may be busy."""
        for worker, given in enumerate(arguments):
            self._send(worker, CALL, (name, given))

    def wait(self) -> dict[int, Any]:
        """Wait until every worker has done what it was told last; returns what they answered, by worker.

        Raises:
            WorkerLost: One died or stayed silent. Waiting may go on for the others.
            EnvironmentFault: An environment failed.
            UserError: The environments could not be built as asked.
        """
        self._wait_for(self._pending)
        answers, self._answers = self._answers, {}
        return answers

    def _wait_for(self, workers: set[int]) -> None:
        self._awaited = True
        try:
            self._take_answers(workers)
        finally:
            self._awaited = False

    def _take_answers(self, workers: set[int]) -> None:
        while self._pending & workers:
            ready = wait_readable(self._poll, self._spin, self._glance)
            if not ready:
                self._look_for_silence(time.monotonic())
            for descriptor, _ in ready:
                worker = self._worker_of[descriptor]
                tag, content = self._read(worker)
                if tag == FAULT:
                    _raise_fault(*content)
                if tag == ANSWER:
                    self._answers[worker] = content
                self._pending.discard(worker)

    def _read(self, worker: int) -> tuple[bytes, Any]:
        """A message of a worker; raises `WorkerLost` if it ended instead, be it in the middle of an answer."""
        line = self._lines[worker]
        tag = line.read_tag()
        if tag == DONE:
            return tag, None
        if tag in (ANSWER, FAULT):
            with contextlib.suppress(EOFError, OSError):
                return tag, line.read_frame()
        raise self._death(worker)

    def _look_for_silence(self, now: float) -> None:
        """Find a worker that has been at the same thing for longer than that may take."""
        for worker in sorted(self._pending):
            index, resetting = doing = self._doing(worker)
            before, since = self._seen.get(worker, (None, now))
            if before != doing:
                since = now
            self._seen[worker] = doing, since
            if index >= 0:
                limit = self.reset_timeout if resetting else self.step_timeout
            elif self.reset_timeout:  # starting, building or copying all of its environments
                limit = _START_SECONDS + self.reset_timeout * self._share
            else:
                limit = 0.0
            if limit and now - since >= limit:
                raise self._lost(worker, f"has been silent for {limit:g} s{self._where(worker) or self._beside()}")

    def _beside(self) -> str:
        """What a worker does that is at no environment in particular, and how long it may."""
        what = "copied" if self.board is not None else "started, and built,"
        return (
            f" while it {what} all of its environments; it may take {_START_SECONDS:g} s, and {self.reset_timeout:g} s "
            "(--reset-timeout) for each"
        )

    def _doing(self, worker: int) -> tuple[int, bool]:
        """Which environment a worker steps or resets (-1: none in particular), and whether it resets it."""
        if self.board is None:
            return -1, False
        share = self.share_of(worker)
        resetting = self.board.resetting[share.start : share.stop].nonzero()[0]
        if len(resetting):
            return share[int(resetting[0])], True
        return int(self.board.current[worker, 0]), False

    def dismiss(self) -> None:
        """Let every worker close its environments and end; kill those that do not. May be called twice."""
        self._dismissed = True
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
        self._seen.pop(worker, None)

    def _death(self, worker: int) -> WorkerLost:
        try:
            code = self._processes[worker].wait(1.0)
        except subprocess.TimeoutExpired:
            return self._lost(worker, f"hung up{self._where(worker)}")
        return self._lost(worker, f"{manner_of(code)}{self._where(worker)}")

    def _lost(self, worker: int, how: str) -> WorkerLost:
        self._pending.discard(worker)
        index = max(self._doing(worker)[0], self.share_of(worker).start)
        return WorkerLost(f"{self._who(worker)} {how}", worker=worker, index=index)

    def _who(self, worker: int) -> str:
        share = self.share_of(worker)
        return f"worker {worker} (environments {share[0]} to {share[-1]})"

    def _where(self, worker: int) -> str:
        index, resetting = self._doing(worker)
        return f" while it {'reset' if resetting else 'stepped'} environment {index}" if index >= 0 else ""


def manner_of(code: int) -> str:
    """What a process's return code says of its end."""
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def _raise_fault(kind: str, message: str, trace: str, index: int | None, own: str) -> None:
    if kind == "UserError":
        raise UserError(message) from RemoteTraceback(trace)
    error = EnvironmentFault(message, index=index)
    error.own_traceback = own
    raise error from RemoteTraceback(trace)


def anonymous_file() -> int:
    """A file without a name: it ends with the last process that holds it."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("greenroom")
    descriptor, path = tempfile.mkstemp(prefix="greenroom-")
    os.unlink(path)
    return descriptor
