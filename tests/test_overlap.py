"""Collecting while learning: the lag is exact, the bits repeat, nothing is overwritten, faults come through."""

from __future__ import annotations

import copy
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fakes import CopyableEnvironment, ScriptedEnvironment, collector
from greenroom import overlap
from greenroom.algorithms.actor_critic import VTraceConfig
from greenroom.algorithms.ppo import PPOConfig
from greenroom.backstage import Backstage
from greenroom.config import RunConfig
from greenroom.envs.base import Environment
from greenroom.networks import Mlp
from greenroom.overlap import Overlapped, Thread
from greenroom.policy import PolicyConfig
from greenroom.training import Run, train
from greenroom.types import Decision, Obs, Rollout, State, Step


class Weighty(nn.Module):
    """Its extras tell the weight it acted with, and how many actions it has taken."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def initial_state(self, num_envs: int) -> State:
        return {"count": torch.zeros(num_envs)}

    def act(self, obs: Obs, state: State, generator: torch.Generator | None) -> Decision:
        assert isinstance(obs, Tensor)
        extras = {"weight": self.weight.detach().expand(len(obs)), "count": state["count"].clone()}
        return Decision(action=torch.arange(len(obs)), extras=extras, state={"count": state["count"] + 1})


def only(env: Environment, say: Callable[[str], None]) -> list[Environment]:
    return [env]


def in_a_thread(env: Environment, policy: Any, lag: int) -> Overlapped:
    make = partial(collector, [env], memories=lag + 1, empty=torch.empty)
    return Overlapped(Thread(make, policy), lag=lag, device=torch.device("cpu"))


def in_a_process(env: Environment, policy: Any, lag: int) -> Overlapped:
    place = Backstage(partial(only, env), print)
    place.enter(collector, policy, lag=lag)
    return Overlapped(place, lag=lag, device=torch.device("cpu"))


Make = Callable[[Environment, Any, int], Overlapped]


@pytest.fixture(params=[in_a_thread, in_a_process])
def overlapped(request: pytest.FixtureRequest) -> Make:
    """Both places where a collector may work."""
    make: Make = request.param
    return make


@pytest.fixture
def threads() -> Iterator[None]:
    """Overlapping divides the processor's threads, and gives them back."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    assert torch.get_num_threads() == 4
    torch.set_num_threads(before)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("collect")]


pytestmark = pytest.mark.usefixtures("threads")


@pytest.mark.parametrize("lag", [1, 3])
def test_what_acts_is_exactly_so_many_updates_behind(lag: int, overlapped: Make) -> None:
    policy = Weighty()
    source = overlapped(ScriptedEnvironment([0, 1], [2, 3]), policy, lag)
    seen = []
    for update in range(8):
        rollout = next(source)
        seen.append((rollout.version, rollout.extras["weight"].unique().tolist()))
        policy.weight.data.fill_(update + 1.0)  # the learner's update
        source.version = update + 1
    source.close()
    behind = [max(0, update - lag) for update in range(8)]
    assert seen == [(version, [float(version)]) for version in behind]


def test_a_rollout_stays_as_it_was_while_the_next_ones_are_collected(overlapped: Make) -> None:
    policy = Weighty()
    source = overlapped(ScriptedEnvironment([0, 1], [2, 3]), policy, 2)
    for _ in range(6):
        rollout = next(source)
        before = copy.deepcopy(rollout)
        source.state_dict()  # waits until everything ordered has been collected
        assert _same(rollout, before)
    source.close()


class Slow(ScriptedEnvironment):
    """Takes its time, as told."""

    pause = 0.0

    def recv(self) -> Step:
        time.sleep(self.pause)
        return super().recv()


def test_how_fast_either_side_is_makes_no_difference(overlapped: Make) -> None:
    def collected(env_pause: float, learner_pause: float) -> list[Rollout]:
        env, policy = Slow([0, 1], [2, 3]), Weighty()
        env.pause = env_pause
        source = overlapped(env, policy, 2)
        found = []
        for update in range(5):
            found.append(copy.deepcopy(next(source)))
            time.sleep(learner_pause)
            policy.weight.data.add_(1.0)
            source.version = update + 1
        source.close()
        return found

    one, other = collected(0.004, 0.0), collected(0.0, 0.02)
    assert all(_same(*pair) for pair in zip(one, other, strict=True))


class Faulty(ScriptedEnvironment):
    def recv(self) -> Step:
        if len(self.actions) == 6:
            raise RuntimeError("environment 1 gave up")
        return super().recv()


def test_a_fault_beside_the_learner_reaches_it(overlapped: Make) -> None:
    source = overlapped(Faulty([0, 1], [2, 3]), Weighty(), 1)
    next(source)
    with pytest.raises(RuntimeError, match="environment 1 gave up"):
        next(source)
    source.close()


def test_an_interruption_while_waiting_loses_nothing(overlapped: Make) -> None:
    def collected(interrupted: bool) -> list[Rollout]:
        env = Slow([0, 1], [2, 3])
        env.pause = 0.05
        source, found = overlapped(env, Weighty(), 1), list[Rollout]()
        if interrupted:
            main = threading.main_thread().ident
            assert main is not None
            threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT)).start()
            with pytest.raises(KeyboardInterrupt):
                next(source)
            source.state_dict()
        for _ in range(3):
            found.append(copy.deepcopy(next(source)))
        source.close()
        return found

    assert all(_same(*pair) for pair in zip(collected(True), collected(False), strict=True))


