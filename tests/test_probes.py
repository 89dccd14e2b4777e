"""The probes' answers, checked against Bellman's equation, and the mistakes that each is there to catch."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from greenroom.envs.probes import PROBES, Probe
from greenroom.spec import Bounded, MultiDiscrete

GAMMAS = [0.6, 0.9, 0.99]


def all_actions(probe: Probe) -> Tensor:
    """Every action, or for continuous ones a grid of 21 points an axis: `[A, ...]`."""
    form = probe.model.action
    if isinstance(form, Bounded):
        axes = [torch.linspace(low, high, 41) for low, high in zip(form.low, form.high, strict=True)]
        return torch.cartesian_prod(*axes)
    if isinstance(form, MultiDiscrete):
        return torch.tensor(list(itertools.product(*(range(count) for count in form.nvec))))
    return torch.arange(form.n)


def action_values(probe: Probe, gamma: float, value: Tensor, *, end_is_worth: float, cut_is_worth: float) -> Tensor:
    """Q `[N, A]` if the last observation of an ended (a cut) episode is given this share of its value."""
    model = probe.model
    actions = all_actions(probe)
    columns = []
    for action in actions:
        situation = torch.arange(len(value))
        transition = model.step({"situation": situation}, action.expand(len(value), *action.shape), torch.Generator())
        following = value[transition.state["situation"]]
        ended = torch.zeros(len(value), dtype=torch.bool) if transition.terminated is None else transition.terminated
        cut = torch.full_like(ended, model.horizon == 1)
        share = torch.where(ended, end_is_worth, torch.where(cut, cut_is_worth, 1.0))
        columns.append(transition.reward + gamma * share * following)
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("name", PROBES)
def test_values_and_best_actions_solve_bellmans_equation(name: str, gamma: float) -> None:
    probe = PROBES[name]
    value = probe.value(gamma)
    quality = action_values(probe, gamma, value, end_is_worth=0.0, cut_is_worth=1.0)
    assert torch.allclose(quality.amax(1), value, rtol=1e-5, atol=1e-6)
    best = quality.topk(2, dim=1)
    if probe.best_action is None:
        assert torch.equal(quality, quality[:, :1].expand_as(quality))
    else:
        assert (best.values[:, 0] > best.values[:, 1] + 1e-3).all()
        assert torch.allclose(all_actions(probe)[best.indices[:, 0]].float(), probe.best_action.float(), atol=1e-6)


@pytest.mark.parametrize("name", PROBES)
def test_every_situation_is_distinguishable_and_described(name: str) -> None:
    model = PROBES[name].model
    parts = list(model.obs.values()) if isinstance(model.obs, dict) else [model.obs]
    seen = torch.cat(parts, dim=1)
    assert len(seen.unique(dim=0)) == len(seen) == len(PROBES[name].value(0.5))
    assert model.spec.name == name and model.terminates != bool(model.horizon)


def solve(probe: Probe, gamma: float, *, end_is_worth: float, cut_is_worth: float) -> Tensor:
    """Q of an algorithm with that mistake, by value iteration."""
    value = torch.zeros(len(probe.value(gamma)))
    for _ in range(2000):
        quality = action_values(probe, gamma, value, end_is_worth=end_is_worth, cut_is_worth=cut_is_worth)
        value = quality.amax(1)
    return quality


@pytest.mark.parametrize("gamma", GAMMAS)
def test_taking_a_cut_for_an_end_picks_the_wrong_action(gamma: float) -> None:
    probe = PROBES["probe-truncation"]
    assert probe.best_action is not None
    right = solve(probe, gamma, end_is_worth=0.0, cut_is_worth=1.0).argmax(1)
    wrong = solve(probe, gamma, end_is_worth=0.0, cut_is_worth=0.0).argmax(1)
    assert torch.equal(right, probe.best_action)
    assert right[2] == 1 and wrong[2] == 0


@pytest.mark.parametrize("gamma", GAMMAS)
def test_bootstrapping_from_an_end_picks_the_wrong_action(gamma: float) -> None:
    probe = PROBES["probe-termination"]
    assert probe.best_action is not None
    right = solve(probe, gamma, end_is_worth=0.0, cut_is_worth=1.0).argmax(1)
    wrong = solve(probe, gamma, end_is_worth=1.0, cut_is_worth=1.0).argmax(1)
    assert torch.equal(right, probe.best_action)
    assert right[0] == 0 and wrong[0] == 1
