"""TD3: its targets and losses against slow definitions, the delay, and tasks with known answers."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from bounded_probes import ACTION_TOLERANCE, BOUNDED_PROBES, CRITICS, PROBING_POLICY, VALUE_TOLERANCE, answers
from greenroom.algorithms.check import check_algorithm, synthetic_rollout
from greenroom.algorithms.critics import CriticConfig
from greenroom.algorithms.replaying import Drawing
from greenroom.algorithms.targets import TargetNetwork
from greenroom.algorithms.td3 import TD3, TD3Config
from greenroom.errors import UserError
from greenroom.networks import Mlp
from greenroom.optim import Adam
from greenroom.policy import PolicyConfig
from greenroom.replay import ReplayConfig
from greenroom.spec import ArraySpec, Bounded, EnvSpec
from greenroom.types import Rollout
from probing import GAMMA, learn

SPEC = EnvSpec(name="x", obs=ArraySpec(shape=(3,)), action=Bounded(shape=(2,), low=(-1.0, 0.0), high=(1.0, 5.0)))
SETTINGS = PolicyConfig(network=Mlp(hidden=(16,)), normalize_obs=True)
NUM_ENVS, LENGTH = 8, 6
ONE_UPDATE = CriticConfig(
    gamma=0.9,
    drawing=Drawing(batch_size=48, replay_ratio=1.0, learning_starts=0),
    replay=ReplayConfig(capacity=1000),
    target=TargetNetwork(target_every=1, tau=0.1),
)
"""Each rollout of 48 steps calls for one batch of 48."""


def algorithm(config: TD3Config) -> TD3:
    torch.manual_seed(0)
    policy = config.policy(SETTINGS, SPEC, "float32")
    return config.build(policy, spec=SPEC, num_envs=NUM_ENVS, rollout_length=LENGTH, total_steps=10_000, seed=0)


def rollout(learner: TD3, seed: int = 0) -> Rollout:
    return synthetic_rollout(learner.policy, SPEC, num_envs=NUM_ENVS, rollout_length=LENGTH, seed=seed)


def weights(learner: TD3) -> list[Tensor]:
    return [part.clone() for part in learner.policy.actor.parameters()]


def test_the_contract_with_every_option() -> None:
    drawing = Drawing(batch_size=8, replay_ratio=1.7, learning_starts=16)
    replay = ReplayConfig(capacity=1000, n_step=3, prioritised=True)
    config = TD3Config(
        critics=dataclasses.replace(ONE_UPDATE, drawing=drawing, replay=replay),
        exploration_noise=0.3,
        target_noise=0.1,
        target_noise_clip=0.1,
        policy_delay=3,
        optimizer=Adam(learning_rate=1e-3),
    )
    check_algorithm(config, SPEC, policy=SETTINGS)


def test_one_update_against_a_slow_definition() -> None:
    """Every number of the two losses, transition by transition, from the paper's algorithm 1."""
    optimizer = Adam(learning_rate=1e-2)
    config = TD3Config(critics=ONE_UPDATE, target_noise=0.4, target_noise_clip=0.3, policy_delay=1, optimizer=optimizer)
    quick, slow = algorithm(config), algorithm(config)
    earlier = rollout(quick, 1)
    for learner in (quick, slow):  # so that the slow copies are not the networks themselves
        learner.learn(earlier)
    data = rollout(quick)
    metrics = quick.learn(data)

    policy, critics = slow.policy, slow.critics
    critics.take_in(data)
    samples = critics.draw()
    noise = torch.randn(48, 2, generator=slow._generator)

    def action_of(network: Any, inputs: Tensor) -> Tensor:
        return network.head.layer(network.body(inputs[None, None], {}, None)[0])[0].tanh()  # type: ignore[no-any-return]

    def values(networks: Any, inputs: Tensor, action: Tensor) -> list[float]:
        return [float(one(inputs[None], action[None])) for one in networks.both]

    critic_loss = actor_loss = 0.0
    assert isinstance(samples.inputs, Tensor)
    assert isinstance(samples.next_inputs, Tensor)
    clipped = 0
    with torch.no_grad():
        for row in range(48):
            inputs, next_inputs = samples.inputs[row], samples.next_inputs[row]
            stray = [max(-0.3, min(0.3, 0.4 * float(each))) for each in noise[row]]
            clipped += sum(abs(each) == 0.3 for each in stray)
            near = (action_of(slow.target.network, next_inputs) + torch.tensor(stray)).clamp(-1.0, 1.0)
            following = min(values(critics.target.network, next_inputs, near))
            target = float(samples.reward[row] + samples.discount[row] * following)
            for value in values(critics.online, inputs, samples.action[row]):
                critic_loss += 0.5 * (value - target) ** 2 / 48
            # The policy is improved by the first value as it is after its own step.
            actor_loss -= values(quick.critics.online, inputs, action_of(policy.actor, inputs))[0] / 48
    assert clipped > 10
    assert metrics["critic_loss"].item() == pytest.approx(critic_loss, rel=1e-4)
    assert metrics["actor_loss"].item() == pytest.approx(actor_loss, rel=1e-4)


