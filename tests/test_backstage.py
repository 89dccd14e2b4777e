"""Collecting in another process: the same bits as in a thread, and whatever goes wrong there is told here."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fakes import ScriptedEnvironment, collector
from greenroom import backstage, training
from greenroom.acting import Collector
from greenroom.algorithms.ppo import PPOConfig
from greenroom.backstage import Backstage
from greenroom.config import RunConfig
from greenroom.envs.base import Environment
from greenroom.envs.crew import RemoteTraceback, WorkerLost, anonymous_file
from greenroom.errors import EnvironmentFault, Fault, UserError
from greenroom.networks import Mlp
from greenroom.overlap import Overlapped
from greenroom.policy import PolicyConfig
from greenroom.shared import SharedMemory
from greenroom.spec import ArraySpec
from greenroom.training import Run, train
from greenroom.types import Decision

CONFIG = RunConfig(
    env="lost-sales",
    env_kwargs={"horizon": 10},
    num_envs=8,
    rollout_length=6,
    total_steps=8 * 48,
    collect="overlap",
    device="cpu",
    algorithm=PPOConfig(epochs=2, minibatches=3),
    policy=PolicyConfig(network=Mlp(hidden=(16,)), normalize_obs=True),
)


def quiet(line: str) -> None:
    """Nobody listens."""


@pytest.fixture
def memories() -> Iterator[tuple[SharedMemory, SharedMemory]]:
    """Two views of one file, as two processes have them."""
    descriptor = anonymous_file()
    yield SharedMemory(descriptor), SharedMemory(descriptor)
    os.close(descriptor)


def test_what_lies_in_shared_memory_is_not_copied(memories: tuple[SharedMemory, SharedMemory]) -> None:
    ours, theirs = memories
    tensor = ours.empty((3, 4), torch.float32)
    tensor.copy_(torch.arange(12.0).view(3, 4))
    message = {"all": tensor, "part": tensor[1:, ::2], "other": ours.empty((5,), torch.bool).fill_(True)}
    found = theirs.unpack(ours.pack(message))
    assert {name: part.tolist() for name, part in found.items()} == {
        name: part.tolist() for name, part in message.items()
    }
    tensor.mul_(2.0)
    assert found["part"].tolist() == [[8.0, 12.0], [16.0, 20.0]]
    found["all"][0, 0] = -1.0
    assert tensor[0, 0] == -1.0
    assert theirs.unpack(ours.pack(message))["all"] is found["all"]  # mapped once


def test_other_tensors_are_sent_whole(memories: tuple[SharedMemory, SharedMemory]) -> None:
    ours, theirs = memories
    for tensor in (
        torch.arange(6.0).view(2, 3).T,
        torch.tensor(3),
        torch.zeros(0, 4, dtype=torch.uint8),
        torch.ones(2, dtype=torch.bfloat16),
        ours.empty((0, 3), torch.float32),
        ours.empty((), torch.int64).fill_(7),
    ):
        (found,) = theirs.unpack(ours.pack([tensor]))
        assert found.dtype == tensor.dtype
        assert found.shape == tensor.shape
        assert torch.equal(found, tensor)
        found.zero_()  # it can be written to


def parameters(run: Run) -> list[Tensor]:
    return [part.clone() for part in run.algorithm.policy.state_dict().values()]


def test_many_tensors_need_few_descriptors(memories: tuple[SharedMemory, SharedMemory]) -> None:
    ours, theirs = memories
    before = len(os.listdir("/proc/self/fd"))
    tensors = [ours.empty((1000, 7), torch.float32).fill_(number) for number in range(2000)]  # 56 MB
    found = theirs.unpack(ours.pack(tensors))
    assert len(os.listdir("/proc/self/fd")) - before < 20
    assert all(torch.equal(*pair) for pair in zip(tensors, found, strict=True))
    assert len({tensor.data_ptr() % 64 for tensor in tensors}) == 1


@pytest.mark.parametrize(
    "change",
    [{}, {"lag": 2, "env": "CartPole-v1", "env_kwargs": {}, "stage": "workers", "num_workers": 2}],
    ids=["device", "workers"],
)
def test_a_process_collects_what_a_thread_does(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config, found, places = dataclasses.replace(CONFIG, **change), list[list[Tensor]](), list[str]()

    def here(config: RunConfig, device: torch.device, say: training.Say) -> training.Here:
        return training.Here(training.make_groups(config, device, say))

    for make_world in (training.make_world, here):
        monkeypatch.setattr(training, "make_world", make_world)
        run = Run(config, say=quiet)
        assert isinstance(run.collector, Overlapped)
        places.append(type(run.collector.place).__name__)
        for progress in train(run):
            assert progress.time_split.keys() == {"env", "act", "wait", "learn"}
        assert progress.time_split["env"] > 0
        found.append(parameters(run))
        run.close()
    assert places == ["Backstage", "Thread"]
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def started(env: Environment, say: Callable[[str], None] = quiet) -> Overlapped:
    place = Backstage(partial(only, env), say)
    place.enter(collector, Plain(), lag=1)  # type: ignore[arg-type]  # it only acts
    return Overlapped(place, lag=1, device=torch.device("cpu"))


def only(env: Environment, say: Callable[[str], None]) -> list[Environment]:
    say("there is one")
    return [env]


class Plain(torch.nn.Module):
    """Always does the same."""

    def initial_state(self, num_envs: int) -> dict[str, Tensor]:
        return {}

    def act(self, obs: Any, state: Any, generator: Any) -> Decision:
        return Decision(action=torch.arange(len(obs)), extras={}, state={})


def _pid_of(source: Overlapped) -> int:
    assert isinstance(source.place, Backstage)
    return source.place._process.pid


class Aliased(Plain):
    """Acts by an attribute that lies in its parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = torch.nn.Parameter(torch.zeros(4))
        self.first = self.flat.data[:1]

    def act(self, obs: Any, state: Any, generator: Any) -> Decision:
        return Decision(action=torch.arange(len(obs)), extras={"first": self.first.expand(len(obs))}, state={})


