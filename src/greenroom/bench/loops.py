"""The whole loop beside what its parts allow: the suites `atari` and `device`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import torch

from greenroom.bench.peers import Task, ask_peer, ways, with_policy
from greenroom.bench.report import Cell, Findings, Settings, Table, ratio
from greenroom.compiling import why_not
from greenroom.config import RunConfig
from greenroom.measure import Rate, Work, bound, environment, interleaved, learner, say_nothing, whole
from greenroom.networks import Impala, Nature, NetworkConfig, Nips
from greenroom.policy import Precision
from greenroom.presets import preset
from greenroom.training import choose_precision

_PARTS = ("env", "act", "learn", "wait")
_ON_A_GPU = "What learning has queued on a GPU is waited for in the next act, and counted there. "
_ENVIRONMENT, _LEARNER = "environments", "act and learn"


def atari(settings: Settings) -> Findings:
    """PAAC on Pong. On a GPU with more actors, and the larger networks too."""
    config = dataclasses.replace(preset("paac", "ALE/Pong-v5"), device=settings.device)
    if settings.device == "cpu":
        found, _ = against_bound(
            "Atari, PAAC (nips, 32 actors, 5 steps)",
            config,
            ways(config),
            settings,
            target="Target: `sync` ÷ bound at least 0.9.",
        )
        return found + arithmetic(settings)
    config = dataclasses.replace(config, num_envs=256)
    found = Findings()
    networks: dict[str, NetworkConfig] = {"nips": Nips(), "nature": Nature(), "impala × 2": Impala(width=2)}
    for name, network in networks.items():
        chosen = with_policy(config, network=network)
        title = f"Atari, PAAC ({name}, 256 actors, 5 steps)"
        goal = "Target with nips: ÷ env at least 0.9."
        found += against_bound(title, chosen, ways(chosen), settings, target=goal)[0]
    return found


_ARITHMETICS: dict[str, tuple[Precision, Literal["on", "off"]]] = {
    "float32": ("float32", "on"),
    "bfloat16": ("bfloat16", "on"),
    "bfloat16, channels first": ("bfloat16", "off"),
}
"""What a column is called → its precision, and whether channels lie last."""


def _convolutional() -> dict[str, RunConfig]:
    names = ("paac", "atari-ppo", "atari-pqn")
    configs = {name: dataclasses.replace(preset(name, "ALE/Pong-v5"), device="cpu") for name in names}
    paac = configs["paac"]
    larger: dict[str, NetworkConfig] = {"nature": Nature(), "impala": Impala()}
    return configs | {f"paac, {name}": with_policy(paac, network=network) for name, network in larger.items()}


def arithmetic(settings: Settings) -> Findings:
    """Acting and learning alone in either arithmetic and layout, and in which one runs compute by themselves here."""
    rows: list[tuple[Cell, ...]] = []
    slices: dict[str, tuple[float, ...]] = {}
    for name, config in _convolutional().items():
        works: dict[str, Work] = {
            column: learner(with_policy(config, precision=precision, channels_last=channels_last))
            for column, (precision, channels_last) in _ARITHMETICS.items()
        }
        rates = interleaved(works, seconds=settings.seconds, repeats=settings.repeats)
        float32, bfloat16, first = (rates[column].steps_per_second for column in _ARITHMETICS)
        chosen = choose_precision(config, torch.device("cpu"), say_nothing)
        rows.append((name, float32, bfloat16, first, bfloat16 / float32, bfloat16 / first, chosen))
        slices |= {f"{name}, {column}": rates[column].slices for column in _ARITHMETICS}
    table = Table(
        title="Arithmetic of convolutions",
        about="Acting and learning on one recorded rollout of Pong, agent steps per second; channels lie last, as in a "
        "run on a processor by itself, but for one column. And the arithmetic that a run chooses by itself.",
        headings=("preset", *_ARITHMETICS, "bfloat16 ÷ float32", "channels last ÷ first", "by itself"),
        rows=tuple(rows),
    )
    return Findings(tables=(table,), slices=slices)


def device(settings: Settings) -> Findings:
    """PPO on tasks that are tensors, beside Stable-Baselines3's on the same in numpy; on a GPU, greenroom alone."""
    found = Findings()
    goal = "Target: `sync` ÷ bound at least 0.6; on a GPU, 10 million steps/s."
    compiles = not why_not(torch.device(settings.device))
    for env, task in {"lost-sales": "lost-sales-ppo", "cartpole": "cartpole-ppo"}.items():
        for num_envs in (4096,) if settings.device == "cpu" else (4096, 65536):
            config = dataclasses.replace(preset("inventory", env), num_envs=num_envs, device=settings.device)
            title = f"{env}, PPO ({num_envs} actors)"
            runs = {"sync": config, "overlap": dataclasses.replace(config, collect="overlap")}
            if compiles:
                runs["sync, compiled"] = dataclasses.replace(config, compile=True)
            loop, rates = against_bound(title, config, runs, settings, target=goal)
            found += loop
        if settings.device == "cpu":
            found += _beside_sb3(env, task, rates, settings)
    return found


