"""Actor-critics on every probe task: learned values and actions against the known answers, in about a second each.

The other algorithms' probes are in test_q_learning.py, test_dqn.py, test_sac.py and test_td3.py.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from greenroom.acting import Collector
from greenroom.algorithms import AlgorithmConfig
from greenroom.algorithms.actor_critic import A2CConfig, VTraceConfig
from greenroom.algorithms.ppo import PPOConfig
from greenroom.algorithms.rewards import Discounting
from greenroom.envs.probes import PROBES, Probe
from greenroom.networks import Mlp
from greenroom.optim import Adam
from greenroom.policy import ActorCritic, PolicyConfig
from greenroom.types import Rollout
from probing import GAMMA, learn, memory_for

DISCOUNTING = Discounting(gamma=GAMMA, lam=0.9)
ADAM = Adam(learning_rate=0.01)
PROBING: dict[str, tuple[AlgorithmConfig, int]] = {
    "a2c": (A2CConfig(discounting=DISCOUNTING, entropy_coef=0.0, optimizer=ADAM), 500),
    "vtrace": (VTraceConfig(discounting=DISCOUNTING, entropy_coef=0.0, optimizer=ADAM), 500),
    "ppo": (PPOConfig(discounting=DISCOUNTING, entropy_coef=0.0, epochs=4, minibatches=2, optimizer=ADAM), 100),
}
"""Algorithm → its config and the number of rollouts."""

TOLERANCE = 0.05
"""Of values between −1 and 2.5."""
CONTINUOUS_TOLERANCE = 0.1
"""A Gaussian that still explores is worth a little less than the best action, and its mean is not yet exact."""


def train(algo: str, probe: Probe) -> ActorCritic:
    """A policy that has learned the probe with `PROBING`."""
    config, rollouts = PROBING[algo]
    settings = PolicyConfig(network=Mlp(hidden=(32,)), memory=memory_for(probe, 32), initial_log_std=-0.5)
    policy = learn(config, probe, rollouts, settings)[0].policy
    assert isinstance(policy, ActorCritic)
    return policy


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("algo", PROBING)
def test_probe(algo: str, name: str) -> None:
    probe = PROBES[name]
    policy = train(algo, probe)
    tolerance = CONTINUOUS_TOLERANCE if name == "probe-continuous" else TOLERANCE
    value, chosen = answers(policy, probe)
    torch.testing.assert_close(value, probe.value(GAMMA), rtol=0, atol=tolerance)
    if probe.best_action is not None:
        torch.testing.assert_close(chosen, probe.best_action, rtol=0, atol=CONTINUOUS_TOLERANCE)


@torch.no_grad()
def answers(policy: ActorCritic, probe: Probe) -> tuple[Tensor, Tensor]:
    """Value and greedy action in every situation, each reached by the best actions from where episodes start."""
    model = probe.model
    if not probe.needs_memory:
        return policy.value(model.obs, {}), policy(model.obs, {})[0]
    assert probe.best_action is not None
    situation, state = torch.tensor(model.starts), policy.initial_state(len(model.starts))
    value, chosen = torch.full_like(probe.value(GAMMA), torch.nan), torch.full_like(probe.best_action, -1)
    while value.isnan().any():
        obs = model.observe({"situation": situation})
        value[situation] = policy.value(obs, state)
        chosen[situation], state = policy(obs, state)
        situation = model.step({"situation": situation}, probe.best_action[situation], torch.Generator()).state[
            "situation"
        ]
    return value, chosen


def ends_are_all_terminations(rollout: Rollout, value: Tensor, value_of: object) -> Tensor:
    """The usual mistake: a time limit is taken for an end."""
    return value[1:].masked_fill(rollout.cut, 0.0)


def the_next_episode_follows(rollout: Rollout, value: Tensor, value_of: object) -> Tensor:
    """Another one: same-step reset, and the first observation of the next episode is taken for the successor."""
    return value[1:]


@pytest.mark.parametrize("mistake", [ends_are_all_terminations, the_next_episode_follows])
def test_the_truncation_probe_finds_a_wrong_bootstrap(mistake: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rollout, "bootstrap", mistake)
    probe = PROBES["probe-truncation"]
    policy = train("ppo", probe)
    assert policy(probe.model.obs, {})[0].tolist() == [0, 1, 0]  # greedy for the reward at the crossing
    assert float((policy.value(probe.model.obs, {}) - probe.value(GAMMA)).abs().max()) > 10 * TOLERANCE


def test_the_termination_probe_finds_a_bootstrap_across_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merging the two kinds of end into a truncation bootstraps where nothing follows."""
    rollout_of = Collector.__next__

    def merged(collector: Collector) -> Rollout:
        rollout = rollout_of(collector)
        return dataclasses.replace(rollout, truncated=rollout.cut, terminated=torch.zeros_like(rollout.cut))

    monkeypatch.setattr(Collector, "__next__", merged)
    probe = PROBES["probe-termination"]
    policy = train("ppo", probe)
    assert policy(probe.model.obs, {})[0].tolist() == [1, 1]  # the crossing leads to what looks rich
    assert float((policy.value(probe.model.obs, {}) - probe.value(GAMMA)).abs().max()) > 10 * TOLERANCE
