"""A2C and PPO: the loss on literal examples, how a rollout is used, and the contract that every algorithm keeps."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from greenroom.algorithms import ALGORITHMS
from greenroom.algorithms.actor_critic import A2C, PPO, A2CConfig, Discounting, PPOConfig
from greenroom.algorithms.check import AlgorithmFault, check_algorithm, synthetic_rollout
from greenroom.errors import UserError
from greenroom.networks import Mlp
from greenroom.optim import Adam, RMSprop, Schedule
from greenroom.policy import ActorCritic, PolicyConfig
from greenroom.presets import PRESETS
from greenroom.spec import ArraySpec, Bounded, Discrete, EnvSpec, MultiDiscrete
from greenroom.types import Rollout, map_obs

VECTOR = ArraySpec(shape=(3,))
SPECS: dict[str, EnvSpec] = {
    name: EnvSpec(name=name, obs=obs, action=action)
    for name, obs, action in (
        ("discrete", VECTOR, Discrete(n=4)),
        ("multi-discrete", VECTOR, MultiDiscrete(nvec=(2, 3))),
        ("bounded", VECTOR, Bounded(shape=(2,), low=(-1.0, 0.0), high=(1.0, 5.0))),
        ("dict", {"a": VECTOR, "b.c": ArraySpec(shape=(2,))}, Discrete(n=3)),
    )
}
SPEC = SPECS["discrete"]
SMALL = PolicyConfig(network=Mlp(hidden=(16,)), initialisation="fan_in")


def mind(seed: int = 0, spec: EnvSpec = SPEC) -> ActorCritic:
    torch.manual_seed(seed)
    return SMALL.build(spec, "float32")


def rollout(policy: ActorCritic, seed: int = 0) -> Rollout:
    return synthetic_rollout(policy, SPEC, num_envs=6, rollout_length=5, seed=seed)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_keeps_the_contract(algo: str, spec: EnvSpec) -> None:
    check_algorithm(ALGORITHMS[algo](), spec)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_the_contract_with_every_option(algo: str) -> None:
    """Statistics of observations and rewards, and a second encoder, are part of the state too."""
    config = ALGORITHMS[algo](
        discounting=Discounting(scale_rewards=True), standardise_advantage=True, optimizer=RMSprop()
    )
    policy = PolicyConfig(network=Mlp(hidden=(8, 8)), normalize_obs=True, separate_value=True)
    for spec in SPECS.values():
        check_algorithm(config, spec, policy=policy)


class Broken(A2C):
    """An A2C with one fault."""

    fault = ""
    before: dict[int, Tensor]

    def learn(self, rollout: Rollout) -> dict[str, Tensor]:
        if self.fault == "rollout":
            rollout.reward.mul_(2)
        metrics = super().learn(rollout)
        if self.fault == "metric":
            metrics["entropy"] = metrics["entropy"] * math.nan
        if self.fault == "vector":
            metrics["entropy"] = metrics["entropy"].expand(2)
        if self.fault == "lazy":
            for param in self.policy.encoder.parameters():
                param.data.copy_(self.before[id(param)])
        if self.fault == "random":
            self.policy.value_head.bias.data += torch.rand(1)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if self.fault == "forgets":
            state["updater"]["slots"] = {}
        return state


@dataclasses.dataclass(frozen=True)
class BrokenConfig:
    fault: str

    def build(self, policy: ActorCritic, *, num_envs: int, total_steps: int, seed: int) -> Broken:
        algorithm = Broken(A2CConfig(optimizer=Adam()), policy, num_envs=num_envs, total_steps=total_steps)
        algorithm.fault = self.fault
        algorithm.before = {id(param): param.detach().clone() for param in policy.parameters()}
        if self.fault == "policy":
            algorithm.policy = copy.deepcopy(policy)
        return algorithm


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("rollout", "learn changed the rollout"),
        ("metric", "metric 'entropy' is nan"),
        ("vector", "metric 'entropy' is not a scalar"),
        ("lazy", "learn did not change encoder"),
        ("random", "the same seed and the same rollout gave different parameters"),
        ("forgets", "after load_state_dict"),
        ("policy", "not the one it was built with"),
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
    target = returns_by_the_loop_of_paac(data, policy.value(obs[-1]), 0.99).flatten()
    rows, action = obs[:-1].flatten(0, 1), data.action.flatten()

    def loss(policy: ActorCritic) -> Tensor:
        features = policy.encoder(rows)
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
    algorithm = config.build(policy, num_envs=32, total_steps=80_000_000, seed=0)
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
    algorithm = A2CConfig(discounting=Discounting(gamma=0.0)).build(policy, num_envs=6, total_steps=1000, seed=0)
    distribution, value = policy.evaluate(data.obs[:-1].flatten(0, 1))  # type: ignore[index]  # one tensor
    advantage = data.reward.flatten() - value  # γ = 0
    metrics = algorithm.learn(data)
    log_prob = distribution.log_prob(data.action.flatten())
    torch.testing.assert_close(metrics["policy_loss"], -(log_prob * advantage).mean().detach())
    torch.testing.assert_close(metrics["value_loss"], advantage.square().mean().detach() / 2)
    torch.testing.assert_close(metrics["entropy"], distribution.entropy().mean().detach())


def test_time_limits_are_bootstrapped_from_the_true_last_observation() -> None:
    """Only a cut step's target depends on `final_obs`, and only where the task did not end."""
    policy = mind()
    data = rollout(policy)
    advantages = A2CConfig(discounting=Discounting(lam=0.0)).build(policy, num_envs=6, total_steps=1, seed=0).advantages
    _, target = advantages(data)
    other_end = dataclasses.replace(data, final_obs=map_obs(lambda part: part + 1.0, data.final_obs))
    moved = advantages(other_end)[1] != target
    assert torch.equal(moved, data.truncated & ~data.terminated)
    assert moved.any()
    assert (data.truncated & data.terminated).any()
    torch.testing.assert_close(target[data.terminated], data.reward[data.terminated])


