"""The workers stage: the same streams as inline, faults that name their culprit, and nothing left behind."""

from __future__ import annotations

import gc
import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from gymnasium import spaces

import gym_envs
from greenroom.envs import crew
from greenroom.envs.check import RandomActor
from greenroom.envs.crew import RemoteTraceback
from greenroom.envs.faults import BY_DEFAULT, FaultConfig
from greenroom.envs.inline import InlineEnvironment
from greenroom.envs.snapshot import NotSnapshotable
from greenroom.envs.tensors import env_seeds
from greenroom.envs.workers import WorkersEnvironment
from greenroom.errors import EnvironmentFault, UserError
from greenroom.types import Obs

SRC = Path(__file__).parent.parent / "src"


_STRANGERS: set[int] = set()
"""Children that were there before a test: helpers that Python's multiprocessing keeps for other tests."""


@pytest.fixture(autouse=True)
def strangers() -> None:
    _STRANGERS.clear()
    _STRANGERS.update(_children())


def _children() -> list[int]:
    """Process ids of this process's children, those of this test, that are not zombies."""
    found = []
    for task in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = task.read_text().rpartition(")")[2].split()[:2]
        except (OSError, ValueError):
            continue
        if int(parent) == os.getpid() and state != "Z" and int(task.parent.name) not in _STRANGERS:
            found.append(int(task.parent.name))
    return found


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _plain(obs: Obs) -> Any:
    return {name: part.tolist() for name, part in obs.items()} if isinstance(obs, dict) else obs.tolist()


@pytest.mark.parametrize(
    ("num_workers", "joint"), [(1, False), (2, False), (6, False), (1, True), (2, True), (3, True)]
)
@pytest.mark.parametrize("source", ["CartPole-v1", "gym_envs:Everything", "gym_envs:Counter", "gym_envs:Masked"])
def test_streams_equal_those_of_inline_bit_for_bit(source: str, num_workers: int, joint: bool) -> None:
    inline = InlineEnvironment(source, num_envs=6)
    workers = WorkersEnvironment(source, num_envs=6, num_workers=num_workers, joint=joint)
    assert workers.spec == inline.spec
    for seed in (1, 2):
        obs, act = inline.reset(seed), RandomActor(inline, seed)
        assert _plain(workers.reset(seed)) == _plain(obs)
        for _ in range(60):
            action = act(obs)
            inline.send(action)
            workers.send(action)
            one, other = inline.recv(), workers.recv()
            assert _plain(one.obs) == _plain(other.obs)
            assert _plain(one.final_obs) == _plain(other.final_obs)
            for name in ("reward", "terminated", "truncated"):
                assert torch.equal(getattr(one, name), getattr(other, name))
            for name in ("index", "returns", "lengths"):
                assert torch.equal(getattr(one.episodes, name), getattr(other.episodes, name))
            assert _plain(one.signals) == _plain(other.signals)
            obs = one.obs
    workers.close()


def test_workers_run_at_the_same_time_and_send_returns_at_once() -> None:
    env = WorkersEnvironment(gym_envs.Slow, num_envs=40, num_workers=4)
    env.reset(0)
    sent, whole = [], []
    for _ in range(5):  # the best of five: the machine may be busy with something else
        begin = time.perf_counter()
        env.send(torch.zeros(40, dtype=torch.int64))
        sent.append(time.perf_counter() - begin)
        env.recv()
        whole.append(time.perf_counter() - begin)
    env.close()
    assert min(sent) < 0.015  # one worker's ten steps sleep 20 ms
    assert 0.020 <= min(whole) < 0.070  # one after the other they would sleep 80 ms


