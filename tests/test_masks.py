"""Masks of allowed actions: from an observation's part or from infos, each beside the observation it came with."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

import gym_envs
from greenroom.envs import check_environment, choose, make
from greenroom.envs import spaces as plain_spaces
from greenroom.envs.base import Stage
from greenroom.envs.check import RandomActor
from greenroom.envs.device import DeviceEnvironment
from greenroom.envs.factory import Factory
from greenroom.envs.inline import InlineEnvironment
from greenroom.envs.probes import PROBES
from greenroom.envs.tensors import env_seeds
from greenroom.envs.workers import WorkersEnvironment
from greenroom.errors import EnvironmentFault, UserError
from greenroom.spec import MASK, ArraySpec
from greenroom.types import Obs

FOUR = ArraySpec(shape=(4,), low=0.0, high=1.0)
SPACES = [
    spaces.MultiBinary(4),
    spaces.Box(0, 1, (4,), np.int8),
    spaces.MultiDiscrete([2] * 4),
    None,  # in the info
]


def test_the_name_is_known_without_torch() -> None:
    assert plain_spaces.MASK == MASK


def seen_and_mask(obs: Obs) -> tuple[torch.Tensor, torch.Tensor]:
    assert isinstance(obs, dict)
    (shown,) = obs.keys() - {MASK}
    return obs[shown], obs[MASK]


def expected(seen: torch.Tensor, length: int) -> torch.Tensor:
    """What `gym_envs.Masked` says of these observations `[N, 2]`."""
    mask = 1.0 - torch.nn.functional.one_hot(seen.sum(1).long() % 4, 4)
    return mask * (seen[:, 1:] < length)


@pytest.mark.parametrize("stage", ["inline", "workers"])
@pytest.mark.parametrize("space", SPACES, ids=["binary", "box", "twos", "info"])
def test_every_observation_has_the_mask_that_came_with_it(space: Any, stage: Stage) -> None:
    env = make(gym_envs.Masked, num_envs=4, stage=stage, kwargs={"space": space}, say=lambda line: None)
    name = "obs" if space is None else "seen"
    assert env.spec.obs == {name: ArraySpec(shape=(2,), low=0.0, high=1e6), MASK: FOUR}
    act, obs, ends = RandomActor(env, 0), env.reset(3), 0
    for _ in range(20):
        seen, mask = seen_and_mask(obs)
        assert torch.equal(mask, expected(seen, length=3))
        env.send(act(obs))
        step = env.recv()
        seen, mask = seen_and_mask(step.final_obs)
        assert torch.equal(mask, torch.zeros(len(seen), 4))  # nothing may be left to do at an end
        assert torch.equal(seen[:, 1], torch.full((len(seen),), 3.0))
        obs, ends = step.obs, ends + len(seen)
    assert ends == 24
    env.close()


def test_masks_of_several_choices_are_joined() -> None:
    env = InlineEnvironment(gym_envs.MaskedPair, num_envs=2)
    assert env.spec.obs == {
        "level": ArraySpec(shape=(2,), low=0.0, high=1.0),
        MASK: ArraySpec(shape=(5,), low=0.0, high=1.0),
    }
    obs = env.reset(0)
    assert isinstance(obs, dict)
    assert obs[MASK].tolist() == [[0, 1, 1, 0, 1]] * 2
    assert check_environment(env, steps=30).masked


def test_masks_of_several_choices_may_be_a_tuple_in_the_observation() -> None:
    pair = spaces.Tuple((spaces.MultiBinary(2), spaces.MultiBinary(3)))
    space = spaces.Dict({"seen": spaces.Discrete(2), MASK: pair})
    env = InlineEnvironment(gym_envs.Spaces, num_envs=1, kwargs={"obs": space, "action": spaces.MultiDiscrete([2, 3])})
    assert isinstance(env.spec.obs, dict)
    assert env.spec.obs[MASK].shape == (5,)


def test_taxi() -> None:
    """Gymnasium's own environment with masks in its infos; the mask goes with the place, which is one of 500."""
    env = InlineEnvironment("Taxi-v4", num_envs=2)
    assert isinstance(env.spec.obs, dict)
    assert {name: part.shape for name, part in env.spec.obs.items()} == {"obs": (500,), MASK: (6,)}
    act, obs = RandomActor(env, 1), env.reset(1)
    taxi: Any = Factory(env="Taxi-v4").build().unwrapped
    for _ in range(50):
        seen, mask = seen_and_mask(obs)
        assert mask.tolist() == [taxi.action_mask(int(place)).tolist() for place in seen.argmax(1)]
        env.send(act(obs))
        obs = env.recv().obs
    report = check_environment(env, steps=220)  # its time limit is 200
    assert report.masked and report.snapshot and report.episodes >= 2


@pytest.mark.parametrize("space", SPACES, ids=["binary", "box", "twos", "info"])
def test_the_check_takes_allowed_actions_only(space: Any) -> None:
    """`Masked` refuses others."""
    report = check_environment(InlineEnvironment(gym_envs.Masked, num_envs=2, kwargs={"space": space}), steps=30)
    assert (report.masked, report.snapshot, report.episodes) == (True, True, 20)


