"""A machine that others use too: how much of its speed a run keeps beside one busy program for each core."""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from greenroom.bench.peers import CARTPOLE, ask_own, ask_peer, cartpole
from greenroom.bench.report import Cell, Findings, Settings, Table
from greenroom.bench.scripts import Answer, in_turn
from greenroom.machine import available_cores
from greenroom.presets import preset

Ask = Callable[[], Answer | str]
_PROGRAM = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(100_000))\n"
"""Computes as long as whoever started it lives."""


def busy(settings: Settings) -> Findings:
    """Each run alone and beside others, in turn, with different numbers of threads; each in a process of its own."""
    runs = _runs(settings)
    asks: dict[tuple[str, str, str], Ask] = {}
    for run, ask in runs.items():
        asks |= {(*run, "alone"): ask, (*run, "beside"): partial(_beside, ask)}
    answers, reasons = in_turn(asks, settings.repeats)
    slices = {asked: [answer.steps_per_second for answer in given] for asked, given in answers.items()}
    medians = {asked: statistics.median(rates) for asked, rates in slices.items() if rates}
    rows: list[tuple[Cell, ...]] = []
    for run in runs:
        alone, beside = medians.get((*run, "alone")), medians.get((*run, "beside"))
        note = reasons.get((*run, "beside"), reasons.get((*run, "alone")))
        rows.append((*run, alone, beside, beside / alone if alone and beside else None, note))
    table = Table(
        title="Beside other programs",
        about="Agent steps per second, learning included, alone and beside one busy Python program for each core, of "
        "the same priority; a program with one thread can expect half.",
        headings=("run", "threads", "alone", "beside them", "share kept", "note"),
        rows=tuple(rows),
    )
    named = {f"{name}, threads {threads}, {where}": rates for (name, threads, where), rates in slices.items()}
    return Findings(tables=(table,), slices=named)


def _runs(settings: Settings) -> dict[tuple[str, str], Ask]:
    """How to ask for the speed of each, by name and threads."""
    configs = {
        "CartPole-v1, PPO": cartpole()["Gymnasium"],
        "lost-sales, PPO": preset(None, "lost-sales"),
        "Atari Pong, PAAC": preset("paac", "ALE/Pong-v5"),
    }
    runs: dict[tuple[str, str], Ask] = {}
    for name, config in configs.items():
        config = dataclasses.replace(config, device="cpu")
        runs[name, "by itself"] = partial(ask_own, config, settings)
        for threads in sorted({1, available_cores()}):
            runs[name, str(threads)] = partial(ask_own, dataclasses.replace(config, threads=threads), settings)
    runs["Stable-Baselines3, CartPole-v1, PPO", "torch's own"] = partial(ask_peer, "sb3", CARTPOLE, settings)
    return runs


def _beside(ask: Ask) -> Answer | str:
    with busy_programs(available_cores()):
        return ask()


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
