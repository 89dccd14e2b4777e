"""A2C, V-trace and PPO: the loss on literal examples, how a rollout is used, and what the contract's check finds."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from greenroom.algorithms.actor_critic import A2C, A2CConfig, VTraceConfig, advantage_of, next_values, standardise
from greenroom.algorithms.check import AlgorithmFault, check_algorithm, synthetic_rollout
from greenroom.algorithms.ppo import PPO, PPOConfig
from greenroom.algorithms.rewards import Discounting
from greenroom.algorithms.rows import Rows
from greenroom.errors import UserError
from greenroom.maths.returns import vtrace, vtrace_advantage
from greenroom.memory import Memory, MemoryKind
from greenroom.networks import Mlp
from greenroom.optim import Adam, RMSprop, Schedule, Updater
from greenroom.policy import ActorCritic, PolicyConfig, Precision, one_step
from greenroom.presets import PRESETS
from greenroom.spec import ArraySpec, Discrete, EnvSpec
from greenroom.types import Rollout, map_obs

SPEC = EnvSpec(name="x", obs=ArraySpec(shape=(3,)), action=Discrete(n=4))
SMALL = PolicyConfig(network=Mlp(hidden=(16,)), initialisation="fan_in")


def mind(seed: int = 0, memory: MemoryKind = "none") -> ActorCritic:
    torch.manual_seed(seed)
    config = dataclasses.replace(SMALL, memory=Memory(memory=memory, memory_size=8))
    return ActorCritic(config, SPEC, "float32")


def shape(*, num_envs: int, total_steps: int) -> dict[str, Any]:
    return {"spec": SPEC, "num_envs": num_envs, "rollout_length": 5, "total_steps": total_steps, "seed": 0}


each_memory = pytest.mark.parametrize("memory", ["none", "gru", "lstm"])


def rollout(policy: ActorCritic, seed: int = 0) -> Rollout:
    return synthetic_rollout(policy, SPEC, num_envs=6, rollout_length=5, seed=seed)


def acted_on(data: Rollout) -> Tensor:
    """`[T, B, 3]`."""
    assert isinstance(data.obs, Tensor)
    return data.obs[:-1]


def watched(algorithm: PPO) -> list[tuple[Rows, dict[str, Tensor]]]:
    """A list that fills with what each update looks at and reports."""
    seen: list[tuple[Rows, dict[str, Tensor]]] = []
    update = algorithm._update

    def spy(rows: Rows) -> dict[str, Tensor]:
        seen.append((rows, update(rows)))
        return seen[-1][1]

    algorithm._update = spy  # type: ignore[method-assign]
    return seen


class Broken(A2C):
    """An A2C with one fault."""

    fault = ""
    before: dict[int, Tensor]
    learned = 0

    def learn(self, rollout: Rollout) -> dict[str, Tensor]:
        if self.fault == "rollout":
            rollout.reward.mul_(2)
        statistics = copy.deepcopy(self.policy.normalizer.state_dict())
        if self.fault == "dropped":  # a statistic of one's own
            rollout = dataclasses.replace(rollout, reward=rollout.reward - rollout.reward.mean())
        metrics = super().learn(rollout)
        self.learned += 1
        if self.fault == "blind":
            self.policy.normalizer.load_state_dict(statistics)
        if self.fault == "metric":
            metrics["entropy"] = metrics["entropy"] * math.nan
        if self.fault == "vector":
            metrics["entropy"] = metrics["entropy"].expand(2)
        if self.fault == "lazy":
            for param in self.policy.body.parameters():
                param.data.copy_(self.before[id(param)])
        if self.fault == "random":
            self.policy.value_head.bias.data += torch.rand(1)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if self.fault == "forgets":
            state["updater"]["slots"] = {}
        if self.fault == "scale":
            del state["updater"]["scale"]
        return state | {"learned": self.learned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.learned = max(self.learned, state["learned"]) if self.fault == "sticks" else state["learned"]


@dataclasses.dataclass(frozen=True)
class BrokenConfig:
    fault: str

    def policy(self, settings: PolicyConfig, spec: EnvSpec, precision: Precision) -> ActorCritic:
        return ActorCritic(settings, spec, precision)

    def build(
        self, policy: ActorCritic, *, spec: EnvSpec, num_envs: int, rollout_length: int, total_steps: int, seed: int
    ) -> Broken:
        algorithm = Broken(A2CConfig(optimizer=Adam()), policy, num_envs=num_envs, total_steps=total_steps)
        algorithm.fault = self.fault
        algorithm.before = {id(param): param.detach().clone() for param in policy.parameters()}
        if self.fault == "policy":
            algorithm.policy = copy.deepcopy(policy)
        if self.fault == "updaters":
            algorithm.updaters = (Updater(Adam(), policy, num_envs=num_envs, total_steps=total_steps),)
        return algorithm


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("rollout", "learn changed the rollout"),
        ("metric", "metric 'entropy' is nan"),
        ("vector", "metric 'entropy' is not a scalar"),
        ("lazy", "learn did not change body"),
        ("random", "the same seed and the same rollout gave different parameters"),
        ("forgets", "after load_state_dict"),
        ("policy", "not the one it was built with"),
        ("sticks", "left something of what was learned since: a run could not be rolled back"),
        ("scale", "an updater's scale is not in state_dict"),
        ("updaters", "scale is not in state_dict"),
        ("blind", "with normalize_obs, learn left the normaliser at nothing; call `learn_normalisation`"),
        ("dropped", "what a rollout has `dropped` was learned from"),
    ],
)
def test_the_check_finds_faults(fault: str, message: str) -> None:
    with pytest.raises(AlgorithmFault, match=message):
        check_algorithm(BrokenConfig(fault), SPEC)


def pinned(policy: ActorCritic, loss: Any) -> dict[str, Tensor]:
    """Gradients of a scalar function of the policy."""
    policy.zero_grad()
    loss(policy).backward()
    return {name: param.grad.clone() for name, param in policy.named_parameters() if param.grad is not None}


def returns_by_the_loop_of_paac(rollout: Rollout, after: Tensor, gamma: float) -> Tensor:
    """R ← r + γR, masked at every end; the rollout must hold no truncation."""
    assert not rollout.truncated.any()
    estimate, found = after, []
    for t in reversed(range(len(rollout.reward))):
        estimate = rollout.reward[t] + gamma * estimate * (~rollout.terminated[t])
        found.append(estimate)
    return torch.stack(found[::-1])


def test_paac_s_loss_literally() -> None:
    """5·(mean[−log π(a)·A − 0.02·H] + mean[0.25·(R − V)²]), clipped to norm 3, then one step of TF's RMSProp."""
    policy = mind()
    config = PRESETS["paac"].config("ALE/Pong-v5").algorithm
    assert isinstance(config, A2CConfig)
    data = rollout(policy)
    never = torch.zeros_like(data.truncated)
    data = dataclasses.replace(data, truncated=never, terminated=data.cut, reward=3 * data.reward)
    obs = data.obs
    assert isinstance(obs, Tensor)
    target = returns_by_the_loop_of_paac(data, policy.value(obs[-1], {}), 0.99).flatten()
    rows, action = obs[:-1].flatten(0, 1), data.action.flatten()

    def loss(policy: ActorCritic) -> Tensor:
        features = policy.body.encoder(rows)
        log_probs = torch.log_softmax(policy.head.logits(features), dim=-1)  # type: ignore[operator]  # a Linear
        value = policy.value_head(features).squeeze(-1)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        chosen = log_probs[torch.arange(len(action)), action]
        actor = (-chosen * (target - value).detach() - 0.02 * entropy).mean()
        critic = (0.25 * (target - value) ** 2).mean()
        total: Tensor = 5 * (actor + critic)
        return total

    gradients = pinned(policy, loss)
    norm = torch.cat([part.flatten() for part in gradients.values()]).norm()
    before = {name: param.detach().clone() for name, param in policy.named_parameters()}
    algorithm = config.build(policy, **shape(num_envs=32, total_steps=80_000_000))
    metrics = algorithm.learn(data)
    torch.testing.assert_close(metrics["grad_norm"], norm)
    assert float(norm) > 3.0  # so that clipping is tested too
    assert metrics["learning_rate"].item() == pytest.approx(0.0224)
    for name, param in policy.named_parameters():
        g = gradients[name] * 3.0 / norm
        step = 0.0224 * g / torch.sqrt(0.99 + 0.01 * g**2 + 0.1)
        torch.testing.assert_close(param.detach(), before[name] - step, rtol=1e-5, atol=1e-6)