def test_an_interrupted_reset_leaves_no_stale_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    env = WorkersEnvironment("CartPole-v1", num_envs=2, num_workers=2)
    expected = _plain(env.reset(1))
    monkeypatch.setattr(crew, "wait_readable", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        env.reset(2)
    monkeypatch.undo()
    assert isinstance(env.state_dict(), dict)
    assert _plain(env.reset(1)) == expected
    env.close()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


KINDS: list[tuple[Any, dict[str, Any]]] = [(InlineEnvironment, {}), (WorkersEnvironment, {"num_workers": 1})]


def test_workers_load_no_torch() -> None:
    here, there = (kind("gym_envs:HasTorch", num_envs=1, **more) for kind, more in KINDS)
    assert _plain(here.reset(0)) == [[1.0]]
    assert _plain(there.reset(0)) == [[0.0]]
    there.close()


@pytest.mark.parametrize(("num_envs", "num_workers", "advice"), [(12, 5, "4 or 6"), (7, 3, "1 or 7"), (4, 9, "4")])
def test_numbers_that_do_not_divide(num_envs: int, num_workers: int, advice: str) -> None:
    words = f"num_envs={num_envs} is not divisible by num_workers={num_workers}; use num_workers={advice}$"
    with pytest.raises(UserError, match=words):
        WorkersEnvironment("CartPole-v1", num_envs=num_envs, num_workers=num_workers)


def _faulty(fault: str, faults: FaultConfig = BY_DEFAULT) -> WorkersEnvironment:
    kwargs = {"fault": fault, "at": 2, "victim": env_seeds(3, 4)[2]}
    env = WorkersEnvironment(gym_envs.Faulty, num_envs=4, num_workers=2, kwargs=kwargs, faults=faults)
    env.reset(3)
    env.send(torch.zeros(4, dtype=torch.int64))
    env.recv()
    env.send(torch.zeros(4, dtype=torch.int64))
    return env


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raise", "^environment 2, step 2: step raised ValueError: the conveyor jammed$"),
        ("nan", "^environment 2, step 2: the observation holds NaN"),
        ("shape", "^environment 2, step 2: the observation has shape"),
        ("exit", r"^worker 1 \(environments 2 to 3\) ended with exit code 3 while it stepped environment 2$"),
    ],
)
def test_fault_in_a_worker(fault: str, words: str) -> None:
    env = _faulty(fault)
    with pytest.raises(EnvironmentFault, match=words) as caught:
        env.recv()
    if fault == "raise":  # the worker's own traceback is the cause
        assert isinstance(caught.value.__cause__, RemoteTraceback)
        assert 'raise ValueError("the conveyor jammed")' in str(caught.value.__cause__)
    assert _children() == []
    env.close()
    with pytest.raises(RuntimeError, match="is closed"):
        env.reset(0)


def test_a_silent_worker_is_named_and_killed() -> None:
    env = _faulty("hang")
    env._crew.step_timeout = 1.0  # only now: on a busy machine, starting up alone may take longer
    begin = time.perf_counter()
    words = r"worker 1 \(environments 2 to 3\) has been silent for 1 s while it stepped environment 2"
    with pytest.raises(EnvironmentFault, match=words):
        env.recv()
    assert time.perf_counter() - begin < 5
    assert _children() == []


@pytest.mark.parametrize("when", ["waiting", "before_send"])
def test_killed_worker_is_noticed_within_a_second(when: str) -> None:
    env = WorkersEnvironment("CartPole-v1", num_envs=6, num_workers=3)
    env.reset(0)
    victim = sorted(_children())[1]
    action = torch.zeros(6, dtype=torch.int64)
    if when == "waiting":
        os.kill(victim, signal.SIGSTOP)  # so that the answer cannot come before the kill
        env.send(action)
    os.kill(victim, signal.SIGKILL)
    begin = time.perf_counter()
    if when == "before_send":
        env.send(action)
    with pytest.raises(EnvironmentFault, match=r"worker 1 \(environments 2 to 3\) was killed by signal 9"):
        env.recv()
    assert time.perf_counter() - begin < 1
    assert _children() == []


def test_a_death_while_nobody_waits_is_told_within_a_second() -> None:
    told: list[str] = []
    env = WorkersEnvironment("CartPole-v1", num_envs=4, num_workers=2, alert=told.append)
    env.reset(0)
    victim = env._crew._processes[1].pid
    os.kill(victim, signal.SIGKILL)
    begin = time.perf_counter()
    while not told and time.perf_counter() - begin < 10:
        time.sleep(0.01)
    assert time.perf_counter() - begin < 1
    time.sleep(0.6)
    assert told == ["worker 1 (environments 2 to 3) was killed by signal 9; this is dealt with after the update"]
    env.close()
    time.sleep(0.6)
    assert len(told) == 1  # those that are sent home are no loss


def test_failing_factory_brings_its_traceback() -> None:
    with pytest.raises(UserError, match="could not be built: RuntimeError: no licence for the simulator") as caught:
        WorkersEnvironment("gym_envs:broken_factory", num_envs=2, num_workers=2)
    assert "in broken_factory" in str(caught.value.__cause__)
    assert _children() == []


def test_a_worker_that_fails_closes_its_environments_after_it_has_told(tmp_path: Path) -> None:
    class Simulator(gym_envs.Counter):
        def step(self, action: Any) -> Any:
            raise ValueError("the conveyor jammed")

        def close(self) -> None:
            time.sleep(0.2)  # as an external process takes to end
            (tmp_path / f"{time.monotonic()}").touch()

    env = WorkersEnvironment(Simulator, num_envs=2, num_workers=1, faults=FaultConfig(step_timeout=0.4))
    env.reset(0)
    env.send(torch.zeros(2, dtype=torch.int64))
    with pytest.raises(EnvironmentFault, match="environment 0, step 1: step raised ValueError: the conveyor jammed"):
        env.recv()
    assert len(list(tmp_path.iterdir())) == 2
    assert _children() == []


