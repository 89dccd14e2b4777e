"""The line to a live run: a socket in its folder, where a command asks and the run answers between two updates.

One line of JSON each way. Only the owner of the run may speak (and root); nothing leaves the machine. The thread that
listens understands requests and puts them in a queue, no more: what is asked for happens in the run's own thread, which
looks into the queue after each update.

A Unix socket's address may have 107 bytes and a run's folder a longer path. Both sides therefore name the socket
through an open descriptor of the folder, `/proc/self/fd/N/control.sock`.
"""

from __future__ import annotations

import json
import math
import os
import pwd
import queue
import select
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from greenroom.errors import UserError, nearest
from greenroom.folder import as_word
from greenroom.forks import undo_in_forks

Verb = Literal["status", "pause", "resume", "stop", "checkpoint", "rollback", "set"]
"""What may be asked for."""

SOCKET = "control.sock"
"""The socket's name in the run's folder."""
LIMIT = 4096
"""The most bytes in a request."""
_IDLE_SECONDS = 10.0
"""How long a conversation may be silent between its requests."""
_CONVERSATIONS = 16
"""At once; who comes later is turned away."""
_GLANCE_SECONDS = 1.0
"""Between two looks at whether whoever asked still waits."""
_CROWDED = f"{_CONVERSATIONS} requests wait for the run's answer already; try again later"


class NotLive(UserError):
    """Nobody is at the other end: the run is not being trained now."""


class NoAnswer(UserError):
    """The run is alive and has not answered in time: it is in the middle of an update, an evaluation or a save."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What someone asks of a run."""

    verb: Verb
    reason: str = ""
    """Why, in a person's words; kept with the record of the intervention."""
    to: int | None = None
    """Of `rollback`: the checkpoint's `env_steps`; None: the newest good one."""
    learning_rate: float | None = None
    """Of `set`: the rate from now on; schedules go on from it in proportion."""
    factor: float | None = None
    """Of `set`: multiplies the learning rate that is in force."""

    def __post_init__(self) -> None:
        for name, value in (("learning_rate", self.learning_rate), ("factor", self.factor)):
            if value is not None and not 0.0 < value < math.inf:  # NaN included
                raise UserError(f"{name} must be a finite number greater than 0, not {value}")
        if self.to is not None and self.to < 0:
            raise UserError(f"to must be a number of steps, not {self.to}")
        given = (self.learning_rate is not None) + (self.factor is not None)
        if given != (self.verb == "set"):
            raise UserError("set needs a learning_rate or a factor, and nothing else takes one")
        if self.to is not None and self.verb != "rollback":
            raise UserError(f"{self.verb} takes no `to`")

    @property
    def arguments(self) -> dict[str, float]:
        """What was given beside verb and reason."""
        named = {"to": self.to, "learning_rate": self.learning_rate, "factor": self.factor}
        return {name: value for name, value in named.items() if value is not None}

    def record(self, user: str) -> dict[str, object]:
        """What is kept of it: when, who, what and why."""
        return {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "user": user,
            "verb": self.verb,
            "arguments": self.arguments,
            "reason": self.reason,
        }


def parse(line: bytes) -> Request:
    """The request that a line stands for.

    Raises:
        UserError: whatever is wrong with it.
    """
    if len(line) > LIMIT:
        raise UserError(f"a request has at most {LIMIT} bytes")
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as problem:  # not UTF-8, not JSON, or nested without end
        raise UserError(f"a request is one line of JSON: {problem}") from None
    if not isinstance(content, dict):
        raise UserError('a request is a JSON object such as {"verb": "status"}')
    known = [item.name for item in fields(Request)]
    for name, value in content.items():
        if name not in known:
            raise UserError(f"unknown key {name!r}{nearest(name, known)}")
        content[name] = _typed(name, value)
    if content.get("verb") not in get_args(Verb):
        raise UserError(f"no verb {content.get('verb')!r}{nearest(str(content.get('verb')), get_args(Verb))}")
    return Request(**content)


def _typed(name: str, value: object) -> object:
    """A request's value, if it is of the right type."""
    wanted: tuple[type, ...] = {"to": (int,), "learning_rate": (int, float), "factor": (int, float)}.get(name, (str,))
    optional = value is None and str not in wanted
    if not optional and (isinstance(value, bool) or not isinstance(value, wanted)):
        raise UserError(f"{name} must be {' or '.join(kind.__name__ for kind in wanted)}, not {value!r}")
    if isinstance(value, str) and not value.isprintable():
        raise UserError(f"{name} must be one line of text, not {value!r}")
    if float not in wanted or value is None:
        return value
    try:
        return float(value)  # type: ignore[arg-type]  # int or float, as was just checked
    except OverflowError:
        raise UserError(f"{name} is too large") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A request that waits for the run's answer."""

    request: Request
    user: str
    """Who asks, as the kernel knows them."""
    reply: Future[dict[str, Any]]
    """Where the answer goes; `answer` and `refuse` put it there."""

    def answer(self, **content: Any) -> None:
        """Tell whoever asks that it was done, and what came of it: plain values."""
        self.reply.set_result({"ok": True, **content})

    def refuse(self, why: str) -> None:
        """Tell whoever asks that it was not done."""
        self.reply.set_result(_refusal(why))


def _refusal(why: str) -> dict[str, Any]:
    return {"ok": False, "error": why}


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"


