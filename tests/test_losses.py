"""Losses: literal numbers, gradients by finite differences, and what no gradient may flow into."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from greenroom.algorithms.actor_critic import explained_variance, standardise
from greenroom.maths.distributions import Categorical
from greenroom.maths.losses import clipped_squared_error, clipped_surrogate, policy_gradient, squared_error


def test_literal_numbers() -> None:
    log_prob, advantage = torch.tensor([-1.0, -2.0]), torch.tensor([3.0, -1.0])
    assert policy_gradient(log_prob, advantage).item() == 0.5  # −(−3 + 2)/2
    assert squared_error(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.0])).item() == 1.0  # (4 + 0)/2/2


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective"),
    [
        (1.1, 2.0, 2.2),  # inside
        (1.5, 2.0, 2.4),  # a good action gains nothing beyond 1.2
        (0.5, 2.0, 1.0),  # … but loses without limit
        (0.5, -2.0, -1.6),  # a bad action gains nothing below 0.8
        (1.5, -2.0, -3.0),  # … but costs without limit
    ],
)
def test_clipped_surrogate(ratio: float, advantage: float, objective: float) -> None:
    old = torch.tensor([-0.3], dtype=torch.float64)
    new = old + math.log(ratio)
    loss = clipped_surrogate(new, old, torch.tensor([advantage], dtype=torch.float64), clip=0.2)
    assert loss.item() == pytest.approx(-objective)


def test_clipped_surrogate_starts_as_the_policy_gradient() -> None:
    """At the acting policy both have the same gradient (Schulman et al. 2017, section 2)."""
    log_prob = torch.tensor([-1.0, -0.1, -3.0], dtype=torch.float64, requires_grad=True)
    advantage = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    surrogate = clipped_surrogate(log_prob, log_prob.detach(), advantage, clip=0.2)
    (one,) = torch.autograd.grad(surrogate, log_prob)
    (other,) = torch.autograd.grad(policy_gradient(log_prob, advantage), log_prob)
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("value", "target", "loss"),
    [
        (5.1, 7.0, 1.9**2),  # inside: as without the limit
        (5.5, 7.0, 1.8**2),  # nearer to the target than the limit lets it count
        (4.0, 7.0, 3.0**2),  # gone away: counts in full
        (4.0, 3.0, 1.8**2),  # the same from above
        (8.0, 5.2, 2.8**2),  # gone past the target
        (5.3, 5.25, 0.05**2),  # the larger of the two
    ],
)
def test_clipped_squared_error(value: float, target: float, loss: float) -> None:
    """The acting value was 5, the limit is 0.2."""
    found = clipped_squared_error(torch.tensor([value]), torch.tensor([5.0]), torch.tensor([target]), clip=0.2)
    assert found.item() == pytest.approx(loss / 2, rel=1e-4)


def test_clipped_squared_error_chooses_for_each_element() -> None:
    """1.8² and 3²; their mean, halved. Choosing between the two means would give less."""
    value, old, target = torch.tensor([5.5, 4.0]), torch.tensor([5.0, 5.0]), torch.tensor([7.0, 7.0])
    assert clipped_squared_error(value, old, target, clip=0.2).item() == pytest.approx((1.8**2 + 3.0**2) / 4)
    assert clipped_squared_error(value, old, target, clip=9.0).item() == squared_error(value, target).item()


def test_a_value_that_has_moved_far_enough_gets_no_gradient() -> None:
    value = torch.tensor([5.5, 4.0], requires_grad=True)
    clipped_squared_error(value, torch.tensor([5.0, 5.0]), torch.tensor([7.0, 7.0]), clip=0.2).backward()
    assert value.grad is not None
    assert value.grad.tolist() == [0.0, -1.5]  # (V − R)/2


def finite_differences(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-6) -> Tensor:
    gradient = torch.empty_like(at)
    for i in range(at.numel()):
        moved = torch.zeros(at.numel(), dtype=at.dtype)
        moved[i] = step
        moved = moved.view_as(at)
        gradient.view(-1)[i] = (function(at + moved) - function(at - moved)) / (2 * step)
    return gradient


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def a2c_loss(logits: Tensor) -> Tensor:
    distribution = Categorical.from_logits(logits)
    action = torch.tensor([0, 2, 1, 1])
    return policy_gradient(distribution.log_prob(action), draw(4)) - 0.3 * distribution.entropy().mean()


def ppo_loss(logits: Tensor) -> Tensor:
    distribution = Categorical.from_logits(logits)
    return clipped_surrogate(distribution.log_prob(torch.tensor([0, 2, 1, 1])), -1.0 - draw(4).abs(), draw(4), clip=0.2)


def value_loss(value: Tensor) -> Tensor:
    return squared_error(value, draw(3))


def clipped_value_loss(value: Tensor) -> Tensor:
    return clipped_squared_error(value, draw(5), draw(6)[:5], clip=0.5)


@pytest.mark.parametrize(
    ("function", "at"),
    [
        (a2c_loss, draw(4, 3)),
        (ppo_loss, draw(4, 3)),
        (value_loss, draw(3) + 1),
        (clipped_value_loss, draw(5) + draw(7)[:5]),
    ],
)
def test_gradients(function: Callable[[Tensor], Tensor], at: Tensor) -> None:
    variable = at.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(variable), variable)
    assert float(gradient.abs().max()) > 1e-3
    torch.testing.assert_close(gradient, finite_differences(function, at), rtol=1e-5, atol=1e-8)


def test_targets_and_advantages_get_no_gradient() -> None:
    value = torch.tensor([1.0, 2.0], requires_grad=True)
    log_prob = torch.tensor([-1.0, -1.0], requires_grad=True)
    actor, critic = policy_gradient(log_prob, 2 * value), squared_error(log_prob, 3 * value)
    (actor + critic + clipped_squared_error(log_prob, torch.zeros(2), 3 * value, clip=0.1)).backward()
    assert value.grad is None
    assert log_prob.grad is not None


def test_standardise() -> None:
    found = standardise(torch.tensor([1.0, 3.0, 5.0, 7.0]))
    torch.testing.assert_close(found, torch.tensor([-3.0, -1.0, 1.0, 3.0]) / math.sqrt(5))
    assert standardise(torch.tensor([4.0])).tolist() == [0.0]
    assert standardise(torch.tensor([4.0, 4.0])).tolist() == [0.0, 0.0]


def test_explained_variance() -> None:
    target = torch.tensor([1.0, 2.0, 4.0])
    assert explained_variance(target + 10, target).item() == pytest.approx(1.0)
    assert explained_variance(torch.zeros(3), target).item() == pytest.approx(0.0, abs=1e-6)
    assert explained_variance(-target, target).item() == pytest.approx(-3.0)
    assert explained_variance(torch.tensor([3.0]), torch.tensor([5.0])).isfinite()
