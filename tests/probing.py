"""How every algorithm is tried on probe tasks: one way to learn them, and what action values must then be."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from greenroom.acting import Collector
from greenroom.envs.device import DeviceEnvironment
from greenroom.envs.probes import PROBES, Probe
from greenroom.memory import Memory
from greenroom.networks import Mlp
from greenroom.policy import PolicyConfig, one_step
from greenroom.spec import Discrete

GAMMA, NUM_ENVS, LENGTH = 0.6, 32, 4
DISCRETE_PROBES = [name for name, probe in PROBES.items() if isinstance(probe.model.action, Discrete)]


def memory_for(probe: Probe, size: int) -> Memory:
    """A GRU where the probe cannot be solved without."""
    return Memory(memory="gru" if probe.needs_memory else "none", memory_size=size)


def learn(config: Any, probe: Probe, rollouts: int, settings: PolicyConfig) -> tuple[Any, dict[str, Tensor]]:
    """Train on a probe. Returns the algorithm and its last metrics."""
    env = DeviceEnvironment(probe.model, NUM_ENVS)
    torch.manual_seed(0)
    policy = config.policy(settings, env.spec, "float32")
    total = rollouts * LENGTH * NUM_ENVS
    algorithm = config.build(policy, spec=env.spec, num_envs=NUM_ENVS, rollout_length=LENGTH, total_steps=total, seed=0)
    collector = Collector([env], policy, rollout_length=LENGTH, seed=0, device=torch.device("cpu"))
    metrics: dict[str, Tensor] = {}
    for _ in range(rollouts):
        metrics = algorithm.learn(next(collector))
    return algorithm, metrics


def learned_values(config: Any, rollouts: int, probe: Probe) -> Tensor:
    """Q-values `[N, A]` of a probe's situations after learning it.

    Where a memory is needed, they are those of three steps from each of three beginnings.
    """
    settings = PolicyConfig(network=Mlp(hidden=(32,)), memory=memory_for(probe, 16))
    policy = learn(config, probe, rollouts, settings)[0].policy
    obs = probe.model.obs
    with torch.no_grad():
        if not probe.needs_memory:
            values: Tensor = policy.values(one_step(obs), {}, None)
            return values
        assert isinstance(obs, Tensor)
        q: Tensor = policy.values(obs.view(3, 3, 1).transpose(0, 1), policy.initial_state(3), None)
        return q.view(3, 3, -1).transpose(0, 1).flatten(0, 1)


def values_are_right(q: Tensor, probe: Probe, tolerance: float = 0.05) -> None:
    torch.testing.assert_close(q.amax(-1), probe.value(GAMMA), rtol=0, atol=tolerance)
    if probe.best_action is not None:
        assert torch.equal(q.argmax(-1), probe.best_action)
