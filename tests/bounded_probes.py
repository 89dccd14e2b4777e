"""Probe tasks with continuous actions, and how the algorithms for them are tried: values and actions known exactly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from greenroom.algorithms.critics import CriticConfig
from greenroom.algorithms.replaying import Drawing
from greenroom.algorithms.targets import TargetNetwork
from greenroom.envs.probes import PROBES, Probe, ProbeModel
from greenroom.networks import Mlp
from greenroom.policy import PolicyConfig
from greenroom.replay import ReplayConfig
from greenroom.spec import Bounded
from probing import GAMMA

CRITICS = CriticConfig(
    gamma=GAMMA,
    drawing=Drawing(batch_size=128, replay_ratio=4.0, learning_starts=256),
    replay=ReplayConfig(capacity=20_000),
    target=TargetNetwork(target_every=1, tau=0.05),
)
"""Learns a probe within a few hundred updates."""
VALUE_TOLERANCE, ACTION_TOLERANCE = 0.05, 0.1

_ACTION = Bounded(shape=(1,), low=(-1.0,), high=(3.0,))
_BEST = torch.tensor([[-0.5], [0.25], [2.0]])


def _probe(name: str, earns: tuple[float, ...], leads_to: tuple[int, ...], worth: Any, **ends: Any) -> Probe:
    """Situation k earns `earns[k]`, less the squared distance of the action from `_BEST[k]`, and leads to another."""
    count = len(earns)

    def outcome(at: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tensor(earns)[at] - (action - _BEST[at]).square().sum(1), torch.tensor(leads_to)[at]

    seen = torch.linspace(-1.0, 1.0, count)[:, None]
    model = ProbeModel(name=name, obs=seen, action=_ACTION, outcome=outcome, **{"starts": tuple(range(count)), **ends})
    return Probe(model=model, value=lambda gamma: torch.tensor(worth(gamma)), best_action=_BEST[:count])


BOUNDED_PROBES = {
    probe.model.name: probe
    for probe in (
        PROBES["probe-continuous"],
        # Reward 0, then 1, then the end: the discount, and the order in time.
        _probe("delayed", (0.0, 1.0), (1, 1), lambda gamma: (gamma, 1.0), starts=(0,), final=(1,)),
        # Cut after every step, and nothing ever terminates: poor stays poor, rich stays rich, the last becomes rich.
        _probe("truncation", (0.0, 1.0, 0.0), (0, 1, 1), lambda g: (0.0, 1.0 / (1 - g), g / (1 - g)), horizon=1),
        # Ended after every step, but the last thing seen is the situation that earns 2.
        _probe("termination", (0.0, 2.0), (1, 1), lambda gamma: (0.0, 2.0), final=(0, 1)),
    )
}


PROBING_POLICY = PolicyConfig(network=Mlp(hidden=(64, 64), activation="relu"))
"""Of the policies that are tried on them."""


def answers(algorithm: Any, probe: Probe) -> tuple[Tensor, Tensor]:
    """The greedy action in each of a probe's N situations, `[N, D]`, and what it is thought to be worth, `[N]`."""
    policy, seen = algorithm.policy, probe.model.obs
    with torch.no_grad():
        action, _ = policy(seen, {})
        value = algorithm.critics.online(policy.normalizer(seen), policy.to_unit(action))
    return action, value.amin(0)
