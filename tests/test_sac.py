"""SAC: its targets and losses against slow definitions, the temperature, its replay, and tasks with known answers."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bounded_probes import ACTION_TOLERANCE, BOUNDED_PROBES, CRITICS, PROBING_POLICY, VALUE_TOLERANCE, answers
from greenroom.acting import Collector
from greenroom.algorithms.check import check_algorithm, synthetic_rollout
from greenroom.algorithms.critics import CriticConfig, Critics, StateActionValue
from greenroom.algorithms.replaying import Drawing
from greenroom.algorithms.sac import SAC, SACConfig, Temperature
from greenroom.algorithms.targets import TargetNetwork
from greenroom.errors import UserError
from greenroom.networks import Mlp, Nips
from greenroom.optim import Adam
from greenroom.policy import PolicyConfig
from greenroom.replay import ReplayConfig
from greenroom.spec import ArraySpec, Bounded, EnvSpec
from greenroom.types import Rollout
from probing import GAMMA, learn

ACTION = Bounded(shape=(2,), low=(-1.0, 0.0), high=(1.0, 5.0))
SPEC = EnvSpec(name="x", obs=ArraySpec(shape=(3,)), action=ACTION)
SETTINGS = PolicyConfig(network=Mlp(hidden=(16,)), normalize_obs=True)
NUM_ENVS, LENGTH = 8, 6
SMALL = CriticConfig(
    gamma=0.9,
    drawing=Drawing(batch_size=8, replay_ratio=1.0, learning_starts=16),
    replay=ReplayConfig(capacity=1000),
    target=TargetNetwork(target_every=1, tau=0.1),
)
ONE_UPDATE = dataclasses.replace(SMALL, drawing=Drawing(batch_size=48, replay_ratio=1.0, learning_starts=0))
"""Each rollout of 48 steps calls for one batch of 48."""
PROBING = SACConfig(critics=CRITICS, temperature=0.002, learn_temperature=False, optimizer=Adam(learning_rate=0.01))
"""So low a temperature hardly counts: a nat of entropy is worth no more than the tolerance of actions costs."""


def algorithm(config: SACConfig, spec: EnvSpec = SPEC, settings: PolicyConfig = SETTINGS) -> SAC:
    torch.manual_seed(0)
    policy = config.policy(settings, spec, "float32")
    return config.build(policy, spec=spec, num_envs=NUM_ENVS, rollout_length=LENGTH, total_steps=10_000, seed=0)


def rollout(learner: SAC, seed: int = 0) -> Rollout:
    return synthetic_rollout(learner.policy, SPEC, num_envs=NUM_ENVS, rollout_length=LENGTH, seed=seed)


SPECS = {
    "vector": SPEC,
    "dict": dataclasses.replace(SPEC, obs={"a": ArraySpec(shape=(3,)), "b.c": ArraySpec(shape=(2, 2))}),
    "scalar action": dataclasses.replace(SPEC, action=Bounded(shape=(), low=(0.0,), high=(1.0,))),
    "array of actions": dataclasses.replace(SPEC, action=Bounded(shape=(2, 2), low=(0.0,) * 4, high=(1.0,) * 4)),
    "picture and arm": dataclasses.replace(
        SPEC, obs={"eye": ArraySpec(shape=(4, 36, 36), dtype=torch.uint8), "arm": ArraySpec(shape=(3,))}
    ),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_the_contract_on_every_kind_of_space(spec: EnvSpec) -> None:
    check_algorithm(SACConfig(critics=SMALL), spec, policy=dataclasses.replace(SETTINGS, network=Mlp(hidden=(8,))))


def test_the_contract_with_every_option() -> None:
    replay = ReplayConfig(capacity=1000, n_step=3, prioritised=True)
    config = SACConfig(
        critics=dataclasses.replace(SMALL, replay=replay, drawing=dataclasses.replace(SMALL.drawing, replay_ratio=0.7)),
        learn_temperature=False,
        temperature=0.1,
        target_entropy=-2.0,
        optimizer=Adam(learning_rate=1e-3),
    )
    check_algorithm(config, SPEC, policy=SETTINGS)
    picture = dataclasses.replace(SPEC, obs=ArraySpec(shape=(4, 84, 84), dtype=torch.uint8))
    few = dataclasses.replace(
        config,
        critics=dataclasses.replace(
            config.critics, drawing=Drawing(batch_size=24, replay_ratio=1.0, learning_starts=0)
        ),
    )
    check_algorithm(few, picture, policy=PolicyConfig(network=Nips()))


def test_one_update_against_a_slow_definition() -> None:
    """Every number of the two losses, transition by transition, from the definitions in the paper."""
    optimizer = Adam(learning_rate=1e-2)
    config = SACConfig(critics=ONE_UPDATE, temperature=0.3, learn_temperature=False, optimizer=optimizer)
    quick, slow = algorithm(config), algorithm(config)
    earlier = rollout(quick, 1)
    for learner in (quick, slow):  # so that the slow copies are not the networks themselves
        learner.learn(earlier)
    data = rollout(quick)
    metrics = quick.learn(data)

    policy, critics = slow.policy, slow.critics
    assert list(critics.take_in(data)) == [1]
    samples, generator = critics.draw(), slow._generator
    noise = [torch.randn(48, 2, generator=generator) for _ in range(2)]
    layer: Any = policy.actor.head.layer

    def draw(inputs: Tensor, number: int, row: int) -> tuple[Tensor, float]:
        mean, log_std = layer(policy.actor.body(inputs[None, None], {}, None)[0])[0].chunk(2)
        raw = mean + log_std.exp() * noise[number][row]
        density = -0.5 * ((raw - mean) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2 * math.pi)
        return raw.tanh(), float((density - (1 - raw.tanh() ** 2).log()).sum())

    def values(networks: Any, inputs: Tensor, action: Tensor) -> list[float]:
        return [float(one(inputs[None], action[None])) for one in networks.both]

    critic_loss = actor_loss = entropy = 0.0
    assert isinstance(samples.inputs, Tensor)
    assert isinstance(samples.next_inputs, Tensor)
    with torch.no_grad():
        for row in range(48):
            action, log_prob = draw(samples.next_inputs[row], 0, row)
            soft = min(values(critics.target.network, samples.next_inputs[row], action)) - 0.3 * log_prob
            target = float(samples.reward[row] + samples.discount[row] * soft)
            for value in values(critics.online, samples.inputs[row], samples.action[row]):
                critic_loss += 0.5 * (value - target) ** 2 / 48
            action, log_prob = draw(samples.inputs[row], 1, row)
            # The policy is improved by the values as they are after their own step.
            actor_loss += (0.3 * log_prob - min(values(quick.critics.online, samples.inputs[row], action))) / 48
            entropy -= log_prob / 48
    assert metrics["critic_loss"].item() == pytest.approx(critic_loss, rel=1e-4)
    assert metrics["actor_loss"].item() == pytest.approx(actor_loss, rel=1e-4)
    assert metrics["entropy"].item() == pytest.approx(entropy, rel=1e-4)
    assert metrics["temperature"].item() == pytest.approx(0.3)
    assert metrics["replay_size"].item() == 96


def test_transitions_reach_the_loss_as_they_were() -> None:
    """Actions within [-1, 1], observations under the newest statistics, and no future after an end."""
    learner = algorithm(SACConfig(critics=ONE_UPDATE))
    data = rollout(learner)
    assert isinstance(data.obs, Tensor)
    learner.critics.take_in(data)
    samples = learner.critics.draw()
    seen = data.obs[:-1].flatten(0, 1)
    inputs = (seen - seen.mean(0)) / seen.std(0, correction=0)
    assert isinstance(samples.inputs, Tensor)
    rows = torch.cdist(samples.inputs, inputs).argmin(1)
    torch.testing.assert_close(samples.inputs, inputs[rows], rtol=1e-4, atol=1e-4)
    half = torch.tensor([1.0, 2.5])
    torch.testing.assert_close(samples.action, data.action.flatten(0, 1)[rows] / half - torch.tensor([0.0, 1.0]))
    assert torch.equal(samples.reward, data.reward.flatten()[rows])
    assert torch.equal(samples.discount, 0.9 * (~data.terminated.flatten()[rows]).float())
    assert 0 < int((samples.discount == 0).sum()) < 48
    goes_on = ~data.cut.flatten()[rows]
    following = (data.obs[1:].flatten(0, 1) - seen.mean(0)) / seen.std(0, correction=0)
    assert isinstance(samples.next_inputs, Tensor)
    torch.testing.assert_close(samples.next_inputs[goes_on], following[rows][goes_on], rtol=1e-4, atol=1e-4)


def test_an_update_moves_the_values_towards_the_target_and_the_copies_after_them() -> None:
    learner = algorithm(SACConfig(critics=ONE_UPDATE, optimizer=Adam(learning_rate=1e-2)))
    first = {name: part.clone() for name, part in learner.critics.online.state_dict().items()}
    learner.learn(rollout(learner))
    copies = learner.critics.target.network.state_dict()
    for name, now in learner.critics.online.state_dict().items():
        assert not torch.equal(now, first[name])
        torch.testing.assert_close(copies[name], 0.9 * first[name] + 0.1 * now)

    critics = learner.critics
    samples = critics.draw()
    target = samples.reward + samples.discount * 2.0

    def distance() -> Tensor:
        with torch.no_grad():
            return torch.stack(
                [(value - target).square().mean() for value in critics.online(samples.inputs, samples.action)]
            )

    before = distance()
    for _ in range(20):
        critics.update(samples, torch.full((48,), 2.0))
    assert bool((distance() < 0.5 * before).all())


def test_weights_of_samples_count_in_the_loss() -> None:
    critics = algorithm(SACConfig(critics=ONE_UPDATE)).critics
    critics.take_in(rollout(algorithm(SACConfig(critics=ONE_UPDATE))))
    samples = critics.draw()
    weight = torch.linspace(0.0, 1.0, 48)
    with torch.no_grad():
        error = critics.online(samples.inputs, samples.action) - samples.reward
    found = critics.update(dataclasses.replace(samples, weight=weight), torch.zeros(48))["critic_loss"]
    torch.testing.assert_close(found, (0.5 * weight * error.square()).sum() / 48)


def test_errors_become_priorities(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of both values' absolute errors, before the step that they cause."""
    critics = algorithm(SACConfig(critics=ONE_UPDATE)).critics
    critics.take_in(rollout(algorithm(SACConfig(critics=ONE_UPDATE))))
    told: list[tuple[Tensor, Tensor]] = []
    monkeypatch.setattr(critics.replay, "update_priorities", lambda index, error: told.append((index, error)))
    samples = critics.draw()
    with torch.no_grad():
        one, two = critics.online(samples.inputs, samples.action) - samples.reward - samples.discount * 3.0
    critics.update(samples, torch.full((48,), 3.0))
    ((index, error),) = told
    assert torch.equal(index, samples.index)
    torch.testing.assert_close(error, (one.abs() + two.abs()) / 2.0)