def test_the_policy_and_the_copies_wait() -> None:
    """With a delay of 3, updates 2, 5, … of the run move them, however the updates fall into rollouts."""
    learner = algorithm(TD3Config(critics=ONE_UPDATE, policy_delay=3, optimizer=Adam(learning_rate=1e-2)))
    moved = []
    for number in range(7):
        before = weights(learner)
        first = [part.clone() for part in learner.target.network.parameters()]
        values = [part.clone() for part in learner.critics.target.network.parameters()]
        online = [part.clone() for part in learner.critics.online.parameters()]
        learner.learn(rollout(learner, number))
        after = weights(learner)
        moved.append(not torch.equal(before[0], after[0]))
        for old, now, copy in zip(first, after, learner.target.network.parameters(), strict=True):
            torch.testing.assert_close(copy, 0.9 * old + 0.1 * now if moved[-1] else old)
        assert all(
            not torch.equal(one, other) for one, other in zip(online, learner.critics.online.parameters(), strict=True)
        )
        followed = not torch.equal(values[0], next(learner.critics.target.network.parameters()))
        assert followed == moved[-1]
    assert moved == [False, False, True, False, False, True, False]


def test_exploration_is_what_the_config_says() -> None:
    """On [0, 5], noise of 0.2 is 0.5."""
    learner = algorithm(TD3Config(critics=ONE_UPDATE, exploration_noise=0.2))
    obs = torch.zeros(20_000, 3)
    drawn = learner.policy.act(obs, {}, torch.Generator().manual_seed(0)).action - learner.policy(obs, {})[0].detach()
    torch.testing.assert_close(drawn.std(0), torch.tensor([0.2, 0.5]), rtol=0.03, atol=0)


@pytest.mark.parametrize("name", BOUNDED_PROBES)
def test_probe(name: str) -> None:
    """Smoothing costs the variance of the target noise, at every step: it is small here."""
    probe = BOUNDED_PROBES[name]
    config = TD3Config(critics=CRITICS, exploration_noise=0.3, target_noise=0.02, optimizer=Adam(learning_rate=3e-3))
    learner, _ = learn(config, probe, 200, PROBING_POLICY)
    action, value = answers(learner, probe)
    torch.testing.assert_close(value, probe.value(GAMMA), rtol=0, atol=VALUE_TOLERANCE)
    torch.testing.assert_close(action, probe.best_action, rtol=0, atol=ACTION_TOLERANCE)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TD3Config(policy_delay=0), "policy_delay must be at least 1, not 0"),
        (lambda: TD3Config(target_noise=-0.1), "target_noise must not be negative, and is -0.1"),
        (lambda: TD3Config(exploration_noise=float("nan")), "exploration_noise must not be negative, and is nan"),
    ],
)
def test_impossible_values_are_refused(build: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()
