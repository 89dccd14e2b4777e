"""A trace of some updates for Perfetto or chrome://tracing, with the phases of collecting and learning named.

It stands around the loop, not in it: while a trace is recorded, the run's own parts are wrapped, and unwrapped after.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from greenroom.acting import Collector
from greenroom.overlap import Overlapped
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
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    trace = profile(activities=activities, experimental_config=_all_threads())
    with ExitStack() as stack:
        for owner, method, name in _phases(run):
            stack.enter_context(_named(owner, method, name))
        stack.callback(_write, trace, path)
        stack.enter_context(trace)
        yield


def _write(trace: profile, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.new")
    try:
        trace.export_chrome_trace(str(temporary))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _phases(run: Run) -> Iterator[tuple[Any, str, str]]:
    """Owner, method and name of every phase."""
    yield run.algorithm, "learn", "learn"
    source = run.collector
    collector = source.collector if isinstance(source, Overlapped) else source
    assert isinstance(collector, Collector)
    yield collector.policy, "act", "act"
    for group in collector.groups:
        yield group, "send", "env.send"
        yield group, "recv", "env.recv"


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
    """With `collect=overlap` half of the work is done in another thread; torch before 2.7 records one only."""
    with suppress(TypeError):
        return torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    return None
