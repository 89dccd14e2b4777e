"""DQN: what a draw teaches, with and without memory; how much is drawn; every option on the probe tasks."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from greenroom.algorithms.check import check_algorithm, synthetic_rollout
from greenroom.algorithms.dqn import DQN, DQNConfig
from greenroom.algorithms.exploration import EpsilonGreedy
from greenroom.algorithms.lessons import Lesson, SequenceConfig, of_sequences, of_transitions
from greenroom.algorithms.replaying import Drawing
from greenroom.algorithms.targets import TargetNetwork
from greenroom.batch import Batch, Sequences
from greenroom.envs.probes import PROBES
from greenroom.errors import UserError
from greenroom.memory import Memory, MemoryKind
from greenroom.networks import Mlp
from greenroom.optim import Adam
from greenroom.policy import PolicyConfig, one_step
from greenroom.replay import ReplayConfig
from greenroom.spec import MASK, ArraySpec, Bounded, Discrete, EnvSpec
from greenroom.types import State
from greenroom.values import HeadConfig, QPolicy
from probing import DISCRETE_PROBES, GAMMA, learned_values, values_are_right

VECTOR = ArraySpec(shape=(3,))
SPEC = EnvSpec(name="vector", obs=VECTOR, action=Discrete(n=4))
MASKED = EnvSpec(name="masked", obs={"a": VECTOR, MASK: ArraySpec(shape=(3,), low=0, high=1)}, action=Discrete(n=3))
HEADS = {
    "plain": HeadConfig(loss="squared"),
    "rainbow": HeadConfig(dueling=True, noisy=True, distribution="c51", atoms=11),
    "quantile": HeadConfig(distribution="quantile", atoms=5),
}
T, B = 6, 8


def settings(memory: MemoryKind = "none", **more: Any) -> PolicyConfig:
    return PolicyConfig(network=Mlp(hidden=(16,)), memory=Memory(memory=memory, memory_size=8), **more)


def small(**more: Any) -> DQNConfig:
    """Learns from the first rollout on: a memory's sequences are as long as one."""
    return dataclasses.replace(
        DQNConfig(
            drawing=Drawing(batch_size=12, replay_ratio=24.0, learning_starts=T * B - 1),
            replay=ReplayConfig(capacity=400, n_step=3),
            sequences=SequenceConfig(sequence_length=T),
            target=TargetNetwork(target_every=1, tau=0.5),
        ),
        **more,
    )


def learner(config: DQNConfig, memory: MemoryKind = "none", spec: EnvSpec = SPEC) -> DQN:
    torch.manual_seed(0)
    policy = config.policy(settings(memory), spec, "float32")
    return config.build(policy, spec=spec, num_envs=B, rollout_length=T, total_steps=100 * T * B, seed=0)


@pytest.mark.parametrize(
    ("head", "memory", "prioritised"),
    [
        ("plain", "none", False),
        ("quantile", "none", True),
        ("rainbow", "none", True),
        ("plain", "gru", True),
        ("rainbow", "lstm", False),
    ],
)
def test_contract(head: str, memory: MemoryKind, prioritised: bool) -> None:
    replay = ReplayConfig(capacity=400, n_step=3, prioritised=prioritised)
    config = small(head=HEADS[head], replay=replay, double=not prioritised)
    for spec in (SPEC, MASKED):
        check_algorithm(config, spec, policy=settings(memory, normalize_obs=True), num_envs=B, rollout_length=T)


def table(*rows: tuple[float, ...]) -> QPolicy:
    """A policy whose Q-values are a table: the situation is seen as a one-hot vector."""
    values = torch.tensor(rows)
    spec = EnvSpec(name="table", obs=ArraySpec(shape=(len(values),)), action=Discrete(n=values.shape[1]))
    policy = QPolicy(PolicyConfig(), spec, "float32", head=HeadConfig(), epsilon=(0.0,))
    policy.body.encoder = nn.Identity()  # type: ignore[assignment]  # features are what is seen
    last = nn.Linear(values.shape[0], values.shape[1], bias=False)
    last.weight.data = values.T.clone()
    policy.head.advantage.layers[0].mean = last
    return policy