def test_ppo_uses_every_row_once_an_epoch() -> None:
    """30 rows in 4 minibatches of 8, 8, 7 and 7; the order is the algorithm's own draw."""
    policy = mind()
    data = rollout(policy)
    algorithm = PPOConfig(epochs=3, minibatches=4).build(policy, num_envs=6, total_steps=1000, seed=0)
    seen: list[list[float]] = []
    update = algorithm._update

    def spy(rows: dict[str, Any]) -> dict[str, Tensor]:
        seen.append(rows["target"].tolist())
        return update(rows)

    algorithm._update = spy  # type: ignore[method-assign]
    algorithm.learn(data)
    assert [len(part) for part in seen] == [8, 8, 7, 7] * 3
    epochs = [[*itertools.chain(*seen[at : at + 4])] for at in (0, 4, 8)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert len(set(epochs[0])) == 30
    assert epochs[0] != epochs[1]


def test_ppo_s_first_update_is_a_policy_gradient_step() -> None:
    """One epoch, one minibatch: the ratio is 1, nothing is clipped, and A2C with the same settings does the same."""
    data = rollout(mind())
    plain = {"optimizer": Adam(learning_rate=1e-3), "entropy_coef": 0.02, "value_coef": 0.7}
    discounting = Discounting(gamma=0.9, lam=0.8)
    ppo = PPO(
        PPOConfig(epochs=1, minibatches=1, standardise_advantage=False, discounting=discounting, **plain),  # type: ignore[arg-type]
        mind(),
        num_envs=6,
        total_steps=1000,
        seed=0,
    )
    a2c = A2C(A2CConfig(discounting=discounting, **plain), mind(), num_envs=6, total_steps=1000)  # type: ignore[arg-type]
    reported, other = ppo.learn(data), a2c.learn(data)
    assert reported["clip_fraction"].item() == 0
    assert abs(reported["approx_kl"].item()) < 1e-6
    torch.testing.assert_close(reported["grad_norm"], other["grad_norm"])
    for one, two in zip(ppo.policy.parameters(), a2c.policy.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_clipping_holds_ppo_near_the_acting_policy() -> None:
    """Many epochs on one rollout: a tight clip leaves the policy nearer than a loose one."""

    def distance(clip: float) -> tuple[float, float]:
        policy = mind()
        data = rollout(policy)
        config = PPOConfig(epochs=60, minibatches=1, clip=clip, entropy_coef=0.0, optimizer=Adam(learning_rate=3e-3))
        metrics = config.build(policy, num_envs=6, total_steps=1_000_000, seed=0).learn(data)
        return metrics["approx_kl"].item(), metrics["clip_fraction"].item()

    (tight, often), (loose, never) = distance(0.05), distance(1000.0)
    assert 0 < tight < 0.3 * loose
    assert often > 0 == never


def test_observation_statistics_move_after_the_update() -> None:
    """Learning sees the numbers that acting saw."""
    torch.manual_seed(0)
    policy = dataclasses.replace(SMALL, normalize_obs=True).build(SPEC, "float32")
    data = rollout(policy)
    PPOConfig().build(policy, num_envs=6, total_steps=1000, seed=0).learn(data)
    assert isinstance(data.obs, Tensor)
    torch.testing.assert_close(policy.normalizer.moments[0].mean.float(), data.obs[:-1].flatten(0, 1).mean(0))


def test_scaled_rewards_reach_the_targets() -> None:
    policy = mind()
    data = rollout(policy)
    ends = dataclasses.replace(data, terminated=torch.ones_like(data.terminated), truncated=torch.zeros_like(data.cut))
    ends = dataclasses.replace(ends, final_obs=torch.zeros(30, 3))
    config = A2CConfig(discounting=Discounting(scale_rewards=True))
    advantages = config.build(policy, num_envs=6, total_steps=1, seed=0).advantages
    _, target = advantages(ends)
    torch.testing.assert_close(target, ends.reward / ends.reward.std(correction=0))


def test_annealing_ends_at_zero() -> None:
    policy = mind()
    algorithm = A2CConfig(optimizer=RMSprop(schedule=Schedule(scaling="constant"), learning_rate=0.01)).build(
        policy, num_envs=6, total_steps=90, seed=0
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
    ],
)
def test_impossible_values_are_refused(build: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()