def test_improving_the_action_leaves_the_values_alone() -> None:
    critics = algorithm(SACConfig(critics=ONE_UPDATE)).critics
    action = torch.zeros(5, 2, requires_grad=True)
    critics.of_action(torch.ones(5, 3), action).sum().backward()
    assert action.grad is not None
    assert all(part.grad is None and part.requires_grad for part in critics.online.parameters())
    assert not any(part.requires_grad for part in critics.target.network.parameters())


def test_the_twins_begin_differently_and_by_the_seed_alone() -> None:
    policy, inputs, action = algorithm(SACConfig(critics=SMALL)).policy, torch.ones(5, 3), torch.zeros(5, 2)

    def twins(seed: int) -> Critics:
        return SMALL.build(policy, Adam(), spec=SPEC, num_envs=NUM_ENVS, total_steps=1000, seed=seed)

    one = twins(0)
    found = one.online(inputs, action)
    assert found.shape == (2, 5)
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found, one.target.network(inputs, action))
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert torch.equal(found, twins(0).online(inputs, action))
    assert not torch.equal(found, twins(1).online(inputs, action))
    assert torch.equal(state, torch.get_rng_state())


def test_pictures_are_encoded_before_the_action_joins() -> None:
    spec = SPECS["picture and arm"]
    policy = SACConfig(critics=SMALL).policy(SETTINGS, spec, "float32")
    value = StateActionValue(policy, spec)
    inputs: dict[str, Tensor] = {"eye": torch.rand(2, 4, 36, 36), "arm": torch.rand(2, 3)}
    action = torch.rand(2, 2)
    found = value(inputs, action)
    for changed in ({**inputs, "eye": inputs["eye"].flip(0)}, {**inputs, "arm": inputs["arm"].flip(0)}):
        assert not torch.equal(value(changed, action), found)
    assert not torch.equal(value(inputs, action.flip(0)), found)
    assert value.body is not None
    assert StateActionValue(SACConfig(critics=SMALL).policy(SETTINGS, SPEC, "float32"), SPEC).body is None


