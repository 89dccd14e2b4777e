"""Rates: what a slice is, whose turn it is, that masks are obeyed, that everything is given back."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import gymnasium
import pytest
import torch

import gym_envs
from greenroom import measure
from greenroom.algorithms import ALGORITHMS
from greenroom.algorithms.actor_critic import A2CConfig, VTraceConfig
from greenroom.algorithms.ppo import PPOConfig
from greenroom.algorithms.replaying import with_drawing
from greenroom.config import RunConfig
from greenroom.doctor.symptoms import watch
from greenroom.envs.inline import InlineEnvironment
from greenroom.errors import EnvironmentFault, UserError
from greenroom.measure import Part, Work, interleaved
from greenroom.memory import Memory
from greenroom.networks import Mlp
from greenroom.policy import PolicyConfig
from greenroom.threads import limited
from greenroom.training import Run, train

TINY = RunConfig(
    env="lost-sales",
    num_envs=8,
    rollout_length=4,
    device="cpu",
    algorithm=A2CConfig(),
    policy=PolicyConfig(network=Mlp(hidden=(8,))),
)
BRIEF: Any = {"seconds": 0.02, "repeats": 2}


class Clock:
    """Time that passes only when someone works."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(measure, "time", clock)
    return clock


def scripted(clock: Clock, costs: Iterator[float], *, steps: int = 10, told: list[str] | None = None) -> Work:
    """Work whose parts cost what `costs` says, half of it for acting."""
    try:
        for cost in costs:
            if told is not None:
                told.append("work")
            clock.now += cost
            yield Part(steps=steps, split={"act": cost / 2, "learn": cost / 4})
    finally:
        if told is not None:
            told.append("closed")


def test_a_rate_is_the_median_of_slices(clock: Clock) -> None:
    # A slice to warm up and one that is timed; then a part before each slice.
    costs = [1.5, 0.5, 1.0, 1.0, 9.0, 2.0, 9.0, 4.0]
    rate = interleaved({"it": scripted(clock, iter(costs))}, seconds=6.0, repeats=3)["it"]
    assert rate.repeats == 3
    assert rate.seconds == 2.0 + 2.0 + 4.0
    assert rate.steps_per_second == 5.0, "10, 5 and 2.5 steps a second"
    assert rate.spread == pytest.approx((7.5 - 3.75) / 5.0)
    assert rate.split == {"act": 0.5, "learn": 0.25}
    assert rate.microseconds == {"act": 1e5, "learn": 5e4}


def test_slices_are_taken_in_turn(clock: Clock) -> None:
    turns: list[str] = []

    def work(name: str) -> Work:
        for _ in itertools.count():
            turns.append(name)
            clock.now += 1.0
            yield Part(steps=1)

    rates = interleaved({name: work(name) for name in "ab"}, seconds=3.0, repeats=3)
    assert [name for name, _ in itertools.groupby(turns)] == list("ababab")
    assert rates["a"].steps_per_second == rates["b"].steps_per_second == 1.0


def test_slices_end_when_time_is_up(clock: Clock) -> None:
    works = {"slow": scripted(clock, itertools.repeat(5.0)), "quick": scripted(clock, itertools.repeat(1.0))}
    rates = interleaved(works, seconds=4.0, repeats=4, at_most=20.0)
    # A part to warm up and one that is timed: 10 + 2 seconds, and as much in the second round.
    assert [rates[name].repeats for name in works] == [2, 2]


def test_everything_is_closed_after_an_error(clock: Clock) -> None:
    told: list[str] = []

    def broken() -> Work:
        yield Part(steps=1)
        raise UserError("it broke")

    works = {"sound": scripted(clock, itertools.repeat(1.0), told=told), "broken": broken()}
    with pytest.raises(UserError, match="it broke"):
        interleaved(works, seconds=1.0, repeats=2)
    assert told[-1] == "closed" and told.count("closed") == 1