def test_what_shares_memory_with_a_parameter_moves_with_it() -> None:
    policy = Aliased()
    place = Backstage(partial(only, ScriptedEnvironment([0, 1], [2, 3])), quiet)
    place.enter(collector, policy, lag=1)  # type: ignore[arg-type]  # it only acts
    policy.flat.data.fill_(3.0)
    place.order(1)
    assert place.take().extras["first"].unique().tolist() == [3.0]
    place.close()


def test_news_from_there_are_heard_here() -> None:
    said: list[str] = []
    source = started(ScriptedEnvironment([0], [3]), said.append)
    assert said == ["there is one"]
    source.close()


FAULT = Fault(
    what="environment 1 broke",
    traceback="",
    index=1,
    episode=0,
    step=2,
    seed=3,
    steps=2,
    actions=(1, 0),
    restarted=(),
)


class Lost(ScriptedEnvironment):
    """Its only worker dies."""

    def recv(self) -> Any:
        error = WorkerLost("worker 0 was killed", worker=0, index=1)
        error.fault = FAULT
        raise error from ValueError("by a stranger")


class Peculiar(Exception):
    """Cannot be made of its message alone."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


class Raising(ScriptedEnvironment):
    """Raises what it was given."""

    error: Exception

    def recv(self) -> Any:
        raise self.error


def test_a_fault_of_an_environment_arrives_with_all_that_is_known_of_it() -> None:
    source = started(Lost([0, 1], [3, 3]))
    with pytest.raises(EnvironmentFault, match="worker 0 was killed") as caught:
        next(source)
    assert (caught.value.index, caught.value.fault) == (1, FAULT)
    assert caught.value.own_traceback == "ValueError: by a stranger\n"
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    source.close()


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (UserError("not like this"), UserError, "not like this"),
        (ValueError("a bug"), ValueError, "a bug"),
        (Peculiar(1, 2), RuntimeError, "Peculiar: 1 and 2"),
    ],
)
def test_other_errors_arrive_as_well_as_they_can(error: Exception, kind: type[Exception], message: str) -> None:
    env = Raising([0], [3])
    env.error = ValueError()  # what cannot be unpickled would not arrive there either
    raised, trace = backstage._sendable(error)
    assert (type(raised), str(raised)) == (kind, message)
    assert trace.strip().endswith(message)
    if kind is not RuntimeError:
        env.error = error
        source = started(env)
        with pytest.raises(kind, match=message):
            next(source)
        source.close()


class Wide(ScriptedEnvironment):
    """Every step ends an episode, with more to say of it than the line holds; tells when it is closed."""

    file = ""

    def __init__(self) -> None:
        super().__init__([0, 1], [1, 1])
        self._final_obs, self._obs = torch.zeros(2, 100_000), torch.zeros(2, 100_000)
        self.spec = dataclasses.replace(self.spec, obs=ArraySpec(shape=(100_000,)))

    def _observe(self) -> Tensor:
        return self._obs.zero_()

    def close(self) -> None:
        Path(self.file).write_text("closed")


def test_whoever_closes_need_not_read_the_last_answer(tmp_path: Path) -> None:
    env = Wide()
    env.file = str(tmp_path / "told")
    source = started(env)
    next(source)  # another one is ordered, and its 3 MB will not be read
    time.sleep(0.5)
    begin = time.monotonic()
    source.close()
    assert time.monotonic() - begin < 5.0
    assert isinstance(source.place, Backstage)
    assert source.place._process.returncode == 0
    assert (tmp_path / "told").read_text() == "closed"


def test_a_deep_queue_is_ordered_bit_by_bit() -> None:
    env = Wide()
    env.file = os.devnull
    place = Backstage(partial(only, env), quiet)
    place.enter(collector, Plain(), lag=60)  # type: ignore[arg-type]  # it only acts
    source = Overlapped(place, lag=60, device=torch.device("cpu"))
    versions = []
    for update in range(64):
        versions.append(next(source).version)
        source.version = update + 1
        assert place._sent <= backstage._AHEAD
        assert place.ordered == 60
    assert versions == [0] * 61 + [1, 2, 3]
    source.close()


def test_a_deep_queue_of_faults_comes_to_an_end() -> None:
    env = Raising([0], [3])
    env.error = ValueError("again")
    place = Backstage(partial(only, env), quiet)
    place.enter(collector, Plain(), lag=40)  # type: ignore[arg-type]  # it only acts
    source = Overlapped(place, lag=40, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="again"):
        next(source)
    for _ in range(40):
        with pytest.raises((ValueError, AssertionError)):  # the fake does not like it
            source.settle()
    assert not place.ordered
    source.close()


def test_an_answer_that_cannot_be_sent_does_not_end_in_silence() -> None:
    source = started(ScriptedEnvironment([0], [3]))
    source_place = source.place
    assert isinstance(source_place, Backstage)
    with pytest.raises(TypeError, match="cannot pickle"):
        source_place.within(_lock)
    assert source_place.within(type) is Collector
    source.close()


def _lock(collector: Collector) -> Any:
    return threading.Lock()


def test_a_killed_process_is_noticed_and_named() -> None:
    source = started(ScriptedEnvironment([0], [3]))
    next(source)
    os.kill(_pid_of(source), signal.SIGKILL)
    with pytest.raises(EnvironmentFault, match=r"the process that collects .* was killed by signal 9"):
        for _ in range(5):
            next(source)
    source.close()


def test_questions_come_after_all_rollouts() -> None:
    source = started(ScriptedEnvironment([0], [3]))
    next(source)
    assert isinstance(source.place, Backstage)
    with pytest.raises(AssertionError, match="would be a rollout"):
        source.place.within(len)
    source.settle()
    assert source.place.within(type) is Collector
    source.close()


def test_what_cannot_be_sent_is_refused_with_a_remedy() -> None:
    lock = threading.Lock()
    with pytest.raises(UserError, match=r"configuration cannot be sent .* package\.module:name"):
        Backstage(lambda say: [lock], quiet)  # type: ignore[list-item]


def _children() -> set[str]:
    return {
        Path(f"/proc/{pid}/cmdline").read_text()
        for pid in Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
    }


@pytest.mark.parametrize(
    "change",
    [{"env": "no-such-thing"}, {"policy": PolicyConfig(memory=None)}],  # type: ignore[arg-type]
    ids=["no environment", "no policy"],
)
def test_nothing_is_left_of_a_run_that_cannot_begin(change: dict[str, Any]) -> None:
    before = _children()
    with pytest.raises((UserError, AttributeError)):
        Run(dataclasses.replace(CONFIG, **change), say=quiet)
    assert _children() == before


SCRIPT = textwrap.dedent(
    """
    import gymnasium, signal, subprocess, sys, torch
    from greenroom.algorithms.actor_critic import A2CConfig
    from greenroom.config import RunConfig
    from greenroom.training import Run, train

    class Mine(gymnasium.Env):  # lives in __main__, and there is no main guard
        def __init__(self):
            self.simulator = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        def close(self):
            self.simulator.terminate()
            assert self.simulator.wait(10) == -signal.SIGTERM
        observation_space = gymnasium.spaces.Box(0, 1, (1,))
        action_space = gymnasium.spaces.Discrete(2)
        def reset(self, *, seed=None, options=None):
            return [0.5], {}
        def step(self, action):
            return [0.25], 2.0, False, False, {}

    gymnasium.register("Mine-v0", Mine)  # which nobody does elsewhere
    config = RunConfig(env=ENV, num_envs=2, rollout_length=2, total_steps=12, collect="overlap", device="cpu",
                       stage="inline", algorithm=A2CConfig())
    run = Run(config)
    print([progress.rollout.reward.sum().item() for progress in train(run)])
    run.close()
    """
)


@pytest.mark.parametrize("env", ["Mine", "'Mine-v0'"])
def test_scripts_without_a_main_guard_work(env: str) -> None:
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("ENV,", f"{env},")],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": paths},
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["[8.0, 8.0, 8.0]"], done.stderr