def test_the_temperature_s_gradient() -> None:
    """d/d(log α) of -log α·(log π + target) is minus their sum: α falls while the policy is too random."""
    temperature = Temperature(0.5)
    log_prob = torch.tensor([0.4, -2.6], requires_grad=True)
    temperature.loss(log_prob, -2.0).backward()
    assert temperature.log.grad is not None
    assert temperature.log.grad.item() == pytest.approx(1.1 + 2.0)
    assert log_prob.grad is None
    assert temperature().item() == pytest.approx(0.5)
    assert temperature().shape == ()
    assert not temperature().requires_grad


def test_the_temperature_settles_where_the_entropy_is_as_wanted() -> None:
    """The reward costs 4·(u - best)², so that at temperature α the best policy is a Gaussian of variance α/8.

    Its entropy, log √(2πe·α/8), is -1.5 at one temperature.
    """
    config = dataclasses.replace(PROBING, temperature=0.1, learn_temperature=True, target_entropy=-1.5)
    _, metrics = learn(config, BOUNDED_PROBES["delayed"], 150, PROBING_POLICY)
    assert metrics["entropy"].item() == pytest.approx(-1.5, abs=0.1)
    assert metrics["temperature"].item() == pytest.approx(8.0 * math.exp(-3.0) / (2.0 * math.pi * math.e), rel=0.2)


