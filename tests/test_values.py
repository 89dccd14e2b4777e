"""Action values: exploration, heads and their losses against slow definitions; what a Q-policy does with them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from greenroom.algorithms.exploration import EpsilonGreedy
from greenroom.errors import UserError
from greenroom.maths.values import (
    best,
    categorical_projection,
    chosen,
    dueling,
    epsilon_greedy,
    quantile_huber,
    quantile_midpoints,
    sequence_priority,
)
from greenroom.memory import Memory
from greenroom.networks import Mlp, Nature, Nips
from greenroom.policy import PolicyConfig, one_step
from greenroom.spec import MASK, ArraySpec, Bounded, Discrete, EnvSpec, MultiDiscrete
from greenroom.values import Categories, Dense, Expectation, HeadConfig, QPolicy, Quantiles, ValueHead

VECTOR = ArraySpec(shape=(3,))
PLAIN = EnvSpec(name="plain", obs=VECTOR, action=Discrete(n=4))
MASKED = EnvSpec(name="masked", obs={"seen": VECTOR, MASK: ArraySpec(shape=(4,))}, action=Discrete(n=4))
RAINBOW = HeadConfig(dueling=True, noisy=True, distribution="c51", atoms=7)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mind(
    spec: EnvSpec = PLAIN, *, memory: str = "none", head: HeadConfig | None = None, epsilon: tuple[float, ...] = (0.0,)
) -> QPolicy:
    torch.manual_seed(0)
    kind = Memory(memory=memory, memory_size=5)  # type: ignore[arg-type]  # one of the kinds
    settings = PolicyConfig(network=Mlp(hidden=(8,)), memory=kind)
    return QPolicy(settings, spec, "float32", head=head or HeadConfig(), epsilon=epsilon)


def test_chosen_and_best() -> None:
    q = torch.tensor([[[1.0, 5.0], [7.0, 3.0]]])
    action = torch.tensor([[0, 1]])
    assert chosen(q, action).tolist() == [[1.0, 3.0]]
    assert best(q, action).tolist() == [[5.0, 7.0]]
    table = torch.arange(24.0).view(2, 3, 4)
    assert chosen(table, torch.tensor([2, 0])).tolist() == [[8.0, 9.0, 10.0, 11.0], [12.0, 13.0, 14.0, 15.0]]


def test_random_actions_are_as_frequent_as_epsilon_says_and_all_alike() -> None:
    rows = 40_000
    q = torch.tensor([0.0, 3.0, 1.0, 2.0]).expand(rows, 4)
    epsilon = torch.tensor([0.0, 0.5, 1.0, 0.1]).repeat(rows // 4)
    action = epsilon_greedy(q, None, epsilon, draws()).view(-1, 4)
    for column, share in enumerate((0.0, 0.5, 1.0, 0.1)):
        counts = torch.bincount(action[:, column], minlength=4) / len(action)
        expected = torch.full((4,), share / 4)
        expected[1] += 1 - share
        torch.testing.assert_close(counts, expected, rtol=0, atol=0.015)


def test_random_actions_are_allowed_ones() -> None:
    mask = torch.tensor([[True, False, True, True]]).expand(30_000, 4)
    q = torch.zeros(30_000, 4).masked_fill(~mask, -9.0)
    action = epsilon_greedy(q, mask, torch.ones(30_000), draws())
    counts = torch.bincount(action, minlength=4) / 30_000
    torch.testing.assert_close(counts, torch.tensor([1.0, 0.0, 1.0, 1.0]) / 3, rtol=0, atol=0.015)


def test_epsilon_falls_linearly_to_each_actor_s_own() -> None:
    exploration = EpsilonGreedy(epsilon_start=0.9, epsilon_final=(0.1, 0.5), epsilon_fraction=0.25)
    assert exploration.start == exploration.at(0, 400) == pytest.approx((0.9, 0.9))
    assert exploration.at(50, 400) == pytest.approx((0.5, 0.7))
    assert exploration.at(100, 400) == pytest.approx((0.1, 0.5))
    assert exploration.at(400, 400) == pytest.approx((0.1, 0.5))
    at_once = EpsilonGreedy(epsilon_final=(0.3,), epsilon_fraction=0.0)
    assert at_once.start == at_once.at(1, 400) == (0.3,)


def test_the_default_spread_is_a3c_s() -> None:
    final = EpsilonGreedy().epsilon_final
    assert [final.count(epsilon) / len(final) for epsilon in (0.1, 0.01, 0.5)] == [0.4, 0.3, 0.3]


@pytest.mark.parametrize(
    "wrong", [{"epsilon_start": 1.5}, {"epsilon_final": (0.1, -0.1)}, {"epsilon_fraction": math.nan}]
)
def test_exploration_refuses_what_is_no_probability(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(wrong))} must lie in"):
        EpsilonGreedy(**wrong)  # type: ignore[arg-type]  # deliberately
    with pytest.raises(UserError, match="one or more"):
        EpsilonGreedy(epsilon_final=())


def test_dueling_is_value_plus_centred_advantage() -> None:
    value, advantage = torch.randn(5, 1, 3), torch.randn(5, 4, 3)
    q = dueling(value, advantage)
    torch.testing.assert_close(q.mean(1, keepdim=True), value)
    torch.testing.assert_close(q[:, 2] - q[:, 0], advantage[:, 2] - advantage[:, 0])
    torch.testing.assert_close(dueling(value, advantage + 7.0), q)


def projected(probability: Tensor, support: Tensor, reward: float, discount: float) -> Tensor:
    """Algorithm 1 of Bellemare et al. 2017, atom by atom."""
    low, high, size = float(support[0]), float(support[-1]), len(support)
    spacing = (high - low) / (size - 1)
    mass = torch.zeros(size, dtype=torch.float64)
    for atom in range(size):
        moved = min(max(reward + discount * float(support[atom]), low), high)
        position = min((moved - low) / spacing, size - 1)
        left = math.floor(position)
        share = position - left
        mass[left] += float(probability[atom]) * (1 - share)
        if share:
            mass[left + 1] += float(probability[atom]) * share
    return mass.float()


def test_categorical_projection() -> None:
    support = torch.linspace(-2.0, 3.0, 11)
    probability = torch.randn(6, 11, generator=draws()).softmax(-1)
    reward = torch.tensor([0.0, 0.3, -1.7, 9.0, 0.25, 0.5])
    discount = torch.tensor([1.0, 0.9, 0.99, 0.9, 0.0, 0.0])
    got = categorical_projection(probability, support, reward, discount)
    rows = zip(probability, reward.tolist(), discount.tolist(), strict=True)
    expected = torch.stack([projected(mass, support, earned, count) for mass, earned, count in rows])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.sum(-1), torch.ones(6))
    assert got[5].argmax() == 5  # a reward of 0.5, which is an atom, and then nothing
    torch.testing.assert_close(got[0], probability[0])


def test_quantile_loss() -> None:
    quantile, target = torch.randn(3, 4, generator=draws(1)) * 2, torch.randn(3, 5, generator=draws(2)) * 2
    levels = quantile_midpoints(4)
    assert levels.tolist() == [0.125, 0.375, 0.625, 0.875]
    expected = torch.zeros(3)
    for row, i, j in itertools.product(range(3), range(4), range(5)):
        error = float(target[row, j] - quantile[row, i])
        huber = 0.5 * error**2 if abs(error) <= 1 else abs(error) - 0.5
        expected[row] += abs(float(levels[i]) - (error < 0)) * huber / 5
    torch.testing.assert_close(quantile_huber(quantile, target, levels), expected)


def test_quantile_loss_finds_quantiles() -> None:
    """Far apart the loss is linear, and its gradient vanishes where the level's share of the target lies below."""
    target = torch.arange(100.0).unsqueeze(0) * 10
    guess = torch.tensor([[120.0, 500.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(quantile_huber(guess, target, torch.tensor([0.125, 0.5])).sum(), guess)
    assert gradient.abs().max() < 0.006
    (gradient,) = torch.autograd.grad(quantile_huber(guess, target + 200, torch.tensor([0.125, 0.5])).sum(), guess)
    assert (gradient < -0.1).all()


def test_sequence_priority() -> None:
    error = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    torch.testing.assert_close(sequence_priority(error), torch.tensor([0.9 * 3 + 0.1 * 2, 0.9 * 2 + 0.1 * 1]))
    assert sequence_priority(error[:1]).tolist() == pytest.approx([1.0, 2.0])


def test_loss_of_expectations() -> None:
    outputs, successor = torch.tensor([[1.0], [1.0]]), torch.tensor([[2.0], [8.0]])
    reward, discount = torch.tensor([0.5, 1.0]), torch.tensor([0.5, 0.5])
    loss, error = Expectation("squared").loss(outputs, successor, reward, discount)
    assert (loss.tolist(), error.tolist()) == ([0.125, 8.0], [0.5, 4.0])
    loss, error = Expectation("huber").loss(outputs, successor, reward, discount)
    assert (loss.tolist(), error.tolist()) == ([0.125, 3.5], [0.5, 4.0])


def test_loss_of_categories_is_least_at_the_target() -> None:
    returns = Categories(5, -2.0, 2.0)
    successor = torch.randn(1, 5, generator=draws())
    reward, discount = torch.tensor([0.4]), torch.tensor([0.9])
    target = categorical_projection(successor.softmax(-1), returns.support, reward, discount)
    entropy = -(target * target.log()).sum()
    loss, error = returns.loss(target.log(), successor, reward, discount)
    torch.testing.assert_close(loss[0], entropy)
    assert torch.equal(loss, error)
    assert float(returns.loss(target.log() + torch.eye(5)[0], successor, reward, discount)[0]) > float(entropy) + 0.01
    torch.testing.assert_close(returns.mean(torch.zeros(2, 5)), torch.zeros(2))
    torch.testing.assert_close(returns.mean(torch.eye(5) * 100), torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]))


def test_loss_of_quantiles() -> None:
    returns = Quantiles(2)
    outputs, successor = torch.tensor([[0.0, 2.0]]), torch.tensor([[4.0, 6.0]])
    loss, error = returns.loss(outputs, successor, torch.tensor([1.0]), torch.tensor([0.5]))
    # Targets 3 and 4, levels 1/4 and 3/4: (0.25·(2.5 + 3.5) + 0.75·(0.5 + 1.5)) / 2; means 1 and 3.5.
    assert (loss.tolist(), error.tolist()) == ([1.5], [2.5])
    assert returns.mean(outputs).tolist() == [1.0]


def test_noise_is_factorised() -> None:
    """Row by row the same as a layer whose weights and biases are really noisy."""
    layer = Dense(3, 2, noisy=True)
    layer.initialise("orthogonal", 1.0)
    assert layer.scale is not None
    nn.init.normal_(layer.scale.weight, generator=draws(3))
    x = torch.randn(5, 3, generator=draws(4))
    got = layer(x, draws(5))
    source = draws(5)
    into, out = torch.randn(5, 3, generator=source), torch.randn(5, 2, generator=source)
    into, out = into.sign() * into.abs().sqrt(), out.sign() * out.abs().sqrt()
    for row in range(5):
        weight = layer.mean.weight + layer.scale.weight * torch.outer(out[row], into[row])
        bias = layer.mean.bias + layer.scale.bias * out[row]
        torch.testing.assert_close(got[row], weight @ x[row] + bias)


def test_noise_has_its_mean_and_variance() -> None:
    """f(ε) = sign(ε)√|ε| has mean 0 and variance E|ε| = √(2/π)."""
    layer = Dense(4, 3, noisy=True)
    layer.initialise("fan_in", 1.0)
    assert layer.scale is not None
    assert torch.equal(layer.scale.weight, torch.full((3, 4), 0.25))  # 0.5/√4
    assert torch.equal(layer.scale.bias, torch.full((3,), 0.25))
    x = torch.tensor([1.0, -2.0, 0.5, 0.0])
    many = layer(x.expand(200_000, 4), draws()).detach()
    spread = math.sqrt(2 / math.pi)
    variance = spread * 0.25**2 * (spread * float(x.square().sum()) + 1)
    torch.testing.assert_close(many.mean(0), layer(x.unsqueeze(0), None)[0].detach(), rtol=0, atol=0.01)
    torch.testing.assert_close(many.var(0), torch.full((3,), variance), rtol=0.03, atol=0)


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("split", [False, True])
def test_the_head_s_shape_and_layers(split: bool, noisy: bool) -> None:
    head = ValueHead(6, 4, 3, dueling=split, noisy=noisy)
    head.initialise("orthogonal")
    outputs = head(torch.randn(5, 6), draws())
    assert outputs.shape == (5, 4, 3)
    once = (6 * 6 + 6) + (6 * 12 + 12) + (6 * 6 + 6) + (6 * 3 + 3) if split else 6 * 12 + 12
    assert sum(param.numel() for param in head.parameters()) == (2 if noisy else 1) * once
    outputs.sum().backward()
    assert all(param.grad is not None for param in head.parameters())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"atoms": 1}, "atoms must be at least 2"),
        ({"v_min": 3.0, "v_max": 3.0, "distribution": "c51"}, "v_min less than v_max"),
        ({"distribution": "c51", "loss": "squared"}, "c51 has a loss of its own"),
        ({"distribution": "quantile", "v_max": 200.0}, "are for distribution=c51, not for quantile"),
    ],
)
def test_head_refusals(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        HeadConfig(**wrong)  # type: ignore[arg-type]  # deliberately


@pytest.mark.parametrize("head", [HeadConfig(), RAINBOW, HeadConfig(distribution="quantile", atoms=3)])
@pytest.mark.parametrize("memory", ["none", "gru", "lstm"])
def test_greedy_acting_is_what_is_exported(memory: str, head: HeadConfig) -> None:
    policy = mind(memory=memory, head=head, epsilon=(1.0,))
    obs, state = torch.randn(6, 3), policy.initial_state(6)
    decision = policy.act(obs, state, None)
    action, after = policy(obs, state)
    assert torch.equal(decision.action, action)
    assert torch.equal(decision.action, decision.extras["q"].argmax(-1))
    assert after.keys() == decision.state.keys() == state.keys()
    assert all(torch.equal(after[name], decision.state[name]) for name in after)
    assert torch.equal(action, policy(obs, state)[0])


def test_every_actor_has_its_epsilon() -> None:
    policy = mind(epsilon=(0.0, 1.0, 0.0))
    obs, state = torch.randn(1, 3).expand(9000, 3), policy.initial_state(9000)
    assert state["actor"].tolist() == list(range(9000))
    action = policy.act(obs, state, draws()).action
    greedy = policy.act(obs, state, None).action
    same = (action == greedy).view(-1, 3).float().mean(0)
    assert same[0] == same[2] == 1.0
    assert float(same[1]) == pytest.approx(0.25, abs=0.03)
    # A group of environments acts with its own actors' numbers.
    part = {"actor": state["actor"][3:6]}
    assert policy.act(obs[:3], part, draws()).state["actor"].tolist() == [3, 4, 5]
    policy.explore((0.0, 0.0, 0.0))
    assert torch.equal(policy.act(obs, state, draws()).action, greedy)
    other = mind(epsilon=(0.5, 0.5, 0.5))
    other.load_state_dict(policy.state_dict())
    assert other.epsilon.tolist() == [0.0, 0.0, 0.0]


def test_masks_are_obeyed_greedily_at_random_and_in_values() -> None:
    policy = mind(MASKED, epsilon=(0.0, 1.0))
    mask = torch.rand(400, 4, generator=draws()) > 0.5
    mask[:, 2] |= ~mask.any(-1)
    obs = {"seen": torch.randn(400, 3), MASK: mask.float()}
    for generator in (None, draws()):
        decision = policy.act(obs, policy.initial_state(400), generator)
        assert chosen(mask, decision.action).all()
    free = policy.values(one_step(obs | {MASK: torch.ones(400, 4)}), {}, None)
    q = policy.values(one_step(obs), {}, None)
    assert torch.equal(q[mask], free[mask])
    assert (q[~mask] == torch.finfo(torch.float32).min).all()
    assert torch.equal(policy(obs, policy.initial_state(400))[0], free.masked_fill(~mask, -1e9).argmax(-1))


def test_where_nothing_is_allowed_values_are_what_they_would_be() -> None:
    """The last observation of an episode may come with an empty mask, and a time limit asks for its value."""
    policy = mind(MASKED)
    obs = {"seen": torch.randn(2, 3), MASK: torch.zeros(2, 4)}
    free = policy.values(one_step(obs | {MASK: torch.ones(2, 4)}), {}, None)
    assert torch.equal(policy.values(one_step(obs), {}, None), free)


@pytest.mark.parametrize("memory", ["gru", "lstm"])
def test_looking_again_at_sequences_finds_what_acting_found(memory: str) -> None:
    policy = mind(memory=memory)
    obs, cut = torch.randn(6, 4, 3), torch.rand(6, 4) < 0.4
    first = state = policy.initial_state(4)
    seen = []
    for t in range(6):
        decision = policy.act(obs[t], state, draws())
        seen.append(decision.extras["q"])
        state = {
            name: torch.where(cut[t].view(-1, *[1] * (part.ndim - 1)), first[name], part)
            for name, part in decision.state.items()
        }
    assert bool(cut[:-1].any())
    torch.testing.assert_close(policy.values(obs, first, cut).detach(), torch.cat(seen))


@pytest.mark.parametrize(
    "action", [MultiDiscrete(nvec=(2, 3)), Bounded(shape=(1,), low=(0.0,), high=(1.0,))], ids=["multi", "continuous"]
)
def test_other_actions_are_refused(action: MultiDiscrete | Bounded) -> None:
    with pytest.raises(UserError, match=r"other does not have discrete actions.*ppo or a2c.*sac"):
        mind(EnvSpec(name="other", obs=VECTOR, action=action))


def test_layer_normalisation() -> None:
    plain, normed = (Mlp(hidden=(6, 5), layer_norm=on).build(VECTOR)[0] for on in (False, True))
    assert sum(isinstance(part, nn.LayerNorm) for part in plain.modules()) == 0
    assert [type(part).__name__ for part in normed.children()] == ["Flatten", *["Linear", "LayerNorm", "Tanh"] * 2]
    assert sum(param.numel() for param in normed.parameters()) == (
        sum(param.numel() for param in plain.parameters()) + 2 * (6 + 5)
    )


@pytest.mark.parametrize(("network", "widths"), [(Nips, [16, 32, 256]), (Nature, [32, 64, 64, 512])])
def test_layer_normalisation_of_pictures_is_over_each_pixel_s_channels(
    network: type[Nips] | type[Nature], widths: list[int]
) -> None:
    module, size = network(layer_norm=True).build(ArraySpec(shape=(4, 84, 84), dtype=torch.uint8))
    assert isinstance(module, nn.Sequential)
    norms = [number for number, part in enumerate(module) if isinstance(part, nn.LayerNorm)]
    assert [module[number].normalized_shape for number in norms] == [(width,) for width in widths]
    assert isinstance(module[norms[0] - 1], nn.Conv2d)
    assert isinstance(module[norms[0] + 1], nn.ReLU)
    picture = torch.rand(2, 4, 84, 84)
    first = module[: norms[0] + 1](picture).detach()
    torch.testing.assert_close(first.mean(1), torch.zeros_like(first[:, 0]), rtol=0, atol=1e-4)
    torch.testing.assert_close(first.var(1, correction=0), torch.ones_like(first[:, 0]), rtol=0, atol=0.05)
    assert module(picture).shape == (2, size)