def test_every_work_keeps_its_threads_and_the_caller_his(clock: Clock) -> None:
    seen: dict[str, set[int]] = {"own": set(), "ambient": set()}

    def work(name: str, threads: int) -> Work:
        try:
            if threads:
                torch.set_num_threads(threads)
            for _ in itertools.count():
                seen[name].add(torch.get_num_threads())
                clock.now += 1.0
                yield Part(steps=1)
        finally:
            torch.set_num_threads(7)

    before = torch.get_num_threads()
    interleaved({"own": work("own", before + 2), "ambient": work("ambient", 0)}, seconds=2.0, repeats=2)
    assert seen == {"own": {before + 2}, "ambient": {before}}
    assert torch.get_num_threads() == before


class Closing(gym_envs.Counter):
    """Tells what happened to it."""

    log: list[str] = []  # noqa: RUF012  # all of them tell the same list

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.log.append("reset")
        return super().reset(seed=seed, options=options)

    def close(self) -> None:
        self.log.append("close")


def test_a_single_environment_is_reset_by_hand_and_closed() -> None:
    Closing.log.clear()
    work = measure.single("test_measure:Closing", {"length": 2})
    steps = sum(next(work).steps for _ in range(2))
    work.close()
    resets = Closing.log.count("reset")
    assert resets == 1 + steps // 2 and Closing.log[-1] == "close"


def masked_in_obs() -> gymnasium.Env[Any, Any]:
    return gym_envs.Masked(gymnasium.spaces.MultiBinary(4))


def masked_in_info() -> gymnasium.Env[Any, Any]:
    return gym_envs.Masked()


@pytest.mark.parametrize("env", ["test_measure:masked_in_obs", "test_measure:masked_in_info", "gym_envs:MaskedPair"])
def test_masks_are_obeyed(env: str) -> None:
    """These environments assert that every action was allowed."""
    assert measure.single_rate(env, **BRIEF).steps_per_second > 0
    assert measure.environment_rate(dataclasses.replace(TINY, env=env, stage="inline"), **BRIEF).steps_per_second > 0


@pytest.mark.parametrize("env", ["lost-sales", "ALE/Pong-v5"])
def test_single_environments_that_gymnasium_does_not_have(env: str) -> None:
    assert measure.single_rate(env, **BRIEF).repeats == 2


