"""The policy: what it remembers of a decision, action ranges, separate value encoders, bf16 features."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from greenroom.memory import Memory, MemoryKind
from greenroom.networks import Mlp, Nips
from greenroom.policy import ActorCritic, BoundedGaussian, PolicyConfig, Precision, one_step
from greenroom.spec import MASK, ActionSpec, ArraySpec, Bounded, Discrete, EnvSpec, MultiDiscrete
from greenroom.types import restart

SMALL = Mlp(hidden=(16,))
ACTIONS: list[ActionSpec] = [
    Discrete(n=5),
    MultiDiscrete(nvec=(2, 4)),
    Bounded(shape=(2, 2), low=(-1.0, 0.0, -3.0, 10.0), high=(1.0, 0.1, 5.0, 11.0)),
]


def policy(action: ActionSpec, config: PolicyConfig | None = None, precision: Precision = "float32") -> ActorCritic:
    torch.manual_seed(0)
    spec = EnvSpec(name="x", obs=ArraySpec(shape=(3,)), action=action)
    return ActorCritic(config or PolicyConfig(network=SMALL, initialisation="fan_in"), spec, precision)


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def observations(count: int = 64) -> Tensor:
    return torch.randn(count, 3, generator=source(9))


@pytest.mark.parametrize("action", ACTIONS)
def test_a_decision_holds_what_the_learner_needs(action: ActionSpec) -> None:
    """Evaluating the remembered sample gives the remembered log-probability and value."""
    mind, obs = policy(action), observations()
    decision = mind.act(obs, {}, source())
    distribution, value = mind.evaluate(one_step(obs), {}, None)
    assert decision.extras.keys() == {"sample", "log_prob", "value"}
    torch.testing.assert_close(decision.extras["log_prob"], distribution.log_prob(decision.extras["sample"]).detach())
    torch.testing.assert_close(decision.extras["value"], value.detach())
    torch.testing.assert_close(mind.value(obs, {}), value.detach())
    assert value.requires_grad
    assert not any(part.requires_grad for part in (decision.action, *decision.extras.values()))


@pytest.mark.parametrize(
    ("action", "shape", "dtype"),
    [
        (ACTIONS[0], (64,), torch.int64),
        (ACTIONS[1], (64, 2), torch.int64),
        (ACTIONS[2], (64, 2, 2), torch.float32),
    ],
)
def test_actions_have_the_environment_s_shape(action: ActionSpec, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    mind = policy(action)
    for chosen in (mind.act(observations(), {}, source()).action, mind(observations(), {})[0]):
        assert chosen.shape == shape
        assert chosen.dtype == dtype


@pytest.mark.parametrize("action", ACTIONS)
def test_acting_depends_on_its_generator_alone(action: ActionSpec) -> None:
    mind, obs = policy(action), observations()
    first = mind.act(obs, {}, source(1))
    torch.manual_seed(123)
    assert torch.equal(first.action, mind.act(obs, {}, source(1)).action)
    assert not torch.equal(first.action, mind.act(obs, {}, source(2)).action)


def test_the_greedy_action_is_the_most_probable_one() -> None:
    mind, obs = policy(Discrete(n=5)), observations()
    distribution, _ = mind.evaluate(one_step(obs), {}, None)
    every = torch.stack([distribution.log_prob(torch.full((64,), choice)) for choice in range(5)])
    assert torch.equal(mind(obs, {})[0], every.argmax(0))
    assert len(set(mind(obs, {})[0].tolist())) > 1


def test_bounded_actions_are_scaled_to_their_range() -> None:
    mind = policy(ACTIONS[2])
    unit = torch.tensor([[-1.0, -1.0, -1.0, -1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [-9.0, 9.0, 0.5, 2.0]])
    found = mind.head.to_env(unit)
    expected = [
        [[-1.0, 0.0], [-3.0, 10.0]],
        [[1.0, 0.1], [5.0, 11.0]],
        [[0.0, 0.05], [1.0, 10.5]],
        [[-1.0, 0.1], [3.0, 11.0]],
    ]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_bounded_actions_never_leave_their_range_by_rounding() -> None:
    """Low + (high − low) rounds past high for many pairs of float32 numbers; the ends must be met exactly."""
    bounds = torch.randn(2, 500, generator=source()).sort(0).values
    low, high = bounds
    assert bool((low + (high - low) > high).any())
    spec = Bounded(shape=(500,), low=tuple(low.tolist()), high=tuple(high.tolist()))
    head = policy(spec).head
    assert torch.equal(head.to_env(torch.ones(1, 500)), high[None])
    assert torch.equal(head.to_env(-torch.ones(1, 500)), low[None])
    inside = head.to_env(torch.rand(2000, 500, generator=source()) * 2 - 1)
    assert bool(((inside >= low) & (inside <= high)).all())


def test_initial_log_std() -> None:
    mind = policy(ACTIONS[2], PolicyConfig(network=SMALL, initial_log_std=-1.5))
    assert isinstance(mind.head, BoundedGaussian)
    assert mind.head.log_std.tolist() == [-1.5] * 4
    distribution, _ = mind.evaluate(one_step(observations(4000).zero_()), {}, None)
    spread = distribution.sample(source()).std(0)
    torch.testing.assert_close(spread, torch.full((4,), -1.5).exp(), rtol=0.06, atol=0)


@pytest.mark.parametrize("separate", [False, True])
def test_a_separate_value_encoder_shares_nothing(separate: bool) -> None:
    mind = policy(Discrete(n=3), PolicyConfig(network=SMALL, separate_value=separate))
    _, value = mind.evaluate(one_step(observations()), {}, None)
    value.square().sum().backward()
    assert (next(mind.body.parameters()).grad is None) == separate


def test_the_policy_starts_even() -> None:
    """Orthogonal weights of gain 0.01: nearly the same probability for every action."""
    mind = policy(Discrete(n=4), PolicyConfig(network=SMALL))
    distribution, _ = mind.evaluate(one_step(observations()), {}, None)
    assert distribution.entropy().min().item() == pytest.approx(torch.tensor(4.0).log().item(), abs=1e-3)


def test_bfloat16_is_for_the_encoder_alone() -> None:
    """Nearly the same numbers as in float32, and float32 again behind the encoder."""
    torch.manual_seed(0)
    spec = EnvSpec(name="x", obs=ArraySpec(shape=(4, 84, 84), dtype=torch.uint8), action=Discrete(n=6))
    config = PolicyConfig(network=Nips(), initialisation="fan_in")
    exact, rounded = ActorCritic(config, spec, "float32"), ActorCritic(config, spec, "bfloat16")
    rounded.load_state_dict(exact.state_dict())
    obs = torch.randint(256, (3, 4, 84, 84), generator=source(), dtype=torch.uint8)
    assert exact.value(obs, {}).dtype == rounded.value(obs, {}).dtype == torch.float32
    torch.testing.assert_close(exact.value(obs, {}), rounded.value(obs, {}), rtol=0.05, atol=0.01)
    assert not torch.equal(exact.value(obs, {}), rounded.value(obs, {}))
    distribution, value = rounded.evaluate(one_step(obs), {}, None)
    (distribution.entropy().sum() + value.sum()).backward()
    assert all(param.dtype == torch.float32 and param.grad is not None for param in rounded.parameters())


def test_one_module_holds_everything_that_acts() -> None:
    """A copy through the state_dict decides alike: normaliser, log standard deviation and action range included."""
    config = PolicyConfig(network=SMALL, normalize_obs=True, separate_value=True)
    one = policy(ACTIONS[2], config)
    one.normalizer.update(observations() * 4 + 1)
    assert isinstance(one.head, BoundedGaussian)
    torch.nn.init.normal_(one.head.log_std)
    other = policy(ACTIONS[2], config)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    mine, theirs = one.act(observations(), {}, source()), other.act(observations(), {}, source())
    assert torch.equal(mine.action, theirs.action)
    assert all(torch.equal(part, theirs.extras[name]) for name, part in mine.extras.items())


@pytest.mark.parametrize("kind", ["gru", "lstm"])
@pytest.mark.parametrize("separate", [False, True])
def test_sequences_give_what_the_steps_gave(kind: MemoryKind, separate: bool) -> None:
    """A pass over time, with ends of episodes inside, equals acting step by step with the state started anew."""
    config = PolicyConfig(network=SMALL, memory=Memory(memory=kind, memory_size=8), separate_value=separate)
    mind, length, actors = policy(Discrete(n=3), config), 7, 5
    obs = torch.randn(length, actors, 3, generator=source(1))
    cut = torch.rand(length, actors, generator=source(2)) < 0.3
    initial = mind.initial_state(actors)
    assert len(initial) == (2 if separate else 1) * (2 if kind == "lstm" else 1)
    first = {name: torch.randn(part.shape, generator=source(3)) for name, part in initial.items()}
    state, samples, log_probs, values = first, [], [], []
    for t in range(length):
        decision = mind.act(obs[t], state, source(t))
        samples.append(decision.extras["sample"])
        log_probs.append(decision.extras["log_prob"])
        values.append(decision.extras["value"])
        torch.testing.assert_close(mind.value(obs[t], state), values[-1])
        state = restart(decision.state, initial, cut[t])
    distribution, value = mind.evaluate(obs, first, cut)
    torch.testing.assert_close(value.detach(), torch.cat(values))
    torch.testing.assert_close(distribution.log_prob(torch.cat(samples)).detach(), torch.cat(log_probs))
    without_ends = mind.evaluate(obs, first, None)[1].detach()
    assert not torch.allclose(without_ends, torch.cat(values))


def test_gradients_reach_back_in_time_but_not_across_an_end() -> None:
    mind = policy(Discrete(n=3), PolicyConfig(network=SMALL, memory=Memory(memory="gru", memory_size=8)))
    obs = torch.randn(4, 1, 3, generator=source(1)).requires_grad_()
    cut = torch.tensor([[False], [True], [False], [False]])
    mind.evaluate(obs, mind.initial_state(1), cut)[1][-1].backward()  # the value at the last step
    assert obs.grad is not None
    assert [bool(row.any()) for row in obs.grad] == [False, False, True, True]


@pytest.mark.parametrize("action", ACTIONS[:2])
def test_forbidden_actions_are_never_chosen(action: ActionSpec) -> None:
    """Not sampled, not greedy, with probability zero; and a row that allows nothing stays finite."""
    choices = 5 if isinstance(action, Discrete) else 6
    torch.manual_seed(0)
    spec = EnvSpec(name="x", obs={"o": ArraySpec(shape=(3,)), MASK: ArraySpec(shape=(choices,))}, action=action)
    mind = ActorCritic(PolicyConfig(network=SMALL), spec, "float32")
    mask = torch.zeros(300, choices)
    mask[:, [1, choices - 1]] = 1.0  # one of each choice's own, for two choices
    obs = {"o": observations(300), MASK: mask}
    decision = mind.act(obs, {}, source())
    for chosen in (decision.action, mind(obs, {})[0]):
        if isinstance(action, Discrete):
            assert set(chosen.tolist()) <= {1, 4}
        else:
            assert chosen.unique(dim=0).tolist() == [[1, 3]]
    distribution, value = mind.evaluate(one_step(obs), {}, None)
    entropy = distribution.entropy()
    assert float(entropy.detach().max()) <= math.log(2) + 1e-5
    (entropy.sum() + value.sum() + distribution.log_prob(decision.extras["sample"]).sum()).backward()
    assert all(bool(part.grad.isfinite().all()) for part in mind.parameters() if part.grad is not None)
    nothing = mind.act(obs | {MASK: torch.zeros_like(mask)}, {}, source())
    assert all(bool(part.isfinite().all()) for part in nothing.extras.values())