class Control:
    """The run's end of the line. Where there cannot be a socket, nobody ever asks for anything."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._queue: queue.SimpleQueue[Pending] = queue.SimpleQueue()
        self._free = threading.Semaphore(_CONVERSATIONS)
        self._closed = False
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self._socket: socket.socket | None = None
        try:
            self._socket = _listen(self._folder)
        except OSError as problem:
            say(f"no live control of this run: there can be no socket in {folder}: {problem.strerror or problem}")
        else:
            self._forget = undo_in_forks(self._socket.close)
            threading.Thread(target=self._welcome, args=(self._socket,), name="control", daemon=True).start()

    def take(self, timeout: float = 0.0) -> Pending | None:
        """The oldest request that waits, or None; `timeout`: how many seconds to wait for one."""
        try:
            return self._queue.get(timeout=timeout) if timeout else self._queue.get_nowait()
        except queue.Empty:
            return None

    def close(self) -> None:
        """Remove the socket, and turn away whoever still waits."""
        self._closed = True
        if self._socket is not None:
            self._forget()
            with suppress(OSError):
                os.unlink(SOCKET, dir_fd=self._folder)
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that listens
            self._socket.close()
        os.close(self._folder)
        self._turn_away()

    def _turn_away(self) -> None:
        while (waiting := self.take()) is not None:
            waiting.refuse("the run has just ended")

    def _welcome(self, listening: socket.socket) -> None:
        while not self._closed:
            try:
                connection = listening.accept()[0]
            except OSError:
                time.sleep(0.1)  # closed, or too many open files: that passes
                continue
            if self._free.acquire(blocking=False):
                threading.Thread(target=self._converse, args=(connection,), name="conversation", daemon=True).start()
            else:
                with connection, suppress(OSError):
                    connection.setblocking(False)
                    connection.sendall(_line(_refusal(_CROWDED)))

    def _converse(self, connection: socket.socket) -> None:
        try:
            with connection, suppress(OSError), connection.makefile("rb") as lines:
                connection.settimeout(_IDLE_SECONDS)
                user = _owner_only(connection)
                while line := lines.readline(LIMIT + 1):
                    connection.sendall(_line(self._ask(line, user, connection)))
                    if len(line) > LIMIT:
                        break  # where the next request begins is anybody's guess
        finally:
            self._free.release()

    def _ask(self, line: bytes, user: str, connection: socket.socket) -> dict[str, Any]:
        """Pass a request on, and wait for the run's answer as long as whoever asks does.

        Raises:
            BrokenPipeError: they have left. What they asked for is done all the same.
        """
        try:
            pending = Pending(request=parse(line), user=user, reply=Future())
        except UserError as problem:
            return _refusal(str(problem))
        self._queue.put(pending)
        if self._closed:  # it may have come too late to be turned away by `close`
            self._turn_away()
        look = select.poll()
        look.register(connection, 0)  # a hang-up is reported without being asked for
        while True:
            with suppress(TimeoutError):
                return pending.reply.result(_GLANCE_SECONDS)
            if look.poll(0):
                raise BrokenPipeError


@contextmanager
def control(folder: Path, say: Callable[[str], None]) -> Iterator[Control]:
    """The run's end of the line, for as long as a run goes on. Only the holder of the folder's lock may have it."""
    line = Control(folder, say)
    try:
        yield line
    finally:
        line.close()


def ask(folder: Path, request: Request, *, timeout: float | None = None) -> dict[str, Any]:
    """Ask the run in `folder`, and wait for its answer, which comes after the update that it is in.

    Args:
        folder: the run's.
        request: what to ask.
        timeout: the most seconds to wait; None: as long as it takes.

    Returns:
        What the run tells: plain values.

    Raises:
        NotLive: the run is not being trained now.
        NoAnswer: it has not answered in time.
        UserError: the run refuses; the message says why.
    """
    content = {"verb": request.verb, "reason": request.reason, **request.arguments}
    line = _line(content)
    if len(line) > LIMIT:
        raise UserError(f"a request has at most {LIMIT} bytes; give a shorter --reason")
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            try:
                connection.connect(_address(handle))
                with suppress(BrokenPipeError):  # turned away: the answer says why
                    connection.sendall(line)
                with connection.makefile("rb") as lines:
                    answer = lines.readline()
            except TimeoutError:
                raise NoAnswer(f"{folder} has not answered within {timeout:g} seconds: it is busy") from None
            except (FileNotFoundError, ConnectionRefusedError):
                raise NotLive(
                    f"{folder} is not being trained now; if it has steps left, continue it with: greenroom resume "
                    f"{as_word(folder)}"
                ) from None
            except PermissionError:
                raise UserError(f"only the owner of the run in {folder} may do that") from None
            except OSError as problem:
                raise UserError(f"the line to {folder} broke: {problem.strerror or problem}") from None
    finally:
        os.close(handle)
    if not answer:
        raise UserError(f"{folder} ended before it answered")
    told: dict[str, Any] = json.loads(answer)
    if not told.pop("ok"):
        raise UserError(str(told["error"]))
    return told


def name_of(uid: int) -> str:
    """A user's name, or the number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _address(folder: int) -> str:
    return f"/proc/self/fd/{folder}/{SOCKET}"


def _listen(folder: int) -> socket.socket:
    """The socket in an open folder. One that is there was left by a killed process: whoever asks holds the run's lock.

    Nobody can connect before `listen`, and by then only the owner may.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(SOCKET, dir_fd=folder, follow_symlinks=False).st_mode):
            raise OSError(f"{SOCKET} is something else")
        os.unlink(SOCKET, dir_fd=folder)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(_address(folder))
        os.chmod(SOCKET, 0o600, dir_fd=folder)
        listening.listen(_CONVERSATIONS)
    except BaseException:
        listening.close()
        raise
    return listening


def _owner_only(connection: socket.socket) -> str:
    """The name of the user at the other end.

    Raises:
        PermissionError: it is neither the owner of the run nor root.
    """
    size = struct.calcsize("3i")
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    if uid not in (0, os.getuid()):
        raise PermissionError
    return name_of(uid)
