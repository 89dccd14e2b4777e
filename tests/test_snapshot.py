"""Snapshots of Python environments: what follows a loaded one is what followed the original, bit for bit."""

from __future__ import annotations

import enum
import importlib.util
import json
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

import gym_envs
from greenroom.algorithms.ppo import PPOConfig
from greenroom.config import RunConfig
from greenroom.envs.base import Snapshotable
from greenroom.envs.check import RandomActor, check_environment
from greenroom.envs.inline import InlineEnvironment
from greenroom.envs.snapshot import NotSnapshotable, capture, restore
from greenroom.envs.workers import WorkersEnvironment
from greenroom.errors import UserError
from greenroom.networks import Mlp
from greenroom.policy import PolicyConfig
from greenroom.session import launch, resume
from greenroom.types import Step

Source = str | Callable[..., Any]


def _trace(env: InlineEnvironment | WorkersEnvironment, actions: list[torch.Tensor]) -> Iterator[list[Any]]:
    for action in actions:
        env.send(action)
        step: Step = env.recv()
        assert isinstance(step.obs, torch.Tensor)
        assert isinstance(step.final_obs, torch.Tensor)
        yield [
            step.obs.tolist(),
            step.reward.tolist(),
            step.terminated.tolist(),
            step.truncated.tolist(),
            step.final_obs.tolist(),
            step.episodes.returns.tolist(),
            step.episodes.lengths.tolist(),
        ]


def _actions(env: InlineEnvironment, steps: int, seed: int) -> list[torch.Tensor]:
    act, obs = RandomActor(env, seed), env.reset(seed)  # without masks, all that counts is the seed
    return [act(obs) for _ in range(steps)]


@pytest.mark.parametrize(
    ("source", "min_episodes"),
    [
        ("CartPole-v1", 10),
        ("Acrobot-v1", 0),
        ("Pendulum-v1", 2),
        ("FrozenLake-v1", 10),
        ("gym_envs:stacked_cartpole", 10),
        ("gym_envs:Warehouse", 10),
        ("gym_envs:OwnState", 3),
        ("gym_envs:Counter", 10),
        ("greenroom.envs.tasks:cartpole_without_velocity", 10),
    ],
)
def test_continuation_is_the_same_in_a_new_environment(source: str, min_episodes: int) -> None:
    original, copy = InlineEnvironment(source, num_envs=2), InlineEnvironment(source, num_envs=2)
    assert original.can_snapshot
    assert isinstance(original, Snapshotable)
    actions = _actions(original, 400, seed=1)
    original.reset(9)
    list(_trace(original, actions[:100]))
    state = original.state_dict()
    expected = list(_trace(original, actions[100:]))
    assert sum(len(step[5]) for step in expected) >= min_episodes
    copy.load_state_dict(state)
    assert list(_trace(copy, actions[100:])) == expected
    original.load_state_dict(state)  # also into one that has moved on
    assert list(_trace(original, actions[100:])) == expected


def test_mujoco_continues_the_same() -> None:
    pytest.importorskip("mujoco")
    original, copy = (InlineEnvironment("Hopper-v5", num_envs=2) for _ in range(2))
    actions = _actions(original, 250, seed=1)
    original.reset(9)
    list(_trace(original, actions[:50]))
    state = original.state_dict()
    expected = list(_trace(original, actions[50:]))
    assert sum(len(step[5]) for step in expected) >= 10
    copy.load_state_dict(state)
    assert list(_trace(copy, actions[50:])) == expected


@pytest.mark.skipif(importlib.util.find_spec("Box2D") is None, reason="the extra box2d is not installed")
def test_box2d_keeps_every_contract_but_cannot_be_captured() -> None:
    """A world of Box2D's is out of sight: this is found out and named, and nothing is claimed."""
    env = InlineEnvironment("LunarLander-v3", num_envs=2)
    with pytest.raises(NotSnapshotable, match=r"world.*\(SwigPyObject\) cannot be captured"):
        env.state_dict()
    assert not env.can_snapshot
    report = check_environment(env, steps=150)
    assert report.episodes >= 2 and report.random and not report.snapshot


