"""Crossing to the learner's device: only a stack's newest frame does, and the rollout is the same bit for bit."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from greenroom import acting, envs
from greenroom.acting import Collector
from greenroom.crossing import Crossing
from greenroom.envs.base import Environment
from greenroom.networks import Mlp
from greenroom.policy import ActorCritic, PolicyConfig
from greenroom.spec import ArraySpec
from greenroom.types import Episodes, Obs, Rollout, Step, map_obs, parts_of

CPU = torch.device("cpu")
PICTURE = ArraySpec(shape=(6, 2, 2), dtype=torch.uint8, low=0, high=255, stack=3)
NOBODY = Episodes(index=torch.zeros(0, dtype=torch.int64), returns=torch.zeros(0), lengths=torch.zeros(0), signals={})


def step(obs: Obs, terminated: list[bool], truncated: list[bool]) -> Step:
    """A stage's answer, of which only what is given here counts."""
    return Step(
        obs=obs,
        reward=torch.zeros(len(terminated)),
        terminated=torch.tensor(terminated),
        truncated=torch.tensor(truncated),
        final_obs=map_obs(lambda part: part[:0], obs),
        episodes=NOBODY,
        signals={},
    )


def pictures(*numbers: list[int]) -> Tensor:
    """Stacks of frames of two channels, one row each, that show these numbers."""
    frames = torch.tensor(numbers, dtype=torch.uint8).repeat_interleave(2, dim=1)
    return frames[:, :, None, None].expand(-1, -1, 2, 2).clone()


def test_of_a_stack_that_goes_on_only_the_newest_frame_is_read() -> None:
    """Row 0 goes on, 1 terminated, 2 was truncated: what row 0 shows of older frames, here 99, is not looked at."""
    crossing = Crossing({"picture": PICTURE, "speed": ArraySpec(shape=(1,))}, 3, CPU, apart=True)
    before: Obs = {"picture": pictures([1, 2, 3], [4, 5, 6], [7, 8, 9]), "speed": torch.zeros(3, 1)}
    shown: Obs = {"picture": pictures([99, 99, 11], [0, 0, 12], [13, 13, 13]), "speed": torch.tensor([[1.0], [2], [3]])}
    into = map_obs(torch.empty_like, before)
    crossing.carry(step(shown, [False, True, False], [False, False, True]), before, into)
    found = parts_of(into)
    assert torch.equal(found["picture"], pictures([2, 3, 11], [0, 0, 12], [13, 13, 13]))
    assert torch.equal(found["speed"], parts_of(shown)["speed"])
    assert torch.equal(parts_of(before)["picture"], pictures([1, 2, 3], [4, 5, 6], [7, 8, 9]))


def test_on_the_stage_s_own_device_observations_are_copied_as_they_are() -> None:
    crossing = Crossing(PICTURE, 1, CPU, apart=False)
    into = pictures([0, 0, 0])
    crossing.carry(step(pictures([99, 98, 11]), [False], [False]), pictures([1, 2, 3]), into)
    assert torch.equal(into, pictures([99, 98, 11]))


def rollouts(groups: int, **make: Any) -> list[Rollout]:
    """Three, of which nothing is written again."""
    stages: list[Environment] = [envs.make(num_envs=2, say=lambda line: None, **make) for _ in range(groups)]
    torch.manual_seed(0)
    policy = ActorCritic(PolicyConfig(network=Mlp(hidden=(4,))), stages[0].spec, "float32")
    collector = Collector(stages, policy, rollout_length=40, seed=0, device=CPU, memories=3)
    try:
        return list(islice(collector, 3))
    finally:
        collector.close()


@pytest.mark.parametrize(
    ("groups", "make"),
    [
        (1, {"env": "ALE/Breakout-v5", "kwargs": {"life_loss": "terminate", "max_num_frames_per_episode": 200}}),
        (2, {"env": "ALE/Pong-v5", "kwargs": {"max_num_frames_per_episode": 120, "grayscale": False}}),
        (1, {"env": "gym_envs:stacked_cartpole", "stage": "inline"}),
    ],
)
def test_rollouts_are_the_same_as_if_all_had_crossed(
    groups: int, make: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rollouts(groups, **make)
    monkeypatch.setattr(acting, "Crossing", lambda *args, apart: Crossing(*args, apart=True))
    newest = rollouts(groups, **make)
    for one, other in zip(whole, newest, strict=True):
        assert isinstance(one.obs, Tensor) and isinstance(other.obs, Tensor)
        assert torch.equal(one.obs, other.obs) and torch.equal(one.action, other.action)
    assert sum(int(one.cut.sum()) for one in whole) >= 3
