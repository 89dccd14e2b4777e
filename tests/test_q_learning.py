"""n-step Q, n-step Sarsa and PQN: targets against their definitions, how a rollout is used, and what is learned."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from greenroom.algorithms.check import check_algorithm, synthetic_rollout
from greenroom.algorithms.exploration import EpsilonGreedy
from greenroom.algorithms.q_learning import NStepQConfig, NStepSarsaConfig, PQNConfig, QLearner
from greenroom.algorithms.rewards import Discounting
from greenroom.algorithms.targets import Target, TargetNetwork, track
from greenroom.envs.probes import PROBES
from greenroom.errors import UserError
from greenroom.maths.values import chosen
from greenroom.memory import Memory, MemoryKind
from greenroom.networks import Mlp
from greenroom.optim import Adam, RAdam, RMSprop, Schedule
from greenroom.policy import PolicyConfig, one_step
from greenroom.seeding import generator
from greenroom.spec import MASK, ArraySpec, Bounded, Discrete, EnvSpec
from greenroom.types import Rollout, map_obs
from greenroom.values import QPolicy
from probing import DISCRETE_PROBES, learned_values, values_are_right
from probing import GAMMA as PROBING_GAMMA

Config = NStepQConfig | NStepSarsaConfig | PQNConfig
CONFIGS: dict[str, type[Config]] = {"nstep-q": NStepQConfig, "nstep-sarsa": NStepSarsaConfig, "pqn": PQNConfig}
VECTOR = ArraySpec(shape=(3,))
SPECS = {
    "vector": EnvSpec(name="vector", obs=VECTOR, action=Discrete(n=4)),
    "masked": EnvSpec(
        name="masked", obs={"a": VECTOR, MASK: ArraySpec(shape=(3,), low=0, high=1)}, action=Discrete(n=3)
    ),
}
T, B, GAMMA = 5, 6, 0.9


def settings(memory: MemoryKind = "none", **more: Any) -> PolicyConfig:
    return PolicyConfig(network=Mlp(hidden=(16,), layer_norm=True), memory=Memory(memory=memory, memory_size=8), **more)


def learner(config: Config, spec: EnvSpec = SPECS["vector"], memory: MemoryKind = "none") -> QLearner:
    torch.manual_seed(0)
    policy = config.policy(settings(memory), spec, "float32")
    return config.build(policy, spec=spec, num_envs=B, rollout_length=T, total_steps=10 * T * B, seed=0)


def a_rollout(policy: QPolicy, spec: EnvSpec = SPECS["vector"], seed: int = 0) -> Rollout:
    return synthetic_rollout(policy, spec, num_envs=B, rollout_length=T, seed=seed)


@pytest.mark.parametrize("memory", ["none", "lstm"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
@pytest.mark.parametrize(
    "config",
    [
        NStepQConfig(),
        NStepQConfig(target=TargetNetwork(target_every=1, tau=0.5), discounting=Discounting(scale_rewards=True)),
        NStepSarsaConfig(target=TargetNetwork(target_every=2), exploration=EpsilonGreedy(epsilon_fraction=1.0)),
        PQNConfig(minibatches=4),
    ],
)
def test_contract(config: Config, spec: EnvSpec, memory: MemoryKind) -> None:
    check_algorithm(config, spec, policy=settings(memory, normalize_obs=True))


def values(policy: QPolicy, rollout: Rollout, t: int) -> Tensor:
    """Q-values `[B, A]` of `obs[t]`, by a policy without memory."""
    return policy.values(one_step(map_obs(lambda part: part[t], rollout.obs)), {}, None).detach()


def defined_targets(rollout: Rollout, worth: Tensor, end_worth: Tensor, lam: float) -> Tensor:
    """λ-returns as mixtures of n-step returns: `Σ (1-λ) λ^(n-1) G_n`, the longest with all the weight that is left.

    `worth` `[T+1, B]` and `end_worth` `[K]` say what `obs` and `final_obs` are worth.
    """
    ends = torch.full((T, B), torch.nan)
    ends[rollout.cut] = end_worth
    target = torch.zeros(T, B)
    for t in range(T):
        for b in range(B):
            reward, left, counts = 0.0, 1.0, 1.0
            for k in range(t, T):
                reward += counts * float(rollout.reward[k, b])
                counts *= GAMMA * (1.0 - float(rollout.terminated[k, b]))
                cut = bool(rollout.cut[k, b])
                beyond = float(ends[k, b] if cut else worth[k + 1, b])
                share = left if cut or k == T - 1 else left * (1 - lam)
                target[t, b] += share * (reward + counts * beyond)
                left -= share
                if cut:
                    break
    return target


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
@pytest.mark.parametrize("lam", [0.0, 0.65, 1.0])
def test_targets_of_q_learning(lam: float, spec: EnvSpec) -> None:
    algorithm = learner(NStepQConfig(discounting=Discounting(gamma=GAMMA, lam=lam)), spec)
    rollout = a_rollout(algorithm.policy, spec)
    assert bool(rollout.truncated.any())
    worth = torch.stack([values(algorithm.policy, rollout, t).amax(-1) for t in range(T + 1)])
    end_worth = algorithm.policy.values(one_step(rollout.final_obs), {}, None).amax(-1).detach()
    expected = defined_targets(rollout, worth, end_worth, lam)
    torch.testing.assert_close(algorithm._targets(rollout), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_targets_of_sarsa(lam: float) -> None:
    """What is worth something is the action taken; at the rollout's end and at time limits one that would be taken."""
    algorithm = learner(NStepSarsaConfig(discounting=Discounting(gamma=GAMMA, lam=lam)))
    algorithm.policy.explore([1.0] * 10)
    rollout = a_rollout(algorithm.policy)
    source = generator(0, "learning")
    action = algorithm.policy.act(rollout.obs[-1], rollout.next_state, source).action  # type: ignore[index]
    worth = torch.stack(
        [chosen(values(algorithm.policy, rollout, t), action if t == T else rollout.action[t]) for t in range(T + 1)]
    )
    timed_out = (rollout.truncated & ~rollout.terminated)[rollout.cut]
    final_obs = rollout.final_obs[timed_out]  # type: ignore[index]
    state = {"actor": rollout.final_state["actor"][timed_out]}
    decision = algorithm.policy.act(final_obs, state, source)
    end_worth = torch.zeros(len(timed_out))
    end_worth[timed_out] = chosen(decision.extras["q"], decision.action)
    assert not torch.equal(decision.action, decision.extras["q"].argmax(-1))
    expected = defined_targets(rollout, worth, end_worth, lam)
    torch.testing.assert_close(algorithm._targets(rollout), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("memory", ["none", "gru"])
def test_targets_rest_on_the_target_network(memory: MemoryKind) -> None:
    own, other = (
        learner(NStepQConfig(target=target), memory=memory)
        for target in (TargetNetwork(), TargetNetwork(target_every=9))
    )
    rollout = a_rollout(own.policy)
    before = own._targets(rollout)
    torch.testing.assert_close(other._targets(rollout), before)
    for algorithm in (own, other):
        algorithm.policy.head.advantage.layers[0].mean.bias.data += 1.0  # type: ignore[operator, union-attr]
    assert not torch.allclose(own._targets(rollout), before)
    torch.testing.assert_close(other._targets(rollout), before)


def test_a_target_network_follows() -> None:
    config = NStepQConfig(target=TargetNetwork(target_every=2, tau=0.25), optimizer=Adam(learning_rate=0.1))
    algorithm = learner(config)
    start = copy.deepcopy(algorithm.policy)
    for update in range(1, 3):
        algorithm.learn(a_rollout(algorithm.policy, seed=update))
        weights = zip(
            algorithm.target.network.parameters(), start.parameters(), algorithm.policy.parameters(), strict=True
        )
        for slow, first, now in weights:
            torch.testing.assert_close(slow, first + (0.25 if update == 2 else 0.0) * (now - first))
            assert not torch.equal(now, first)


def test_tracking_takes_everything_along() -> None:
    source, target = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    for _ in range(3):
        source(torch.randn(5, 2) + 4)
    mean = source.running_mean
    assert mean is not None
    track(target, source, 0.5)
    torch.testing.assert_close(target.running_mean, 0.5 * mean)
    assert int(target.num_batches_tracked) == 3  # type: ignore[arg-type]
    track(target, source, 1.0)
    assert all(
        torch.equal(mine, theirs)
        for mine, theirs in zip(target.state_dict().values(), source.state_dict().values(), strict=True)
    )


def test_without_a_target_network_there_is_no_copy() -> None:
    policy = learner(NStepQConfig()).policy
    target: Target[QPolicy] = TargetNetwork().build(policy)
    assert target.network is policy
    assert target.state_dict()["network"] == {}


def test_pqn_makes_epochs_times_minibatches_updates_towards_the_same_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = learner(PQNConfig(epochs=3, minibatches=5))
    rollout = a_rollout(algorithm.policy)
    seen: list[Tensor] = []
    update = algorithm._update

    def watched(rows: Any) -> dict[str, Tensor]:
        seen.append(torch.stack([rows["target"], rows["action"].float()]))
        return update(rows)

    monkeypatch.setattr(algorithm, "_update", watched)
    expected = torch.stack([algorithm._targets(rollout).flatten(), rollout.action.flatten().float()])
    algorithm.learn(rollout)
    assert [part.shape[1] for part in seen] == [6] * 15

    def in_order(part: Tensor) -> Tensor:
        return part[:, part[0].argsort()]

    epochs = [torch.cat(seen[start : start + 5], dim=1) for start in (0, 5, 10)]
    for epoch in epochs:
        torch.testing.assert_close(in_order(epoch), in_order(expected))
    assert not torch.equal(epochs[0], epochs[1])


def test_the_update_is_half_the_squared_error() -> None:
    algorithm = learner(NStepQConfig())
    rollout = a_rollout(algorithm.policy)
    target = algorithm._targets(rollout)
    q = torch.stack([chosen(values(algorithm.policy, rollout, t), rollout.action[t]) for t in range(T)])
    metrics = algorithm.learn(rollout)
    torch.testing.assert_close(metrics["loss"], 0.5 * (q - target).square().mean())
    torch.testing.assert_close(metrics["q_mean"], q.mean())


def test_exploration_follows_the_clock() -> None:
    exploration = EpsilonGreedy(epsilon_final=(0.0, 0.2), epsilon_fraction=0.4)
    algorithm = learner(NStepQConfig(exploration=exploration))
    assert algorithm.policy.epsilon.tolist() == [1.0, 1.0]
    for expected in ([0.75, 0.8], [0.5, 0.6], [0.25, 0.4], [0.0, 0.2], [0.0, 0.2]):
        metrics = algorithm.learn(a_rollout(algorithm.policy))
        assert algorithm.policy.epsilon.tolist() == pytest.approx(expected)
        assert float(metrics["epsilon"]) == pytest.approx(sum(expected) / 2)


def test_refusals() -> None:
    spec = EnvSpec(name="arm", obs=VECTOR, action=Bounded(shape=(1,), low=(0.0,), high=(1.0,)))
    for algo, config in CONFIGS.items():
        with pytest.raises(UserError, match="arm does not have discrete actions"):
            config().policy(settings(), spec, "float32")
        with pytest.raises(UserError, match=f"{algo} has no use for separate_value"):
            config().policy(settings(separate_value=True), SPECS["vector"], "float32")
    with pytest.raises(UserError, match=r"minibatches \(31\) must not exceed the steps .* = 30"):
        learner(PQNConfig(minibatches=31))
    with pytest.raises(UserError, match=r"minibatches \(7\) must not exceed the sequences .* = 6"):
        learner(PQNConfig(minibatches=7), memory="gru")
    with pytest.raises(UserError, match="epochs and minibatches must be at least 1, not 0 and 1"):
        PQNConfig(epochs=0, minibatches=1)
    with pytest.raises(UserError, match="target_every must not be negative"):
        TargetNetwork(target_every=-1)
    with pytest.raises(UserError, match="tau must lie in"):
        TargetNetwork(tau=0.0)


EXPLORING = EpsilonGreedy(epsilon_final=(0.05, 0.0), epsilon_fraction=0.3)
GREEDY_AT_LAST = EpsilonGreedy(epsilon_final=(0.0,), epsilon_fraction=0.5)
QUICK = Adam(learning_rate=0.02, max_grad_norm=10.0)
PROBING: dict[str, tuple[Config, int]] = {
    "nstep-q": (
        NStepQConfig(discounting=Discounting(gamma=PROBING_GAMMA, lam=0.3), exploration=EXPLORING, optimizer=QUICK),
        200,
    ),
    "nstep-sarsa": (
        NStepSarsaConfig(
            discounting=Discounting(gamma=PROBING_GAMMA, lam=0.9), exploration=GREEDY_AT_LAST, optimizer=QUICK
        ),
        200,
    ),
    "pqn": (
        PQNConfig(
            discounting=Discounting(gamma=PROBING_GAMMA, lam=0.3),
            exploration=EXPLORING,
            minibatches=4,
            optimizer=RAdam(learning_rate=0.02),
        ),
        80,
    ),
}
"""Algorithm → its config and the number of rollouts."""


@pytest.mark.parametrize("name", DISCRETE_PROBES)
@pytest.mark.parametrize("algo", PROBING)
def test_probe(algo: str, name: str) -> None:
    values_are_right(learned_values(*PROBING[algo], PROBES[name]), PROBES[name])


def test_sarsa_learns_what_its_own_exploring_is_worth() -> None:
    """A step pays 1 at best, and those that follow, at random, -1/3 each."""
    sarsa, rollouts = PROBING["nstep-sarsa"]
    assert isinstance(sarsa, NStepSarsaConfig)
    careless = dataclasses.replace(sarsa, exploration=EpsilonGreedy(epsilon_final=(1.0,)))
    probe = PROBES["probe-memory"]
    q = learned_values(careless, rollouts, probe)
    expected = torch.tensor([1.0 - (PROBING_GAMMA + PROBING_GAMMA**2) / 3, 1.0 - PROBING_GAMMA / 3, 1.0]).repeat(3)
    torch.testing.assert_close(q.amax(-1), expected, rtol=0, atol=0.15)


def test_defaults_build_for_their_documented_rollouts() -> None:
    """The papers' optimisers, and minibatches that fit 128 actors × 32 steps."""
    assert isinstance(NStepQConfig().optimizer, RMSprop)
    assert PQNConfig().optimizer == RAdam(schedule=Schedule(anneal=False))
    for config in (NStepQConfig(), PQNConfig()):
        spec = EnvSpec(name="small", obs=ArraySpec(shape=(3,)), action=Discrete(n=2))
        policy = config.policy(PolicyConfig(network=Mlp(hidden=(8,))), spec, "float32")
        config.build(policy, spec=spec, num_envs=128, rollout_length=32, total_steps=10_000, seed=0)