@pytest.mark.parametrize("joint", [False, True])
def test_snapshots_pass_between_inline_and_workers(joint: bool) -> None:
    inline = InlineEnvironment("gym_envs:Warehouse", num_envs=4)
    workers = WorkersEnvironment("gym_envs:Warehouse", num_envs=4, num_workers=2, joint=joint)
    assert workers.can_snapshot
    actions = _actions(inline, 120, seed=2)
    workers.reset(4)
    list(_trace(workers, actions[:60]))
    state = workers.state_dict()
    expected = list(_trace(workers, actions[60:]))
    inline.load_state_dict(state)
    assert list(_trace(inline, actions[60:])) == expected
    workers.load_state_dict(inline.state_dict())
    assert list(_trace(workers, actions)) == list(_trace(inline, actions))
    workers.close()


@pytest.mark.parametrize("kind", [InlineEnvironment, WorkersEnvironment])
def test_what_cannot_be_captured_is_named_and_nothing_is_claimed(kind: Any) -> None:
    more = {"num_workers": 1} if kind is WorkersEnvironment else {}
    env = kind("gym_envs:Opaque", num_envs=1, **more)
    assert not env.can_snapshot
    with pytest.raises(NotSnapshotable, match=r"env\.process \(builtins\.generator\) cannot be captured"):
        env.state_dict()
    env.reset(0)
    env.send(torch.tensor([0]))  # and the stage still works
    assert env.recv().reward.tolist() == [1.0]
    env.close()


def test_state_of_another_number_of_environments_is_refused() -> None:
    state = InlineEnvironment("CartPole-v1", num_envs=2).state_dict()
    with pytest.raises(UserError, match="the saved state is of 2 environments and there are 3; use num_envs=2"):
        InlineEnvironment("CartPole-v1", num_envs=3).load_state_dict(state)


def test_state_of_another_kind_is_refused() -> None:
    state = InlineEnvironment("CartPole-v1", num_envs=1).state_dict()
    with pytest.raises(NotSnapshotable):
        InlineEnvironment("gym_envs:Counter", num_envs=1).load_state_dict(state)


def test_a_state_cannot_name_classes_from_elsewhere() -> None:
    env = gym_envs.Warehouse()
    env.reset(seed=1)
    env.step(1)
    state = json.loads(json.dumps(capture(env)).replace("gym_envs:Order", "subprocess:Popen"))
    other = gym_envs.Warehouse()
    other.reset(seed=1)
    with pytest.raises(NotSnapshotable, match="subprocess:Popen, which this environment does not have"):
        restore(other, state)


def test_aliases_stay_aliases() -> None:
    env, other = gym_envs.Warehouse(), gym_envs.Warehouse()
    for one in (env, other):
        one.reset(seed=1)
    while len(env.orders) < 2:
        env.step(1)
    restore(other, json.loads(json.dumps(capture(env))))
    assert other.same_belt is other.belt
    assert other.latest is other.orders[-1]
    assert other.orders[0] is not other.orders[1]
    assert other.recent.maxlen == 3
    assert other.stock == env.stock
    assert other.tick() == env.tick()


class Maze(gym_envs.Counter):
    """Plays in what belongs to its class: an array, a list of rooms, a dict and an object."""

    MAPS = (np.zeros((2, 2)), np.ones((2, 2)))
    ROOMS = ([0, 0], [1, 1])
    DOORS = ({"open": 0}, {"open": 1})
    KEYS = (gym_envs.Order(0, np.zeros(1)), gym_envs.Order(1, np.ones(1)))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.enter(0)
        return super().reset(seed=seed)

    def enter(self, level: int) -> None:
        """Its level."""
        self.grid, self.room, self.door, self.key = (
            part[level] for part in (self.MAPS, self.ROOMS, self.DOORS, self.KEYS)
        )


def _through_json(env: Any, other: Any) -> None:
    restore(other, json.loads(json.dumps(capture(env))))


def _pair(kind: Callable[[], Any]) -> list[Any]:
    pair = [kind(), kind()]
    for env in pair:
        env.reset(seed=1)
    return pair


def test_what_belongs_to_the_class_is_not_written() -> None:
    env, other = _pair(Maze)
    env.enter(1)
    _through_json(env, other)
    assert other.grid.tolist() == [[1, 1], [1, 1]]
    assert (other.room, other.door, other.key.due) == ([1, 1], {"open": 1}, 1)
    assert Maze.MAPS[0].tolist() == [[0, 0], [0, 0]]
    assert (Maze.ROOMS[0], Maze.DOORS[0], Maze.KEYS[0].due) == ([0, 0], {"open": 0}, 0)
    assert Maze.KEYS[0].place.tolist() == [0]


