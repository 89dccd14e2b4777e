"""Whole runs in memory: the clock, same seed same bits, save and resume, and every collection mode."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from greenroom import checkpoint, machine
from greenroom.acting import Collector
from greenroom.algorithms import ALGORITHMS
from greenroom.algorithms.actor_critic import A2CConfig, VTraceConfig
from greenroom.algorithms.ppo import PPOConfig
from greenroom.algorithms.replaying import with_drawing
from greenroom.algorithms.rewards import Discounting
from greenroom.config import RunConfig
from greenroom.errors import UserError
from greenroom.memory import Memory
from greenroom.networks import Mlp, Nips
from greenroom.optim import Adam
from greenroom.policy import PolicyConfig
from greenroom.spec import ArraySpec, Discrete, EnvSpec
from greenroom.training import Run, choose_device, choose_layout, choose_precision, make_policy, train

A2C = A2CConfig(discounting=Discounting(gamma=0.9, scale_rewards=True), optimizer=Adam(learning_rate=3e-3))
VTRACE = VTraceConfig(discounting=Discounting(gamma=0.9), optimizer=Adam(learning_rate=3e-3))
PPO = PPOConfig(discounting=Discounting(gamma=0.9, scale_rewards=True), epochs=2, minibatches=3)
BASE = RunConfig(
    env="lost-sales",
    env_kwargs={"horizon": 7, "lead_time": 2},
    num_envs=6,
    rollout_length=4,
    total_steps=6 * 4 * 10,
    device="cpu",
    algorithm=PPO,
    policy=PolicyConfig(network=Mlp(hidden=(16,)), normalize_obs=True),
)
VARIANTS: dict[str, RunConfig] = {
    "lost-sales a2c": dataclasses.replace(BASE, algorithm=A2C),
    "lost-sales ppo": BASE,
    "lost-sales ppo double": dataclasses.replace(BASE, collect="double"),
    "lost-sales a2c double": dataclasses.replace(BASE, algorithm=A2C, collect="double"),
    "probe ppo": dataclasses.replace(BASE, env="probe-multi-discrete", env_kwargs={}),
    "probe a2c": dataclasses.replace(BASE, env="probe-continuous", env_kwargs={}, algorithm=A2C),
    "CartPole inline": dataclasses.replace(
        BASE, env="CartPole-v1", env_kwargs={}, stage="inline", rollout_length=20, total_steps=6 * 20 * 10
    ),
    "CartPole inline double": dataclasses.replace(
        BASE, env="CartPole-v1", env_kwargs={}, stage="inline", collect="double", algorithm=A2C
    ),
    "probe-memory lstm": dataclasses.replace(
        BASE,
        env="probe-memory",
        env_kwargs={},
        policy=dataclasses.replace(BASE.policy, memory=Memory(memory="lstm", memory_size=8), separate_value=True),
    ),
    "CartPole inline gru overlap": dataclasses.replace(
        BASE,
        env="CartPole-v1",
        env_kwargs={},
        stage="inline",
        collect="overlap",
        lag=2,
        algorithm=VTRACE,
        policy=dataclasses.replace(BASE.policy, memory=Memory(memory="gru", memory_size=8)),
        rollout_length=20,
        total_steps=6 * 20 * 10,
    ),
    "CartPole workers": dataclasses.replace(
        BASE, env="CartPole-v1", env_kwargs={}, stage="workers", num_workers=2, algorithm=A2C
    ),
}
each_variant = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())


@contextlib.contextmanager
def running(config: RunConfig) -> Iterator[Run]:
    run = Run(config, say=lambda line: None)
    try:
        yield run
    finally:
        run.close()


def weights(run: Run) -> dict[str, torch.Tensor]:
    """All weights and statistics, in memory of their own."""
    return {name: part.clone() for name, part in run.algorithm.policy.state_dict().items()}


def trained(config: RunConfig) -> dict[str, torch.Tensor]:
    with running(config) as run:
        for _ in train(run):
            pass
        return weights(run)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(part, other[name]) for name, part in one.items())


@each_variant
def test_same_seed_same_bits_and_resuming_changes_nothing(config: RunConfig, tmp_path: Path) -> None:
    """One run, the same again, and one that was stopped, saved to the disk, and continued by new objects."""
    with running(config) as run:
        for number, _ in enumerate(train(run), start=1):
            if number == 4:
                checkpoint.save(tmp_path, run.state_dict(), env_steps=run.env_steps, updates=run.updates)
        uninterrupted = weights(run)
    torch.manual_seed(1234)  # nobody else's draws may matter
    assert equal(trained(config), uninterrupted)

    with running(config) as resumed:
        path = checkpoint.latest(tmp_path)
        assert path is not None
        state: Any = checkpoint.load(path)
        resumed.load_state_dict(state)
        assert not equal(weights(resumed), uninterrupted)
        updates = [progress.updates for progress in train(resumed)]
        assert updates == list(range(5, resumed.updates + 1))
        assert equal(weights(resumed), uninterrupted)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_another_seed_gives_another_run(algo: str) -> None:
    """From the same weights: acting and learning draw otherwise."""
    # Enough steps for as many minibatches as any of them wants.
    algorithm = with_drawing(ALGORITHMS[algo](), batch_size=16, replay_ratio=16.0, learning_starts=0)
    config = dataclasses.replace(BASE, algorithm=algorithm, rollout_length=8)
    if algo in ("sac", "td3"):
        config = dataclasses.replace(config, env="probe-continuous", env_kwargs={})
    with running(config) as first, running(dataclasses.replace(config, seed=1)) as second:
        start = {name: part.clone() for name, part in first.algorithm.policy.state_dict().items()}
        second.algorithm.policy.load_state_dict(start)
        for run in (first, second):
            for _ in islice(train(run), 3):
                pass
        assert not equal(weights(first), start), "it has learned"
        assert not equal(weights(first), weights(second))


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trained(BASE)
    assert torch.equal(torch.rand(3), expected)


def test_weights_begin_where_the_seed_says() -> None:
    """The same weights for every collection mode and stage; others for another seed."""
    double, overlap, other = ({"collect": "double"}, {"collect": "overlap"}, {"seed": 1})
    found = []
    for changes in ({}, double, overlap, other):
        with running(dataclasses.replace(BASE, **changes)) as run:
            found.append(weights(run))
    assert equal(found[0], found[1]) and equal(found[0], found[2])
    assert not equal(found[0], found[3])


def test_progress_keeps_the_clock() -> None:
    with running(dataclasses.replace(BASE, total_steps=100)) as run:
        news = list(train(run))
        assert run.finished
        assert not list(train(run))
    # 24 steps an update: 96 are not enough for 100.
    assert [(progress.env_steps, progress.updates) for progress in news] == [(24 * n, n) for n in range(1, 6)]
    seconds = [progress.seconds for progress in news]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0
    # Every episode lasts 7 steps: those of 6 actors end at steps 7 and 14, in updates 2 and 4.
    assert [len(progress.rollout.episodes.index) for progress in news] == [0, 6, 0, 6, 0]
    assert {int(length) for progress in news for length in progress.rollout.episodes.lengths} == {7}
    last = news[-1]
    assert last.time_split.keys() == {"env", "act", "wait", "learn"}
    assert 0 < sum(last.time_split.values()) <= last.seconds
    assert all(value.ndim == 0 and bool(value.isfinite()) for value in last.metrics.values())


def test_rollouts_carry_the_version_of_the_weights_that_acted() -> None:
    with running(BASE) as run:
        versions = []
        learn = run.algorithm.learn

        def spy(rollout: Any) -> Any:
            versions.append(rollout.version)
            return learn(rollout)

        run.algorithm.learn = spy  # type: ignore[method-assign]
        lags = [progress.lag for progress in train(run)]
    assert versions == list(range(10))
    assert lags == [0] * 10


def test_whoever_loops_over_it_keeps_freed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    monkeypatch.setattr(machine, "keep_freed_memory", lambda: told.append(True))
    run = Run(BASE)
    next(train(run))
    run.close()
    assert told == [True]


def test_double_collection_acts_in_two_halves() -> None:
    with running(dataclasses.replace(BASE, collect="double")) as run:
        assert isinstance(run.collector, Collector)
        assert [group.num_envs for group in run.collector.groups] == [3, 3]
        rollout = next(run.collector)
        assert rollout.reward.shape == (4, 6)
        halves = rollout.reward.split(3, dim=1)
        assert not torch.equal(*halves)


def test_environments_are_closed_when_the_rest_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    monkeypatch.setattr("greenroom.envs.device.DeviceEnvironment.close", lambda self: closed.append(self))
    config = dataclasses.replace(BASE, policy=PolicyConfig(network=Nips()), collect="double")
    with pytest.raises(UserError, match="use --network mlp"):
        Run(config, say=lambda line: None)
    assert len(closed) == 2


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(dataclasses.replace(BASE, device="auto")) == torch.device("cpu")
    with pytest.raises(UserError, match="--device cuda: torch sees no GPU here; use --device cpu"):
        choose_device(dataclasses.replace(BASE, device="cuda"))


@pytest.mark.parametrize(
    ("kind", "network", "asked", "expected"),
    [
        ("amx_bf16", Nips(), "auto", "bfloat16"),
        (None, Nips(), "auto", "float32"),
        ("amx_bf16", Mlp(), "auto", "float32"),
        ("amx_bf16", object(), "auto", "float32"),  # somebody's own network
        ("amx_bf16", Nips(), "float32", "float32"),
        (None, Nips(), "bfloat16", "bfloat16"),
    ],
)
def test_precision(monkeypatch: pytest.MonkeyPatch, kind: str | None, network: Any, asked: Any, expected: str) -> None:
    monkeypatch.setattr("greenroom.machine.quick_bf16", lambda: kind)
    config = dataclasses.replace(BASE, policy=PolicyConfig(network=network, precision=asked))
    said: list[str] = []
    assert choose_precision(config, torch.device("cpu"), said.append) == expected
    assert bool(said) == (asked == "auto" and expected == "bfloat16")  # what was asked for needs no telling


@pytest.mark.parametrize(
    ("asked", "device", "expected"),
    [
        ("auto", "cpu", torch.channels_last),
        ("auto", "cuda", torch.preserve_format),
        ("on", "cuda", torch.channels_last),
        ("off", "cpu", torch.preserve_format),
    ],
)
def test_layout(asked: Any, device: str, expected: torch.memory_format) -> None:
    config = dataclasses.replace(BASE, policy=PolicyConfig(channels_last=asked))
    assert choose_layout(config, torch.device(device)) == expected


@pytest.mark.parametrize(("asked", "memory_format"), [("on", torch.channels_last), ("off", torch.contiguous_format)])
def test_pictures_come_to_convolutions_as_their_weights_lie(asked: Any, memory_format: torch.memory_format) -> None:
    spec = EnvSpec(name="x", obs=ArraySpec(shape=(4, 84, 84), dtype=torch.uint8), action=Discrete(n=2))
    config = dataclasses.replace(BASE, policy=PolicyConfig(network=Nips(), channels_last=asked))
    policy = make_policy(config, spec, torch.device("cpu"), lambda line: None)
    first = next(part for part in policy.modules() if isinstance(part, torch.nn.Conv2d))
    seen: list[bool] = []
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous(memory_format=memory_format)))
    policy.act(torch.zeros(3, 4, 84, 84, dtype=torch.uint8), {}, None)
    assert first.weight.is_contiguous(memory_format=memory_format)
    assert seen == [True]


@pytest.mark.parametrize("algorithm", [PPO, ALGORITHMS["dqn"]()], ids=["ppo", "dqn"])
def test_chance_begins_anew_on_another_kind_of_device(algorithm: Any) -> None:
    """A GPU's generators have a state of 16 bytes, of which a processor's can make nothing."""
    config = dataclasses.replace(BASE, algorithm=algorithm)

    def elsewhere(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: elsewhere(one) for name, one in part.items()}
        if isinstance(part, list):
            return [elsewhere(one) for one in part]
        state = isinstance(part, torch.Tensor) and part.dtype == torch.uint8 and part.numel() == len(own)
        return part[:16].clone() if state else part

    own = torch.Generator().get_state()
    run = Run(config, say=lambda line: None)
    next(train(run))
    saved = elsewhere(run.state_dict())
    run.close()
    after: list[torch.Tensor] = []
    for _ in range(2):
        again = Run(config, say=lambda line: None)
        again.load_state_dict(saved)
        after.append(next(train(again)).rollout.action.clone())
        again.close()
    assert torch.equal(*after), "the same every time"


PROMPT = """
import dataclasses, sys
import greenroom, greenroom.session
from greenroom.optim import Adam, RAdam, RMSprop
for optimizer in (Adam(), RAdam(), RMSprop()):
    config = greenroom.preset(None, "cartpole")
    algorithm = dataclasses.replace(config.algorithm, optimizer=optimizer)
    run = greenroom.Run(dataclasses.replace(config, algorithm=algorithm), say=lambda line: None)
    next(greenroom.train(run))
print(*({"torch._dynamo", "sympy", "matplotlib"} & set(sys.modules)))
"""


def test_a_run_s_start_waits_for_no_compiler_and_no_pictures() -> None:
    """Importing torch's compiler and matplotlib takes as long as everything else of it."""
    done = subprocess.run([sys.executable, "-c", PROMPT], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("\n", "")
