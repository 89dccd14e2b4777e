"""Policies over bounded actions: the squeezed Gaussian's density, the range, exploration, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from greenroom.continuous import ContinuousPolicy, DeterministicHead, GaussianHead, NoisyAction, TanhGaussian
from greenroom.errors import UserError
from greenroom.maths.distributions import Gaussian
from greenroom.memory import Memory
from greenroom.networks import Mlp
from greenroom.policy import PolicyConfig
from greenroom.spec import ArraySpec, Bounded, Discrete, EnvSpec, ObsSpec

SMALL = PolicyConfig(network=Mlp(hidden=(16,)))
RANGE = Bounded(shape=(2, 2), low=(-1.0, 0.0, -3.0, 10.0), high=(1.0, 0.1, 5.0, 11.0))
HEADS: dict[str, Any] = {"sac": GaussianHead, "td3": partial(DeterministicHead, noise=0.3)}


def policy(algo: str, settings: PolicyConfig = SMALL, obs: ObsSpec | None = None) -> ContinuousPolicy:
    torch.manual_seed(0)
    spec = EnvSpec(name="x", obs=obs or ArraySpec(shape=(3,)), action=RANGE)
    return ContinuousPolicy(settings, spec, "float32", algo=algo, head=HEADS[algo])


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def observations(count: int = 64) -> Tensor:
    return torch.randn(count, 3, generator=source(9))


def gaussian(mean: float, std: float) -> TanhGaussian:
    return TanhGaussian(
        Gaussian(torch.tensor([[mean]], dtype=torch.float64), torch.tensor([[std]], dtype=torch.float64).log())
    )


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.3), (0.7, 0.5), (-1.5, 1.0), (0.2, 1.2)])
def test_the_density_integrates_to_one(mean: float, std: float) -> None:
    """Over the actions themselves, by the midpoint rule; its mean agrees with that of draws."""
    count = 400_000
    action = (torch.arange(count, dtype=torch.float64) + 0.5) / count * 2.0 - 1.0
    density = gaussian(mean, std).log_prob(action.atanh()[:, None]).exp()
    assert float(density.mean() * 2.0) == pytest.approx(1.0, abs=1e-5)
    wide = TanhGaussian(Gaussian(torch.full((200_000, 1), mean), torch.tensor(std).log()))
    assert float((density * action).mean() * 2.0) == pytest.approx(float(wide.sample(source()).mean()), abs=0.01)


def test_the_density_is_that_of_a_change_of_variables() -> None:
    """Against PyTorch's own, in two dimensions, which add."""
    mean, std = torch.randn(2, 50, 2, dtype=torch.float64, generator=source()).unbind(0)
    std = std.exp()
    raw = mean + std * torch.randn(50, 2, dtype=torch.float64, generator=source(1))
    reference = torch.distributions.TransformedDistribution(
        torch.distributions.Normal(mean, std), [torch.distributions.TanhTransform(cache_size=1)]
    )
    found = TanhGaussian(Gaussian(mean, std.log())).log_prob(raw)
    torch.testing.assert_close(found, reference.log_prob(raw.tanh()).sum(1), rtol=1e-6, atol=1e-6)


def test_the_density_is_exact_where_tanh_rounds_to_one() -> None:
    """At ±40 the correction is 2·(log 2 − 40) to the last bit; 1 − tanh² itself would be 0."""
    distribution = TanhGaussian(Gaussian(torch.zeros(2, 1), torch.zeros(2, 1)))
    raw = torch.tensor([[40.0], [-40.0]], requires_grad=True)
    found = distribution.log_prob(raw)
    expected = -0.5 * 40.0**2 - 0.5 * torch.tensor(2 * torch.pi).log() - 2.0 * (torch.tensor(2.0).log() - 40.0)
    torch.testing.assert_close(found, expected.expand(2))
    found.sum().backward()
    torch.testing.assert_close(raw.grad, torch.tensor([[-38.0], [38.0]]))