def test_arrays_share_memory_where_they_did_and_nowhere_else() -> None:
    env, other = _pair(gym_envs.Counter)
    for one in (env, other):
        one.position = np.zeros(3)
        one.before = one.position[:]  # just reset
        one.grid = np.zeros((3, 4))
        one.row, one.column = one.grid.copy()[1], one.grid.copy()[:, 2]
    env.position, env.before = np.ones(3), np.full(3, 2.0)
    env.row, env.column, env.turned = env.grid[1], env.grid[::-1, 2], np.asfortranarray(np.arange(6.0).reshape(2, 3))
    env.row[:] = 5
    _through_json(env, other)
    assert (other.position.tolist(), other.before.tolist()) == ([1, 1, 1], [2, 2, 2])
    other.grid[1, 2] = 7
    assert other.row.tolist() == [5, 5, 7, 5]
    assert other.column.tolist() == [0, 7, 0]
    assert not np.shares_memory(other.row, other.position)
    assert other.turned.flags.f_contiguous and other.turned.tolist() == env.turned.tolist()


def test_memory_that_is_not_numpys_is_written_in_place() -> None:
    env, other = _pair(gym_envs.Counter)
    memory = bytearray(16)
    env.joints, other.joints = np.array([1.0, 2.0]), np.frombuffer(memory)
    _through_json(env, other)
    assert memory == bytearray(16)  # it was an array of its own, and is again
    env.joints, other.joints = np.frombuffer(bytearray(np.ones(2).tobytes())), np.frombuffer(memory)
    _through_json(env, other)
    assert np.frombuffer(memory).tolist() == [1, 1]


class Mode:
    """A state that is told from others by being itself."""

    def __init__(self, name: str) -> None:
        self.name = name


IDLE, RUNNING, NOTHING = Mode("idle"), Mode("running"), object()


def test_constants_of_a_module_stay_themselves() -> None:
    env, other = _pair(Maze)
    env.mode, other.mode, env.goal, other.goal = RUNNING, IDLE, NOTHING, NOTHING
    _through_json(env, other)
    assert other.mode is RUNNING and other.goal is NOTHING and IDLE.name == "idle"
    state = json.loads(json.dumps(capture(env)).replace('"running"', '"stuck"'))
    restore(other, state)  # as if the module's own had been changed by then
    assert other.mode is not RUNNING and (other.mode.name, RUNNING.name) == ("stuck", "running")


def _counting() -> tuple[Callable[[], int], Callable[[], int]]:
    count = 0

    def tick() -> int:
        nonlocal count
        count += 1
        return count

    return tick, lambda: count


def test_functions_keep_a_cell_in_common_that_is_no_other_environments() -> None:
    env, other = _pair(gym_envs.Counter)
    env.tick, env.count = _counting()
    other.tick, other.count = tick, count = _counting()
    env.tick()
    _through_json(env, other)
    other.tick()
    assert (other.tick(), other.count(), env.count(), tick(), count()) == (3, 3, 1, 1, 1)


def test_a_state_that_does_not_fit_leaves_everything_as_it_was() -> None:
    env, other = _pair(gym_envs.Warehouse)
    env.step(1)
    env.zone = _counting  # a function that the other one has not
    before = json.dumps(capture(other))
    with pytest.raises(NotSnapshotable, match=r"env\.zone was test_snapshot:_counting when saved"):
        _through_json(env, other)
    assert json.dumps(capture(other)) == before


class Simulator:
    """Says how it is set, and shares a list with its environment."""

    def __init__(self, queue: list[int]) -> None:
        self.queue, self.time = queue, 0

    def get_state(self) -> int:
        """The time; the queue is the environment's."""
        return self.time

    def set_state(self, state: int) -> None:
        """Go on from there."""
        self.time = state


def test_an_object_that_sets_itself_still_sees_what_it_shares() -> None:
    env, other = _pair(gym_envs.Counter)
    for one in (env, other):
        one.queue = [0]
        one.simulator = Simulator(one.queue)
    env.simulator.time = 4
    env.queue.append(9)
    _through_json(env, other)
    assert other.simulator.time == 4 and other.simulator.queue is other.queue and other.queue == [0, 9]


class Phase(enum.Enum):
    """Of a game."""

    OPENING = 1
    END = 2


class Wall(enum.Flag):
    """Of a cell; a union of two has no name of its own everywhere."""

    NORTH = 1
    EAST = 2


