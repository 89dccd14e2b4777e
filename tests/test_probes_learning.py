"""Every algorithm on every probe task: learned values and actions against the known answers, in about a second."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from algorithm_settings import GAMMA, PROBING, TRACED
from greenroom.acting import Collector
from greenroom.algorithms import ALGORITHMS
from greenroom.envs.device import DeviceEnvironment
from greenroom.envs.probes import PROBES, Probe
from greenroom.networks import Mlp
from greenroom.policy import ActorCritic, PolicyConfig
from greenroom.types import Rollout

NUM_ENVS, LENGTH = 32, 4

TOLERANCE = 0.05
"""Of values between −1 and 2.5."""
CONTINUOUS_TOLERANCE = 0.1
"""A Gaussian that still explores is worth a little less than the best action, and its mean is not yet exact."""


def test_every_algorithm_has_settings_here() -> None:
    assert PROBING.keys() == TRACED.keys() == ALGORITHMS.keys()


def train(algo: str, probe: Probe) -> ActorCritic:
    """A policy that has learned the probe with `PROBING`."""
    config, rollouts = PROBING[algo]
    env = DeviceEnvironment(probe.model, NUM_ENVS)
    torch.manual_seed(0)
    policy_config = PolicyConfig(network=Mlp(hidden=(32,)), initial_log_std=-0.5)
    policy = config.policy(policy_config, env.spec, "float32")
    total = rollouts * LENGTH * NUM_ENVS
    algorithm = config.build(policy, spec=env.spec, num_envs=NUM_ENVS, rollout_length=LENGTH, total_steps=total, seed=0)
    collector = Collector([env], policy, rollout_length=LENGTH, seed=0, device=torch.device("cpu"))
    for _ in range(rollouts):
        algorithm.learn(next(collector))
    return policy


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_probe(algo: str, name: str) -> None:
    probe = PROBES[name]
    policy = train(algo, probe)
    tolerance = CONTINUOUS_TOLERANCE if name == "probe-continuous" else TOLERANCE
    torch.testing.assert_close(policy.value(probe.model.obs, {}), probe.value(GAMMA), rtol=0, atol=tolerance)
    if probe.best_action is not None:
        with torch.no_grad():
            chosen, _ = policy(probe.model.obs, {})
        torch.testing.assert_close(chosen, probe.best_action, rtol=0, atol=CONTINUOUS_TOLERANCE)


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
