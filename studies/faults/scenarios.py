"""What is trained while it is being harmed: a second or two from start to end."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from greenroom.algorithms import ALGORITHMS, AlgorithmConfig
from greenroom.algorithms.replaying import Drawing
from greenroom.config import RunConfig
from greenroom.envs.base import Stage
from greenroom.envs.choose import IN_PROCESSES
from greenroom.networks import Mlp, Nips
from greenroom.policy import PolicyConfig
from greenroom.replay import ReplayConfig

Collect = Literal["sync", "double", "overlap"]

CONTINUOUS = ("sac", "td3")
"""Algorithms for bounded actions; the others get discrete ones."""
MODES: tuple[tuple[Stage, str, Collect], ...] = (
    ("inline", "a2c", "overlap"),
    ("inline", "ppo", "double"),
    ("workers", "ppo", "double"),
    ("workers", "dqn", "overlap"),
    ("device", "ppo", "overlap"),
    ("joint", "ppo", "sync"),
    ("joint", "dqn", "overlap"),
)
"""Stage, algorithm and collection mode besides every algorithm, collecting in turn with learning, on `STAGES`."""
STAGES: tuple[Stage, ...] = ("inline", "workers", "device")

_GYMNASIUM, _TENSORS = ("CartPole-v1", "Pendulum-v1"), ("cartpole", "probe-continuous")
"""Environments with discrete actions, with continuous ones."""
_SMALL: dict[str, Any] = {
    "epochs": 2,
    "minibatches": 2,
    "replay": ReplayConfig(capacity=400, n_step=2),
    "drawing": Drawing(batch_size=16, replay_ratio=2.0, learning_starts=64),
}
"""What an algorithm's settings become, where it has them."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One run to harm."""

    stage: str
    algo: str
    config: RunConfig

    @property
    def name(self) -> str:
        """What tables call it."""
        where = f", {self.config.env}" if self.stage == "native" else ""
        return f"{self.stage}, {self.algo}, {self.config.collect}{where}"

    @property
    def exact(self) -> bool:
        """Whether a resumed run must come to the same bits: where the stage can copy its environments."""
        return self.stage != "native"


def small(algo: str, kind: type[AlgorithmConfig]) -> AlgorithmConfig:
    """An algorithm with little to do per update; new ones need nothing here."""

    def shrunk(config: Any) -> Any:
        values = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
        parts = {name: shrunk(value) for name, value in values.items() if name == "critics"}
        return dataclasses.replace(config, **parts, **{name: _SMALL[name] for name in values if name in _SMALL})

    made: AlgorithmConfig = shrunk(kind())
    return made


def scenario(stage: Stage, algo: str, collect: Collect = "sync", *, total_steps: int = 2048) -> Scenario:
    """Updates of 32 steps, a checkpoint every three of them, four evaluations."""
    env = (_TENSORS if stage == "device" else _GYMNASIUM)[algo in CONTINUOUS]
    config = RunConfig(
        env=env,
        num_envs=8,
        num_workers=2 if stage in IN_PROCESSES else 0,
        stage=stage,
        collect=collect,
        rollout_length=4,
        total_steps=total_steps,
        seed=7,
        threads=1,
        algorithm=small(algo, ALGORITHMS[algo]),
        policy=PolicyConfig(network=Mlp(hidden=(16,)), normalize_obs=algo in ("a2c", "ppo")),
        eval_every=total_steps // 4,
        eval_episodes=4,
        save_every=96,
        log_seconds=0.0,
    )
    return Scenario(stage=stage, algo=algo, config=config)


def native(env: str) -> Scenario:
    """A C++ vector, whose games nobody can copy."""
    pictures = env.startswith("ALE/")
    config = RunConfig(
        env=env,
        env_kwargs={"max_num_frames_per_episode": 200} if pictures else {},
        num_envs=4,
        num_workers=1,
        rollout_length=4,
        total_steps=512,
        threads=1,
        algorithm=small("ppo", ALGORITHMS["ppo"]),
        policy=PolicyConfig(network=Nips() if pictures else Mlp(hidden=(16,)), precision="float32"),
        eval_episodes=2,
        save_every=48,
        log_seconds=0.0,
    )
    return Scenario(stage="native", algo="ppo", config=config)


def every() -> Iterator[Scenario]:
    """All of them."""
    for stage in STAGES:
        for algo in ALGORITHMS:
            yield scenario(stage, algo)
    for stage, algo, collect in MODES:
        yield scenario(stage, algo, collect)
    yield native("ALE/Pong-v5")
    yield native("envpool:CartPole-v1")


def chosen(only: Sequence[str]) -> list[Scenario]:
    """Those with all the words of one of `only` in their names; without any, all.

    Raises:
        SystemExit: one of them fits none.
    """
    found = {one.name: one for one in every()}
    if not only:
        return list(found.values())
    fitting: dict[str, Scenario] = {}
    for words in only:
        these = {name: one for name, one in found.items() if all(word in name.split(", ") for word in words.split())}
        if not these:
            raise SystemExit(f"--only {words!r} fits no scenario; there are: {'; '.join(found)}")
        fitting |= these
    return list(fitting.values())
