"""Trainers as processes of their own, their workers, and what is left of them when they are gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

MARK = "GREENROOM_FAULTS"
"""The environment variable by which the suite knows its processes."""
PATIENCE = 120.0
"""Seconds that anything may take on a busy machine."""
_SHARED_MEMORY = Path("/dev/shm")
WORKER, COLLECTOR = "a worker", "the collector"
"""Who besides the trainer may be killed."""
_MODULES = {WORKER: "greenroom.envs.worker", COLLECTOR: "greenroom.backstage"}
"""What such a process runs."""


class Failure(Exception):
    """Something that greenroom promises did not hold."""


class Place:
    """A folder for runs, with a temporary folder of its own, and the mark of all processes that work in it."""

    def __init__(self, path: Path) -> None:
        self.path, self.mark = path, uuid.uuid4().hex
        self.temporary = path / "tmp"
        self.temporary.mkdir(parents=True)
        self._shared = _names(_SHARED_MEMORY)

    @property
    def environment(self) -> dict[str, str]:
        """Variables for a process that works here; this process's modules are importable there."""
        paths = os.pathsep.join(dict.fromkeys(path for path in sys.path if path))
        own = {MARK: self.mark, "TMPDIR": str(self.temporary), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        # PyTorch's compiler keeps a cache between runs, on purpose.
        return os.environ | own | {"COLUMNS": "200", "TORCHINDUCTOR_CACHE_DIR": str(self.path / "compiled")}

    def processes(self, spare: Collection[int] = ()) -> list[int]:
        """Ids of the living processes that bear the mark, but for those in `spare`."""
        mark = f"{MARK}={self.mark}".encode()
        return [pid for pid in _pids() if pid not in spare and mark in _read(pid, "environ").split(b"\0")]

    def leftovers(self, spare: Collection[int] = ()) -> list[str]:
        """What is there that should not be: processes, shared memory that nobody holds, temporary files."""
        found = [f"process {pid}: {_command(pid)}" for pid in self.processes(spare)]
        new = _names(_SHARED_MEMORY) - self._shared
        found += [f"/dev/shm/{name}" for name in sorted(new) if not _held(f"/dev/shm/{name}")]
        return found + [f"temporary file {name}" for name in sorted(_names(self.temporary))]

    def check_empty(self, spare: Collection[int], *, within: float = 5.0) -> float:
        """Wait until nothing is left; returns the seconds that it took.

        Raises:
            Failure: something is.
        """
        begin = time.monotonic()
        while found := self.leftovers(spare):
            if time.monotonic() - begin > within:
                raise Failure(f"left behind after {within:g} s: {'; '.join(found)}")
            time.sleep(0.01)
        return time.monotonic() - begin


@dataclass(kw_only=True)
class Trainer:
    """One command in a process of its own."""

    pid: int
    started: float
    """Monotonic seconds."""
    out: Path
    """What it prints on standard output."""
    err: Path
    """And on standard error."""
    ending: Callable[[float], tuple[int, float]]
    """Waits, so many seconds at most, for the exit code and the moment."""
    ended: tuple[int, float] | None = None

    def alive(self) -> bool:
        """Whether it is running."""
        with suppress(Failure):
            self.wait(0.0)
        return self.ended is None

    def wait(self, timeout: float = PATIENCE) -> int:
        """Its exit code; negative: the signal that it died of.

        Raises:
            Failure: it does not end.
        """
        if self.ended is None:
            self.ended = self.ending(timeout)
        return self.ended[0]

    def send(self, number: signal.Signals) -> None:
        """A signal, unless it is gone."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    @property
    def said(self) -> str:
        """All it has printed so far, in one line."""
        return " ".join((self.err.read_text() + "\n" + self.out.read_text()).split())

    def helpers(self, who: str) -> dict[int, str]:
        """Ids of its processes of a kind → how its messages name them."""
        known = {pid: given for pid in _pids() if (given := _given(pid))}
        collectors = {pid for pid, given in known.items() if self._is(given, COLLECTOR, {self.pid})}
        if who == COLLECTOR:
            return dict.fromkeys(collectors, "the process that collects")
        workers = {pid: given for pid, given in known.items() if self._is(given, who, {self.pid, *collectors})}
        return {pid: f"worker {given['worker']} (environments " for pid, given in workers.items()}

    @staticmethod
    def _is(given: dict[str, Any], who: str, parents: Collection[int]) -> bool:
        return given["module"] == _MODULES[who] and given["parent"] in parents


def _given(pid: int) -> dict[str, Any]:
    """What a process was started with, if `greenroom.envs.crew.hire` did; else nothing."""
    words = _read(pid, "cmdline").split(b"\0")
    if len(words) > 3 and b"given.pop('module')" in words[2]:
        with suppress(ValueError):  # one that is just starting or going has no words yet, or no more
            found: dict[str, Any] = json.loads(words[3])
            return found
    return {}


class Zygote:
    """The driver's end of `faults.zygote`."""

    def __init__(self, place: Place) -> None:
        words = [sys.executable, "-m", "faults.zygote"]
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=place.environment, start_new_session=True
        )
        self._place, self._count = place, 0
        self._running: Trainer | None = None
        assert self._process.stdin is not None and self._process.stdout is not None
        self._orders, self._answers = self._process.stdin, Lines(self._process.stdout)
        self.pid = int(self._answers.next(PATIENCE)["ready"])

    def start(self, words: Sequence[str]) -> Trainer:
        """Run `greenroom …` in a fork. One that is left from before, because something went wrong, is killed."""
        if self._running is not None and self._running.alive():
            self._running.send(signal.SIGKILL)
            self._running.wait()
        self._count += 1
        out, err = (self._place.path / f"{self.pid}-{self._count}.{kind}" for kind in ("out", "err"))
        for file in (out, err):
            file.touch()
        order = {"words": list(words), "out": str(out), "err": str(err)}
        started = time.monotonic()
        self._orders.write(json.dumps(order).encode() + b"\n")
        self._orders.flush()
        pid = int(self._answers.next(PATIENCE)["pid"])

        def ending(timeout: float) -> tuple[int, float]:
            told = self._answers.next(timeout)
            return int(told["code"]), float(told["at"])

        self._running = Trainer(pid=pid, started=started, out=out, err=err, ending=ending)
        return self._running

    def close(self) -> None:
        """End the zygote; a trainer that still runs is killed."""
        self._orders.close()
        for pid in self._place.processes(spare=[self.pid]):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(PATIENCE)
        self._answers.close()


