"""Collecting while learning: the next rollouts are made in a thread, always the same number of updates behind.

The learner takes rollout k when it has done k updates. At that moment the collection of rollout k + lag is ordered,
with the weights as they are: what acts is then exactly `lag` updates behind what learns, however fast either is, and
the same seed gives the same bits. GA3C and IMPALA leave their queues to chance; here the lag is a number one chooses.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from greenroom.acting import Collector
from greenroom.errors import Fault
from greenroom.policy import Policy
from greenroom.types import Episodes, Rollout, parts_of

_ACTING_THREADS = 1
"""CPU threads for tensor operations of the acting thread: the learner has the others."""


class _Lane:
    """Where a GPU's work for the acting thread is queued. Without a GPU there is nothing to keep apart.

    What is in one stream is done in turn: in the learner's, acting would wait for all that the learner has asked for. A
    mark stands for all that has been queued so far in the stream of whoever makes it.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def mark(self) -> torch.cuda.Event | None:
        """Of the caller's stream."""
        if self._stream is None:
            return None
        mark = torch.cuda.Event()
        mark.record()
        return mark

    @contextmanager
    def after(self, mark: torch.cuda.Event | None, using: Iterable[Tensor]) -> Iterator[None]:
        """Within, this thread's work is queued here, behind `mark`; it reads the learner's tensors `using`."""
        if self._stream is None or mark is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            mark.wait()
            _keep(using)
            yield

    def join(self, mark: torch.cuda.Event | None, using: Iterable[Tensor]) -> None:
        """What the caller queues from now on is behind `mark`, and reads tensors that were made here."""
        if mark is not None:
            mark.wait()
            _keep(using)

    def finish(self) -> None:
        """Wait until all is done."""
        if self._stream is not None:
            self._stream.synchronize()


def _keep(parts: Iterable[Tensor]) -> None:
    """Their memory is not given away before the current stream is done with them, whoever has made them."""
    for part in parts:
        if part.is_cuda:
            part.record_stream(torch.cuda.current_stream(part.device))


_Collected = tuple[Rollout, torch.cuda.Event | None]
"""A rollout, and the mark behind it."""


class Overlapped:
    """Endless iterator of rollouts, collected by `make_collector(policy)` beside the learner of `policy`."""

    def __init__(self, make_collector: Callable[[Policy], Collector], policy: Policy, *, lag: int) -> None:
        self.version, self.lag = 0, lag
        self._learned = _tensors(policy)
        acting = copy.deepcopy(policy)
        self._acted = _tensors(acting)
        self.collector = make_collector(acting)
        self._lane = _Lane(self.collector.device)
        self._waited = 0.0
        self._queue: deque[Future[_Collected]] = deque()
        self._threads = torch.get_num_threads()
        self._worker = ThreadPoolExecutor(1, "collect", initializer=torch.set_num_threads, initargs=(_ACTING_THREADS,))
        self._worker.submit(lambda: None).result()
        torch.set_num_threads(max(1, self._threads - _ACTING_THREADS))

    @property
    def time_split(self) -> dict[str, float]:
        """`env` and `act` pass in the thread, beside `learn`; `wait` is the learner's."""
        return {**self.collector.time_split, "wait": self._waited}

    def __next__(self) -> Rollout:
        """Order the rollout that the weights as they are will act for, and wait for the oldest one."""
        while len(self._queue) <= self.lag:
            weights = [part.detach().clone() for part in self._learned]
            # The memory that the rollout will be written to has just been learned from: that comes first, too.
            self._queue.append(self._worker.submit(self._collect, weights, self.version, self._lane.mark()))
        start = time.perf_counter()
        rollout, mark = self._queue.popleft().result()
        self._waited += time.perf_counter() - start
        self._lane.join(mark, _tensors_of(rollout))
        return rollout

    def _collect(self, weights: list[Tensor], version: int, mark: torch.cuda.Event | None) -> _Collected:
        with self._lane.after(mark, weights):
            with torch.no_grad():
                for mine, theirs in zip(self._acted, weights, strict=True):
                    mine.copy_(theirs)
            self.collector.version = version
            return next(self.collector), self._lane.mark()

    @property
    def can_snapshot(self) -> bool:
        """Whether a resumed run continues the very same episodes."""
        return self.collector.can_snapshot

    @property
    def begun_anew(self) -> str:
        """Why new episodes began when a state was last loaded; empty if the saved ones went on."""
        return self.collector.begun_anew

    def state_dict(self) -> dict[str, Any]:
        """Where acting stands, and the rollouts that wait for the learner. Waits until they are collected."""
        queue = [_to_dict(waiting.result()[0]) for waiting in self._queue]
        self._lane.finish()
        return {"collector": self.collector.state_dict(), "queue": queue, "version": self.version}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`. What is being collected meanwhile is dropped."""
        for waiting in self._queue:
            waiting.exception()  # waits; whatever went wrong, it no longer counts
        self._lane.finish()
        self.collector.load_state_dict(state["collector"])
        self.version = state["version"]
        self._queue = deque(_done(_from_dict(saved, self.collector.device)) for saved in state["queue"])

    def close(self) -> None:
        """End the thread, then close all environments."""
        self._worker.shutdown(cancel_futures=True)
        self.collector.close()
        torch.set_num_threads(self._threads)


def _tensors(policy: Policy) -> list[Tensor]:
    """Parameters and buffers, the very tensors."""
    return list(policy.state_dict().values())


def _tensors_of(rollout: Rollout) -> Iterator[Tensor]:
    """All of them but those of its episodes, which are on the processor."""
    for item in dataclasses.fields(rollout):
        value = getattr(rollout, item.name)
        if isinstance(value, Tensor | dict):
            parts: dict[str, Tensor] = parts_of(value)
            yield from parts.values()


def _done(rollout: Rollout) -> Future[_Collected]:
    future: Future[_Collected] = Future()
    future.set_result((rollout, None))
    return future


def _to_dict(rollout: Rollout) -> dict[str, Any]:
    values = {item.name: getattr(rollout, item.name) for item in dataclasses.fields(rollout)}
    episodes = {item.name: getattr(rollout.episodes, item.name) for item in dataclasses.fields(rollout.episodes)}
    return values | {"episodes": episodes, "faults": [dataclasses.asdict(fault) for fault in rollout.faults]}


def _from_dict(saved: dict[str, Any], device: torch.device) -> Rollout:
    moved = {name: _on(device, part) for name, part in saved.items() if name not in ("episodes", "faults")}
    faults = tuple(Fault.of(one) for one in saved.get("faults", []))
    return Rollout(**moved, episodes=Episodes(**saved["episodes"]), faults=faults)


def _on(device: torch.device, part: Any) -> Any:
    """Tensors and dicts of tensors, where the learner wants them; anything else as it is."""
    if isinstance(part, dict):
        return {name: _on(device, value) for name, value in part.items()}
    return part.to(device) if isinstance(part, Tensor) else part