@pytest.mark.parametrize("collect", ["sync", "double"])
def test_the_stage_is_the_runs(collect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    closed: list[int] = []
    send, close = InlineEnvironment.send, InlineEnvironment.close

    def spy(self: InlineEnvironment, action: Any) -> None:
        sizes.append(self.num_envs)
        send(self, action)

    def spy_close(self: InlineEnvironment) -> None:
        closed.append(self.num_envs)
        close(self)

    monkeypatch.setattr(InlineEnvironment, "send", spy)
    monkeypatch.setattr(InlineEnvironment, "close", spy_close)
    config = dataclasses.replace(TINY, env="gym_envs:Counter", stage="inline", collect=collect)
    rate = measure.environment_rate(config, **BRIEF)
    assert set(sizes) == set(closed) == ({4} if collect == "double" else {8})
    assert rate.split == {}


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_is_measured_while_it_learns(algo: str) -> None:
    env = "probe-continuous" if algo in ("sac", "td3") else "lost-sales"
    algorithm = with_drawing(ALGORITHMS[algo](), batch_size=8, replay_ratio=8.0)
    config = dataclasses.replace(TINY, env=env, algorithm=algorithm, rollout_length=8)
    works = {"learner": measure.learner(config), "whole": measure.whole(config)}
    rates = interleaved(works, **BRIEF)
    assert rates["learner"].split.keys() == {"act", "learn"}
    assert rates["whole"].split.keys() == {"env", "act", "learn", "wait"}
    assert all(rate.split["learn"] > 0 and 0 < sum(rate.split.values()) <= 1 for rate in rates.values())
    run = measure.begun(config)
    before = {name: part.clone() for name, part in run.algorithm.policy.named_parameters()}
    next(train(run))
    run.close()
    assert any(not torch.equal(part, before[name]) for name, part in run.algorithm.policy.named_parameters())


def test_a_replay_of_whole_sequences_is_measured_as_soon_as_there_are_any() -> None:
    policy = dataclasses.replace(TINY.policy, memory=Memory(memory="gru", memory_size=4))
    algorithm = with_drawing(ALGORITHMS["dqn"](), batch_size=80)
    config = dataclasses.replace(TINY, policy=policy, algorithm=algorithm, rollout_length=8)
    rates = interleaved({"learner": measure.learner(config), "whole": measure.whole(config)}, **BRIEF)
    assert all(rate.split["learn"] > 0 for rate in rates.values())


def test_on_one_rollout_for_ever_no_update_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    real = measure.begun

    def begun(config: RunConfig, **more: Any) -> Run:
        assert isinstance(config.algorithm, PPOConfig)
        seen.append(config.algorithm.target_kl)
        return real(config, **more)

    monkeypatch.setattr(measure, "begun", begun)
    next(measure.learner(dataclasses.replace(TINY, algorithm=PPOConfig(minibatches=2, target_kl=0.01))))
    assert seen == [0.0]


def test_recurrent_policies_and_overlap() -> None:
    policy = dataclasses.replace(TINY.policy, memory=Memory(memory="gru", memory_size=4))
    config = dataclasses.replace(TINY, policy=policy, algorithm=VTraceConfig(), collect="overlap", lag=2, threads=2)
    before = torch.get_num_threads()
    rates = interleaved({"learner": measure.learner(config), "whole": measure.whole(config)}, **BRIEF)
    assert rates["whole"].steps_per_second > 0 and rates["learner"].steps_per_second > 0
    assert torch.get_num_threads() == before


def test_the_learner_needs_its_environments_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    close = InlineEnvironment.close

    def spy(self: InlineEnvironment) -> None:
        told.append("closed")
        close(self)

    monkeypatch.setattr(InlineEnvironment, "close", spy)
    work = measure.learner(dataclasses.replace(TINY, env="gym_envs:Counter", stage="inline"))
    assert next(work).steps == 32
    assert told == ["closed"]
    work.close()


def test_the_learner_has_the_threads_of_its_run() -> None:
    with limited(1):
        work = measure.learner(dataclasses.replace(TINY, threads=2))
        next(work)
        assert torch.get_num_threads() == 2
        work.close()


def test_an_environment_that_fails_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(InlineEnvironment, "close", lambda self: told.append("closed"))
    config = dataclasses.replace(TINY, env="gym_envs:Faulty", stage="inline", num_envs=2)
    victim = int(torch.randint(2**31, (1,)))
    kwargs = {"fault": "raise", "at": 3, "victim": victim}

    def broken(self: gym_envs.Faulty, **rest: Any) -> Any:
        self.broken = True
        return gym_envs.Counter.reset(self, **rest)

    monkeypatch.setattr(gym_envs.Faulty, "reset", broken)
    for rate in (measure.environment_rate, measure.run_rate):
        told.clear()
        with pytest.raises(EnvironmentFault, match="the conveyor jammed"):
            rate(dataclasses.replace(config, env_kwargs=kwargs), **BRIEF)
        assert told == ["closed"]


def test_a_single_environment_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(gym_envs.Counter, "close", lambda self: told.append("closed"))
    monkeypatch.setattr(gym_envs.Counter, "step", lambda self, action: 1 / 0)
    with pytest.raises(EnvironmentFault, match="gym_envs:Counter, stepped by itself, raised ZeroDivisionError"):
        measure.single_rate("gym_envs:Counter", **BRIEF)
    with pytest.raises(EnvironmentFault, match="gym_envs:Counter, stepped by itself, raised ZeroDivisionError"):
        watch("gym_envs:Counter", {})
    assert told == ["closed", "closed"]


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measure.bound(300.0, 150.0) == pytest.approx(100.0)
    monkeypatch.setattr(measure, "available_cores", lambda: 4)
    assert measure.parallel_bound(50.0) == 200.0