def test_double_q_learning_separates_choosing_from_judging() -> None:
    policy, target = table((0.0, 0.0), (5.0, 1.0)), table((0.0, 0.0), (20.0, 30.0))
    batch = Batch(
        obs=torch.eye(2)[[0, 1]],
        action=torch.tensor([1, 0]),
        reward=torch.tensor([0.5, 0.25]),
        discount=torch.tensor([0.9, 0.0]),
        next_obs=torch.eye(2)[[1, 1]],
        index=torch.tensor([4, 5]),
        weight=torch.ones(2),
    )
    source = torch.Generator()
    for judge, expected in ((policy, 20.0), (target, 30.0)):
        lesson = of_transitions(batch, policy, target, judge, source)
        assert lesson.successor.tolist() == [[expected], [expected]]
        assert lesson.outputs.tolist() == [[0.0], [5.0]]
        assert lesson.reward.tolist() == [0.5, 0.25]
        assert lesson.discount.tolist() == pytest.approx([0.9, 0.0])
        assert lesson.outputs.requires_grad
        assert not lesson.successor.requires_grad


def some_sequences(policy: QPolicy, length: int, count: int) -> Sequences:
    source = torch.Generator().manual_seed(1)
    kind = torch.randint(6, (length, count), generator=source)
    terminated, truncated = kind == 0, kind == 1
    state = policy.initial_state(count)
    return Sequences(
        obs=torch.randn(length + 1, count, 3, generator=source),
        action=torch.randint(4, (length, count), generator=source),
        reward=torch.randn(length, count, generator=source),
        terminated=terminated,
        truncated=truncated,
        final_obs=torch.randn(int((terminated | truncated).sum()), 3, generator=source),
        state={
            name: torch.randn(part.shape, generator=source) if part.is_floating_point() else part
            for name, part in state.items()
        },
        index=torch.arange(count),
        weight=torch.ones(count),
    )


def defined_lesson(
    sequences: Sequences, policy: QPolicy, target: QPolicy, *, burn_in: int, n_step: int, gamma: float
) -> list[tuple[float, float, float, float]]:
    """Output, reward, discount and successor of every learned step, walking each stretch on its own, step by step."""
    assert isinstance(sequences.obs, Tensor)
    assert isinstance(sequences.final_obs, Tensor)
    length, count = sequences.cut.shape
    ends = torch.full((length, count), -1)
    ends[sequences.cut] = torch.arange(len(sequences.final_obs))
    found: dict[tuple[int, int], tuple[float, float, float, float]] = {}
    for column in range(count):
        walks: dict[QPolicy, list[Tensor]] = {}
        afters: dict[QPolicy, list[Tensor | None]] = {}
        for network in (policy, target):
            state: State = {name: part[column : column + 1] for name, part in sequences.state.items()}
            walks[network], afters[network] = [], []
            for t in range(length + 1):
                decision = network.act(sequences.obs[t, column : column + 1], state, None)
                walks[network].append(decision.extras["q"][0])
                state = decision.state
                if t < length and sequences.cut[t, column]:
                    final = sequences.final_obs[ends[t, column]].unsqueeze(0)
                    afters[network].append(network.act(final, state, None).extras["q"][0])
                    state = network.initial_state(1)
                else:
                    afters[network].append(None)
        for t in range(burn_in, length):
            reward, counts, k = 0.0, 1.0, t
            while True:
                reward += counts * float(sequences.reward[k, column])
                counts *= gamma
                if sequences.cut[k, column] or k + 1 == length or k + 1 == t + n_step:
                    break
                k += 1
            own, other = (
                walks[network][k + 1] if afters[network][k] is None else afters[network][k]
                for network in (policy, target)
            )
            assert own is not None
            assert other is not None
            found[t, column] = (
                float(walks[policy][t][sequences.action[t, column]]),
                reward,
                0.0 if sequences.terminated[k, column] else counts,
                float(other[own.argmax()]),
            )
    return [found[t, column] for t in range(burn_in, length) for column in range(count)]


