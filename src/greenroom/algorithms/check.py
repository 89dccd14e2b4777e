"""`check_algorithm`: every contract of `Algorithm`, stated once and tried on synthetic rollouts."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from greenroom.acting import unfinished
from greenroom.algorithms import Algorithm, AlgorithmConfig, updaters_of
from greenroom.errors import UserError
from greenroom.networks import Mlp
from greenroom.normalize import RunningMoments
from greenroom.policy import Actor, PolicyConfig
from greenroom.seeding import derive, generator
from greenroom.spec import MASK, ArraySpec, EnvSpec, ObsSpec
from greenroom.types import Decision, Episodes, Obs, Rollout, State, map_obs, restart


class AlgorithmFault(UserError):
    """An algorithm broke its contract. The message says which part."""


def check_algorithm(
    config: AlgorithmConfig,
    spec: EnvSpec,
    *,
    policy: PolicyConfig | None = None,
    num_envs: int = 8,
    rollout_length: int = 6,
    seed: int = 0,
) -> None:
    """Build an algorithm, let it learn from synthetic rollouts, and verify every contract.

    Args:
        config: of the algorithm.
        spec: the environments it is to cope with.
        policy: how its policy is built; by default one hidden layer of 16.
        num_envs: B of the rollouts.
        rollout_length: T of the rollouts.
        seed: of weights, rollouts and the algorithm's own draws.

    Raises:
        AlgorithmFault: a contract is broken; the message says which.
    """
    settings = policy or PolicyConfig(network=Mlp(hidden=(16,)))
    builder = _Builder(config, spec, settings, num_envs, rollout_length)
    algorithm = builder.build(seed)
    before = _parameters(algorithm)
    first = synthetic_rollout(algorithm.policy, spec, num_envs=num_envs, rollout_length=rollout_length, seed=seed)
    untouched = copy.deepcopy(first)
    _check_metrics(algorithm.learn(first))
    _require(_same(first, untouched), "learn changed the rollout, which is the collector's memory")
    after = _parameters(algorithm)
    _require(all(bool(part.isfinite().all()) for part in after.values()), "learn left parameters that are not finite")
    unmoved = [name for name, part in after.items() if torch.equal(part, before[name])]
    _require(not unmoved, f"learn did not change {', '.join(unmoved)}")

    again = builder.build(seed)
    again.learn(first)
    _require(_same(_parameters(again), after), "the same seed and the same rollout gave different parameters")

    state = copy.deepcopy(algorithm.state_dict())
    resumed = builder.build(seed + 1)
    resumed.load_state_dict(state)
    second = synthetic_rollout(algorithm.policy, spec, num_envs=num_envs, rollout_length=rollout_length, seed=seed + 1)
    metrics, resumed_metrics = algorithm.learn(second), resumed.learn(second)
    _require(_same(metrics, resumed_metrics), "after load_state_dict, learn reported other metrics than the original")
    _require(
        _same(algorithm.state_dict(), resumed.state_dict()), "after load_state_dict, learn led to another state_dict"
    )
    algorithm.load_state_dict(state)
    algorithm.learn(second)
    _require(
        _same(algorithm.state_dict(), resumed.state_dict()),
        "load_state_dict of an earlier state left something of what was learned since: a run could not be rolled back",
    )
    if hasattr(algorithm, "updaters"):
        _check_updaters(algorithm, builder.build(seed), second)
    _check_normaliser(replace(builder, policy=replace(settings, normalize_obs=True)).build(seed), first)
    _check_dropped(builder.build(seed), builder.build(seed), [first, second])


@dataclass(frozen=True)
class _Builder:
    config: AlgorithmConfig
    spec: EnvSpec
    policy: PolicyConfig
    num_envs: int
    rollout_length: int

    def build(self, seed: int) -> Algorithm:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "initialisation"))
            policy = self.config.policy(self.policy, self.spec, "float32")
        algorithm = self.config.build(
            policy,
            spec=self.spec,
            num_envs=self.num_envs,
            rollout_length=self.rollout_length,
            total_steps=self.num_envs * self.rollout_length * 100,
            seed=seed,
        )
        _require(algorithm.policy is policy, "the algorithm's policy is not the one it was built with")
        return algorithm


def synthetic_rollout(policy: Actor, spec: EnvSpec, *, num_envs: int, rollout_length: int, seed: int) -> Rollout:
    """Random observations and rewards, with the policy's decisions; about a quarter of the steps end an episode.

    Of the ends, some terminate, some are cut, and some are both.
    """
    source = generator(seed, "synthetic")
    lead = (rollout_length, num_envs)
    kind = torch.randint(12, lead, generator=source)
    terminated, truncated = (kind == 0) | (kind == 1), (kind == 1) | (kind == 2)
    cut = terminated | truncated
    obs = _random_obs(spec.obs, (rollout_length + 1, num_envs), source)
    first = state = initial = policy.initial_state(num_envs)
    decisions: list[Decision] = []
    final_states: list[State] = []
    for t in range(rollout_length):
        decisions.append(policy.act(map_obs(lambda part, t=t: part[t], obs), state, source))  # type: ignore[misc]
        after = decisions[-1].state
        final_states.append({name: part[cut[t]] for name, part in after.items()})
        state = restart(after, initial, cut[t])
    return Rollout(
        obs=obs,
        action=torch.stack([decision.action for decision in decisions]),
        reward=torch.randn(lead, generator=source),
        terminated=terminated,
        truncated=truncated,
        final_obs=_random_obs(spec.obs, (int(cut.sum()),), source),
        extras={name: torch.stack([decision.extras[name] for decision in decisions]) for name in decisions[0].extras},
        state=first,
        next_state=state,
        final_state={name: torch.cat([part[name] for part in final_states]) for name in first},
        version=0,
        episodes=Episodes(
            index=torch.zeros(0, dtype=torch.int64),
            returns=torch.zeros(0),
            lengths=torch.zeros(0, dtype=torch.int64),
            signals={},
        ),
    )


def _random_obs(spec: ObsSpec, lead: tuple[int, ...], source: torch.Generator) -> Obs:
    if isinstance(spec, dict):
        made = {name: _random_array(part, lead, source) for name, part in spec.items()}
        if MASK in made:
            made[MASK] = (made[MASK] > 0).float()
            made[MASK][..., 0] = 1.0  # something has to be allowed
        return made
    return _random_array(spec, lead, source)


def _random_array(spec: ArraySpec, lead: tuple[int, ...], source: torch.Generator) -> Tensor:
    if spec.dtype == torch.uint8:
        return torch.randint(256, (*lead, *spec.shape), generator=source, dtype=torch.uint8)
    return torch.randn((*lead, *spec.shape), generator=source).clamp(spec.low, spec.high)


def _parameters(algorithm: Algorithm) -> dict[str, Tensor]:
    return {name: param.detach().clone() for name, param in algorithm.policy.named_parameters()}


def _check_updaters(algorithm: Algorithm, other: Algorithm, rollout: Rollout) -> None:
    """All parameters stand still at a learning rate of zero, and the scale is part of the checkpoint."""
    for updater in updaters_of(algorithm):
        updater.scale = 0.0
    other.load_state_dict(copy.deepcopy(algorithm.state_dict()))
    _require(all(updater.scale == 0.0 for updater in updaters_of(other)), "an updater's scale is not in state_dict")
    before = _parameters(other)
    rate = other.learn(rollout).get("learning_rate", torch.tensor(0.0))
    _require(float(rate) == 0.0, "the metric learning_rate is not that of the updaters")
    _require(_same(_parameters(other), before), "`updaters` are not all that move the parameters")


def _check_normaliser(algorithm: Algorithm, rollout: Rollout) -> None:
    """What was acted on is learned by the normaliser, too, where there is one."""
    algorithm.learn(rollout)
    moments = [part for part in algorithm.policy.normalizer.modules() if isinstance(part, RunningMoments)]
    what = "with normalize_obs, learn left the normaliser at nothing; call `learn_normalisation` after the update"
    _require(all(bool(part.count > 0) for part in moments), what)


def _check_dropped(algorithm: Algorithm, other: Algorithm, rollouts: list[Rollout]) -> None:
    """Nothing is learned from steps that a rollout has dropped, whatever they hold."""
    for rollout in rollouts:
        lost = rollout.truncated & ~rollout.terminated
        lost[:, lost.shape[1] // 2 :] = False
        dropped = unfinished(lost, rollout.cut)

        def otherwise(part: Tensor, dropped: Tensor = dropped) -> Tensor:
            changed = part.clone()
            changed[dropped] = part.flip(0)[dropped]
            return changed

        action, reward = otherwise(rollout.action), otherwise(rollout.reward)
        extras = {name: otherwise(part) for name, part in rollout.extras.items()}
        algorithm.learn(replace(rollout, dropped=dropped))
        other.learn(replace(rollout, dropped=dropped, action=action, reward=reward, extras=extras))
    what = "what a rollout has `dropped` was learned from; leave those steps out of the loss, or of the replay"
    _require(_same(_parameters(algorithm), _parameters(other)), what)


def _check_metrics(metrics: dict[str, Tensor]) -> None:
    _require(bool(metrics), "learn returned no metrics")
    for name, value in metrics.items():
        scalar = isinstance(value, Tensor) and value.ndim == 0
        _require(scalar, f"metric {name!r} is not a scalar tensor")
        _require(not value.requires_grad, f"metric {name!r} still carries a gradient")
        _require(bool(value.isfinite()), f"metric {name!r} is {float(value)}")


def _same(one: Any, other: Any) -> bool:
    """Whether two values of one structure agree bit for bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(_same(*pair) for pair in zip(one, other, strict=True))
    if isinstance(one, Rollout | Episodes):
        return all(_same(getattr(one, name), getattr(other, name)) for name in type(one).__dataclass_fields__)
    return bool(one == other)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AlgorithmFault(f"algorithm contract: {otherwise}")
