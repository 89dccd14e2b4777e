"""Collecting in a process of its own, on a processor: two threads would take turns in Python, two processes do not.

The collector, its environments and a copy of the policy live in a child. Weights, and what is large in a rollout, lie
in memory that both processes map; a message says where. The child does what it is told in turn.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import select
import subprocess
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import cloudpickle
import torch
from torch import Tensor

from greenroom import machine
from greenroom.acting import Collector, Empty
from greenroom.envs.base import Environment
from greenroom.envs.crew import RemoteTraceback, anonymous_file, hire, manner_of
from greenroom.envs.faults import traceback_of
from greenroom.envs.worker import ANSWER, CALL, CLOSE, FAULT, Line, obey
from greenroom.errors import EnvironmentFault, UserError
from greenroom.overlap import ACTING_THREADS, load, tensors_of
from greenroom.policy import Policy
from greenroom.shared import SharedMemory
from greenroom.spec import EnvSpec
from greenroom.types import Rollout

Say = Callable[[str], None]
_GOODBYE_SECONDS = 10.0
"""For the rollout that is being collected, and for closing the environments; then the process is killed."""
_AHEAD = 16
"""Orders that are with the child at a time. All fit into the line, while nobody reads what it answers."""


class MakeCollector(Protocol):
    """What builds a collector, given by the caller."""

    def __call__(self, groups: list[Environment], policy: Policy, *, memories: int, empty: Empty) -> Collector:
        """Of environments that somebody else closes; it writes rollouts into what `empty` makes."""
        ...


class Backstage:
    """A `Place` in a child process: first it holds the environments, then `enter` says who acts in them.

    Args:
        make_groups: builds the environments there; its argument hears news in words.
        say: hears these news here.

    Raises:
        UserError: the environments cannot be built, or what is needed for that cannot be sent to another process.
    """

    def __init__(self, make_groups: Callable[[Say], list[Environment]], say: Say) -> None:
        self.time_split: dict[str, float] = {}
        self._say, self._orders = say, 0
        self._unsent: deque[tuple[int, int]] = deque()
        """Versions and turns of orders that the child has not been told."""
        self._sent = 0
        """Orders that it has been told and not answered."""
        descriptor = anonymous_file()
        self._memory = SharedMemory(descriptor)
        self._process, self._line = hire("greenroom.backstage", descriptor)
        self._dismiss = weakref.finalize(self, _dismiss, self._process, self._line, descriptor)
        try:
            self.spec: EnvSpec = self._ask("build", _portable(make_groups, "the run's configuration"))
        except BaseException:
            self.close()
            raise

    def enter(self, make_collector: MakeCollector, policy: Policy, *, lag: int) -> None:
        """Begin the first episodes, with a copy of the policy; its weights are read again at each order."""
        self._learned = tensors_of(policy)
        # Written for one order while the child may still read those of `lag` others.
        self._weights = [[self._shared(part) for part in self._learned] for _ in range(lag + 1)]
        maker, actor = _portable(make_collector, "the run's configuration"), _portable(policy, "the policy", _dump)
        self._ask("enter", maker, actor, self._memory.pack(self._weights))

    def _shared(self, part: Tensor) -> Tensor:
        return self._memory.empty(part.shape, part.dtype)

    @property
    def ordered(self) -> int:
        """See `overlap.Place`."""
        return self._sent + len(self._unsent)

    def order(self, version: int) -> None:
        """See `overlap.Place`."""
        turn = self._orders % len(self._weights)
        load(self._learned, self._weights[turn])
        self._unsent.append((version, turn))
        self._orders += 1
        self._send()

    def _send(self) -> None:
        while self._unsent and self._sent < _AHEAD:
            self._tell("collect", *self._unsent.popleft())
            self._sent += 1

    def take(self) -> Rollout:
        """See `overlap.Place`."""
        try:
            rollout: Rollout = self._answer()
        except Exception:  # this was the answer, while an interruption leaves it to come
            self._answered()
            raise
        self._answered()
        return rollout

    def _answered(self) -> None:
        self._sent -= 1
        self._send()

    @property
    def can_snapshot(self) -> bool:
        """See `overlap.Place`."""
        return bool(self.within(_can_snapshot))

    @property
    def begun_anew(self) -> str:
        """See `overlap.Place`."""
        return str(self.within(_begun_anew))

    def state_dict(self) -> dict[str, Any]:
        """See `overlap.Place`."""
        state: dict[str, Any] = self.within(Collector.state_dict)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `overlap.Place`."""
        self.within(Collector.load_state_dict, state)

    def within(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What `function(collector, *arguments)` returns there; nothing may be ordered and not taken."""
        assert not self.ordered, "the next answer would be a rollout"
        return self._ask("call", self._memory.pack((function, arguments)))

    def close(self) -> None:
        """Let the process close its environments and end. May be called twice."""
        self._dismiss()

    def _ask(self, name: str, *arguments: Any) -> Any:
        self._tell(name, *arguments)
        return self._answer()

    def _tell(self, name: str, *arguments: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `_answer` finds out why
            self._line.frame(CALL, (name, arguments))

    def _answer(self) -> Any:
        tag, packed = self._line.read_tag(), None
        with contextlib.suppress(EOFError, OSError):
            packed = self._line.read_frame() if tag else None
        if packed is None:
            raise self._death()
        answer, said, self.time_split = self._memory.unpack(packed)
        for line in said:
            self._say(line)
        if tag == FAULT:
            error, trace = answer
            raise error from RemoteTraceback(trace)
        return answer

    def _death(self) -> EnvironmentFault:
        try:
            manner = manner_of(self._process.wait(1.0))
        except subprocess.TimeoutExpired:
            manner = "hung up"
        return EnvironmentFault(f"the process that collects (--collect overlap), and holds the environments, {manner}")


def _dismiss(process: subprocess.Popen[bytes], line: Line, descriptor: int) -> None:
    with contextlib.suppress(OSError):
        line.deafen()  # or it might wait for ever until somebody reads its last answer
        line.tag(CLOSE)
    try:
        process.wait(_GOODBYE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    line.close()
    os.close(descriptor)


def _dump(policy: Policy) -> bytes:
    """By way of torch, so that tensors which share memory do so in the copy, too."""
    written = io.BytesIO()
    torch.save(policy, written, pickle_module=cloudpickle)
    return written.getvalue()


def _portable(thing: Any, what: str, dump: Callable[[Any], bytes] = cloudpickle.dumps) -> bytes:
    """For another process; classes and functions of a notebook or script travel with their code."""
    try:
        return dump(thing)
    except Exception as error:
        raise UserError(
            f"{what} cannot be sent to another process, as --collect overlap does: {error}; give what is your own as "
            "package.module:name, or collect in turn (--collect sync)"
        ) from error


def _can_snapshot(collector: Collector) -> bool:
    return collector.can_snapshot


def _begun_anew(collector: Collector) -> str:
    return collector.begun_anew


def main(descriptor: int, memory: int, parent: int, tied: bool) -> None:
    """Collect for the parent until it says goodbye or is gone; see `worker.obey` for the arguments."""
    line = obey(descriptor, parent, tied)
    machine.keep_freed_memory()
    torch.set_num_threads(ACTING_THREADS)
    service = _Service(line, SharedMemory(memory))
    try:
        service.run()
    except (BrokenPipeError, ConnectionResetError, EOFError):
        pass  # the parent is gone, and nobody is left to tell
    finally:
        service.close()


class _Service:
    def __init__(self, line: Line, memory: SharedMemory) -> None:
        self._line, self._memory = line, memory
        self._poll = select.poll()
        self._poll.register(line.descriptor, select.POLLIN)
        self._said: deque[str] = deque()
        self._groups: list[Environment] = []
        self._collector: Collector | None = None
        self._acted: Sequence[Tensor] = ()
        self._weights: list[list[Tensor]] = []

    def run(self) -> None:
        calls: dict[str, Callable[..., Any]] = {
            "build": self._build,
            "enter": self._enter,
            "collect": self._collect,
            "call": self._call,
        }
        told: deque[tuple[str, tuple[Any, ...]]] = deque()
        while True:
            # All there is: a goodbye counts at once, whatever has been ordered before.
            while not told or self._poll.poll(0):
                if self._line.read_tag() != CALL:
                    return
                told.append(self._line.read_frame())
            name, arguments = told.popleft()
            try:
                tag, answer = ANSWER, self._packed(calls[name](*arguments))
            except Exception as error:
                tag, answer = FAULT, self._packed(_sendable(error))
            self._line.frame(tag, answer)

    def _packed(self, answer: Any) -> bytes:
        """An answer, what was said meanwhile, and how the time was spent."""
        said = [self._said.popleft() for _ in range(len(self._said))]
        split = {} if self._collector is None else self._collector.time_split
        return self._memory.pack((answer, said, split))

    def close(self) -> None:
        for group in self._groups:
            group.close()

    def _build(self, make_groups: bytes) -> EnvSpec:
        self._groups = pickle.loads(make_groups)(lambda line: self._said.append(line))
        return self._groups[0].spec

    def _enter(self, make_collector: bytes, policy: bytes, weights: bytes) -> None:
        acting = torch.load(io.BytesIO(policy), weights_only=False)  # our parent's own
        self._acted, self._weights = tensors_of(acting), self._memory.unpack(weights)
        memories = len(self._weights)  # one rollout is with the learner while the others are collected or wait
        make = pickle.loads(make_collector)
        self._collector = make(self._groups, acting, memories=memories, empty=self._empty)

    def _empty(self, shape: Sequence[int], /, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        assert device.type == "cpu"
        return self._memory.empty(shape, dtype)

    def _collect(self, version: int, turn: int) -> Rollout:
        assert self._collector is not None
        load(self._weights[turn], self._acted)
        self._collector.version = version
        return next(self._collector)

    def _call(self, packed: bytes) -> Any:
        function, arguments = self._memory.unpack(packed)
        return function(self._collector, *arguments)


def _sendable(error: Exception) -> tuple[Exception, str]:
    """The exception, or one like it that can be sent, and its traceback."""
    trace = "".join(traceback.format_exception(error))
    if isinstance(error, EnvironmentFault):
        own = EnvironmentFault(str(error), index=error.index, fault=error.fault)
        own.own_traceback, own.mended = traceback_of(error), error.mended
        return own, trace
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}"), trace
    return error, trace