def test_a2c_reports_the_parts_of_its_loss() -> None:
    policy = mind()
    data = rollout(policy)
    algorithm = A2CConfig(discounting=Discounting(gamma=0.0)).build(policy, **shape(num_envs=6, total_steps=1000))
    distribution, value = policy.evaluate(one_step(acted_on(data).flatten(0, 1)), {}, None)
    advantage = data.reward.flatten() - value  # γ = 0
    metrics = algorithm.learn(data)
    log_prob = distribution.log_prob(data.action.flatten())
    torch.testing.assert_close(metrics["policy_loss"], -(log_prob * advantage).mean().detach())
    torch.testing.assert_close(metrics["value_loss"], advantage.square().mean().detach() / 2)
    torch.testing.assert_close(metrics["entropy"], distribution.entropy().mean().detach())


def target_of(config: A2CConfig, policy: ActorCritic, data: Rollout) -> Tensor:
    algorithm = config.build(policy, **shape(num_envs=6, total_steps=1))
    return data.extras["value"] + advantage_of(data, policy, algorithm.rewards, config.discounting.lam)


def test_time_limits_are_bootstrapped_from_the_true_last_observation() -> None:
    """Only a cut step's target depends on `final_obs`, and only where the task did not end."""
    policy = mind()
    data = rollout(policy)
    target = target_of(A2CConfig(discounting=Discounting(lam=0.0)), policy, data)
    other_end = dataclasses.replace(data, final_obs=map_obs(lambda part: part + 1.0, data.final_obs))
    moved = target_of(A2CConfig(discounting=Discounting(lam=0.0)), policy, other_end) != target
    assert torch.equal(moved, data.truncated & ~data.terminated)
    assert moved.any()
    assert (data.truncated & data.terminated).any()
    torch.testing.assert_close(target[data.terminated], data.reward[data.terminated])


