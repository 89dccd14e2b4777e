"""The probes' answers, checked against Bellman's equation, and the mistakes that each is there to catch."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from greenroom.envs.device import DeviceEnvironment
from greenroom.envs.probes import PROBES, Probe
from greenroom.spec import MASK, Bounded, MultiDiscrete

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


def allowed(probe: Probe) -> Tensor:
    """bool, to be broadcast to `[N, A]`."""
    obs = probe.model.obs
    return obs[MASK] > 0 if isinstance(obs, dict) and MASK in obs else torch.tensor(True)


def best_value(probe: Probe, quality: Tensor) -> Tensor:
    """max-Q `[N]` over the allowed actions."""
    return quality.masked_fill(~allowed(probe), -torch.inf).amax(1)


def action_values(probe: Probe, gamma: float, value: Tensor, *, end_is_worth: float, cut_is_worth: float) -> Tensor:
    """Q `[N, A]` if the last observation of an ended (a cut) episode is given this share of its value.

    That of forbidden actions too: the model knows what they would bring.
    """
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
    assert torch.allclose(best_value(probe, quality), value, rtol=1e-5, atol=1e-6)
    best = quality.masked_fill(~allowed(probe), -torch.inf).topk(2, dim=1)
    if probe.best_action is None:
        assert torch.equal(quality, quality[:, :1].expand_as(quality))
    else:
        assert (best.values[:, 0] > best.values[:, 1] + 1e-3).all()
        assert torch.allclose(all_actions(probe)[best.indices[:, 0]].float(), probe.best_action.float(), atol=1e-6)


@pytest.mark.parametrize("name", PROBES)
def test_every_situation_is_distinguishable_and_described(name: str) -> None:
    """By what is seen in them (not by their masks), or, where memory is needed, by what has been seen so far."""
    probe = PROBES[name]
    model, count = probe.model, len(probe.value(0.5))
    obs = model.obs if isinstance(model.obs, dict) else {"": model.obs}
    seen = torch.cat([part for key, part in obs.items() if key != MASK], dim=1)
    assert len(seen) == count and model.spec.name == name and model.terminates != bool(model.horizon)
    assert (len(seen.unique(dim=0)) == count) != probe.needs_memory
    if probe.needs_memory:
        assert len(set(histories(probe, seen))) == count


def histories(probe: Probe, seen: Tensor) -> list[tuple[float, ...]]:
    """What has been seen in each situation, from the first step of the episode that leads there."""
    assert probe.best_action is not None
    found: list[tuple[float, ...]] = []
    for start in probe.model.starts:
        situation = start
        history: tuple[float, ...] = ()
        while True:
            history = (*history, *seen[situation].tolist())
            found.append(history)
            at = torch.tensor([situation])
            transition = probe.model.step({"situation": at}, probe.best_action[at], torch.Generator())
            assert transition.terminated is not None
            if transition.terminated:
                break
            situation = int(transition.state["situation"])
    return found


def solve(probe: Probe, gamma: float, *, end_is_worth: float, cut_is_worth: float, masked: bool = True) -> Tensor:
    """Q of an algorithm with that mistake, by value iteration."""
    value = torch.zeros(len(probe.value(gamma)))
    for _ in range(2000):
        quality = action_values(probe, gamma, value, end_is_worth=end_is_worth, cut_is_worth=cut_is_worth)
        value = best_value(probe, quality) if masked else quality.amax(1)
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


@pytest.mark.parametrize("gamma", GAMMAS)
def test_bootstrapping_from_forbidden_actions_overrates_every_situation(gamma: float) -> None:
    probe = PROBES["probe-mask"]
    right = solve(probe, gamma, end_is_worth=0.0, cut_is_worth=1.0)
    wrong = solve(probe, gamma, end_is_worth=0.0, cut_is_worth=1.0, masked=False)
    assert torch.allclose(best_value(probe, right), probe.value(gamma), atol=1e-5)
    assert right[1].argmax() == 2 and not allowed(probe)[1, 2]  # the otherwise best action is forbidden
    # Even if only allowed actions are then taken.
    assert torch.allclose(best_value(probe, wrong), probe.value(gamma) + gamma / (1 - gamma), rtol=1e-4)


def play_from_memory(reset: bool, steps: int = 60) -> Tensor:
    """Rewards `[T, B]` of the policy that does what was last asked for, its memory cleared at ends or not."""
    env = DeviceEnvironment(PROBES["probe-memory"].model, 64)
    obs, remembered, rewards = env.reset(0), torch.zeros(64), []
    for _ in range(steps):
        assert isinstance(obs, Tensor)
        shown = obs[:, 0]
        remembered = torch.where(shown == 0, remembered, shown)
        env.send(remembered.long() + 1)
        step = env.recv()
        rewards.append(step.reward)
        obs = step.obs
        remembered = remembered.masked_fill(step.terminated, 0.0) if reset else remembered
    return torch.stack(rewards)


def test_the_memory_probe_punishes_a_memory_that_outlives_its_episode() -> None:
    assert torch.equal(play_from_memory(reset=True), torch.ones(60, 64))
    # A third of the episodes begin with 0, and most of them after one that did not.
    assert play_from_memory(reset=False).mean() < 0.6


def test_the_memory_probe_cannot_be_answered_from_what_is_seen() -> None:
    probe = PROBES["probe-memory"]
    assert isinstance(probe.model.obs, Tensor) and probe.best_action is not None
    shown = probe.model.obs[:, 0].long() + 1
    score = []
    for answer in itertools.product(range(3), repeat=3):  # to −1, to 0 and to 1
        right = torch.tensor(answer)[shown] == probe.best_action
        score.append(float((2.0 * right - 1.0).mean()))
    assert max(score) == pytest.approx(1 / 9)
