"""Other frameworks on the same box, each a script in a process and an environment of its own (`benchmarks/peers`)."""

from __future__ import annotations

import dataclasses
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from greenroom.algorithms.ppo import PPOConfig
from greenroom.bench.report import Cell, Findings, Settings, Table
from greenroom.bench.scripts import Answer, ask, in_turn
from greenroom.config import RunConfig, dump
from greenroom.networks import Nature
from greenroom.policy import PolicyConfig
from greenroom.presets import preset

ROOT = Path(__file__).resolve().parents[3]
"""The repository; of an installed package there is none."""
SCRIPTS, ENVIRONMENTS = ROOT / "benchmarks" / "peers", ROOT / ".venv-peers"
_WARM_UP = 3.0
"""Seconds of training, and one update at least, before anything is counted; never longer than the counting."""
PEERS = {
    "sb3": "Stable-Baselines3",
    "skrl": "skrl",
    "tianshou": "Tianshou",
    "torchrl": "TorchRL",
    "sample_factory": "Sample Factory",
    "cleanrl": "CleanRL-style loop",
}
"""Script → what tables call it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What everybody does."""

    task: str
    num_envs: int
    rollout_length: int
    epochs: int = 1
    minibatches: int = 1

    @property
    def words(self) -> list[str]:
        """The options of a peer's script."""
        values = dataclasses.asdict(self).items()
        return [word for name, value in values for word in (f"--{name.replace('_', '-')}", str(value))]


_A2C = Task(task="atari-a2c", num_envs=32, rollout_length=5)
_PPO = Task(task="atari-ppo", num_envs=32, rollout_length=32, epochs=4, minibatches=4)
CARTPOLE = Task(task="cartpole-ppo", num_envs=64, rollout_length=32, epochs=4, minibatches=4)


def peers(settings: Settings) -> Findings:
    """Three tasks, everybody in turn, as often as `repeats`."""
    found = Findings()
    found += compared("A2C, Atari Pong, NatureCNN, 32 actors, 5 steps", _A2C, _atari("paac", _A2C), settings)
    found += compared("PPO, 4 epochs, Atari Pong, NatureCNN, 32 actors", _PPO, _atari("atari-ppo", _PPO), settings)
    found += compared("PPO, 4 epochs, CartPole, 64 × 64, 64 actors", CARTPOLE, cartpole(), settings)
    return found


def compared(title: str, task: Task, own: Mapping[str, RunConfig], settings: Settings) -> Findings:
    """One task's table: greenroom's settings `own` by name, and the peers."""
    asked: dict[str, Callable[[], Answer | str]] = {}
    asked |= {f"greenroom, {name}": partial(ask_own, config, settings) for name, config in own.items()}
    asked |= {name: partial(ask_peer, script, task, settings) for script, name in PEERS.items()}
    answers, reasons = in_turn(asked, settings.repeats)
    rates = {name: [answer.steps_per_second for answer in given] for name, given in answers.items() if given}
    best = max((statistics.median(rates[name]) for name in rates if name.startswith("greenroom")), default=None)
    table = Table(
        title=title,
        about="Agent steps per second, learning included. Target: greenroom's best at least 1.5 × the best peer and "
        "2.5 × Stable-Baselines3.",
        headings=("", "steps/s", "greenroom's best is × this", "parameters", "version", "how, or why not"),
        rows=tuple(_row(name, rates.get(name), best, answers[name], reasons.get(name)) for name in asked),
    )
    return Findings(tables=(table,), slices={f"{title}: {name}": found for name, found in rates.items()})


def _row(
    name: str, rates: list[float] | None, best: float | None, answers: list[Answer], reason: str | None
) -> tuple[Cell, ...]:
    if not rates:
        return (name, None, None, None, None, reason or "not asked")
    rate, last = statistics.median(rates), answers[-1]
    parameters = f"{last.more['parameters']:,.0f}".replace(",", " ") if "parameters" in last.more else None
    how = last.setting + (f" (later: {reason})" if reason else "")
    return (name, rate, best / rate if best else None, parameters, last.version, how)


