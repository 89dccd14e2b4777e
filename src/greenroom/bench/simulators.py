"""A user's own simulator in Python: what all cores together could do, greenroom's stages, and others' vectors."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import Any, Literal

import gymnasium
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from greenroom.bench.peers import SCRIPTS, ask_script
from greenroom.bench.report import Cell, Findings, Settings, Table, ratio
from greenroom.bench.synthetic import BUSY, loops_for
from greenroom.config import RunConfig
from greenroom.envs.base import Stage
from greenroom.envs.choose import choose
from greenroom.envs.factory import Factory
from greenroom.machine import available_cores
from greenroom.measure import Part, Rate, Work, environment, interleaved, parallel_bound, single

NUM_ENVS = 64
_LOOP, _LOOPS, _AUTO, _SYNC, _ASYNC, _SB3 = (
    "one loop",
    "as many loops as cores, side by side",
    "greenroom auto",
    "Gymnasium SyncVectorEnv",
    "Gymnasium AsyncVectorEnv",
    "SB3 SubprocVecEnv",
)
_ACTIONS = 64
"""Batches of random actions that are drawn in advance."""
_CHUNK_SECONDS = 0.2
"""How long loops side by side go on before they are counted: many of the dearest steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One simulator."""

    name: str
    env: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def cases() -> list[Case]:
    """CartPole-v1 and synthetic steps, calibrated now."""
    made = [Case(name="CartPole-v1", env="CartPole-v1")]
    for name, seconds in {"50 µs": 50e-6, "500 µs": 500e-6, "5 ms": 5e-3}.items():
        made.append(Case(name=f"{name} a step", env=BUSY, kwargs={"loops": loops_for(seconds)}))
    picture = {"loops": loops_for(50e-6), "picture": True}
    return [*made, Case(name="50 µs a step, 28 KB pictures", env=BUSY, kwargs=picture)]


def simulators(settings: Settings) -> Findings:
    """Every case with 64 environments; first the ratios, then the rates behind them."""
    found, summary = Findings(), list[tuple[Cell, ...]]()
    for case in cases():
        part, row = measured(case, settings)
        found += part
        summary.append(row)
    table = Table(
        title="Python simulators, 64 environments: greenroom's automatic choice",
        about="All cores: cores × one loop. Side by side: so many loops at the same time, in processes that exchange "
        "nothing, which is what this machine's cores give when all are busy. Sync, Async: Gymnasium's vectors; SB3: "
        "SubprocVecEnv. Best: of all stages and numbers of workers. Targets: from 50 µs at least 0.85 of all cores; "
        "Async and SB3 8 times on CartPole, 4 times at 50 µs; Sync at least once; at least 0.9 of the best.",
        headings=(
            "",
            "steps/s",
            "÷ all cores",
            "÷ side by side",
            "÷ Sync",
            "÷ Async",
            "÷ SB3",
            "÷ best",
            "chosen",
            "best",
        ),
        rows=tuple(summary),
    )
    return Findings(tables=(table,)) + found


def measured(case: Case, settings: Settings, num_envs: int = NUM_ENVS) -> tuple[Findings, tuple[Cell, ...]]:
    """One case's rates, and its row of the summary."""
    config = RunConfig(env=case.env, env_kwargs=dict(case.kwargs), num_envs=num_envs, device="cpu")
    searched = _searched(config)
    works: dict[str, Work] = {_LOOP: single(case.env, case.kwargs), _LOOPS: _side_by_side(case)}
    works |= {_AUTO: environment(config)}
    works |= {name: environment(chosen) for name, chosen in searched.items()}
    works |= {_SYNC: _vector("sync", case, num_envs), _ASYNC: _vector("async", case, num_envs)}
    rates = interleaved(works, seconds=settings.seconds, repeats=settings.repeats)
    slices = {f"{case.name}: {name}": rate.slices for name, rate in rates.items()}
    words = ["--env", case.env, "--num-envs", str(num_envs)]
    words += ["--kwargs", *(f"{name}={int(value)}" for name, value in case.kwargs.items())]
    sb3 = ask_script("sb3", SCRIPTS / "subproc.py", words, settings)
    auto, ceiling = rates[_AUTO], parallel_bound(rates[_LOOP].steps_per_second)
    best = max(searched, key=lambda name: rates[name].steps_per_second)
    rows: list[tuple[Cell, ...]] = [
        (_LOOP, *_beside(auto, rates[_LOOP]), None),
        (f"{available_cores()} cores × one loop", ceiling, ratio(auto, ceiling), None),
        (_LOOPS, *_beside(auto, rates[_LOOPS]), None),
        *((name, *_beside(auto, rates[name]), None) for name in (_AUTO, *searched, _SYNC, _ASYNC)),
        (_SB3, None, None, sb3)
        if isinstance(sb3, str)
        else (_SB3, sb3.steps_per_second, ratio(auto, sb3.steps_per_second), sb3.version),
    ]
    if not isinstance(sb3, str):
        slices[f"{case.name}: {_SB3}"] = (sb3.steps_per_second,)
    table = Table(
        title=f"{case.name}, {num_envs} environments",
        about="Steps per second of all environments together, nothing learned.",
        headings=("", "steps/s", "greenroom auto is × this", "note"),
        rows=tuple(rows),
    )
    others = [rates[_SYNC].steps_per_second, rates[_ASYNC].steps_per_second]
    others.append(0.0 if isinstance(sb3, str) else sb3.steps_per_second)
    row: tuple[Cell, ...] = (
        case.name,
        auto.steps_per_second,
        ratio(auto, ceiling),
        ratio(auto, rates[_LOOPS].steps_per_second),
        *(ratio(auto, other) for other in others),
        ratio(auto, rates[best].steps_per_second),
        choose(case.env, num_envs, "auto", None, case.kwargs).title,
        best.removeprefix("greenroom "),
    )
    return Findings(tables=(table,), slices=slices), row


