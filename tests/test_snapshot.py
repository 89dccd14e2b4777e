"""Snapshots of Python environments: what follows a loaded one is what followed the original, bit for bit."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import gym_envs
from greenroom.envs.base import Snapshotable
from greenroom.envs.check import RandomActor, check_environment
from greenroom.envs.inline import InlineEnvironment
from greenroom.envs.snapshot import NotSnapshotable, capture, restore
from greenroom.envs.workers import WorkersEnvironment
from greenroom.errors import UserError
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