def test_closing_does_not_wait_for_what_nobody_wants(overlapped: Make) -> None:
    env = Slow([0], [3])
    env.pause = 0.05
    source = overlapped(env, Weighty(), 20)
    next(source)
    start = time.perf_counter()
    source.close()
    assert time.perf_counter() - start < 2.0  # twenty rollouts would take 4 seconds
    if isinstance(source.place, Backstage):
        assert source.place._process.returncode == 0
    else:
        assert env.is_closed


def test_waiting_rollouts_are_part_of_the_state(overlapped: Make) -> None:
    def made() -> tuple[Overlapped, Weighty]:
        policy = Weighty()
        return overlapped(CopyableEnvironment([0, 1], [2, 3]), policy, 2), policy

    def go_on(source: Overlapped, policy: Weighty, updates: range) -> list[Rollout]:
        found = []
        for update in updates:
            found.append(copy.deepcopy(next(source)))
            policy.weight.data.fill_(update + 1.0)
            source.version = update + 1
        return found

    source, policy = made()
    go_on(source, policy, range(3))
    state = copy.deepcopy(source.state_dict())
    expected = go_on(source, policy, range(3, 9))
    source.close()
    resumed, resumed_policy = made()
    resumed_policy.weight.data.fill_(3.0)
    resumed.load_state_dict(state)
    found = go_on(resumed, resumed_policy, range(3, 9))
    resumed.close()
    assert all(_same(*pair) for pair in zip(found, expected, strict=True))


CONFIG = RunConfig(
    env="lost-sales",
    env_kwargs={"horizon": 10},
    num_envs=8,
    rollout_length=6,
    total_steps=12 * 48,
    collect="overlap",
    device="cpu",
    algorithm=PPOConfig(epochs=2, minibatches=3),
    policy=PolicyConfig(network=Mlp(hidden=(16,)), normalize_obs=True),
)


def _parameters(run: Run) -> list[Tensor]:
    return [part.clone() for part in run.algorithm.policy.state_dict().values()]


@pytest.mark.parametrize(
    "change", [{}, {"lag": 3}, {"algorithm": VTraceConfig()}], ids=["one behind", "three behind", "vtrace"]
)
def test_a_run_repeats_and_resumes_bit_for_bit(change: dict[str, Any]) -> None:
    config = dataclasses.replace(CONFIG, **change)
    run = Run(config, say=lambda line: None)
    lags: list[int] = []
    state: dict[str, Any] = {}
    for progress in train(run):
        lags.append(progress.lag)
        if progress.updates == 5:
            state = copy.deepcopy(run.state_dict())
    expected = _parameters(run)
    run.close()
    assert lags == [min(update, config.lag) for update in range(12)]
    for start in ({}, state):
        again = Run(config, say=lambda line: None)
        if start:
            again.load_state_dict(start)
        for _ in train(again):
            pass
        assert all(torch.equal(*pair) for pair in zip(_parameters(again), expected, strict=True))
        again.close()


def test_overlap_is_not_what_sync_does() -> None:
    """One update behind from the second rollout on: other numbers, as they must be."""
    found = []
    for collect in ("sync", "overlap"):
        run = Run(dataclasses.replace(CONFIG, collect=collect), say=lambda line: None)
        for _ in train(run):
            pass
        found.append(_parameters(run))
        run.close()
    assert not all(torch.equal(*pair) for pair in zip(*found, strict=True))


def _same(one: Rollout, other: Rollout) -> bool:
    def tensors(rollout: Rollout) -> list[Tensor]:
        parts: list[Tensor] = []
        for item in dataclasses.fields(rollout):
            value = getattr(rollout, item.name)
            if isinstance(value, Tensor):
                parts.append(value)
            elif isinstance(value, dict):
                parts += value.values()
        return [*parts, rollout.episodes.returns, torch.tensor(rollout.version)]

    return all(torch.equal(*pair) for pair in zip(tensors(one), tensors(other), strict=True))


def test_on_a_gpu_acting_has_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """In which order things are asked for; that a GPU keeps to it is torch's affair."""
    told: list[str] = []
    current = ["the learner"]

    class Stream:
        def __init__(self, device: torch.device) -> None:
            assert device.type == "cuda"

        def synchronize(self) -> None:
            told.append("waited for the stream")

    class Event:
        def record(self) -> None:
            self.of = current[0]

        def wait(self) -> None:
            told.append(f"{current[0]} behind {self.of}")

    @contextmanager
    def stream(chosen: Stream) -> Iterator[None]:
        current.append(current[0])
        current[0] = "acting"
        yield
        current[0] = current.pop()

    for name, fake in (("Stream", Stream), ("Event", Event), ("stream", stream)):
        monkeypatch.setattr(torch.cuda, name, fake)
    lane = overlap._Lane(torch.device("cuda"))
    with lane.after(lane.mark(), [torch.zeros(3)]):
        told.append("acted")
        mark = lane.mark()
    lane.join(mark, [torch.zeros(3)])
    lane.finish()
    assert told == ["acting behind the learner", "acted", "the learner behind acting", "waited for the stream"]


def test_without_a_gpu_there_is_nothing_to_keep_apart() -> None:
    lane = overlap._Lane(torch.device("cpu"))
    assert lane.mark() is None
    with lane.after(None, [torch.zeros(3)]):
        assert lane.mark() is None
    lane.join(None, [torch.zeros(3)])
    lane.finish()