@pytest.mark.parametrize("joint", [False, True])
def test_a_state_that_does_not_fit_leaves_the_stage_usable(joint: bool) -> None:
    env = WorkersEnvironment(gym_envs.Counter, num_envs=4, num_workers=2, joint=joint)
    before = _plain(env.reset(1))
    other = InlineEnvironment("CartPole-v1", num_envs=4)
    with pytest.raises(NotSnapshotable, match="env"):
        env.load_state_dict(other.state_dict())
    assert len(_children()) == 2 - joint
    assert _plain(env.reset(1)) == before
    env.send(torch.zeros(4, dtype=torch.int64))
    assert env.recv().reward.tolist() == [1.0] * 4
    own = env.state_dict()
    env.load_state_dict(own)
    env.close()


def test_workers_whose_spaces_differ_are_refused() -> None:
    def factory() -> gymnasium.Env[Any, Any]:
        import os

        return gym_envs.Spaces(action=spaces.Discrete(os.getpid()))

    with pytest.raises(EnvironmentFault, match="environment 1 has other spaces or signals than environment 0"):
        WorkersEnvironment(factory, num_envs=2, num_workers=2)
    assert _children() == []


def test_nothing_has_a_name_and_nothing_is_left() -> None:
    gc.collect()  # what earlier tests left to be collected has files too
    shared, files = set(os.listdir("/dev/shm")), set(os.listdir(f"/proc/{os.getpid()}/fd"))
    env = WorkersEnvironment("CartPole-v1", num_envs=4, num_workers=2)
    assert set(os.listdir("/dev/shm")) == shared
    assert len(_children()) == 2
    env.reset(0)
    env.send(torch.zeros(4, dtype=torch.int64))
    env.close()  # even while the workers step
    env.close()
    assert _children() == []
    del env  # the memory itself lives as long as a tensor that shows it
    assert set(os.listdir(f"/proc/{os.getpid()}/fd")) == files


def test_tensors_outlive_the_stage() -> None:
    env = WorkersEnvironment("CartPole-v1", num_envs=4, num_workers=2)
    obs = env.reset(0)
    assert isinstance(obs, torch.Tensor)
    before = obs.clone()
    env.close()
    del env
    assert torch.equal(obs, before)


def test_forgotten_stage_ends_its_workers() -> None:
    env = WorkersEnvironment("CartPole-v1", num_envs=2, num_workers=2)
    assert len(_children()) == 2
    del env
    assert _children() == []


SCRIPT = textwrap.dedent(
    """
    import sys, time, torch, gymnasium
    from greenroom.envs.workers import WorkersEnvironment

    class Mine(gymnasium.Env):  # lives in __main__, and there is no main guard
        observation_space = gymnasium.spaces.Box(0, 1, (1,))
        action_space = gymnasium.spaces.Discrete(2)
        def reset(self, *, seed=None, options=None):
            return [0.5], {}
        def step(self, action):
            if ENDLESS:
                while True:
                    pass
            return [0.25], 2.0, False, False, {}

    ENDLESS = len(sys.argv) > 1
    env = WorkersEnvironment(Mine, num_envs=2, num_workers=2)
    env.reset(0)
    env.send(torch.zeros(2, dtype=torch.int64))
    print("pids", *(p.pid for p in env._crew._processes), flush=True)
    print(env.recv().reward.tolist(), flush=True)
    """
)


def _script(*arguments: str, stdin: bool) -> subprocess.Popen[str]:
    start = ["-", *arguments] if stdin else ["-c", SCRIPT, *arguments]
    process = subprocess.Popen(
        [sys.executable, *start],
        stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(SRC)},
    )
    if stdin:
        assert process.stdin is not None
        process.stdin.write(SCRIPT)
        process.stdin.close()
        process.stdin = None
    return process


@pytest.mark.parametrize("stdin", [True, False])
def test_works_from_a_prompt_with_an_environment_defined_there(stdin: bool) -> None:
    process = _script(stdin=stdin)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out.splitlines()[1] == "[2.0, 2.0]"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_orphans_and_no_noise_when_the_parent_ends(how: signal.Signals) -> None:
    process = _script("endless", stdin=False)
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 60)[0]
    workers = [int(pid) for pid in process.stdout.readline().split()[1:]]
    assert len(workers) == 2
    process.send_signal(how)
    _, err = process.communicate(timeout=30)
    deadline = time.monotonic() + 5
    while not all(map(_gone, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert all(map(_gone, workers))
    assert err.count("Traceback") == (1 if how == signal.SIGINT else 0)  # the parent's own KeyboardInterrupt