def _beside(auto: Rate, other: Rate) -> tuple[float, float | None]:
    return other.steps_per_second, ratio(auto, other.steps_per_second)


def _searched(config: RunConfig) -> dict[str, RunConfig]:
    """Every stage and number of workers that may be best: up to four processes a core."""
    most = 4 * available_cores()
    counts = [count for count in range(1, min(config.num_envs, most) + 1) if config.num_envs % count == 0]
    shared: list[tuple[Stage, int]] = [("joint", n) for n in counts if 1 < n <= available_cores()]
    shared += [("workers", n) for n in counts]
    several = {f"greenroom {stage} × {n}": replace(config, stage=stage, num_workers=n) for stage, n in shared}
    return {"greenroom inline": replace(config, stage="inline"), **several}


def _side_by_side(case: Case) -> Work:
    """One plain loop a core, each in a process of its own."""
    context = _forkserver()
    pairs = [context.Pipe() for _ in range(available_cores())]
    loops = [context.Process(target=_loop, args=(theirs, case), daemon=True) for _, theirs in pairs]
    ends = [ours for ours, _ in pairs]
    try:
        for loop in loops:
            loop.start()
        while True:
            for end in ends:
                end.send(_CHUNK_SECONDS)
            yield Part(steps=sum(end.recv() for end in ends))
    finally:
        for loop in loops:
            loop.terminate()
            loop.join()


def _forkserver() -> ForkServerContext:
    """Fork is not safe beside torch's threads; a server that has loaded everything starts processes as fast."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["greenroom.envs.gym", "greenroom.bench.synthetic"])  # heeded before it starts
    return context


def _loop(end: Connection, case: Case) -> None:
    """Step for so many seconds whenever asked to, and say how often."""
    work = single(case.env, case.kwargs)
    while True:
        until, steps = end.recv() + time.perf_counter(), 0
        while time.perf_counter() < until:
            steps += next(work).steps
        end.send(steps)


def _vector(kind: Literal["sync", "async"], case: Case, num_envs: int) -> Work:
    """One of Gymnasium's own vectors, with random actions."""
    build: list[Callable[[], gymnasium.Env[Any, Any]]] = [Factory(env=case.env, kwargs=case.kwargs).build] * num_envs
    if kind == "sync":
        vector: gymnasium.vector.VectorEnv[Any, Any, Any] = SyncVectorEnv(build)
    else:
        vector = AsyncVectorEnv(build, context=_forkserver().get_start_method())
    try:
        vector.action_space.seed(0)
        actions = [vector.action_space.sample() for _ in range(_ACTIONS)]
        vector.reset(seed=0)
        while True:
            for action in actions:
                vector.step(action)
                yield Part(steps=num_envs)
    finally:
        vector.close()
