"""A machine that others use too: how much of its speed a run keeps beside one busy program for each core."""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from greenroom.bench.peers import CARTPOLE, ask_own, ask_peer, cartpole
from greenroom.bench.report import Cell, Findings, Settings, Table
from greenroom.bench.scripts import Answer
from greenroom.machine import available_cores
from greenroom.presets import preset

_PROGRAM = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(100_000))\n"
"""Computes as long as whoever started it lives."""


def busy(settings: Settings) -> Findings:
    """Each run alone and beside others, in turn, with different numbers of threads; each in a process of its own."""
    rows: list[tuple[Cell, ...]] = []
    slices: dict[str, list[float]] = {}
    places: dict[str, Callable[[], AbstractContextManager[object]]] = {
        "alone": nullcontext,
        "beside": partial(busy_programs, available_cores()),
    }
    for name, threads, ask in _asked(settings):
        rates: dict[str, list[float]] = {where: [] for where in places}
        note = None
        for _ in range(settings.repeats):
            for where, programs in places.items():
                with programs():
                    answer = ask()
                if isinstance(answer, str):
                    note = answer
                else:
                    rates[where].append(answer.steps_per_second)
        slices |= {f"{name}, threads {threads}, {where}": found for where, found in rates.items()}
        alone, beside = (statistics.median(found) if found else None for found in rates.values())
        rows.append((name, threads, alone, beside, beside / alone if alone and beside else None, note))
    table = Table(
        title="Beside other programs",
        about="Agent steps per second, learning included, alone and beside one busy Python program for each core, of "
        "the same priority; a program with one thread can expect half.",
        headings=("run", "threads", "alone", "beside them", "share kept", "note"),
        rows=tuple(rows),
    )
    return Findings(tables=(table,), slices=slices)


def _asked(settings: Settings) -> Iterator[tuple[str, str, Callable[[], Answer | str]]]:
    """Runs by name and threads, each with how to ask for its speed."""
    runs = {
        "CartPole-v1, PPO": cartpole()["Gymnasium"],
        "lost-sales, PPO": preset(None, "lost-sales"),
        "Atari Pong, PAAC": preset("paac", "ALE/Pong-v5"),
    }
    for name, config in runs.items():
        yield name, "by itself", partial(ask_own, config, settings)
        for threads in sorted({1, available_cores()}):
            yield name, str(threads), partial(ask_own, dataclasses.replace(config, threads=threads), settings)
    yield "Stable-Baselines3, CartPole-v1, PPO", "torch's own", partial(ask_peer, "sb3", CARTPOLE, settings)


@contextmanager
def busy_programs(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Within, so many other processes compute."""
    programs: list[subprocess.Popen[bytes]] = []
    try:
        programs += [subprocess.Popen([sys.executable, "-c", _PROGRAM]) for _ in range(count)]
        yield programs
    finally:
        for program in programs:
            program.kill()
            program.wait()