def test_what_comes_after_is_valued_with_the_memory_that_goes_with_it() -> None:
    """`final_state` with `final_obs`, `next_state` with the observation after the last step."""
    policy, config = mind(memory="lstm"), A2CConfig(discounting=Discounting(lam=0.0))
    data = rollout(policy)
    target = target_of(config, policy, data)

    def moved_by(name: str) -> Tensor:
        changed: Any = {name: {key: part + 1.0 for key, part in getattr(data, name).items()}}
        return target_of(config, policy, dataclasses.replace(data, **changed)) != target

    assert torch.equal(moved_by("final_state"), data.truncated & ~data.terminated)
    last = torch.arange(5).unsqueeze(1) == 4
    assert torch.equal(moved_by("next_state"), last & ~data.cut)
    assert not moved_by("state").any()  # the values of what was acted on are those that acting gave


def test_ppo_uses_every_row_once_an_epoch() -> None:
    """30 rows in 4 minibatches of 8, 8, 7 and 7; the order is the algorithm's own draw."""
    policy = mind()
    data = rollout(policy)
    algorithm = PPOConfig(epochs=3, minibatches=4).build(policy, **shape(num_envs=6, total_steps=1000))
    updates = watched(algorithm)
    algorithm.learn(data)
    seen: list[list[float]] = [rows["target"].tolist() for rows, _ in updates]
    assert [len(part) for part in seen] == [8, 8, 7, 7] * 3
    epochs = [[*itertools.chain(*seen[at : at + 4])] for at in (0, 4, 8)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert len(set(epochs[0])) == 30
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("memory", ["gru", "lstm"])
def test_ppo_with_a_memory_takes_whole_sequences(memory: MemoryKind) -> None:
    """6 sequences in 4 minibatches of 2, 2, 1 and 1, each with what its actor remembered when the rollout began."""
    policy = mind(memory=memory)
    data = rollout(policy)
    started = {name: torch.randn_like(part) for name, part in data.state.items()}
    data = dataclasses.replace(data, state=started)
    algorithm = PPOConfig(epochs=2, minibatches=4).build(policy, **shape(num_envs=6, total_steps=1000))
    updates = watched(algorithm)
    algorithm.learn(data)
    assert [tuple(rows.cut.shape) for rows, _ in updates] == [(5, 2), (5, 2), (5, 1), (5, 1)] * 2
    order: list[int] = []
    for rows, _ in updates:
        assert rows.state.keys() == started.keys()
        for column in range(rows.cut.shape[1]):
            assert isinstance(rows.obs, Tensor)
            (actor,) = [b for b in range(6) if torch.equal(rows.obs[:, column], acted_on(data)[:, b])]
            order.append(actor)
            assert torch.equal(rows.cut[:, column], data.cut[:, actor])
            for name, extra in (("sample", "sample"), ("old_log_prob", "log_prob"), ("old_value", "value")):
                assert torch.equal(rows.steps[name][:, column], data.extras[extra][:, actor])
            assert all(torch.equal(part[column], started[name][actor]) for name, part in rows.state.items())
    assert sorted(order[:6]) == sorted(order[6:]) == list(range(6))
    assert order[:6] != order[6:]


@pytest.mark.parametrize(
    ("memory", "most", "message"),
    [
        ("none", 30, "minibatches (31) must not exceed the steps of a rollout, num_envs × rollout_length = 30"),
        ("gru", 6, "minibatches (7) must not exceed the sequences of a rollout, num_envs = 6"),
    ],
)
def test_there_are_no_more_minibatches_than_sequences(memory: MemoryKind, most: int, message: str) -> None:
    policy = mind(memory=memory)
    metrics = PPOConfig(minibatches=most).build(policy, **shape(num_envs=6, total_steps=1000)).learn(rollout(policy))
    assert all(value.isfinite() for value in metrics.values())
    with pytest.raises(UserError) as refused:
        PPOConfig(minibatches=most + 1).build(policy, **shape(num_envs=6, total_steps=1000))
    assert str(refused.value) == message


def assert_same_step(one: ActorCritic, other: ActorCritic, before: ActorCritic) -> None:
    for mine, theirs, old in zip(one.parameters(), other.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(mine, old, rtol=1e-5, atol=1e-5)


PLAIN: dict[str, Any] = {"optimizer": Adam(learning_rate=1e-3), "entropy_coef": 0.02, "value_coef": 0.7}


@each_memory
def test_ppo_s_first_update_is_a_policy_gradient_step(memory: MemoryKind) -> None:
    """One epoch, one minibatch: the ratio is 1, nothing is clipped, and A2C with the same settings does the same."""
    data = rollout(mind(memory=memory))
    discounting = Discounting(gamma=0.9, lam=0.8)
    config = PPOConfig(epochs=1, minibatches=1, standardise_advantage=False, discounting=discounting, **PLAIN)
    ppo = config.build(mind(memory=memory), **shape(num_envs=6, total_steps=1000))
    a2c = A2CConfig(discounting=discounting, **PLAIN).build(mind(memory=memory), **shape(num_envs=6, total_steps=1000))
    reported, other = ppo.learn(data), a2c.learn(data)
    assert reported["clip_fraction"].item() == 0
    assert abs(reported["approx_kl"].item()) < 1e-6
    torch.testing.assert_close(reported["grad_norm"], other["grad_norm"])
    assert_same_step(ppo.policy, a2c.policy, mind(memory=memory))


@each_memory
def test_vtrace_on_its_own_rollout_is_a2c(memory: MemoryKind) -> None:
    """With the weights that acted, all ratios are 1; with λ = 1 the update is A2C's."""
    data = rollout(mind(memory=memory))
    discounting = Discounting(gamma=0.9, lam=1.0)
    corrected, plain = (
        config(discounting=discounting, **PLAIN).build(mind(memory=memory), **shape(num_envs=6, total_steps=1000))
        for config in (VTraceConfig, A2CConfig)
    )
    reported, other = corrected.learn(data), plain.learn(data)
    assert reported["ratio_mean"].item() == pytest.approx(1.0, abs=1e-6)
    assert reported["ratio_max"].item() == pytest.approx(1.0, abs=1e-5)
    for name, value in other.items():
        torch.testing.assert_close(reported[name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert_same_step(corrected.policy, plain.policy, mind(memory=memory))


@each_memory
@pytest.mark.parametrize("standardised", [False, True])
def test_vtrace_on_another_policy_s_rollout(memory: MemoryKind, standardised: bool) -> None:
    """The ratios are those of the two policies; values, and so targets, are those of the one that learns."""
    actor, learner = mind(1, memory), mind(0, memory)
    data = rollout(actor)
    distribution, flat_value = learner.evaluate(acted_on(data), data.state, data.cut)
    log_prob = distribution.log_prob(data.action.flatten())
    acted, _ = actor.evaluate(acted_on(data), data.state, data.cut)
    ratio = (log_prob - acted.log_prob(data.action.flatten())).exp().detach().view(5, 6)
    value = flat_value.detach().view(5, 6)
    common = (data.reward, 0.9 * (~data.terminated).float(), data.cut, value, next_values(data, learner, value))
    target = value + vtrace(*common, ratio, lam=0.8, rho_max=0.9, c_max=1.1)
    advantage = vtrace_advantage(*common, ratio, target, 0.9).flatten()
    actor_loss = -(log_prob * (standardise(advantage) if standardised else advantage)).mean()
    critic_loss = 0.5 * (flat_value - target.flatten()).square().mean()
    loss = actor_loss + 0.7 * critic_loss - 0.02 * distribution.entropy().mean()
    gradients = torch.autograd.grad(loss, list(learner.parameters()))

    config = VTraceConfig(
        discounting=Discounting(gamma=0.9, lam=0.8),
        rho_max=0.9,
        c_max=1.1,
        standardise_advantage=standardised,
        **PLAIN,
    )
    metrics = config.build(learner, **shape(num_envs=6, total_steps=1000)).learn(data)
    torch.testing.assert_close(metrics["ratio_mean"], ratio.mean())
    torch.testing.assert_close(metrics["ratio_max"], ratio.max())
    assert float(ratio.min()) < 0.9 and float(ratio.max()) > 1.1  # so that both limits are tested
    torch.testing.assert_close(metrics["policy_loss"], actor_loss.detach())
    torch.testing.assert_close(metrics["value_loss"], critic_loss.detach())
    torch.testing.assert_close(metrics["grad_norm"], torch.cat([part.flatten() for part in gradients]).norm())


def test_clipping_holds_ppo_near_the_acting_policy() -> None:
    """Many epochs on one rollout: a tight clip leaves the policy nearer than a loose one."""

    def distance(clip: float) -> tuple[float, float]:
        policy = mind()
        data = rollout(policy)
        config = PPOConfig(epochs=60, minibatches=1, clip=clip, entropy_coef=0.0, optimizer=Adam(learning_rate=3e-3))
        metrics = config.build(policy, **shape(num_envs=6, total_steps=1_000_000)).learn(data)
        return metrics["approx_kl"].item(), metrics["clip_fraction"].item()

    (tight, often), (loose, never) = distance(0.05), distance(1000.0)
    assert 0 < tight < 0.3 * loose
    assert often > 0 == never


def test_target_kl_leaves_out_the_epochs_after_the_one_in_which_it_is_passed() -> None:
    plain = PPOConfig(epochs=8, minibatches=3, optimizer=Adam(learning_rate=3e-3))
    data = rollout(mind())

    def learned(config: PPOConfig) -> tuple[list[float], dict[str, Tensor], dict[str, Tensor]]:
        """KL of each update, the metrics, and the weights."""
        algorithm = config.build(mind(), **shape(num_envs=6, total_steps=1000))
        updates = watched(algorithm)
        metrics = algorithm.learn(data)
        return [update["approx_kl"].item() for _, update in updates], metrics, algorithm.policy.state_dict()

    moved, _, everything = learned(plain)
    assert len(moved) == 24
    target = 1.01 * max(moved[2:9:3])  # not passed at the end of any of the first three epochs
    last = next(epoch for epoch in range(1, 9) if moved[3 * epoch - 1] > target)
    assert 3 < last < 8
    stopped, metrics, weights = learned(dataclasses.replace(plain, target_kl=target))
    assert stopped == moved[: 3 * last]
    _, expected_metrics, expected = learned(dataclasses.replace(plain, epochs=last))
    # The learning rate's clock does not depend on the number of updates: all is as if only so many had been asked for.
    assert all(torch.equal(weights[name], part) for name, part in expected.items())
    assert all(torch.equal(metrics[name], value) for name, value in expected_metrics.items())
    assert any(not torch.equal(weights[name], part) for name, part in everything.items())


def test_value_clip_is_that_of_the_authors_code() -> None:
    """`.5·mean(max((V − R)², (V_old + clip(V − V_old, ±c) − R)²))`, where the acting values were others than now."""
    policy = mind()
    data = rollout(policy)
    shift = 0.3 * torch.randn(5, 6, generator=torch.Generator().manual_seed(3))
    old, clip = data.extras["value"] + shift, 0.1
    assert bool((shift.abs() > clip).any()) and bool((shift.abs() < clip).any())
    data = dataclasses.replace(data, extras=data.extras | {"value": old})
    target = target_of(A2CConfig(discounting=Discounting()), policy, data)
    distribution, flat_value = policy.evaluate(one_step(acted_on(data).flatten(0, 1)), {}, None)
    value = flat_value.view(5, 6)
    held = old + (value - old).clamp(-clip, clip)
    value_loss = 0.5 * torch.max((value - target) ** 2, (held - target) ** 2).mean()
    policy_loss = -(distribution.log_prob(data.action.flatten()) * standardise(target - old).flatten()).mean()
    gradients = torch.autograd.grad(policy_loss + 0.6 * value_loss, list(policy.parameters()))

    config = PPOConfig(epochs=1, minibatches=1, value_clip=clip, value_coef=0.6, entropy_coef=0.0)
    metrics = config.build(policy, **shape(num_envs=6, total_steps=1000)).learn(data)
    torch.testing.assert_close(metrics["value_loss"], value_loss.detach())
    torch.testing.assert_close(metrics["grad_norm"], torch.cat([part.flatten() for part in gradients]).norm())
    without = 0.5 * (value.detach() - target).square().mean()
    assert metrics["value_loss"].item() > 1.01 * without.item()  # so that the limit is tested


def test_observation_statistics_move_after_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning sees the numbers that acting saw."""
    torch.manual_seed(0)
    policy = ActorCritic(dataclasses.replace(SMALL, normalize_obs=True), SPEC, "float32")
    data = rollout(policy)
    algorithm = PPOConfig().build(policy, **shape(num_envs=6, total_steps=1000))
    update, seen = algorithm._update, list[float]()

    def watched(rows: Any) -> Any:
        seen.append(float(policy.normalizer.moments[0].count))  # type: ignore[arg-type]
        return update(rows)

    monkeypatch.setattr(algorithm, "_update", watched)
    algorithm.learn(data)
    assert len(seen) > 1 and set(seen) == {0.0}
    assert isinstance(data.obs, Tensor)
    torch.testing.assert_close(policy.normalizer.moments[0].mean.float(), data.obs[:-1].flatten(0, 1).mean(0))


def test_statistics_leave_out_what_was_dropped() -> None:
    """A simulator that breaks may show anything before."""
    torch.manual_seed(0)
    settings = dataclasses.replace(SMALL, normalize_obs=True)
    found = []
    for size in (1.0, 1e12):
        policy = ActorCritic(settings, SPEC, "float32")
        config = A2CConfig(discounting=Discounting(scale_rewards=True))
        algorithm = config.build(policy, **shape(num_envs=6, total_steps=1000))
        data = rollout(policy)
        dropped = torch.zeros_like(data.truncated)
        dropped[:, 2] = True
        assert isinstance(data.obs, Tensor)
        data.obs[:-1, 2] = size
        data.reward[:, 2] = size
        algorithm.learn(dataclasses.replace(data, dropped=dropped))
        scaler = algorithm.rewards._scaler
        assert scaler is not None
        found.append((policy.normalizer.moments[0].mean.clone(), scaler.moments.var.clone()))  # type: ignore[operator]
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_scaled_rewards_reach_the_targets() -> None:
    policy = mind()
    data = rollout(policy)
    ends = dataclasses.replace(data, terminated=torch.ones_like(data.terminated), truncated=torch.zeros_like(data.cut))
    ends = dataclasses.replace(ends, final_obs=torch.zeros(30, 3))
    config = A2CConfig(discounting=Discounting(scale_rewards=True))
    target = target_of(config, policy, ends)
    torch.testing.assert_close(target, ends.reward / ends.reward.std(correction=0))


def test_annealing_ends_at_zero() -> None:
    policy = mind()
    algorithm = A2CConfig(optimizer=RMSprop(schedule=Schedule(scaling="constant"), learning_rate=0.01)).build(
        policy, **shape(num_envs=6, total_steps=90)
    )
    rates = [algorithm.learn(rollout(policy, seed))["learning_rate"].item() for seed in range(4)]
    assert rates == pytest.approx([0.01, 0.01 * 2 / 3, 0.01 / 3, 0.0])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Discounting(gamma=1.1), r"must lie in \[0, 1\], not 1.1 and 0.95"),
        (lambda: Discounting(lam=-0.1), r"must lie in \[0, 1\], not 0.99 and -0.1"),
        (lambda: PPOConfig(epochs=0), "epochs and minibatches must be at least 1"),
        (lambda: PPOConfig(clip=0.0), "clip greater than 0"),
        (lambda: PPOConfig(value_clip=-0.1), "value_clip and target_kl must not be negative, not -0.1, 0.0"),
        (lambda: PPOConfig(target_kl=-1.0), "value_clip and target_kl must not be negative, not 0.0, -1.0"),
        (lambda: VTraceConfig(rho_max=0.0), "rho_max and c_max must be greater than 0, not 0.0 and 1.0"),
        (lambda: VTraceConfig(c_max=-1.0), "rho_max and c_max must be greater than 0, not 1.0 and -1.0"),
    ],
)
def test_impossible_values_are_refused(build: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()
