"""The inline stage: encodings, same-step reset with exact values, signals, seeds, faults that name their culprit."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import gym_envs
from greenroom.envs.inline import InlineEnvironment
from greenroom.envs.spaces import action_form
from greenroom.envs.tensors import env_seeds
from greenroom.errors import EnvironmentFault, UserError
from greenroom.spec import ArraySpec, Bounded, Discrete, MultiDiscrete


def test_same_step_reset_with_exact_values() -> None:
    env = InlineEnvironment(gym_envs.Counter, num_envs=2, kwargs={"length": 2})
    assert env.spec.action == Discrete(n=3)
    assert env.spec.signals == ("cost", "action")
    start = env.reset(0)
    assert isinstance(start, torch.Tensor)
    assert start.tolist() == [[0, 0], [0, 0]]
    seen = []
    for action in ([0, 1], [2, 0], [1, 1], [0, 2]):
        env.send(torch.tensor(action))
        step = env.recv()
        assert isinstance(step.obs, torch.Tensor)
        assert isinstance(step.final_obs, torch.Tensor)
        episodes = step.episodes
        seen.append(
            (
                step.obs[0].tolist(),
                step.reward.tolist(),
                step.terminated.tolist(),
                step.truncated.tolist(),
                step.final_obs.tolist(),
                episodes.returns.tolist(),
                episodes.lengths.tolist(),
                {name: value.tolist() for name, value in episodes.signals.items()},
                step.signals["action"].tolist(),
            )
        )
    no, yes = [False, False], [True, True]
    nothing: dict[str, list[float]] = {"cost": [], "action": []}
    assert seen == [
        ([0, 1], [1, 1], no, no, [], [], [], nothing, [5, 6]),
        ([1, 0], [2, 2], yes, no, [[0, 2], [0, 2]], [3, 3], [2, 2], {"cost": [1, 1], "action": [12, 11]}, [7, 5]),
        ([1, 1], [11, 11], no, no, [], [], [], nothing, [6, 6]),
        ([2, 0], [12, 12], no, yes, [[1, 2], [1, 2]], [23, 23], [2, 2], {"cost": [1, 1], "action": [11, 13]}, [5, 7]),
    ]
    env.close()
    env.close()


def test_every_space_is_flattened_and_encoded() -> None:
    env = InlineEnvironment(gym_envs.Everything, num_envs=2)
    hot = {"dtype": torch.float32, "low": 0.0, "high": 1.0}
    # Gymnasium sorts the keys of a Dict space made from a plain dict.
    assert env.spec.obs == {
        "bytes": ArraySpec(shape=(2,), low=0.0, high=255.0),
        "inner.bits": ArraySpec(shape=(2, 2), **hot),  # type: ignore[arg-type]
        "inner.level": ArraySpec(shape=(3,), **hot),  # type: ignore[arg-type]
        "pair.0": ArraySpec(shape=(5,), **hot),  # type: ignore[arg-type]
        "pair.1": ArraySpec(shape=(), low=-1.0, high=2.0),
        "pixels": ArraySpec(shape=(2, 3, 1), dtype=torch.uint8, low=0.0, high=255.0),
    }
    assert env.spec.action == MultiDiscrete(nvec=(2, 3))
    env.reset(1)
    env.send(torch.tensor([[0, 0], [1, 2]]))
    step = env.recv()
    assert isinstance(step.obs, dict)
    assert step.reward.tolist() == [1 - 1, 2 + 1]
    assert step.obs["inner.level"].tolist() == [[1, 0, 0], [0, 0, 1]]
    assert step.obs["inner.bits"][0].tolist() == [[0, 1], [1, 0]]
    assert step.obs["pair.0"][0].tolist() == [0, 1, 0, 0, 1]
    assert step.obs["pair.1"].tolist() == [0.25, 0.25]
    assert step.obs["bytes"][1].tolist() == [7, 255]
    assert step.obs["pixels"].dtype == torch.uint8
    assert not torch.equal(step.obs["pixels"][0], step.obs["pixels"][1])  # each environment has its own seed
    env.close()


@pytest.mark.parametrize(
    ("kwargs", "stack"), [({}, 3), ({"limit": 9}, 3), ({"turned": True}, 1), ({"turned": True, "limit": 9}, 1)]
)
def test_a_stack_of_frames_is_known_if_nothing_changes_it_afterwards(kwargs: dict[str, Any], stack: int) -> None:
    env = InlineEnvironment(gym_envs.stacked_cartpole, num_envs=2, kwargs=kwargs)
    assert isinstance(env.spec.obs, ArraySpec)
    assert (env.spec.obs.shape, env.spec.obs.stack) == ((3, 4), stack)
    before, ends, shifted = torch.as_tensor(env.reset(1)).clone(), 0, True
    for _ in range(60):
        env.send(torch.tensor([0, 1]))
        step = env.recv()
        cut = step.terminated | step.truncated
        reached = torch.as_tensor(step.obs).clone()
        reached[cut] = torch.as_tensor(step.final_obs)
        shifted &= torch.equal(reached[:, :-1], before[:, 1:])
        before, ends = torch.as_tensor(step.obs).clone(), ends + int(cut.sum())
    assert ends >= 8 and shifted == (stack > 1)


def test_stacks_of_categories_and_dicts_are_known_too() -> None:
    def stacked() -> gymnasium.Env[Any, Any]:
        space = spaces.Dict({"level": spaces.Discrete(4), "bits": spaces.MultiBinary(2)})
        return gymnasium.wrappers.FrameStackObservation(gym_envs.Spaces(obs=space), 3)

    spec = InlineEnvironment(stacked, num_envs=1).spec
    assert isinstance(spec.obs, dict)
    assert {name: (part.shape, part.stack) for name, part in spec.obs.items()} == {
        "level": ((12,), 3),
        "bits": ((3, 2), 3),
    }


def test_box_actions_arrive_in_the_environments_own_shape_and_type() -> None:
    env = InlineEnvironment(gym_envs.Continuous, num_envs=1)
    assert env.spec.action == Bounded(shape=(2, 1), low=(-2.0, 0.0), high=(2.0, 5.0))
    env.reset(0)
    env.send(torch.tensor([[[-1.5], [4.0]]]))
    step = env.recv()
    assert isinstance(step.obs, torch.Tensor)
    assert step.obs.tolist() == [[[-1.5], [4.0]]]
    assert step.obs.dtype == torch.float32
    env.close()


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [(np.float16, (2, 1)), (np.float32, (2, 1)), (np.float64, (2, 1)), (np.float64, ())],
)
def test_an_action_at_its_bound_is_inside_the_space(dtype: Any, shape: tuple[int, ...]) -> None:
    space = spaces.Box(-0.1, 0.1, shape, dtype)
    decode = action_form(space).decoder()
    rows = np.stack([np.full(shape, sign * space.high.max(), np.float32) for sign in (-1, 1)])
    low, high = decode(rows)
    assert space.contains(low) and space.contains(high)
    assert (low == space.low).all() and (high == space.high).all()
    assert isinstance(low, np.ndarray) and low.dtype == dtype
    assert np.isnan(decode(np.full((1, *shape), np.nan, np.float32))[0]).all()  # a diverged policy is still seen


def test_action_kept_by_an_environment_is_not_overwritten_by_the_next() -> None:
    kept: list[Any] = []

    class Keeper(gym_envs.Continuous):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            kept.append(action)
            return super().step(action)

    env = InlineEnvironment(Keeper, num_envs=1)
    env.reset(0)
    for value in (1.0, 2.0):
        env.send(torch.full((1, 2, 1), value))
        env.recv()
    assert [float(action[0, 0]) for action in kept] == [1.0, 2.0]


def test_seeds_are_given_once_and_differ_between_environments() -> None:
    seeds: list[int | None] = []

    class Listener(gym_envs.Counter):
        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            seeds.append(seed)
            return super().reset(seed=seed)

    env = InlineEnvironment(Listener, num_envs=2, kwargs={"length": 1})
    assert seeds == [0, 0]  # to see whether infos bring masks
    env.reset(5)
    env.send(torch.tensor([0, 0]))
    env.recv()
    assert seeds[2:] == [*env_seeds(5, 2), None, None]
    assert len(set(env_seeds(5, 100) + env_seeds(6, 100))) == 200
    assert all(0 <= seed < 2**31 for seed in env_seeds(5, 100))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raise", "step raised ValueError: the conveyor jammed"),
        ("nan", "the observation holds NaN"),
        ("nan_reward", "the reward is nan"),
        ("huge_reward", r"the reward is -1e\+39, and infinite as float32; scale it down"),
        ("huge_signal", r"signal 'cost' is 1e\+300, and infinite as float32; scale it down"),
        ("shape", r"the observation has shape \(3,\), but its space says \(2,\)"),
        ("scalar_shape", r"the observation has shape \(\), but its space says \(2,\)"),
        ("reward_shape", r"the reward must be one number, not an array of shape \(1,\)"),
        ("signal", "info has no 'cost'"),
        ("old_api", "step returned 4 values"),
    ],
)
def test_fault_names_environment_and_step(fault: str, words: str) -> None:
    victim = env_seeds(3, 4)[2]
    env = InlineEnvironment(gym_envs.Faulty, num_envs=4, kwargs={"fault": fault, "at": 3, "victim": victim})
    env.reset(3)
    action = torch.zeros(4, dtype=torch.int64)
    for _ in range(2):
        env.send(action)
        env.recv()
    env.send(action)
    with pytest.raises(EnvironmentFault, match=f"environment 2, step 3: {words}"):
        env.recv()
    env.close()


def test_nan_in_the_last_observation_of_an_episode_is_found() -> None:
    class Bad(gym_envs.Counter):
        def step(self, action: Any) -> Any:
            obs, reward, terminated, truncated, info = super().step(action)
            return (obs * np.float32("nan") if terminated else obs), reward, terminated, truncated, info

    env = InlineEnvironment(Bad, num_envs=1, kwargs={"length": 1})
    env.reset(0)
    env.send(torch.tensor([0]))
    with pytest.raises(EnvironmentFault, match="environment 0, step 1: the observation holds NaN"):
        env.recv()


def test_diverged_action_is_named_as_the_cause() -> None:
    class Echo(gym_envs.Continuous):
        action_space = spaces.Box(-2.0, 2.0, (2, 1), np.float64)

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            return action, 0.0, False, False, {}

    env = InlineEnvironment(Echo, num_envs=1)
    env.reset(0)
    env.send(torch.full((1, 2, 1), float("nan")))
    with pytest.raises(EnvironmentFault, match="so did the action that it was given"):
        env.recv()


@pytest.mark.parametrize(
    ("obs", "action", "words"),
    [
        (spaces.Text(5), None, r"observation space into arrays: Text.*TransformObservation"),
        (spaces.Dict({"a": spaces.Dict({"b": spaces.Sequence(spaces.Discrete(2))})}), None, "at 'a.b' into arrays"),
        (
            spaces.Dict({"a.b": spaces.Discrete(2), "a": spaces.Dict({"b": spaces.Discrete(2)})}),
            None,
            "both called 'a.b'",
        ),
        (spaces.Dict({}), None, "the observation space shows nothing"),
        (None, spaces.Box(-np.inf, np.inf, (2,)), "needs finite bounds.*TransformAction"),
        (None, spaces.Box(0, 5, (2,), np.int64), "cannot act in the action space"),
        (None, spaces.MultiBinary(3), "cannot act in the action space MultiBinary"),
    ],
)
def test_unsupported_space_says_what_to_do(obs: Any, action: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        InlineEnvironment(gym_envs.Spaces, num_envs=1, kwargs={"obs": obs, "action": action})


@pytest.mark.parametrize("missing", ["observation_space", "action_space"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_missing_space_is_named(missing: str, wrapped: bool) -> None:
    class Bare(gymnasium.Env[Any, Any]):
        pass

    def factory() -> Any:
        bare = Bare()
        for name in {"observation_space", "action_space"} - {missing}:
            setattr(bare, name, spaces.Discrete(2))
        return gymnasium.wrappers.TimeLimit(bare, 5) if wrapped else bare

    with pytest.raises(UserError, match=f"^Bare has no {missing}; .*set self.{missing} in its __init__"):
        InlineEnvironment(factory, num_envs=1)


def test_environments_that_differ_are_refused() -> None:
    sizes = iter([2, 3])

    def factory() -> gymnasium.Env[Any, Any]:
        return gym_envs.Spaces(action=spaces.Discrete(next(sizes)))

    with pytest.raises(EnvironmentFault, match="environment 1 has other spaces or signals than environment 0"):
        InlineEnvironment(factory, num_envs=2)


def test_wrong_actions_and_wrong_order_are_refused() -> None:
    env = InlineEnvironment(gym_envs.Counter, num_envs=2)
    with pytest.raises(RuntimeError, match="send comes after reset"):
        env.send(torch.tensor([0, 0]))
    env.reset(0)
    with pytest.raises(RuntimeError, match="recv comes after send"):
        env.recv()
    for wrong in (torch.zeros(3, dtype=torch.int64), torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2)):
        with pytest.raises(UserError, match=r"send wants torch.int64 actions of shape \(2,\)"):
            env.send(wrong)
    env.send(torch.tensor([0, 0]))
    with pytest.raises(RuntimeError, match="send comes after"):
        env.send(torch.tensor([0, 0]))
    with pytest.raises(RuntimeError, match="between recv and send"):
        env.state_dict()