@pytest.mark.parametrize("name", BOUNDED_PROBES)
def test_probe(name: str) -> None:
    probe = BOUNDED_PROBES[name]
    learner, _ = learn(PROBING, probe, 150, PROBING_POLICY)
    action, value = answers(learner, probe)
    torch.testing.assert_close(value, probe.value(GAMMA), rtol=0, atol=VALUE_TOLERANCE)
    torch.testing.assert_close(action, probe.best_action, rtol=0, atol=ACTION_TOLERANCE)


def all_ends(terminated: bool) -> Any:
    """The usual mistake, of either kind: the two sorts of ends are merged into one."""
    rollout_of = Collector.__next__

    def merged(collector: Collector) -> Rollout:
        data = rollout_of(collector)
        none = torch.zeros_like(data.cut)
        ends, cuts = (data.cut, none) if terminated else (none, data.cut)
        return dataclasses.replace(data, terminated=ends, truncated=cuts)

    return merged


@pytest.mark.parametrize(("name", "wrong"), [("truncation", (0.0, 1.0, 0.0)), ("termination", (3.0, 5.0))])
def test_the_probes_find_merged_ends(name: str, wrong: tuple[float, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a future after a cut all is worth its reward; with one after an end, the rich earn for ever."""
    monkeypatch.setattr(Collector, "__next__", all_ends(terminated=name == "truncation"))
    learner, _ = learn(PROBING, BOUNDED_PROBES[name], 150, PROBING_POLICY)
    _, value = answers(learner, BOUNDED_PROBES[name])
    torch.testing.assert_close(value, torch.tensor(wrong), rtol=0, atol=2 * VALUE_TOLERANCE)


def test_a_rollout_without_updates_reports_the_last_ones() -> None:
    """Also after a resume: half a batch is due with every rollout."""
    config = SACConfig(
        critics=dataclasses.replace(ONE_UPDATE, drawing=Drawing(batch_size=48, replay_ratio=0.5, learning_starts=0))
    )
    learner, resumed = algorithm(config), algorithm(config)
    first, second = (learner.learn(rollout(learner, seed)) for seed in range(2))
    resumed.load_state_dict(copy.deepcopy(learner.state_dict()))
    third = rollout(learner, 2)
    for each in (learner, resumed):
        found = each.learn(third)
        assert all(torch.equal(found[name], second[name]) for name in second if name != "replay_size")
    assert first["q_mean"].item() == 0.0 != second["q_mean"].item()


def test_acting_is_random_until_learning_starts() -> None:
    learner = algorithm(SACConfig(critics=dataclasses.replace(SMALL, drawing=Drawing(learning_starts=96))))
    assert bool(learner.policy.at_random)
    before = {name: part.clone() for name, part in learner.policy.actor.state_dict().items()}
    metrics = learner.learn(rollout(learner))
    assert bool(learner.policy.at_random)
    assert all(metrics[name].item() == 0.0 for name in ("critic_loss", "actor_loss", "entropy", "q_mean"))
    resumed = algorithm(SACConfig(critics=SMALL))
    resumed.load_state_dict(copy.deepcopy(learner.state_dict()))
    assert resumed.learn(rollout(learner, 1)).keys() == learner.learn(rollout(learner, 1)).keys() == metrics.keys()
    assert not bool(learner.policy.at_random)
    assert all(torch.equal(part, before[name]) for name, part in learner.policy.actor.state_dict().items())
    assert not bool(algorithm(SACConfig(critics=ONE_UPDATE)).policy.at_random)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SACConfig(temperature=0.0), "temperature must be a finite number greater than 0, not 0.0"),
        (lambda: SACConfig(target_entropy=0.7), "target_entropy must be less than log 2 = 0.693, not 0.7"),
        (lambda: CriticConfig(gamma=1.5), r"gamma must lie in \[0, 1\], not 1.5"),
    ],
)
def test_impossible_values_are_refused(build: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()
