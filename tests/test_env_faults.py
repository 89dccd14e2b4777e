"""Environments that fail: started anew if asked, not learned from, counted, and on file so that it can be repeated."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from faults import flaky
from greenroom import session
from greenroom.acting import Collector, unfinished
from greenroom.algorithms.ppo import PPOConfig
from greenroom.cli import main
from greenroom.config import RunConfig
from greenroom.envs import make
from greenroom.envs.device import DEVICE_ENVIRONMENTS
from greenroom.envs.faults import FaultConfig, next_seed
from greenroom.envs.inline import InlineEnvironment
from greenroom.envs.lost_sales import LostSales
from greenroom.envs.model import State, Transition
from greenroom.envs.worker import CALL
from greenroom.envs.workers import WorkersEnvironment
from greenroom.errors import EnvironmentFault, ExitCode, UserError
from greenroom.evaluation import evaluate
from greenroom.memory import Memory
from greenroom.networks import Mlp
from greenroom.policy import ActorCritic, PolicyConfig
from greenroom.postmortem import reproduce
from greenroom.session import launch, resume
from greenroom.training import Run, train
from greenroom.types import Progress, Rollout, Step
from test_session import PowerCut, assert_equal, final_state, lines, without_clock
from test_workers import _children

RESTART = FaultConfig(on_env_error="restart")
STAGES: dict[str, dict[str, Any]] = {
    "inline": {},
    "workers": {"num_workers": 2},
    "joint": {"num_workers": 2, "joint": True},
}
MENDED_INSIDE = ("raise", "leave", "nan", "outside", "shape", "reward", "reset")
"""What the process that owns the environment mends; it goes on."""
ACTION = torch.zeros(4, dtype=torch.int64)


def stage_of(
    stage: str, faults: FaultConfig = RESTART, env: str = "Flaky", **kwargs: Any
) -> InlineEnvironment | WorkersEnvironment:
    kind: Any = InlineEnvironment if stage == "inline" else WorkersEnvironment
    made: InlineEnvironment | WorkersEnvironment = kind(
        f"faults.flaky:{env}", num_envs=4, kwargs=kwargs, faults=faults, **STAGES[stage]
    )
    return made


def steps_of(environment: Any, count: int) -> list[Any]:
    """Steps, in memory of their own."""
    taken: list[Step] = []
    for _ in range(count):
        environment.send(ACTION)
        step = environment.recv()
        copies = {name: getattr(step, name).clone() for name in ("obs", "reward", "terminated", "truncated")}
        taken.append(dataclasses.replace(step, **copies, final_obs=step.final_obs.clone()))
    return taken


@pytest.mark.parametrize("fault", MENDED_INSIDE)
@pytest.mark.parametrize("stage", STAGES)
def test_a_failed_environment_begins_anew_and_the_others_never_notice(stage: str, fault: str) -> None:
    flaky, sound = stage_of(stage, fault=fault), stage_of(stage, fault=fault, chance=0.0)
    flaky.reset(3)
    sound.reset(3)
    failed: set[int] = set()
    for ours, theirs in zip(steps_of(flaky, 60), steps_of(sound, 60), strict=True):
        for one in ours.faults:
            index = one.index
            failed.add(index)
            assert one.restarted == (index,)
            assert bool(ours.truncated[index]) and not bool(ours.terminated[index]) and float(ours.reward[index]) == 0.0
            assert index not in ours.episodes.index.tolist()
        assert bool(ours.obs.isfinite().all()) and bool(ours.final_obs.isfinite().all())
        assert int((ours.terminated | ours.truncated).sum()) == len(ours.final_obs)
        # An environment that has not failed yet has the same history, bit for bit.
        well = [index for index in range(4) if index not in failed]
        assert torch.equal(ours.obs[well], theirs.obs[well]) and torch.equal(ours.reward[well], theirs.reward[well])
        if fault != "reset":
            assert set(ours.episodes.lengths.tolist()) <= {20}
    assert failed
    flaky.close()
    sound.close()


@pytest.mark.parametrize("stage", STAGES)
def test_the_same_failures_give_the_same_bits(stage: str) -> None:
    runs = []
    for _ in range(2):
        environment = stage_of(stage)
        environment.reset(5)
        runs.append(steps_of(environment, 80))
        environment.close()
    assert any(step.faults for step in runs[0])
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one.obs, other.obs) and one.faults == other.faults


def test_all_stages_mend_alike() -> None:
    streams = []
    for stage in STAGES:
        environment = stage_of(stage)
        environment.reset(7)
        streams.append(steps_of(environment, 80))
        environment.close()
    for one, *others in zip(*streams, strict=True):
        for other in others:
            assert torch.equal(one.obs, other.obs)
            assert [(fault.what, fault.actions) for fault in one.faults] == [
                (fault.what, fault.actions) for fault in other.faults
            ]


def test_a_failure_is_told_with_all_that_leads_to_it() -> None:
    environment = stage_of("inline", FaultConfig())
    environment.reset(3)
    with pytest.raises(
        EnvironmentFault, match=r"^environment \d, step \d+: step raised ValueError: the conv"
    ) as caught:
        steps_of(environment, 200)
    fault = caught.value.fault
    assert fault is not None and fault.restarted == ()
    assert fault.steps == len(fault.actions) == 20 * fault.episode + fault.step
    assert fault.traceback.endswith("ValueError: the conveyor jammed\n") and "in step" in fault.traceback


@pytest.mark.parametrize("fault", ["exit", "hang"])
def test_a_lost_worker_is_replaced(fault: str) -> None:
    before, faults = set(_children()), dataclasses.replace(RESTART, step_timeout=0.5)
    environment = stage_of("workers", fault=fault, chance=0.01, faults=faults)
    environment.reset(2)
    steps = steps_of(environment, 60)
    told = [one for step in steps for one in step.faults]
    assert told
    words = "ended with exit code 3" if fault == "exit" else "has been silent for 0.5 s"
    for step in steps:
        for one in step.faults:
            assert one.restarted in ((0, 1), (2, 3)) and one.index in one.restarted
            assert f"{words} while it stepped environment {one.index}" in one.what
            assert bool(step.truncated[list(one.restarted)].all())
    assert len(set(_children()) - before) == 2
    environment.close()
    assert set(_children()) <= before


def test_a_reset_has_a_limit_of_its_own() -> None:
    class SlowReset(flaky.Flaky):
        def reset(self, **given: Any) -> Any:
            time.sleep(0.7 if self.jammed or self.t else 0.0)
            return super().reset(**given)

    def env() -> SlowReset:
        return SlowReset(chance=0.0)

    limits = FaultConfig(step_timeout=0.3, reset_timeout=30.0)
    environment = WorkersEnvironment(env, num_envs=2, num_workers=1, faults=limits)
    environment.reset(0)
    for _ in range(25):
        environment.send(ACTION[:2])
        environment.recv()
    environment.close()
    environment = WorkersEnvironment(env, num_envs=2, num_workers=1, faults=FaultConfig(reset_timeout=0.3))
    environment.reset(0)
    words = r"worker 0 \(environments 0 to 1\) has been silent for 0.3 s while it reset environment 0"
    with pytest.raises(EnvironmentFault, match=words):
        for _ in range(25):
            environment.send(ACTION[:2])
            environment.recv()


def test_building_anew_has_the_limit_of_a_reset() -> None:
    class SlowToBuild(flaky.Flaky):
        built = 0

        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            type(self).built += 1
            time.sleep(0.9 if self.built > 2 else 0.0)

    def env() -> SlowToBuild:
        return SlowToBuild(chance=0.1)

    limits = dataclasses.replace(RESTART, step_timeout=0.3, reset_timeout=30.0)
    environment = WorkersEnvironment(env, num_envs=2, num_workers=1, faults=limits)
    environment.reset(0)
    told: list[Any] = []
    while len(told) < 2:
        environment.send(ACTION[:2])
        told += environment.recv().faults
    environment.close()
    assert all("step raised ValueError: the conveyor jammed" in fault.what for fault in told)


@pytest.mark.parametrize("stage", ["workers", "joint"])
@pytest.mark.parametrize("when", ["stepping", "between", "saving"])
def test_a_killed_worker_is_replaced_within_a_second_of_being_noticed(when: str, stage: str) -> None:
    environment = stage_of(stage, chance=0.0)
    assert isinstance(environment, WorkersEnvironment)
    environment.reset(0)
    steps_of(environment, 3)
    os.kill(environment._crew._processes[-1].pid, signal.SIGKILL)
    if when == "between":
        time.sleep(0.3)
    if when == "saving":  # also a run that is resumed from here must hear of it
        state = environment.state_dict()
        other = stage_of(stage, chance=0.0)
        other.load_state_dict(state)
        resumed = steps_of(other, 1)[0]
        assert resumed.truncated.tolist() == [False, False, True, True]
        assert [fault.restarted for fault in resumed.faults] == [(2, 3)]
        other.close()
    step = steps_of(environment, 1)[0]
    (fault,) = step.faults
    number = {"workers": 1, "joint": 0}[stage]  # of the hired ones
    assert fault.restarted == (2, 3) and f"worker {number} (environments 2 to 3) was killed by signal 9" in fault.what
    assert step.truncated.tolist() == [False, False, True, True]
    assert not any(step.faults for step in steps_of(environment, 3))
    environment.close()


@pytest.mark.parametrize("mended", [True, False])
def test_a_worker_that_dies_in_the_middle_of_an_answer_is_lost_like_any_other(mended: bool) -> None:
    class Large(flaky.Flaky):
        def reset(self, **given: Any) -> Any:
            self.memory = self.np_random.random(500_000)  # more than a socket holds
            return super().reset(**given)

    environment = WorkersEnvironment(
        lambda: Large(chance=0.0), num_envs=4, num_workers=2, faults=RESTART if mended else FaultConfig()
    )
    environment.reset(0)
    environment._crew._send(1, CALL, ("capture", ()))
    time.sleep(1.0)  # it writes as much as fits, and waits
    os.kill(environment._crew._processes[1].pid, signal.SIGKILL)
    if mended:
        assert isinstance(environment.state_dict(), dict)
        (fault,) = steps_of(environment, 1)[0].faults
        assert fault.restarted == (2, 3) and fault.traceback == ""
        assert fault.what == "worker 1 (environments 2 to 3) was killed by signal 9"
        environment.close()
    else:
        with pytest.raises(EnvironmentFault, match=r"^worker 1 \(environments 2 to 3\) was killed by signal 9$"):
            environment.state_dict()


@pytest.mark.parametrize("stage", STAGES)
def test_there_is_a_limit(stage: str) -> None:
    before = set(_children())
    environment = stage_of(stage, dataclasses.replace(RESTART, max_env_restarts=2), chance=0.2)
    environment.reset(0)
    with pytest.raises(EnvironmentFault, match="failure number 3 of this sitting, max_env_restarts is 2") as caught:
        steps_of(environment, 100)
    assert caught.value.fault is not None
    environment.close()
    assert set(_children()) <= before


def test_an_environment_that_never_works_again_stops_the_run() -> None:
    faults = dataclasses.replace(RESTART, max_env_restarts=10**6)
    environment = InlineEnvironment(flaky.NeverAgain, num_envs=2, kwargs={"chance": 0.1}, faults=faults)
    try:
        environment.reset(0)
        with pytest.raises(EnvironmentFault, match="reset raised RuntimeError: no licence left"):
            for _ in range(100):
                environment.send(ACTION[:2])
                environment.recv()
    finally:
        flaky.NeverAgain.broken = False


@pytest.mark.parametrize("relapses", [4, 5])
def test_a_new_environment_that_cannot_be_built_or_reset_is_tried_again(relapses: int) -> None:
    environment = InlineEnvironment(flaky.Relapse, num_envs=2, kwargs={"relapses": relapses}, faults=RESTART)
    environment.reset(0)
    for _ in range(200):
        environment.send(ACTION[:2])
        if faults := environment.recv().faults:
            break
    first, *others = [fault.what.partition(": ")[2] for fault in faults]
    assert first == "step raised ValueError: the conveyor jammed"
    reset, build = "reset raised RuntimeError: the conveyor does not start", "could not be built: RuntimeError: no lic"
    assert len(others) == relapses
    for what, expected in zip(reversed(others), itertools.cycle([build, reset])):
        assert expected in what
    assert all(fault.traceback for fault in faults)


def test_one_that_can_never_be_built_again_stops_the_run() -> None:
    faults = dataclasses.replace(RESTART, max_env_restarts=10**6)
    environment = InlineEnvironment(flaky.Relapse, num_envs=2, kwargs={"relapses": 11}, faults=faults)
    try:
        environment.reset(0)
        with pytest.raises(EnvironmentFault, match=r"^environment \d: Relapse could not be built|does not start"):
            for _ in range(200):
                environment.send(ACTION[:2])
                environment.recv()
        assert flaky.Relapse.relapses == 1  # ten attempts
    finally:
        flaky.Relapse.relapses = 0


@pytest.mark.parametrize("fault", ["raise", "outside"])
def test_a_reset_of_the_whole_stage_is_mended_and_cuts_no_step(fault: str) -> None:
    told: list[list[Any]] = []
    for stage in STAGES:
        environment = stage_of(stage, env="FalseStart", fault=fault, chance=0.3)
        told.append([])
        for seed in range(8):
            obs = torch.as_tensor(environment.reset(seed)).clone()
            assert bool((obs.abs() <= 1).all())
            first, second = steps_of(environment, 2)
            assert not bool((first.truncated | second.truncated).any()) and second.faults == ()
            assert first.reward.tolist() == [1.0] * 4
            assert all(one.restarted == () and one.step == one.steps == 0 for one in first.faults)
            told[-1].append((obs.tolist(), [(one.what, one.seed) for one in first.faults]))
        environment.close()
    assert told[0] == told[1] == told[2]
    assert sum(len(faults) for _, faults in told[0]) > 3


@pytest.mark.parametrize("stage", ["workers", "joint"])
def test_a_worker_that_dies_in_a_reset_of_the_whole_stage_is_replaced(stage: str) -> None:
    environment = stage_of(stage, env="FalseStart", fault="raise", chance=0.0)
    assert isinstance(environment, WorkersEnvironment)
    environment.reset(0)
    os.kill(environment._crew._processes[-1].pid, signal.SIGKILL)
    environment.reset(1)
    first, second = steps_of(environment, 2)
    (fault,) = first.faults
    assert fault.restarted == () and "was killed by signal 9" in fault.what
    assert second.faults == () and not bool((first.truncated | second.truncated).any())
    environment.reset(1)
    assert steps_of(environment, 1)[0].faults == ()
    environment.close()


def test_a_worker_that_exits_in_resets_is_replaced() -> None:
    environment = stage_of("workers", env="FalseStart", fault="exit", chance=0.1)
    told: list[Any] = []
    for seed in range(6):
        environment.reset(seed)
        told += [fault for step in steps_of(environment, 3) for fault in step.faults]
    assert told and all("ended with exit code 3 while it reset environment" in fault.what for fault in told)
    environment.close()


@pytest.mark.parametrize("failures", [9, 10])
def test_a_stage_is_built_from_environments_whose_first_reset_fails(failures: int) -> None:
    seeds: list[int] = []
    closed: list[Any] = []

    class Unwilling(flaky.Flaky):
        def reset(self, **given: Any) -> Any:
            seeds.append(given["seed"])
            if len(seeds) <= failures:
                raise ValueError("the conveyor does not start")
            return super().reset(**given)

        def close(self) -> None:
            closed.append(self)

    if failures == 10:
        with pytest.raises(EnvironmentFault, match="environment 0, step 0: reset raised ValueError: the conveyor"):
            InlineEnvironment(Unwilling, num_envs=2, faults=RESTART)
    else:
        environment = InlineEnvironment(Unwilling, num_envs=2, faults=RESTART)
        assert seeds == [*range(10), 0]
        environment.reset(0)
        environment.send(ACTION[:2])
        assert environment.recv().reward.tolist() == [1.0, 1.0]
    assert len(set(closed)) == failures
    seeds.clear()
    with pytest.raises(EnvironmentFault, match="the conveyor does not start"):
        InlineEnvironment(Unwilling, num_envs=2)
    assert seeds == [0]


def test_what_failed_before_a_reset_is_forgotten() -> None:
    environment = stage_of("workers", chance=0.0)
    assert isinstance(environment, WorkersEnvironment)
    environment.reset(0)
    os.kill(environment._crew._processes[0].pid, signal.SIGKILL)
    environment.state_dict()  # notices, and the next step would tell
    environment.reset(1)
    (step,) = steps_of(environment, 1)
    assert step.faults == () and not bool(step.truncated.any())
    environment.close()


def test_a_replaced_worker_whose_environments_fail_again_tells_so_at_once() -> None:
    environment = stage_of("workers", env="FalseStart", fault="outside", chance=0.5)
    assert isinstance(environment, WorkersEnvironment)
    again = 0
    for seed in range(5):
        environment.reset(seed)
        steps_of(environment, 1)
        os.kill(environment._crew._processes[1].pid, signal.SIGKILL)
        first, second = steps_of(environment, 2)
        assert first.faults[0].restarted == (2, 3) and second.faults == ()
        assert first.truncated.tolist() == [False, False, True, True] and not bool(second.truncated.any())
        again += len(first.faults) - 1
    assert again
    environment.close()


def test_failures_of_a_first_reset_end_the_run_unless_they_are_mended_and_can_be_repeated(tmp_path: Path) -> None:
    config = flaky_run(env="faults.flaky:FalseStart", env_kwargs={"chance": 0.4}, num_envs=8, total_steps=256)
    with pytest.raises(EnvironmentFault, match="the conveyor does not start"):
        launch(dataclasses.replace(config, faults=FaultConfig()), run_dir=tmp_path / "stopped", quiet=True)
    for fault in ("raise", "outside"):
        given = dataclasses.replace(config, env_kwargs={"chance": 0.3, "fault": fault})
        outcome = launch(given, run_dir=tmp_path / fault, quiet=True)
        assert outcome.finished and lines(outcome.folder.metrics)[-1]["env_restarts"] > 0
        files = sorted((outcome.folder.path / "faults").iterdir())
        assert any(json.loads(path.read_text())["steps"] == 0 for path in files)
        assert all(reproduce(path).same for path in files)


def test_bounds_are_checked_unless_told_not_to() -> None:
    environment = stage_of("inline", FaultConfig(), fault="outside")
    environment.reset(0)
    words = r"the observation is outside its space: element \[0\] is 7, not in -1 … 1; correct .*--no-check-bounds"
    with pytest.raises(EnvironmentFault, match=words):
        steps_of(environment, 200)
    environment = stage_of("inline", FaultConfig(check_bounds=False), fault="outside")
    environment.reset(0)
    assert max(float(step.obs.max()) for step in steps_of(environment, 200)) == 7.0


def test_the_choice_of_a_stage_puts_up_with_what_the_run_does() -> None:
    for fault, faults in (("raise", RESTART), ("outside", FaultConfig(check_bounds=False))):
        with pytest.raises(EnvironmentFault, match=r"environment 0, step.*a stage was chosen; with --stage inline"):
            make("faults.flaky:Flaky", num_envs=4, kwargs={"fault": fault}, say=lambda line: None)
        make("faults.flaky:Flaky", num_envs=4, kwargs={"fault": fault}, faults=faults, say=lambda line: None).close()


def test_stages_refuse_what_they_cannot_do() -> None:
    with pytest.raises(UserError, match=r"no failures of single games.*leave out --on-env-error restart"):
        make("ALE/Pong-v5", num_envs=2, faults=RESTART, say=lambda line: None)
    limited = FaultConfig(step_timeout=5.0)
    with pytest.raises(UserError, match="need --stage workers; on stage inline nothing could end a step"):
        make("CartPole-v1", num_envs=2, stage="inline", faults=limited)
    environment = make("CartPole-v1", num_envs=2, faults=limited, say=lambda line: None)  # asks for workers
    assert isinstance(environment, WorkersEnvironment)
    environment.close()
    for wrong in ({"step_timeout": -1.0}, {"reset_timeout": float("nan")}, {"max_env_restarts": -1}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            FaultConfig(**wrong)


def collector(length: int = 8, *, groups: int = 1, memory: Memory = Memory(), **kwargs: Any) -> Collector:
    faults = dataclasses.replace(RESTART, max_env_restarts=10**6)
    environments = [stage_of("inline", faults, **kwargs) for _ in range(groups)]
    policy = ActorCritic(PolicyConfig(network=Mlp(hidden=(4,)), memory=memory), environments[0].spec, "float32")
    return Collector(environments, policy, rollout_length=length, seed=1, device=torch.device("cpu"))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_rollout_drops_just_the_unfinished_episodes(groups: int) -> None:
    source = collector(groups=groups, chance=0.03)
    failed = 0
    for _ in range(30):
        rollout = next(source)
        failed += rollout.dropped is not None
        if rollout.dropped is None:
            assert not rollout.faults
        else:
            check_dropped(rollout)
    assert 0 < failed < 30
    source.close()


def check_dropped(rollout: Rollout) -> None:
    """Against the definition: from each failure back to the episode's beginning, or the rollout's."""
    dropped = rollout.dropped
    assert dropped is not None and rollout.faults
    failed = {index for fault in rollout.faults for index in fault.restarted}
    assert {int(index) for index in dropped.any(0).nonzero()} == failed
    for column in failed:
        for t in range(len(dropped)):
            # The first step from here on that cuts: a failure pays nothing, every other step pays 1.
            ends = [later for later in range(t, len(dropped)) if bool(rollout.cut[later, column])]
            assert bool(dropped[t, column]) == bool(ends and float(rollout.reward[ends[0], column]) == 0.0)


@pytest.mark.parametrize("kind", ["none", "gru"])
def test_a_rollout_with_nothing_to_learn_from_is_not_handed_out(kind: Literal["none", "gru"]) -> None:
    """With a memory whole sequences are learned from; without one, any step will do, where every actor failed too."""
    source = collector(length=4, chance=0.3, memory=Memory(memory=kind))
    everybody_failed = 0
    for _ in range(20):
        rollout = next(source)
        if rollout.dropped is not None:
            failed = bool(rollout.dropped.any(0).all())
            assert not bool(rollout.dropped.all()) and not (failed and kind == "gru")
            everybody_failed += failed
    assert bool(everybody_failed) == (kind == "none")
    assert sum(len(next(source).faults) for _ in range(5)) > 0
    source.close()


def test_failures_that_leave_nothing_to_learn_from_come_to_an_end() -> None:
    source = collector(length=4, chance=1.0)
    with pytest.raises(EnvironmentFault, match="nothing to learn from in 10 rollouts in a row") as caught:
        next(source)
    assert caught.value.fault is not None and len(caught.value.mended) == 10 * 4 * source.num_envs - 1
    source.close()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("collect", ["sync", "overlap"])
def test_every_failure_is_on_file_when_one_too_many_ends_the_run(
    stage: str, collect: Literal["sync", "overlap"], tmp_path: Path
) -> None:
    """Those, too, that came before it in the same rollout, of which the loop never hears."""
    limited = dataclasses.replace(RESTART, max_env_restarts=7)
    config = flaky_run(stage, collect=collect, rollout_length=512, total_steps=10_000, faults=limited)
    with pytest.raises(EnvironmentFault, match="failure number 8 of this sitting, max_env_restarts is 7"):
        launch(config, run_dir=tmp_path / "run", quiet=True)
    files = sorted((tmp_path / "run" / "faults").iterdir())
    assert len(files) == 8 and all(reproduce(path).same for path in files)


def test_unfinished_reaches_back_to_the_last_cut() -> None:
    lost = torch.tensor([[0, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0, 1]], dtype=torch.bool).T
    cut = torch.tensor([[0, 1, 0, 1, 0, 1], [1, 0, 0, 0, 0, 1]], dtype=torch.bool).T
    expected = [[0, 0, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]
    assert unfinished(lost, cut).T.int().tolist() == expected


def flaky_run(stage: str = "inline", **changes: Any) -> RunConfig:
    return dataclasses.replace(
        RunConfig(
            env="faults.flaky:Flaky",
            env_kwargs={"chance": 0.01},
            stage=stage,  # type: ignore[arg-type]
            num_workers=0 if stage == "inline" else 2,
            num_envs=4,
            rollout_length=8,
            total_steps=1024,
            algorithm=PPOConfig(epochs=1, minibatches=2),
            policy=PolicyConfig(network=Mlp(hidden=(8,))),
            eval_episodes=4,
            save_every=256,
            log_seconds=0.0,
            faults=RESTART,
            seed=4,
        ),
        **changes,
    )


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_with_failures_resumes_bit_for_bit(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = launch(flaky_run(stage), run_dir=tmp_path / "whole", quiet=True)

    def cut_short(run: Run) -> Iterator[Progress]:
        yield from itertools.islice(train(run), 19)
        raise PowerCut

    monkeypatch.setattr(session, "train", cut_short)
    with pytest.raises(PowerCut):
        launch(flaky_run(stage), run_dir=tmp_path / "halves", quiet=True)
    monkeypatch.undo()
    halves = resume(tmp_path / "halves", quiet=True)
    assert whole.finished and halves.finished
    records, resumed = (lines(outcome.folder.metrics) for outcome in (whole, halves))
    assert records[-1]["env_restarts"] > 1
    assert without_clock(records) == without_clock(resumed)
    assert_equal(final_state(whole)["run"], final_state(halves)["run"])
    files = sorted((whole.folder.path / "faults").iterdir())
    assert len(files) >= records[-1]["env_restarts"]
    assert all(reproduce(path).same for path in files)


def test_the_command_line_tells_and_reproduces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "faults.flaky:Flaky", "--num-envs", "4", "--stage", "inline", "--run-dir", "run", "--quiet"]
    assert main([*words, "--algo", "a2c"]) == ExitCode.ERROR
    told = capsys.readouterr().err
    assert "ValueError: the conveyor jammed\n" in told
    assert "since seed" in told and f"greenroom reproduce {tmp_path}/run/faults/0001.json" in told
    content = json.loads(Path("run/faults/0001.json").read_text())
    assert (
        content["env"] == "faults.flaky:Flaky" and content["traceback"] and len(content["actions"]) == content["steps"]
    )
    assert main(["reproduce", "run/faults/0001.json"]) == ExitCode.DONE
    assert "it is the same failure" in capsys.readouterr().out
    content["actions"] = content["actions"][:-1]  # no longer back to the seed: only the episode can be repeated
    Path("short.json").write_text(json.dumps(content))
    main(["reproduce", "short.json"])
    assert "does not reach back to a seed" in capsys.readouterr().out
    Path("other.json").write_text("{}")
    assert main(["reproduce", "other.json"]) == ExitCode.ERROR
    assert "does not tell of a failure" in capsys.readouterr().err
    assert main(["reproduce", "run/faults"]) == ExitCode.ERROR


class Spoiled(LostSales):
    """Now and then a reward is NaN: where a period costs just 24."""

    def step(self, state: State, action: torch.Tensor, generator: torch.Generator) -> Transition:
        transition = super().step(state, action, generator)
        return dataclasses.replace(
            transition, reward=torch.where(transition.reward == -24, torch.nan, transition.reward)
        )


@pytest.fixture
def spoiled(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setitem(DEVICE_ENVIRONMENTS, "spoiled", Spoiled)
    return {"env": "spoiled", "env_kwargs": {"horizon": 20}, "stage": "auto", "num_envs": 16}


def test_tensors_with_failures_are_learned_from_and_resume_bit_for_bit(
    spoiled: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = flaky_run(**spoiled, faults=dataclasses.replace(RESTART, max_env_restarts=10**6))
    whole = launch(config, run_dir=tmp_path / "whole", quiet=True)

    def cut_short(run: Run) -> Iterator[Progress]:
        yield from itertools.islice(train(run), 5)
        raise PowerCut

    monkeypatch.setattr(session, "train", cut_short)
    with pytest.raises(PowerCut):
        launch(config, run_dir=tmp_path / "halves", quiet=True)
    monkeypatch.setattr(session, "train", train)
    halves = resume(tmp_path / "halves", quiet=True)
    records, resumed = (lines(outcome.folder.metrics) for outcome in (whole, halves))
    assert records[-1]["env_restarts"] > 1
    assert without_clock(records) == without_clock(resumed)
    assert_equal(final_state(whole)["run"], final_state(halves)["run"])


def test_a_failure_of_tensors_is_told_and_cannot_be_done_again(
    spoiled: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "spoiled", "--num-envs", "16", "--run-dir", "run", "--quiet"]) == ExitCode.ERROR
    told = capsys.readouterr().err
    assert "the reward holds NaN or infinity; it was given the action" in told
    assert f"on file as {tmp_path}/run/faults/0001.json" in told and "greenroom reproduce" not in told
    assert main(["reproduce", "run/faults/0001.json"]) == ExitCode.ERROR
    refused = capsys.readouterr().err
    assert "kept no actions" in refused and "the reward holds NaN or infinity" in refused


def test_bounds_that_are_not_checked_are_none_when_a_failure_is_made_again(tmp_path: Path) -> None:
    config = RunConfig(env="test_env_faults:Beyond", num_envs=2, stage="inline", total_steps=100)
    config = dataclasses.replace(config, faults=FaultConfig(check_bounds=False))
    with pytest.raises(EnvironmentFault, match="the conveyor jammed"):
        launch(config, run_dir=tmp_path / "run", quiet=True)
    assert reproduce(tmp_path / "run" / "faults" / "0001.json").same


class Beyond(flaky.Flaky):
    """Always outside of its space, and fails."""

    def _observe(self) -> Any:
        return np.full(3, 7.0, np.float32)


def test_a_failure_is_told_though_its_file_cannot_be_written(tmp_path: Path) -> None:
    """JSON has no infinity."""
    config = RunConfig(env="faults.flaky:Flaky", env_kwargs={"chance": math.inf}, num_envs=2, stage="inline")
    with pytest.raises(EnvironmentFault, match="the conveyor jammed; its history could not be written to"):
        launch(config, run_dir=tmp_path / "run", quiet=True)


def test_two_groups_have_one_limit(tmp_path: Path) -> None:
    config = RunConfig(env="faults.flaky:Flaky", num_envs=4, stage="inline", collect="double", total_steps=10_000)
    config = dataclasses.replace(config, faults=dataclasses.replace(RESTART, max_env_restarts=5))
    with pytest.raises(EnvironmentFault, match="failure number 6 of this sitting, max_env_restarts is 5"):
        launch(config, run_dir=tmp_path / "run", quiet=True)
    assert len(list((tmp_path / "run" / "faults").iterdir())) == 6


class NoStart(flaky.Flaky):
    """Cannot be reset at all."""

    def reset(self, **_: Any) -> Any:
        """Fails."""
        raise ValueError("the conveyor does not start")


def test_a_first_reset_that_always_fails_is_made_again_too(tmp_path: Path) -> None:
    config = RunConfig(env="test_env_faults:NoStart", num_envs=2, stage="inline")
    with pytest.raises(EnvironmentFault, match="reset raised ValueError: the conveyor does not start") as caught:
        Run(config, say=lambda line: None)
    told = {"format": 1, "env": config.env, "env_kwargs": {}, "what": str(caught.value), "index": 0, "step": 0}
    (tmp_path / "fault.json").write_text(json.dumps(told | {"steps": 0, "seed": 0, "actions": []}))
    again = reproduce(tmp_path / "fault.json")
    assert again.same and "the conveyor does not start" in again.traceback


def test_numbers_that_json_does_not_know_survive(tmp_path: Path) -> None:
    content = {
        "format": 1,
        "env": "Pendulum-v1",
        "env_kwargs": {},
        "what": "environment 0, step 1: the reward is nan",
        "index": 0,
        "step": 1,
        "steps": 1,
        "seed": 3,
        "actions": [["nan"]],
    }
    path = tmp_path / "fault.json"
    path.write_text(json.dumps(content))
    assert reproduce(path).same


def test_an_evaluation_plays_another_episode_for_one_that_fails() -> None:
    environment = stage_of("inline", chance=0.02)
    policy = ActorCritic(PolicyConfig(network=Mlp(hidden=(4,))), environment.spec, "float32")
    result = evaluate(policy, environment, episodes=40, seed=0)
    assert result.lost > 0 and result.to_json()["lost"] == result.lost
    assert set(result.lengths.tolist()) == {20} and set(np.unique(result.returns).tolist()) == {20.0}
    environment.close()


def test_seeds_of_restarts_differ() -> None:
    chain = [3]
    for _ in range(100):
        chain.append(next_seed(chain[-1]))
    assert len(set(chain)) == len(chain) and all(0 <= seed < 2**31 for seed in chain)