def test_draws_and_their_density_are_differentiable_in_the_distribution() -> None:
    """Against finite differences, with the noise held fixed."""

    def both(mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
        return TanhGaussian(Gaussian(mean, log_std)).sample_with_log_prob(source())

    mean, log_std = (0.5 * torch.randn(2, 5, 3, dtype=torch.float64, generator=source(4))).unbind(0)
    assert torch.autograd.gradcheck(both, (mean.requires_grad_(), log_std.requires_grad_()))
    action, log_prob = both(mean, log_std)
    torch.testing.assert_close(TanhGaussian(Gaussian(mean, log_std)).log_prob(action.atanh()), log_prob)


def test_noise_has_its_size_and_its_limit() -> None:
    still = torch.tensor([[0.0, 0.9]]).expand(20_000, 2)
    drawn = NoisyAction(still, 0.1).sample(source())
    assert float(drawn[:, 0].std()) == pytest.approx(0.1, rel=0.03)
    assert float(drawn[:, 1].max()) == 1.0
    clipped = NoisyAction(still, 0.2, clip=0.3).sample(source())[:, 0]
    assert float(clipped.max()) == pytest.approx(0.3)
    assert float((clipped.abs() > 0.299).float().mean()) == pytest.approx(0.1336, abs=0.01)  # beyond 1.5 sigma
    assert torch.equal(NoisyAction(still, 0.2, clip=0.0).sample(source()), still)
    assert torch.equal(NoisyAction(still, 0.2).mode(), still)


@pytest.mark.parametrize("algo", HEADS)
@pytest.mark.parametrize("at_random", [False, True])
def test_actions_never_leave_their_range(algo: str, at_random: bool) -> None:
    """Even where the head is driven far beyond it; both ends are reached."""
    mind = policy(algo)
    mind.at_random.fill_(at_random)
    layer: Any = mind.actor.head.layer
    with torch.no_grad():
        layer.weight.mul_(1e5)
    low, high = mind.interval.low.view(2, 2), mind.interval.high.view(2, 2)
    obs = observations(2000)
    for action in (mind.act(obs, {}, source()).action, mind.act(obs, {}, None).action, mind(obs, {})[0]):
        assert action.shape == (2000, 2, 2)
        assert bool(((action >= low) & (action <= high)).all())
    greedy = mind(obs, {})[0]
    assert torch.equal(greedy.amin(0), low)
    assert torch.equal(greedy.amax(0), high)


@pytest.mark.parametrize("algo", HEADS)
def test_actions_are_uniform_over_the_range_until_learning_starts(algo: str) -> None:
    mind = policy(algo)
    low, high = mind.interval.low.view(2, 2), mind.interval.high.view(2, 2)
    assert bool(mind.at_random)
    obs = observations(20_000)
    share = ((mind.act(obs, {}, source()).action - low) / (high - low)).sort(0).values
    uniform = torch.linspace(0.0, 1.0, len(share))[:, None, None].expand_as(share)
    torch.testing.assert_close(share, uniform, rtol=0, atol=0.02)
    mind.at_random.fill_(False)
    with torch.no_grad():
        drawn = mind.interval(mind.actor(obs).sample(source()))
    assert torch.equal(mind.act(obs, {}, source()).action, drawn)
    assert not torch.allclose(drawn, mind.act(obs, {}, None).action, atol=0.05)


@pytest.mark.parametrize("algo", HEADS)
def test_acting_depends_on_its_generator_alone(algo: str) -> None:
    mind, obs = policy(algo), observations()
    for at_random in (True, False):
        mind.at_random.fill_(at_random)
        first = mind.act(obs, {}, source(1))
        torch.manual_seed(123)
        assert torch.equal(first.action, mind.act(obs, {}, source(1)).action)
        assert not torch.equal(first.action, mind.act(obs, {}, source(2)).action)
        assert first.extras == first.state == {}


@pytest.mark.parametrize("algo", HEADS)
def test_the_greedy_action_is_tanh_of_what_the_head_says(algo: str) -> None:
    mind, obs = policy(algo), observations()
    layer: Any = mind.actor.head.layer
    with torch.no_grad():
        layer.weight.mul_(100.0)
        raw = layer(mind.actor.body(obs[None], {}, None)[0])[:, :4]
    half = (mind.interval.high - mind.interval.low) / 2.0
    expected = (mind.interval.low + half * (raw.tanh() + 1.0)).view(-1, 2, 2)
    torch.testing.assert_close(mind(obs, {})[0], expected)
    torch.testing.assert_close(mind.act(obs, {}, None).action, expected)


def test_actions_come_back_to_the_unit_range() -> None:
    mind = policy("sac")
    unit = torch.rand(500, 4, generator=source()) * 2.0 - 1.0
    unit[:2] = torch.tensor([[-1.0], [1.0]])
    torch.testing.assert_close(mind.to_unit(mind.interval(unit)), unit, rtol=0, atol=2e-5)
    with torch.no_grad():
        mind.interval.high.copy_(mind.interval.low)
    assert torch.equal(mind.to_unit(mind.interval(unit)), -torch.ones(500, 4))  # nothing to choose, and no NaN


@pytest.mark.parametrize("algo", HEADS)
def test_one_module_holds_everything_that_acts(algo: str) -> None:
    settings = dataclasses.replace(SMALL, normalize_obs=True)
    one = policy(algo, settings)
    before = one(observations(), {})[0]
    one.normalizer.update(observations() * 4 + 1)
    one.at_random.fill_(False)
    assert not torch.equal(before, one(observations(), {})[0])
    torch.manual_seed(5)
    spec = EnvSpec(name="x", obs=ArraySpec(shape=(3,)), action=RANGE)
    other = ContinuousPolicy(settings, spec, "float32", algo=algo, head=HEADS[algo])
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    mine, theirs = one.act(observations(), {}, source()), other.act(observations(), {}, source())
    assert torch.equal(mine.action, theirs.action)


def test_dict_observations_with_pictures() -> None:
    parts: ObsSpec = {"eye": ArraySpec(shape=(4, 84, 84), dtype=torch.uint8), "arm": ArraySpec(shape=(3,))}
    mind = policy("sac", obs=parts)
    arm = observations(4)
    eye = torch.randint(256, (4, 4, 84, 84), dtype=torch.uint8, generator=source())
    action, state = mind({"eye": eye, "arm": arm}, {})
    assert (action.shape, state) == ((4, 2, 2), {})
    for changed in ({"eye": eye.flip(0), "arm": arm}, {"eye": eye, "arm": arm.flip(0)}):
        assert not torch.equal(mind(changed, {})[0], action)


def test_what_it_cannot_do_is_refused_with_a_way_out() -> None:
    discrete = EnvSpec(name="CartPole-v1", obs=ArraySpec(shape=(3,)), action=Discrete(n=2))
    with pytest.raises(UserError, match=r"sac needs bounded .* CartPole-v1 are discrete; use --algo ppo or --algo dqn"):
        ContinuousPolicy(SMALL, discrete, "float32", algo="sac", head=GaussianHead)
    recurrent = dataclasses.replace(SMALL, memory=Memory(memory="gru"))
    with pytest.raises(UserError, match="td3 cannot learn a memory; leave out --memory gru, or use --algo ppo"):
        policy("td3", recurrent)
    with pytest.raises(UserError, match="sac has no use for separate_value"):
        policy("sac", dataclasses.replace(SMALL, separate_value=True))
