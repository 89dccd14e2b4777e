"""What more actors cost: time an agent step, memory an actor and a replayed transition, and the start of a run."""

from __future__ import annotations

import dataclasses
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from greenroom import envs
from greenroom.algorithms.ppo import PPOConfig
from greenroom.bench.peers import ask_own
from greenroom.bench.report import Cell, Findings, Settings, Table
from greenroom.bench.scripts import in_turn
from greenroom.config import RunConfig
from greenroom.measure import say_nothing
from greenroom.presets import preset

SIZES = (16, 64, 256, 1024, 4096)
ATARI_SIZES = (16, 32, 64, 128, 256)
_CAPACITY = 100_000
_START_SECONDS = 60.0
"""After so long a run counts as one that does not start."""


def scale(settings: Settings) -> Findings:
    """Three families of runs in processes of their own; then memory of replays, and the time to start."""
    found = Findings()
    found += growth("lost-sales, PPO", preset("inventory", "lost-sales"), SIZES, settings)
    found += growth("CartPole-v1, PPO", _cartpole(), SIZES, settings)
    found += growth("Atari Pong, PAAC", preset("paac", "ALE/Pong-v5"), ATARI_SIZES, settings)
    return found + _replays() + _starts(settings)


def growth(title: str, config: RunConfig, sizes: tuple[int, ...], settings: Settings) -> Findings:
    """The same run with more and more actors, all sizes in turn; memory an actor is between neighbouring sizes."""
    runs = {size: dataclasses.replace(config, num_envs=size, device=settings.device) for size in sizes}
    asks = {size: partial(ask_own, run, settings) for size, run in runs.items()}
    given, reasons = in_turn(asks, settings.repeats)
    slices = {size: [answer.steps_per_second for answer in answers] for size, answers in given.items() if answers}
    memory = {size: statistics.median(a.more["resident"] for a in given[size]) for size in slices}
    table = Table(
        title=f"{title}: more actors",
        about="Every size in a process of its own, learning included. Target: the cost of an agent step never rises.",
        headings=(
            "actors",
            "steps/s",
            "µs an agent step",
            "÷ the size before",
            "MB in all",
            "KB an actor more",
            "note",
        ),
        rows=tuple(_rows(sizes, slices, memory, reasons)),
    )
    return Findings(tables=(table,), slices={f"{title}, {size} actors": rates for size, rates in slices.items()})


def _rows(
    sizes: tuple[int, ...], slices: Mapping[int, list[float]], memory: Mapping[int, float], reasons: Mapping[int, str]
) -> list[tuple[Cell, ...]]:
    rows: list[tuple[Cell, ...]] = []
    before: int | None = None
    for size in sizes:
        if size not in slices:
            rows.append((str(size), None, None, None, None, None, reasons[size]))
            continue
        rate = statistics.median(slices[size])
        steeper = more = None
        if before is not None:
            steeper = statistics.median(slices[before]) / rate
            more = (memory[size] - memory[before]) / (size - before) / 1e3
        rows.append((str(size), rate, 1e6 / rate, steeper, memory[size] / 1e6, more, reasons.get(size)))
        before = size
    return rows


def _cartpole() -> RunConfig:
    """Short rollouts and few epochs: with 4096 actors an update of the preset would last a minute."""
    return dataclasses.replace(
        preset("classic-ppo", "CartPole-v1"), rollout_length=16, algorithm=PPOConfig(epochs=4, minibatches=8)
    )


def _replays() -> Findings:
    """Memory of a replayed Atari transition, by what is kept of it."""
    rows: list[tuple[Cell, ...]] = []
    cpu = torch.device("cpu")
    for name in ("atari-dqn", "rainbow"):
        config = preset(name, "ALE/Pong-v5")
        algorithm: Any = config.algorithm
        stage = envs.make(config.env, num_envs=config.num_envs, say=say_nothing)
        try:
            replay = dataclasses.replace(algorithm.replay, capacity=_CAPACITY).build(
                stage.spec, num_envs=config.num_envs, gamma=0.99, total_steps=_CAPACITY, seed=0, device=cpu
            )
            rows.append((name, float(replay.bytes_per_transition), replay.nbytes / 1e9))
        finally:
            stage.close()
    table = Table(
        title="Replayed Atari transitions",
        about=f"A replay of {_CAPACITY} transitions of 84 × 84 × 4 bytes; two whole observations are 56 448 bytes.",
        headings=("preset", "bytes a transition", "GB in all"),
        rows=tuple(rows),
    )
    return Findings(tables=(table,))


def _starts(settings: Settings) -> Findings:
    """From the shell's command to the first line of metrics: imports, emulators, first update."""
    words = ["train", "ALE/Pong-v5", "--num-envs", "64", "--device", settings.device]
    seconds = [started(words) for _ in range(settings.repeats)]
    taken = [value for value in seconds if value is not None]
    table = Table(
        title="Start of a run",
        about="Seconds from the command to the first update's line of metrics. Target: less than 5.",
        headings=("run", "seconds"),
        rows=(("Atari Pong, 64 actors", statistics.median(taken) if taken else None),),
    )
    return Findings(tables=(table,))


def started(words: list[str]) -> float | None:
    """Seconds until `greenroom train` has written its first line of metrics; None if it ends or hangs before."""
    with tempfile.TemporaryDirectory() as place:
        metrics = Path(place, "run", "metrics.jsonl")
        more = ["--run-dir", str(metrics.parent), "--log-seconds", "0", "--quiet"]
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "greenroom", *words, *more],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            while process.poll() is None and (taken := time.perf_counter() - begin) < _START_SECONDS:
                if metrics.exists() and metrics.stat().st_size:
                    return taken
                time.sleep(0.01)
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