@pytest.mark.parametrize("memory", ["gru", "lstm"])
@pytest.mark.parametrize(("burn_in", "n_step"), [(0, 1), (0, 3), (2, 3), (3, 20)])
def test_the_lesson_of_sequences(memory: MemoryKind, burn_in: int, n_step: int) -> None:
    config = small()
    policy, target = (learner(config, memory).policy for _ in range(2))
    for param in target.parameters():
        param.data.mul_(-1.1)
    sequences = some_sequences(policy, 7, 12)
    assert bool(sequences.cut[:2].any())
    lesson = of_sequences(
        sequences, policy, target, policy, torch.Generator(), burn_in=burn_in, n_step=n_step, gamma=0.9
    )
    expected = torch.tensor(defined_lesson(sequences, policy, target, burn_in=burn_in, n_step=n_step, gamma=0.9))
    got = torch.stack([lesson.outputs.squeeze(-1), lesson.reward, lesson.discount, lesson.successor.squeeze(-1)], 1)
    torch.testing.assert_close(got.detach(), expected, rtol=1e-4, atol=1e-5)
    assert lesson.outputs.requires_grad
    assert not lesson.successor.requires_grad


def test_burn_in_passes_no_gradient() -> None:
    policy = learner(small(), "gru").policy
    obs, nowhere = torch.randn(6, 4, 3, requires_grad=True), torch.zeros(5, 4, dtype=torch.bool)
    sequences = dataclasses.replace(
        some_sequences(policy, 5, 4), obs=obs, terminated=nowhere, truncated=nowhere, final_obs=torch.zeros(0, 3)
    )
    lesson = of_sequences(sequences, policy, policy, policy, torch.Generator(), burn_in=2, n_step=1, gamma=0.9)
    (gradient,) = torch.autograd.grad(lesson.outputs.sum(), obs)
    assert not gradient[:2].any()
    assert gradient[2:5].abs().sum((1, 2)).gt(0).all()
    assert not gradient[5].any()  # only the successor's value comes from there


def test_samples_are_drawn_in_proportion_and_fractions_carried() -> None:
    config = small(drawing=Drawing(batch_size=32, replay_ratio=0.5, learning_starts=2 * T * B))
    algorithm = learner(config)
    done, keys = [], set()
    for seed in range(6):
        metrics = algorithm.learn(synthetic_rollout(algorithm.policy, SPEC, num_envs=B, rollout_length=T, seed=seed))
        done.append(int(metrics["updates"]))
        keys.add(tuple(metrics))
        if not done[-1]:
            assert [float(metrics[name]) for name in ("loss", "q_mean", "error", "grad_norm")] == [0.0] * 4
    assert done == [0, 0, 0, 1, 2, 3]  # 0.75 a rollout, from the third on
    assert len(keys) == 1
    assert float(metrics["replay_size"]) == 6 * T * B


def test_rewards_are_learned_from_at_their_scale() -> None:
    algorithm = learner(small(reward_scale=0.25))
    rollout = synthetic_rollout(algorithm.policy, SPEC, num_envs=B, rollout_length=T, seed=0)
    before = rollout.reward.clone()
    algorithm.learn(rollout)
    drawn = algorithm.replay.sample_sequences(5, T)
    torch.testing.assert_close(drawn.reward, 0.25 * before[:, drawn.index % B])
    assert torch.equal(rollout.reward, before)


def test_importance_weights_the_loss_and_errors_become_priorities(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = learner(small(head=HeadConfig(loss="squared")))
    told: list[tuple[Tensor, Tensor]] = []
    monkeypatch.setattr(algorithm.replay, "update_priorities", lambda index, error: told.append((index, error)))
    policy = algorithm.policy
    outputs = policy.evaluate(one_step(torch.randn(6, 3)), {}, None)[0][:, 0]
    lesson = Lesson(
        outputs=outputs,
        reward=torch.arange(6.0),
        discount=torch.full((6,), 0.5),
        successor=torch.ones(6, 1),
        index=torch.tensor([7, 3, 5]),  # three sequences of two steps
        weight=torch.tensor([1.0, 0.5, 0.0]),  # nothing is learned from the last one, by way of its priority neither
    )
    error = (outputs[:, 0] - (torch.arange(6.0) + 0.5)).detach()
    metrics = algorithm._update(lesson)
    expected = (0.5 * error.square() * torch.tensor([1.0, 0.5, 0.0]).repeat(2)).mean()
    torch.testing.assert_close(metrics["loss"], expected)
    torch.testing.assert_close(metrics["error"], error.abs().mean())
    ((index, priority),) = told
    assert index.tolist() == [7, 3, 5]
    first, second = error.abs().view(2, 3)
    expected = 0.9 * torch.maximum(first, second) + 0.1 * (first + second) / 2
    torch.testing.assert_close(priority, expected * torch.tensor([1.0, 1.0, 0.0]))


def test_noise_is_the_learner_s_own() -> None:
    """Two lessons from the same draw differ by their noise, and the learner's generator tells which."""
    algorithm = learner(small(head=HEADS["rainbow"]))
    rollout = synthetic_rollout(algorithm.policy, SPEC, num_envs=B, rollout_length=T, seed=0)
    algorithm.replay.add(rollout)
    batch = algorithm.replay.sample(5)
    policy, target = algorithm.policy, algorithm.target.network
    seeds = (1, 1, 2)
    first, again, other = (
        of_transitions(batch, policy, target, policy, torch.Generator().manual_seed(seed)) for seed in seeds
    )
    assert torch.equal(first.outputs, again.outputs)
    assert not torch.equal(first.outputs, other.outputs)
    assert not torch.equal(first.successor, other.successor)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sequences": SequenceConfig(sequence_length=7)}, r"batch_size \(12\) must be a multiple of .*\(7\)"),
        (
            {"sequences": SequenceConfig(sequence_length=4)},
            r"sequence_length \(4\) must be at least rollout_length \(6\)",
        ),
        ({"sequences": SequenceConfig(sequence_length=6, burn_in=1)}, "learning_starts of at least 56"),
        ({"replay": ReplayConfig(capacity=191)}, "a capacity of at least 192, not 47 and 191"),
    ],
)
def test_sequences_must_fit(wrong: dict[str, Any], message: str) -> None:
    learner(small(**wrong))
    with pytest.raises(UserError, match=message):
        learner(small(**wrong), "gru")


