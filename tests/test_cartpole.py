"""CartPole as tensors is Gymnasium's."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

from greenroom.envs.cartpole import CartPole
from greenroom.envs.device import DeviceEnvironment
from greenroom.errors import UserError


def test_every_episode_is_the_one_that_gymnasium_plays() -> None:
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    model, theirs = CartPole(), gymnasium.make("CartPole-v1").unwrapped
    ends = 0
    for _ in range(20):
        theirs.reset(seed=0)
        state = model.initial(1, generator, torch.device("cpu"))
        theirs.state = state["motion"][0].double().numpy()  # type: ignore[attr-defined]  # CartPole's own
        for _ in range(200):
            action = int(rng.integers(2))
            obs, reward, terminated, _, _ = theirs.step(action)
            transition = model.step(state, torch.tensor([action]), generator)
            state = transition.state
            assert model.observe(state)[0].numpy() == pytest.approx(obs, rel=1e-4, abs=1e-4)
            assert transition.reward.item() == reward
            assert transition.terminated is not None
            assert transition.terminated.item() == terminated
            if terminated:
                ends += 1
                break
    assert ends == 20


def test_it_also_ends_where_the_track_does() -> None:
    model = CartPole()
    edge = torch.tensor([[2.39, 1.0, 0.0, 0.0], [-2.39, -1.0, 0.0, 0.0], [2.3, 1.0, 0.0, 0.0]])
    fallen = model.step({"motion": edge}, torch.tensor([1, 0, 1]), torch.Generator()).terminated
    assert fallen is not None
    assert fallen.tolist() == [True, True, False]


def test_a_long_episode_is_truncated() -> None:
    stage = DeviceEnvironment(CartPole(horizon=3), num_envs=2)
    stage.reset(0)
    for t in range(3):
        stage.send(torch.tensor([t % 2, (t + 1) % 2]))
        step = stage.recv()
        assert step.truncated.tolist() == [t == 2] * 2
    assert not step.terminated.any()


def test_a_horizon_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(UserError, match="horizon must be a whole number, 0 or more, not -1"):
        CartPole(horizon=-1)