class Lines:
    """JSON objects that come through a pipe, one a line."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe, self._buffer = pipe, b""
        os.set_blocking(pipe.fileno(), False)

    def next(self, timeout: float) -> dict[str, Any]:
        """The next one.

        Raises:
            Failure: none comes in time, or the other side is gone.
        """
        deadline = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            part = self._pipe.read()
            if part == b"":
                raise Failure("the process that forks trainers is gone")
            self._buffer += part or b""
            if not part:
                if time.monotonic() >= deadline:
                    raise Failure(f"nothing has ended within {timeout:g} s")
                time.sleep(0.001)
        line, _, self._buffer = self._buffer.partition(b"\n")
        told: dict[str, Any] = json.loads(line)
        return told

    def close(self) -> None:
        """Let go of the pipe."""
        self._pipe.close()


def command_line(place: Place, words: Sequence[str], name: str) -> Trainer:
    """Run `python -m greenroom …`, a fresh interpreter, as a person does."""
    out, err = place.path / f"{name}.out", place.path / f"{name}.err"
    started = time.monotonic()
    with out.open("wb") as output, err.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "greenroom", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env=place.environment,
            start_new_session=True,
        )

    def ending(timeout: float) -> tuple[int, float]:
        try:
            return process.wait(timeout), time.monotonic()
        except subprocess.TimeoutExpired:
            raise Failure(f"greenroom {' '.join(words)} has not ended within {timeout:g} s") from None

    return Trainer(pid=process.pid, started=started, out=out, err=err, ending=ending)


def wait_until(holds: Callable[[], object], trainer: Trainer, *, timeout: float = PATIENCE, nap: float = 0.002) -> bool:
    """Wait until something holds: True; False if the trainer ends first.

    Raises:
        Failure: neither happens in time.
    """
    deadline = time.monotonic() + timeout
    while not holds():
        if not trainer.alive():
            return bool(holds())
        if time.monotonic() > deadline:
            raise Failure(f"it never happened; the trainer said: {trainer.said[-500:]}")
        time.sleep(nap)
    return True


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _read(pid: int, name: str) -> bytes:
    """A file of a process; empty if the process is gone, a zombie, or somebody else's."""
    try:
        return Path("/proc", str(pid), name).read_bytes()
    except OSError:
        return b""


def _command(pid: int) -> str:
    return _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace")[:200]


def _names(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()


def _held(path: str) -> bool:
    """Whether a living process has the file open or mapped: then it is that process's, not a leftover."""
    for pid in _pids():
        if path.encode() in _read(pid, "maps"):
            return True
        with suppress(OSError):
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{descriptor}") == path:
                        return True
    return False