def test_refusals() -> None:
    arm = EnvSpec(name="arm", obs=VECTOR, action=Bounded(shape=(1,), low=(0.0,), high=(1.0,)))
    with pytest.raises(UserError, match="arm does not have discrete actions"):
        DQNConfig().policy(settings(), arm, "float32")
    with pytest.raises(UserError, match="dqn has no use for separate_value"):
        DQNConfig().policy(settings(separate_value=True), SPEC, "float32")
    with pytest.raises(UserError, match="gamma must lie in"):
        DQNConfig(gamma=1.1)
    with pytest.raises(UserError, match="reward_scale must be a finite number"):
        DQNConfig(reward_scale=0.0)
    with pytest.raises(UserError, match="sequence_length must be at least 1 and burn_in at least 0, not 0, 3"):
        SequenceConfig(sequence_length=0, burn_in=3)


PROBING = DQNConfig(
    gamma=GAMMA,
    drawing=Drawing(batch_size=128, replay_ratio=2.0, learning_starts=300),
    replay=ReplayConfig(capacity=4000),
    target=TargetNetwork(target_every=10),
    exploration=EpsilonGreedy(epsilon_final=(0.05, 0.0), epsilon_fraction=0.3),
    sequences=SequenceConfig(sequence_length=4),
    optimizer=Adam(learning_rate=0.02, max_grad_norm=10.0),
)
ROLLOUTS = 150
GREEDY_AT_LAST = EpsilonGreedy(epsilon_final=(0.0,), epsilon_fraction=0.3)
NOISE_ALONE = EpsilonGreedy(epsilon_start=0.0, epsilon_final=(0.0,))


@pytest.mark.parametrize("name", DISCRETE_PROBES)
def test_probe(name: str) -> None:
    values_are_right(learned_values(PROBING, ROLLOUTS, PROBES[name]), PROBES[name])


@pytest.mark.parametrize("name", ["probe-truncation", "probe-mask", "probe-memory"])
@pytest.mark.parametrize(
    "changes",
    [
        {
            "head": HeadConfig(dueling=True, noisy=True, distribution="c51", v_min=-3.0, v_max=3.0, atoms=25),
            "exploration": NOISE_ALONE,
            "replay": ReplayConfig(capacity=4000, n_step=3, prioritised=True),
        },
        {
            "head": HeadConfig(distribution="quantile", atoms=9),
            "replay": ReplayConfig(capacity=4000, n_step=2),
            "sequences": SequenceConfig(sequence_length=8, burn_in=1),
            "double": False,
            "exploration": GREEDY_AT_LAST,  # folded rewards are those of what was done
        },
    ],
    ids=["rainbow", "quantile"],
)
def test_probe_with_every_option(name: str, changes: dict[str, Any]) -> None:
    values_are_right(learned_values(dataclasses.replace(PROBING, **changes), ROLLOUTS, PROBES[name]), PROBES[name])