def ask_own(config: RunConfig, settings: Settings) -> Answer | str:
    """greenroom, in a process of its own as the peers are."""
    command = [sys.executable, "-m", "greenroom.bench.once", "--seconds", str(settings.seconds)]
    command += ["--warm-up", str(min(_WARM_UP, settings.seconds))]
    return ask(command, limit=_limit(settings), text=dump(config))


def ask_peer(script: str, task: Task, settings: Settings) -> Answer | str:
    """A peer, or why it cannot be asked."""
    return ask_script(script, SCRIPTS / f"{script}.py", task.words, settings)


def ask_script(environment: str, script: Path, words: list[str], settings: Settings) -> Answer | str:
    """Run `script` with the Python of the peer `environment`; greenroom's source is on its path."""
    python, why = ENVIRONMENTS / environment / "bin" / "python", ENVIRONMENTS / environment / "why-not.txt"
    if not script.exists():
        return "the peers' scripts come with greenroom's source, not with the package"
    if why.exists():
        return f"not installed: {why.read_text().strip()}"
    if not python.exists():
        return "not installed: make bench-peers does it"
    command = [str(python), str(script), *words, "--seconds", str(settings.seconds)]
    command += ["--warm-up", str(min(_WARM_UP, settings.seconds))]
    return ask(command, limit=_limit(settings), environment={"PYTHONPATH": str(ROOT / "src")})


def _limit(settings: Settings) -> float:
    """Starting and warming up take a minute at worst; a slow peer's one rollout may last several times `seconds`."""
    return 60.0 + 6.0 * settings.seconds


def _atari(name: str, task: Task) -> dict[str, RunConfig]:
    """NatureCNN on Pong, in the three ways to collect; and in the arithmetic that the peers use everywhere."""
    base = preset(name, "ALE/Pong-v5")
    base = _sized(with_policy(base, network=Nature()), task)
    return ways(base) | {"sync, float32": with_policy(base, precision="float32")}


def with_policy(config: RunConfig, **changes: Any) -> RunConfig:
    """The run with other settings of its policy."""
    return dataclasses.replace(config, policy=dataclasses.replace(config.policy, **changes))


def ways(config: RunConfig) -> dict[str, RunConfig]:
    """A run in the three ways to collect rollouts, by their names."""
    return {
        "sync": dataclasses.replace(config, collect="sync"),
        "double": dataclasses.replace(config, collect="double"),
        "overlap": dataclasses.replace(config, collect="overlap"),
    }


def cartpole() -> dict[str, RunConfig]:
    """Two networks of 64 × 64 on the three CartPoles that greenroom has, in turn with learning and beside it.

    On the fastest one compiled, too.
    """
    base = dataclasses.replace(preset("classic-ppo", "CartPole-v1"), policy=PolicyConfig(separate_value=True))
    names = {"tensors": "cartpole", "EnvPool": "envpool:CartPole-v1", "Gymnasium": "CartPole-v1"}
    eager = {name: _sized(dataclasses.replace(base, env=env), CARTPOLE) for name, env in names.items()}
    in_turn = eager | {"tensors, compiled": dataclasses.replace(eager["tensors"], compile=True)}
    return in_turn | {
        f"{name}, overlap": dataclasses.replace(config, collect="overlap") for name, config in in_turn.items()
    }


def _sized(config: RunConfig, task: Task) -> RunConfig:
    algorithm: Any = config.algorithm
    if isinstance(algorithm, PPOConfig):
        algorithm = dataclasses.replace(algorithm, epochs=task.epochs, minibatches=task.minibatches)
    return dataclasses.replace(
        config, num_envs=task.num_envs, rollout_length=task.rollout_length, algorithm=algorithm, device="cpu"
    )
