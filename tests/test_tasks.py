"""The ready-made task for memory: CartPole in everything but what is shown of it."""

from __future__ import annotations

import numpy as np
import torch

from greenroom.envs import check_environment, make
from greenroom.envs.factory import Factory
from greenroom.envs.inline import InlineEnvironment
from greenroom.spec import ArraySpec, Discrete

NAME = "greenroom.envs.tasks:cartpole_without_velocity"


def test_it_is_cartpole_without_the_velocities() -> None:
    whole, part = InlineEnvironment("CartPole-v1", num_envs=3), InlineEnvironment(NAME, num_envs=3)
    assert isinstance(whole.spec.obs, ArraySpec)
    assert part.spec.obs == ArraySpec(shape=(2,), low=-float(np.float32(4.8)), high=float(np.float32(4.8)))
    assert part.spec.action == Discrete(n=2)
    full, shown = whole.reset(7), part.reset(7)
    ends = 0
    for t in range(80):
        assert torch.equal(torch.as_tensor(full)[:, [0, 2]], torch.as_tensor(shown))
        action = torch.tensor([t % 2, 1, (t // 2) % 2])
        whole.send(action)
        part.send(action)
        one, other = whole.recv(), part.recv()
        assert torch.equal(torch.as_tensor(one.final_obs)[:, [0, 2]], torch.as_tensor(other.final_obs))
        for name in ("reward", "terminated", "truncated"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        full, shown, ends = one.obs, other.obs, ends + len(one.episodes.index)
    assert ends >= 8


def test_it_keeps_every_contract_and_can_be_copied() -> None:
    report = check_environment(make(NAME, num_envs=2, stage="inline", say=lambda line: None), steps=60)
    assert report.snapshot and report.random and report.episodes >= 2


def test_its_arguments_are_cartpoles() -> None:
    env = Factory(env=NAME, kwargs={"max_episode_steps": 5, "render_mode": "rgb_array"}).build()
    assert env.render_mode == "rgb_array" and "rgb_array" in env.metadata["render_modes"]
    env.reset(seed=0)
    assert [env.step(t % 2)[3] for t in range(5)] == [False] * 4 + [True]
    assert Factory(env=NAME).build().spec.max_episode_steps == 500  # type: ignore[union-attr]