@pytest.mark.parametrize("env", [gym_envs.Masked, gym_envs.MaskedPair])
def test_the_measurement_takes_allowed_actions_only(env: Any) -> None:
    assert choose.measure_step(Factory(env=env)) < 0.01


def test_random_actions_are_uniform_over_what_is_allowed() -> None:
    env = DeviceEnvironment(PROBES["probe-mask"].model, 3000)
    mask = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 1.0, 1.0]]).repeat(1000, 1)
    drawn = RandomActor(env, 0)({MASK: mask}).view(1000, 3)
    counts = torch.stack([drawn[:, row].bincount(minlength=3) for row in range(3)])
    assert counts[0, 1] == 0 and counts[1].tolist() == [0, 1000, 0]
    assert 430 < counts[0, 0] < 570  # 500 ± 4.4 standard deviations
    assert ((counts[2] > 267) & (counts[2] < 400)).all()  # 333 ± 4.4 standard deviations


def test_the_mask_of_a_batched_model_is_checked() -> None:
    report = check_environment(DeviceEnvironment(PROBES["probe-mask"].model, 8), steps=30)
    assert report.masked


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"obs": spaces.Dict({"a": spaces.Discrete(2), MASK: spaces.MultiBinary(3)})}, "'action_mask' has 3 numbers"),
        (
            {"obs": spaces.Dict({"a": spaces.Discrete(2), MASK: spaces.Box(0, 2, (2,))})},
            "its space is Box.*MultiBinary",
        ),
        ({"obs": spaces.Dict({"a": spaces.Discrete(2), MASK: spaces.Discrete(2)})}, "its space is Discrete"),
        ({"obs": spaces.Dict({"a": spaces.Discrete(2), MASK: spaces.Dict({"b": spaces.Discrete(2)})})}, "is Dict"),
        ({"obs": spaces.Dict({MASK: spaces.MultiBinary(2)})}, "shows nothing; give it at least one part besides"),
        (
            {"info": {MASK: [1, 0, 1]}},
            r"info\['action_mask'\] has 3 numbers.* of 2 numbers, one for each action; .*else",
        ),
        ({"info": {MASK: "both"}}, r"info\['action_mask'\] has 1 numbers"),
        ({"info": {MASK: [[[1], [1, 0]]]}}, r"info\['action_mask'\] is no array"),
        (
            {
                "obs": spaces.Dict({"a": spaces.Discrete(2), MASK: spaces.MultiBinary(2)}),
                "action": spaces.Box(-1, 1, (2,)),
            },
            "which there can be only of discrete actions",
        ),
    ],
)
def test_what_cannot_be_a_mask_says_what_to_do(kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        InlineEnvironment(gym_envs.Spaces, num_envs=1, kwargs=kwargs)


def test_an_info_of_continuous_actions_is_not_looked_at() -> None:
    kwargs = {"action": spaces.Box(-1, 1, (2,)), "info": {MASK: [1, 1, 1]}}
    assert isinstance(InlineEnvironment(gym_envs.Spaces, num_envs=1, kwargs=kwargs).spec.obs, ArraySpec)


@pytest.mark.parametrize("stage", [InlineEnvironment, WorkersEnvironment])
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (None, r"info\['action_mask'\] is missing; the first reset gave one"),
        ([1, 0, 1], r"info\['action_mask'\] has shape \(3,\), but the first one had \(4,\)"),
        ([0.5, 1, 1, 1], r"info\['action_mask'\] holds other numbers than 0 \(forbidden\) and 1"),
        ([0, 0, 0, 0], r"info\['action_mask'\] allows no action"),
    ],
)
def test_a_wrong_mask_names_environment_and_step(stage: Any, wrong: Any, words: str) -> None:
    kwargs = {"at": 2, "victim": env_seeds(5, 2)[1], "wrong": wrong}
    more = {"num_workers": 1} if stage is WorkersEnvironment else {}
    env = stage(gym_envs.Masked, num_envs=2, kwargs=kwargs, **more)
    act, obs = RandomActor(env, 0), env.reset(5)
    env.send(act(obs))
    obs = env.recv().obs
    env.send(act(obs))
    with pytest.raises(EnvironmentFault, match=f"^environment 1, step 2: {words}"):
        env.recv()
    env.close()


def test_the_mask_of_a_last_observation_is_needed_too() -> None:
    env = InlineEnvironment(gym_envs.Masked, num_envs=1, kwargs={"length": 1, "at": 1, "victim": env_seeds(5, 1)[0]})
    obs = env.reset(5)
    env.send(RandomActor(env, 0)(obs))
    with pytest.raises(EnvironmentFault, match=r"environment 0, step 1: info\['action_mask'\] is missing"):
        env.recv()


def test_the_documented_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "environments.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    shop, tight = (next(b for b in blocks if f"class {name}" in b) for name in ("Shop(", "TightShop("))
    (tmp_path / "shop.py").write_text(shop)
    (tmp_path / "tight.py").write_text(tight)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("shop", "tight"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    env = InlineEnvironment("tight:TightShop", num_envs=2)
    waste = 0.0
    act, obs = RandomActor(env, 0), env.reset(0)
    for _ in range(60):
        env.send(act(obs))
        step = env.recv()
        obs, waste = step.obs, waste + float(step.signals["waste"].sum())
    assert waste == 0.0
    assert check_environment(env, steps=60).masked