def against_bound(
    title: str, config: RunConfig, runs: Mapping[str, RunConfig], settings: Settings, *, target: str
) -> tuple[Findings, Mapping[str, Rate]]:
    """The rates of `runs`, as shares of what the two halves of `config` allow one after the other.

    Returns:
        The table, and the rate of each run by its name.
    """
    works = {_ENVIRONMENT: environment(config), _LEARNER: learner(config)}
    works |= {name: whole(run) for name, run in runs.items()}
    rates = interleaved(works, seconds=settings.seconds, repeats=settings.repeats)
    allowed = bound(rates[_ENVIRONMENT].steps_per_second, rates[_LEARNER].steps_per_second)
    alone = rates[_ENVIRONMENT].steps_per_second
    rows: list[tuple[Cell, ...]] = [_row(name, rates[name], allowed, alone) for name in (_ENVIRONMENT, _LEARNER)]
    rows.append(("bound", allowed, 1.0, allowed / alone, None, *[None] * len(_PARTS)))
    rows += [_row(name, rates[name], allowed, alone) for name in runs]
    table = Table(
        title=title,
        about=(
            f"Agent steps per second, learning included; median of {settings.repeats} slices taken in turn, and what "
            "each part costs an agent step. Environments, and acting with learning, are measured alone; bound: one "
            f"after the other. {_ON_A_GPU if config.device == 'cuda' else ''}{target}"
        ),
        headings=("", "steps/s", "÷ bound", "÷ env", "spread", *(f"{part} µs" for part in _PARTS)),
        rows=tuple(rows),
    )
    return Findings(tables=(table,), slices={f"{title}: {name}": rate.slices for name, rate in rates.items()}), rates


def _row(name: str, rate: Rate, allowed: float, alone: float) -> tuple[Cell, ...]:
    costs: Mapping[str, float] = rate.microseconds
    return (
        name,
        rate.steps_per_second,
        ratio(rate, allowed),
        ratio(rate, alone),
        rate.spread,
        *(costs.get(part) for part in _PARTS),
    )


_SB3_SIZES = {"64 actors": (64, 96), "1024 actors": (1024, 24), "4096 actors": (4096, 24)}
"""Settings of Stable-Baselines3 that are tried: actors and rollout length."""
_SB3_MINIBATCH = 6144
"""Rows: greenroom's own on these tasks."""


def _beside_sb3(env: str, task: str, rates: Mapping[str, Rate], settings: Settings) -> Findings:
    """Stable-Baselines3's PPO with the same number of epochs: its fastest of several settings is what counts."""
    own = {name: rate.steps_per_second for name, rate in rates.items() if name.startswith("sync")}
    best = max(own.values())
    rows: list[tuple[Cell, ...]] = [
        (f"greenroom, {name}", rate, best / rate, "4096 actors, 2 epochs") for name, rate in own.items()
    ]
    slices: dict[str, tuple[float, ...]] = {}
    for name, (num_envs, length) in _SB3_SIZES.items():
        parts = max(1, num_envs * length // _SB3_MINIBATCH)
        sized = Task(task=task, num_envs=num_envs, rollout_length=length, epochs=2, minibatches=parts)
        answer = ask_peer("sb3", sized, settings)
        if isinstance(answer, str):
            rows.append((f"Stable-Baselines3, {name}", None, None, answer))
            continue
        slices[f"{env}: SB3, {name}"] = (answer.steps_per_second,)
        times = best / answer.steps_per_second
        rows.append((f"Stable-Baselines3, {name}", answer.steps_per_second, times, answer.setting))
    table = Table(
        title=f"{env}, PPO: beside Stable-Baselines3",
        about=f"The same task as a batch of numpy, 2 epochs, minibatches of up to {_SB3_MINIBATCH}. Target: at least 8 "
        "times its best setting.",
        headings=("", "steps/s", "greenroom's best is × this", "how"),
        rows=tuple(rows),
    )
    return Findings(tables=(table,), slices=slices)
