"""A trace of some updates for Perfetto or chrome://tracing, with the phases of collecting and learning named.

It stands around the loop, not in it: while a trace is recorded, the run's own parts are wrapped, and unwrapped after.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from greenroom.acting import Collector
from greenroom.backstage import Backstage
from greenroom.folder import replacing
from greenroom.overlap import Overlapped, Thread
from greenroom.training import Run, Say, train
from greenroom.types import Progress

WARM_UP = 5
"""Updates before the recorded ones."""
_UPDATES = 10
"""Most updates in a trace, and …"""
_SECONDS = 3.0
"""… seconds after which no further one is begun: a trace of many small operations soon fills a disk."""


def train_profiled(run: Run, path: Path, say: Say) -> Iterator[Progress]:
    """`training.train(run)`, of which a few updates after warming up are recorded.

    Args:
        run: as for `train`.
        path: the trace's file; nothing is written if the run ends before it is warm.
        say: hears where the trace is.
    """
    news = train(run)
    yield from itertools.islice(news, WARM_UP)
    if run.finished:
        say(f"no profile: the run was over after {run.updates} updates, and the first {WARM_UP} only warm up")
        return
    with recording(run, path):
        until = time.monotonic() + _SECONDS
        for progress in itertools.islice(news, _UPDATES):
            yield progress
            if time.monotonic() > until:
                break
    say(f"profile: {path} (open it at https://ui.perfetto.dev or chrome://tracing)")
    yield from news


@contextmanager
def recording(run: Run, path: Path) -> Iterator[None]:
    """Record what happens within into a Chrome trace at `path`, all threads; written also if it ends in an error.

    Spans are named `env.send`, `env.recv` (waiting for simulators, or simulating), `act` and `learn`.
    """
    learning, source = (run.algorithm, "learn", "learn"), run.collector
    place = source.place if isinstance(source, Overlapped) else None
    if isinstance(source, Overlapped) and isinstance(place, Backstage):
        beside = path.absolute().with_name(f".{path.name}.collecting")
        with _joined(path, beside), _recorded([learning], path), _recorded_apart(source, place, beside):
            yield
        return
    collector = place.collector if isinstance(place, Thread) else source
    assert isinstance(collector, Collector)
    with _recorded([learning, *_collecting(collector)], path):
        yield


_Phase = tuple[Any, str, str]
"""Owner, method, and what its calls are named."""


def _collecting(collector: Collector) -> Iterator[_Phase]:
    yield collector.policy, "act", "act"
    for group in collector.groups:
        yield group, "send", "env.send"
        yield group, "recv", "env.recv"


@contextmanager
def _recorded(phases: Iterable[_Phase], path: Path) -> Iterator[None]:
    """Record this process."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    trace = profile(activities=activities, experimental_config=_all_threads())
    with ExitStack() as stack:
        for owner, method, name in phases:
            stack.enter_context(_named(owner, method, name))
        stack.callback(_write, trace, path)
        stack.enter_context(trace)
        yield


@contextmanager
def _recorded_apart(source: Overlapped, place: Backstage, path: Path) -> Iterator[None]:
    """Record the process that collects."""
    source.settle()
    place.within(_begin, path)
    try:
        yield
    finally:
        with suppress(Exception):  # whatever ended this may have ended that process, and is what counts
            source.settle()
            place.within(_end)


_ongoing = ExitStack()
"""What `_begin` begins in the process that collects, and `_end` ends."""


def _begin(collector: Collector, path: Path) -> None:
    _ongoing.enter_context(_recorded(_collecting(collector), path))


def _end(collector: Collector) -> None:
    _ongoing.close()


@contextmanager
def _joined(path: Path, other: Path) -> Iterator[None]:
    """Afterwards the trace at `other`, if there is one, is part of the one at `path`."""
    try:
        yield
    finally:
        if path.exists() and other.exists():
            trace, more = json.loads(path.read_text()), json.loads(other.read_text())
            # Since when times are counted: the same in both, where torch says nothing of it.
            later = (more.get("baseTimeNanoseconds", 0) - trace.get("baseTimeNanoseconds", 0)) / 1e3
            for event in more["traceEvents"]:
                event["ts"] += later
            trace["traceEvents"] += more["traceEvents"]
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(trace))
        other.unlink(missing_ok=True)


def _write(trace: profile, path: Path) -> None:
    with replacing(path) as temporary:
        trace.export_chrome_trace(str(temporary))


@contextmanager
def _named(owner: Any, method: str, name: str) -> Iterator[None]:
    """Within, each call of the owner's method is a span in the trace: an attribute of its own hides the class's."""
    plain = getattr(owner, method)

    def recorded(*given: Any, **named: Any) -> Any:
        with record_function(name):
            return plain(*given, **named)

    setattr(owner, method, recorded)
    try:
        yield
    finally:
        delattr(owner, method)


def _all_threads() -> Any:
    """With `collect=overlap` half of the work may be done in another thread; torch before 2.7 records one only."""
    with suppress(TypeError):
        return torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    return None
