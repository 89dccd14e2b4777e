"""Collecting while learning: the next rollouts are made beside the learner, always the same number of updates behind.

The learner takes rollout k when it has done k updates. At that moment the collection of rollout k + lag is ordered,
with the weights as they are: what acts is then exactly `lag` updates behind what learns, however fast either is, and
the same seed gives the same bits. GA3C and IMPALA leave their queues to chance; here the lag is a number one chooses.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from greenroom.acting import Collecting, Collector
from greenroom.errors import Fault
from greenroom.policy import Policy
from greenroom.types import Episodes, Rollout, parts_of

ACTING_THREADS = 1
"""CPU threads for tensor operations of whoever acts: the learner has the others."""


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


class Place(Collecting, Protocol):
    """Where a collector works beside the learner: it does what is ordered, in turn, with copies of the weights.

    Its `time_split` is that of some moment not before the last `take`. What else a collector can be asked is asked only
    while nothing is ordered; to close it needs no waiting.
    """

    @property
    def ordered(self) -> int:
        """Rollouts that have been ordered and not taken."""
        ...

    def order(self, version: int) -> None:
        """One more rollout, by the learner's weights as they are now: those after so many updates."""
        ...

    def take(self) -> Rollout:
        """Wait for the oldest rollout that was ordered and not taken; raises what went wrong with it.

        Who is interrupted while he waits can ask again.
        """
        ...


class Overlapped:
    """Endless iterator of rollouts, which are collected at `place` beside the learner.

    Args:
        place: where; it becomes ours to close.
        lag: how many updates the acting weights are behind.
        device: the learner's.
    """

    def __init__(self, place: Place, *, lag: int, device: torch.device) -> None:
        self.place, self.version, self.lag, self.device = place, 0, lag, device
        self._waited = 0.0
        self._waiting: deque[Rollout] = deque()
        """Rollouts that have been taken and wait for the learner: older than what is ordered."""
        self._threads = torch.get_num_threads()
        torch.set_num_threads(max(1, self._threads - ACTING_THREADS))

    @property
    def time_split(self) -> dict[str, float]:
        """`env` and `act` pass beside `learn`; `wait` is the learner's."""
        return {**self.place.time_split, "wait": self._waited}

    def __next__(self) -> Rollout:
        """Order the rollout that the weights as they are will act for, and wait for the oldest one."""
        while len(self._waiting) + self.place.ordered <= self.lag:
            self.place.order(self.version)
        start = time.perf_counter()
        if not self._waiting:
            self._waiting.append(self.place.take())
        self._waited += time.perf_counter() - start
        return self._waiting.popleft()

    def settle(self) -> None:
        """Wait until all that was ordered is collected."""
        while self.place.ordered:
            self._waiting.append(self.place.take())

    @property
    def can_snapshot(self) -> bool:
        """Whether a resumed run continues the very same episodes. Waits until all that was ordered is collected."""
        self.settle()
        return self.place.can_snapshot

    @property
    def begun_anew(self) -> str:
        """Why new episodes began when a state was last loaded; empty if the saved ones went on. Waits, too."""
        self.settle()
        return self.place.begun_anew

    def state_dict(self) -> dict[str, Any]:
        """Where acting stands, and the rollouts that wait for the learner. Waits until they are collected."""
        self.settle()
        queue = [_to_dict(rollout) for rollout in self._waiting]
        return {"collector": self.place.state_dict(), "queue": queue, "version": self.version}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`. What is being collected meanwhile is dropped."""
        while self.place.ordered:
            with contextlib.suppress(Exception):  # whatever went wrong, it no longer counts
                self.place.take()
        self.place.load_state_dict(state["collector"])
        self.version = state["version"]
        self._waiting = deque(_from_dict(saved, self.device) for saved in state["queue"])

    def close(self) -> None:
        """Stop collecting, then close all environments."""
        self.place.close()
        torch.set_num_threads(self._threads)


_Collected = tuple[Rollout, torch.cuda.Event | None]
"""A rollout, and the mark behind it."""


class Thread:
    """A `Place` in a thread of this process, for a learner on a GPU.

    On a processor two threads would take turns in Python for every small operation; see `backstage`.
    """

    def __init__(self, make_collector: Callable[[Policy], Collector], policy: Policy) -> None:
        self._learned = tensors_of(policy)
        acting = copy.deepcopy(policy)
        self._acted = tensors_of(acting)
        self.collector = make_collector(acting)
        self._lane = _Lane(self.collector.device)
        self._orders: deque[Future[_Collected]] = deque()
        self._worker = ThreadPoolExecutor(1, "collect", initializer=torch.set_num_threads, initargs=(ACTING_THREADS,))
        self._worker.submit(lambda: None).result()

    @property
    def time_split(self) -> dict[str, float]:
        """Up to now."""
        return self.collector.time_split

    @property
    def ordered(self) -> int:
        """See `Place`."""
        return len(self._orders)

    def order(self, version: int) -> None:
        """See `Place`."""
        weights = [part.detach().clone() for part in self._learned]
        # The memory that the rollout will be written to has just been learned from: that comes first, too.
        self._orders.append(self._worker.submit(self._collect, weights, version, self._lane.mark()))

    def take(self) -> Rollout:
        """See `Place`."""
        wait(list(self._orders)[:1])  # interrupted here, the order still stands
        rollout, mark = self._orders.popleft().result()
        self._lane.join(mark, _tensors_in(rollout))
        return rollout

    def _collect(self, weights: list[Tensor], version: int, mark: torch.cuda.Event | None) -> _Collected:
        with self._lane.after(mark, weights):
            load(weights, self._acted)
            self.collector.version = version
            return next(self.collector), self._lane.mark()

    @property
    def can_snapshot(self) -> bool:
        """See `Place`."""
        return self.collector.can_snapshot

    @property
    def begun_anew(self) -> str:
        """See `Place`."""
        return self.collector.begun_anew

    def state_dict(self) -> dict[str, Any]:
        """See `Place`."""
        self._lane.finish()
        return self.collector.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Place`."""
        self._lane.finish()
        self.collector.load_state_dict(state)

    def close(self) -> None:
        """End the thread, then close all environments."""
        self._worker.shutdown(cancel_futures=True)
        self.collector.close()


def tensors_of(policy: Policy) -> list[Tensor]:
    """Parameters and buffers, the very tensors."""
    return list(policy.state_dict().values())


@torch.no_grad()
def load(weights: Iterable[Tensor], into: Iterable[Tensor]) -> None:
    """Copy one by one."""
    for mine, theirs in zip(into, weights, strict=True):
        mine.copy_(theirs)


def _tensors_in(rollout: Rollout) -> Iterator[Tensor]:
    """All of them but those of its episodes, which are on the processor."""
    for item in dataclasses.fields(rollout):
        value = getattr(rollout, item.name)
        if isinstance(value, Tensor | dict):
            parts: dict[str, Tensor] = parts_of(value)
            yield from parts.values()


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
