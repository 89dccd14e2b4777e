"""Distributions: frequencies of draws, the corners that break samplers, and agreement with torch.distributions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from elsewhere import DEVICE, Elsewhere
from greenroom.maths.distributions import Categorical, Gaussian, MultiCategorical


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_frequencies_of_draws() -> None:
    """Chi-square with 4 degrees of freedom: below 18.47 with probability 0.999; the seed is fixed."""
    probability = torch.tensor([0.05, 0.4, 0.001, 0.249, 0.3])
    draws = 200_000
    sample = Categorical.from_logits(probability.log().expand(draws, 5)).sample(source())
    expected = probability * draws
    statistic = float(((sample.bincount(minlength=5) - expected) ** 2 / expected).sum())
    assert statistic < 18.47


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_a_category_of_probability_zero_is_never_drawn(zero: int) -> None:
    logits = torch.zeros(4)
    logits[zero] = -math.inf
    sample = Categorical.from_logits(logits.expand(100_000, 4)).sample(source())
    assert set(sample.tolist()) == {0, 1, 2, 3} - {zero}


def test_only_one_category_is_possible() -> None:
    logits = torch.full((3, 5), -math.inf)
    logits[:, 2] = 0.0
    distribution = Categorical.from_logits(logits.expand(1000, 3, 5))
    assert bool((distribution.sample(source()) == 2).all())
    assert bool((distribution.entropy() == 0).all())


def test_the_extreme_uniform_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero and the largest float32 below one stay within the categories that can happen."""
    logits = torch.tensor([-math.inf, 0.0, 0.0, -math.inf])
    for uniform, expected in ((0.0, 2), (1.0 - 2.0**-24, 1)):
        monkeypatch.setattr(torch, "rand", lambda shape, u=uniform, **_: torch.full(shape, u))
        assert Categorical.from_logits(logits.expand(7, 4)).sample(source()).tolist() == [expected] * 7


def test_tiny_probabilities_raise_nothing() -> None:
    """PAAC's own sampler raised once a probability fell below 6e-8."""
    logits = torch.tensor([0.0, math.log(1e-9), -200.0, -1e30])
    distribution = Categorical.from_logits(logits.expand(50_000, 4))
    assert set(distribution.sample(source()).tolist()) <= {0, 1}
    log_prob = distribution.log_prob(torch.full((50_000,), 2))
    assert log_prob[0] == pytest.approx(-200.0)
    assert bool(distribution.entropy().isfinite().all())


@pytest.mark.parametrize("size", [2, 6, 18, 1000])
def test_many_equal_categories_are_all_in_range(size: int) -> None:
    """Rounding in the running sum may not run past the last category."""
    sample = Categorical.from_logits(torch.zeros(20_000, size)).sample(source())
    assert int(sample.min()) >= 0
    assert int(sample.max()) <= size - 1
    assert float(sample.double().mean()) == pytest.approx((size - 1) / 2, rel=0.03)


def test_rows_are_drawn_independently() -> None:
    """One generator, one seed: the same draws again; another seed: others."""
    distribution = Categorical.from_logits(torch.zeros(1000, 3))
    assert torch.equal(distribution.sample(source(1)), distribution.sample(source(1)))
    assert not torch.equal(distribution.sample(source(1)), distribution.sample(source(2)))
    half = distribution.sample(source(3)).double()
    assert abs(float(torch.corrcoef(torch.stack([half[:-1], half[1:]]))[0, 1])) < 0.1


def logits_of(*shape: int) -> Tensor:
    return (3 * torch.randn(*shape, generator=source(5), dtype=torch.float64)).requires_grad_()


def test_categorical_agrees_with_torch() -> None:
    logits = logits_of(50, 7)
    ours, theirs = Categorical.from_logits(logits), torch.distributions.Categorical(logits=logits)
    sample = ours.sample(source())
    assert torch.equal(ours.mode(), logits.argmax(-1))
    for mine, reference in (
        (ours.log_prob(sample), theirs.log_prob(sample)),
        (ours.entropy(), theirs.entropy()),
    ):
        torch.testing.assert_close(mine, reference)
        torch.testing.assert_close(
            torch.autograd.grad(mine.square().sum(), logits, retain_graph=True)[0],
            torch.autograd.grad(reference.square().sum(), logits, retain_graph=True)[0],
        )


def test_entropy_with_an_impossible_category_has_a_gradient() -> None:
    logits = torch.tensor([[0.0, 1.0, -math.inf]], dtype=torch.float64, requires_grad=True)
    entropy = Categorical.from_logits(logits).entropy()
    (gradient,) = torch.autograd.grad(entropy.sum(), logits)
    pair = torch.tensor([[0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(Categorical.from_logits(pair).entropy().sum(), pair)
    torch.testing.assert_close(gradient[:, :2], expected)
    assert gradient[0, 2] == 0


def test_multi_categorical_is_the_product_of_its_parts() -> None:
    logits = logits_of(60, 9)
    joint = MultiCategorical.from_logits(logits, (2, 4, 3))
    parts = [Categorical.from_logits(part) for part in logits.split((2, 4, 3), dim=-1)]
    sample = joint.sample(source())
    assert sample.shape == (60, 3)
    assert sample.dtype == torch.int64
    assert torch.equal(sample.max(0).values, torch.tensor([1, 3, 2]))
    torch.testing.assert_close(joint.log_prob(sample), sum(p.log_prob(sample[:, i]) for i, p in enumerate(parts)))
    torch.testing.assert_close(joint.entropy(), sum(part.entropy() for part in parts))
    assert torch.equal(joint.mode(), torch.stack([part.mode() for part in parts], dim=-1))
    one = joint.sample(source(1))
    assert abs(float(torch.corrcoef(one.T.double())[0, 1])) < 0.4


def test_gaussian_agrees_with_torch() -> None:
    mean = logits_of(50, 3)
    log_std = torch.tensor([-1.0, 0.0, 0.7], dtype=torch.float64)
    ours = Gaussian(mean, log_std.expand_as(mean))
    theirs = torch.distributions.Normal(mean, log_std.exp())
    sample = ours.sample(source())
    torch.testing.assert_close(ours.log_prob(sample), theirs.log_prob(sample).sum(-1))
    torch.testing.assert_close(ours.entropy(), theirs.entropy().sum(-1))
    assert ours.mode() is mean


def test_gaussian_draws_have_their_moments() -> None:
    log_std = torch.tensor([-1.0, 0.5])
    mean = torch.tensor([2.0, -3.0]).expand(100_000, 2)
    sample = Gaussian(mean, log_std).sample(source())
    # Standard errors: σ/√n of the mean, σ/√(2n) of the deviation; five of them.
    error = 5 * log_std.exp() / math.sqrt(100_000)
    assert bool(((sample.mean(0) - mean[0]).abs() < error).all())
    assert bool(((sample.std(0) - log_std.exp()).abs() < error / math.sqrt(2)).all())


def test_elsewhere_what_is_forbidden_is_not_drawn_whatever_sums_come_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum of neighbours that is larger where the probability is zero, as parallel sums may be, by far less."""
    logits = torch.tensor([0.0, torch.finfo(torch.float32).min, 0.0]).expand(1000, 3)
    with Elsewhere(monkeypatch):
        monkeypatch.setattr(
            torch.Tensor, "cumsum", lambda part, dim: torch.tensor([0.4, 0.9, 1.0], device=DEVICE).expand(1000, 3)
        )
        distribution = Categorical.from_logits(logits.to(DEVICE))
        drawn = distribution.sample(torch.Generator(DEVICE)).cpu()
    assert sorted(set(drawn.tolist())) == [0, 2]
