"""`check_environment` passes on every stage and fails, with the contract's name, on each way to break one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import gym_envs
from greenroom.envs import check_environment, make
from greenroom.envs.base import Environment, Stage
from greenroom.envs.inline import InlineEnvironment
from greenroom.errors import EnvironmentFault
from greenroom.spec import MASK, ArraySpec, Bounded, Discrete, EnvSpec
from greenroom.types import Obs, Step


@pytest.mark.parametrize(
    ("source", "stage", "min_episodes", "random", "snapshot"),
    [
        ("CartPole-v1", "inline", 10, True, True),
        ("CartPole-v1", "workers", 10, True, True),
        ("CartPole-v1", "joint", 10, True, True),
        ("gym_envs:Counter", "inline", 200, False, True),
        ("gym_envs:Opaque", "workers", 200, False, False),
        ("gym_envs:Everything", "workers", 0, True, True),
        ("gym_envs:Warehouse", "inline", 10, True, True),
        ("lost-sales", "device", 0, True, True),
        ("ALE/Pong-v5", "native", 0, True, False),
    ],
)
def test_every_stage_keeps_the_contracts(
    source: str, stage: Stage, min_episodes: int, random: bool, snapshot: bool
) -> None:
    native = stage == "native"  # Atari rewards are clipped by default
    environment = make(source, num_envs=4, stage=stage, say=lambda line: None)
    report = check_environment(environment, steps=40 if native else 150, own_reward=not native)
    assert (report.random, report.snapshot, report.masked) == (random, snapshot, False)
    assert report.episodes >= min_episodes


class Altered:
    """An environment that keeps every contract but one."""

    def __init__(self, inner: Environment, change: Callable[[Step], Step]) -> None:
        self._inner, self._change = inner, change

    @property
    def spec(self) -> EnvSpec:
        return self._inner.spec

    @property
    def num_envs(self) -> int:
        return self._inner.num_envs

    @property
    def device(self) -> torch.device:
        return self._inner.device

    def reset(self, seed: int) -> Obs:
        return self._inner.reset(seed)

    def send(self, action: Tensor) -> None:
        self._inner.send(action)

    def recv(self) -> Step:
        return self._change(self._inner.recv())

    def close(self) -> None:
        self._inner.close()


def _with(**changes: Callable[[Step], Any]) -> Callable[[Step], Step]:
    return lambda step: dataclasses.replace(step, **{name: change(step) for name, change in changes.items()})


def _episodes(**changes: Callable[[Step], Any]) -> Callable[[Step], Step]:
    return lambda step: dataclasses.replace(
        step, episodes=dataclasses.replace(step.episodes, **{name: change(step) for name, change in changes.items()})
    )


def _array(step: Step) -> Tensor:
    assert isinstance(step.obs, Tensor)
    return step.obs


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_with(reward=lambda s: s.reward.double()), "reward is torch.float64"),
        (_with(reward=lambda s: s.reward[:, None]), r"reward is torch.float32 \(4, 1\)"),
        (_with(reward=lambda s: s.reward / 0), "reward is not finite"),
        (_with(terminated=lambda s: s.terminated.long()), "terminated is torch.int64"),
        (_with(obs=lambda s: _array(s).double()), "obs is torch.float64"),
        (_with(obs=lambda s: _array(s) - 1), "obs spans -1 … .*, outside the spec's 0 … 1000"),
        (_with(obs=lambda s: {"": s.obs}), "obs is a dict"),
        (_with(final_obs=lambda s: s.obs), r"final_obs \(one row per end\) is torch.float32 \(4, 2\) .* \(0, 2\)"),
        (_with(final_obs=lambda s: _array(s)[s.terminated | s.truncated]), "final_obs equals the first observation"),
        (_episodes(index=lambda s: s.episodes.index.flip(0)), r"episodes.index is \[3, 2, 1, 0\]"),
        (
            _episodes(lengths=lambda s: s.episodes.lengths + 1),
            r"episodes.lengths is \[4, 4, 4, 4\], counted \[3, 3, 3, 3\]",
        ),
        (_episodes(returns=lambda s: s.episodes.returns * 2), r"episodes.returns is \[12.0"),
        (_episodes(signals=lambda s: {n: v * 2 for n, v in s.episodes.signals.items()}), "episodes.signals.*is"),
        (_with(signals=lambda s: {}), "signals has"),
    ],
)
def test_a_broken_contract_is_found(change: Callable[[Step], Step], words: str) -> None:
    environment = Altered(InlineEnvironment(gym_envs.Counter, num_envs=4), change)
    with pytest.raises(EnvironmentFault, match=f"Counter breaks the contract of Environment: .*{words}"):
        check_environment(environment, steps=12)


def _masked(change: Callable[[Tensor], Tensor], obs: str = "obs") -> Callable[[Step], Step]:
    """Changes the mask within one of the two observations."""

    def changed(step: Step) -> dict[str, Tensor]:
        parts = getattr(step, obs)
        return {**parts, MASK: change(parts[MASK])}

    return _with(**{obs: changed})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_masked(lambda mask: mask / 2), "step 0: obs part 'action_mask' holds other numbers than 0 .* and 1"),
        (
            _masked(lambda mask: mask / 2 + 0.5, "final_obs"),
            r"step 2: final_obs \(one row per end\) part 'action_mask' holds other numbers",
        ),
        (
            _masked(lambda mask: mask * torch.tensor([[1.0], [0.0], [0.0], [1.0]])),
            r"step 0: obs part 'action_mask' allows no action in environments \[1, 2\]",
        ),
        (_masked(lambda mask: mask[:, :3]), r"obs part 'action_mask' is torch.float32 \(4, 3\)"),
        (_masked(lambda mask: mask > 0), "obs part 'action_mask' is torch.bool"),
    ],
)
def test_a_broken_mask_is_found(change: Callable[[Step], Step], words: str) -> None:
    environment = Altered(InlineEnvironment(gym_envs.Masked, num_envs=4), change)
    with pytest.raises(EnvironmentFault, match=f"Masked breaks the contract of Environment: .*{words}"):
        check_environment(environment, steps=12)


class Respecified(Altered):
    """Does what it did, and says something else about itself."""

    def __init__(self, inner: Environment, **changes: Any) -> None:
        super().__init__(inner, lambda step: step)
        self._changes = changes

    @property
    def spec(self) -> EnvSpec:
        return dataclasses.replace(super().spec, **self._changes)


def test_a_stack_that_does_not_move_on_is_found() -> None:
    stacked = InlineEnvironment(gym_envs.stacked_cartpole, num_envs=4)
    assert isinstance(stacked.spec.obs, ArraySpec) and stacked.spec.obs.stack == 3
    assert check_environment(stacked, steps=40).episodes > 4
    turned = InlineEnvironment(gym_envs.stacked_cartpole, num_envs=4, kwargs={"turned": True})
    assert isinstance(turned.spec.obs, ArraySpec) and turned.spec.obs.stack == 1
    wrong = Respecified(turned, obs=dataclasses.replace(turned.spec.obs, stack=3))
    with pytest.raises(EnvironmentFault, match="the 3 frames of obs did not move on by one"):
        check_environment(wrong, steps=40)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"obs": {"obs": ArraySpec(shape=(2,)), MASK: ArraySpec(shape=(4,))}},
            "the spec's part 'action_mask' is .*inf",
        ),
        ({"action": Discrete(n=5)}, r"for Discrete\(n=5\) it must be ArraySpec\(shape=\(5,\)"),
        ({"action": Bounded(shape=(1,), low=(0.0,), high=(1.0,))}, "continuous actions cannot be masked"),
    ],
)
def test_a_mask_that_does_not_go_with_the_actions_is_found(changes: dict[str, Any], words: str) -> None:
    environment = Respecified(InlineEnvironment(gym_envs.Masked, num_envs=4), **changes)
    with pytest.raises(EnvironmentFault, match=words):
        check_environment(environment, steps=12)


def test_chance_that_no_seed_governs_is_found() -> None:
    source = torch.Generator().manual_seed(0)
    noise = _with(obs=lambda s: _array(s) + torch.rand(4, 2, generator=source))
    environment = Altered(InlineEnvironment(gym_envs.Counter, num_envs=4), noise)
    with pytest.raises(EnvironmentFault, match="the same seed and the same actions gave different obs at step 0"):
        check_environment(environment, steps=12)


def test_environments_that_share_their_chance_are_found() -> None:
    first = _with(
        obs=lambda s: _array(s)[:1].repeat(4, 1),
        reward=lambda s: s.reward[:1].repeat(4),
        terminated=lambda s: s.terminated & False,
        final_obs=lambda s: _array(s)[:0],
    )

    class Same(Altered):
        def reset(self, seed: int) -> Obs:
            obs = super().reset(seed)
            assert isinstance(obs, Tensor)
            return obs[:1].repeat(4, 1)

    environment = Same(InlineEnvironment("Pendulum-v1", num_envs=4), first)
    with pytest.raises(EnvironmentFault, match="all environments draw the same random numbers"):
        check_environment(environment, steps=12)


def test_memory_that_changes_before_the_next_send_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Step] = []

    class Hasty(Altered):
        def recv(self) -> Step:
            answers.append(super().recv())
            return answers[-1]

    # The check waits a moment for a stage that runs ahead; this one does so in that very moment.
    monkeypatch.setattr("greenroom.envs.check.time.sleep", lambda seconds: answers[-1].reward.add_(1))
    environment = Hasty(InlineEnvironment(gym_envs.Counter, num_envs=4), lambda step: step)
    with pytest.raises(EnvironmentFault, match="step 0: reward changed before the next send"):
        check_environment(environment, steps=12)


def test_a_snapshot_that_forgets_is_found() -> None:
    class Forgetful(InlineEnvironment):
        def load_state_dict(self, state: dict[str, object]) -> None:
            self.reset(0)

    with pytest.raises(EnvironmentFault, match="1 steps after loading a snapshot, obs differs"):
        check_environment(Forgetful("CartPole-v1", num_envs=2), steps=20)