class Board(gym_envs.Counter):
    """Has what is private, and replaces a method by another."""

    def __init__(self) -> None:
        super().__init__()
        self.mover = self.__move
        self.parent = super().reset
        self.reward_of = types.MethodType(_doubled, self)

    def __move(self) -> int:
        return self.t + 1


def _doubled(env: gym_envs.Counter) -> int:
    return 2 * env.t


def test_members_of_enumerations_are_found_wherever_they_are() -> None:
    env, other = _pair(Maze)
    env.phase, other.phase = Phase.END, None
    env.points, other.points = {Phase.OPENING: 1, Phase.END: 2}, {}
    env.past, env.seen, env.walls = [Phase.OPENING], {Phase.END}, Wall.NORTH | Wall.EAST
    _through_json(env, other)
    assert (other.phase, other.points, other.past) == (env.phase, env.points, env.past)
    assert (other.seen, other.walls) == (env.seen, env.walls)
    del other.phase, other.points, other.past
    elsewhere = json.dumps(capture(env)).replace("test_snapshot:Phase", "http:HTTPStatus")
    with pytest.raises(NotSnapshotable, match="http:HTTPStatus, which this environment does not have"):
        restore(other, json.loads(elsewhere))


def test_methods_are_found_under_the_name_that_they_have() -> None:
    env, other = _pair(Board)
    env.step(6)
    _through_json(env, other)
    assert (other.mover(), other.reward_of()) == (2, 2)
    assert other.mover.__self__ is other.reward_of.__self__ is other
    other.parent(seed=1)
    assert (other.t, env.t) == (0, 1)


def test_structured_arrays_are_refused() -> None:
    env: Any = gym_envs.Counter()
    env.reset(seed=1)
    env.cars = np.zeros(2, [("place", "f4"), ("lane", "i4")])
    with pytest.raises(NotSnapshotable, match=r"env\.cars \(numpy\.ndarray\) cannot be captured"):
        capture(env)
    env.cars = env.cars[0]
    with pytest.raises(NotSnapshotable, match=r"env\.cars \(numpy\.void\) cannot be captured"):
        capture(env)


class Sulking(gym_envs.OwnState):
    """Does not say what there is to know, or does not listen."""

    speaks = True

    def get_state(self) -> dict[str, Any]:
        """The state, or not."""
        if not self.speaks:
            raise RuntimeError("busy")
        return super().get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Never."""
        raise RuntimeError("not now")


def test_what_an_environments_own_methods_raise_is_told() -> None:
    env, other = _pair(Sulking)
    with pytest.raises(NotSnapshotable, match="does not fit this environment: RuntimeError: not now"):
        _through_json(env, other)
    env.speaks = False
    with pytest.raises(NotSnapshotable, match=r"env\.get_state\(\) raised RuntimeError: busy"):
        capture(env)


class Planner(gym_envs.Counter):
    """Has no plan at first, then one that cannot be captured, or one that only this process knows."""

    def __init__(self, plan: str) -> None:
        super().__init__()
        self.kind = plan
        self.plan: Any = None

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.plan = iter([1]) if self.kind == "opaque" else _counting()[0]
        return super().step(action)


@pytest.mark.parametrize(
    ("plan", "collect", "why"),
    [
        ("opaque", "sync", "the checkpoint is without its environments, which could not be copied then"),
        ("local", "sync", "the checkpoint's environments cannot be restored (env.plan was test_snapshot:_counting"),
        ("local", "overlap", "the checkpoint's environments cannot be restored ("),
    ],
)
def test_a_run_puts_up_with_environments_that_turn_out_not_to_be_copied(
    plan: str,
    collect: Literal["sync", "overlap"],
    why: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("greenroom.baselines.report", lambda *args, **kwargs: None)
    config = RunConfig(
        env="test_snapshot:Planner",
        env_kwargs={"plan": plan},
        stage="inline",
        collect=collect,
        num_envs=2,
        rollout_length=4,
        total_steps=16,
        algorithm=PPOConfig(minibatches=1, epochs=1),
        policy=PolicyConfig(network=Mlp(hidden=(4,))),
        eval_episodes=1,
        sinks=(),
        threads=1,
    )
    assert launch(config, run_dir=tmp_path / "run", quiet=True).finished
    capsys.readouterr()
    assert resume(tmp_path / "run", total_steps=32).finished
    said = [line for line in capsys.readouterr().err.splitlines() if "new episodes begin" in line]
    assert len(said) == 1 and why in said[0]
