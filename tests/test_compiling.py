"""`--compile`: the same learning but for rounding, which repeats; and plain words where it cannot be had."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from algorithm_settings import LENGTH, NUM_ENVS, SETTINGS
from greenroom import linear
from greenroom.algorithms import Algorithm, AlgorithmConfig
from greenroom.algorithms.check import check_algorithm, synthetic_rollout
from greenroom.algorithms.ppo import PPO, PPOConfig
from greenroom.compiling import CompiledActor, compilable, compile_marked
from greenroom.config import RunConfig
from greenroom.errors import UserError
from greenroom.networks import Mlp
from greenroom.policy import PolicyConfig
from greenroom.spec import ArraySpec, Bounded, Discrete, EnvSpec
from greenroom.training import Run, train

CPU = torch.device("cpu")
CONTINUOUS = {"sac", "td3"}
SMALL = PolicyConfig(network=Mlp(hidden=(16,)))
# While it compiles, torch warns itself of what it does.
pytestmark = pytest.mark.filterwarnings("ignore")
needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="torch compiles with a C++ compiler, and there is none"
)


@dataclass(frozen=True)
class Compiled:
    """An algorithm's config that builds it compiled."""

    config: Any

    def policy(self, *args: Any) -> Any:
        return self.config.policy(*args)

    def build(self, policy: Any, **more: Any) -> Algorithm:
        algorithm: Algorithm = self.config.build(policy, **more)
        compile_marked(algorithm, CPU)
        return algorithm


def spec_for(algo: str) -> EnvSpec:
    action = Bounded(shape=(2,), low=(-1.0, 0.0), high=(1.0, 5.0)) if algo in CONTINUOUS else Discrete(n=4)
    return EnvSpec(name="small", obs=ArraySpec(shape=(3,)), action=action)


def learned(config: AlgorithmConfig, spec: EnvSpec) -> list[Tensor]:
    """The parameters after three rollouts."""
    torch.manual_seed(0)
    policy = config.policy(SMALL, spec, "float32")
    algorithm = config.build(policy, spec=spec, num_envs=NUM_ENVS, rollout_length=LENGTH, total_steps=10_000, seed=0)
    for seed in range(3):
        algorithm.learn(synthetic_rollout(policy, spec, num_envs=NUM_ENVS, rollout_length=LENGTH, seed=seed))
    return [param.detach() for param in policy.parameters()]


@needs_compiler
@pytest.mark.parametrize("algo", SETTINGS)
def test_every_algorithm_learns_the_same_compiled(algo: str) -> None:
    eager, compiled = (learned(config, spec_for(algo)) for config in (SETTINGS[algo], Compiled(SETTINGS[algo])))
    for one, other in zip(eager, compiled, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@needs_compiler
@pytest.mark.skipif(not linear.HAS_ONEDNN, reason="needs a torch with oneDNN's products")
@pytest.mark.parametrize("algo", ["ppo", "sac"])
def test_products_by_way_of_onednn_are_so_compiled(algo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    eager = learned(SETTINGS[algo], spec_for(algo))
    monkeypatch.setattr(linear, "_SLOW", True)
    monkeypatch.setattr(linear, "_LARGE", 0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        compiled = learned(Compiled(SETTINGS[algo]), spec_for(algo))
    assert "greenroom::product" in {event.key for event in profile.key_averages()}
    for one, other in zip(eager, compiled, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@needs_compiler
@pytest.mark.parametrize("algo", ["ppo", "dqn", "sac"])
def test_a_policy_acts_the_same_compiled(algo: str) -> None:
    """One of each kind of policy: by the same draws, after updates, for another number of rows, and greedily."""
    spec = spec_for(algo)
    policy = SETTINGS[algo].policy(SMALL, spec, "float32")
    compiled = CompiledActor(policy)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    for rows, drawn in ((5, True), (5, True), (8, True), (8, False)):
        obs, state = torch.randn(rows, 3), policy.initial_state(rows)
        assert compiled.initial_state(rows).keys() == state.keys()
        one, other = (
            actor.act(obs, state, source if drawn else None)
            for actor, source in zip((policy, compiled), generators, strict=True)
        )
        torch.testing.assert_close(one.action, other.action)
        torch.testing.assert_close(one.extras, other.extras)
        assert not any(part.requires_grad for part in other.extras.values())
        with torch.no_grad():
            for param in policy.parameters():
                param.add_(0.1)
    assert torch.equal(*(source.get_state() for source in generators))


@needs_compiler
def test_a_compiled_algorithm_keeps_the_contract() -> None:
    """Same seed, same bits; exact resume and rollback; nothing learned from dropped steps: other sizes of a batch."""
    check_algorithm(Compiled(SETTINGS["ppo"]), spec_for("ppo"))


@needs_compiler
def test_a_compiled_run_repeats_while_it_collects(capsys: pytest.CaptureFixture[str]) -> None:
    config = RunConfig(
        env="cartpole",
        num_envs=8,
        rollout_length=8,
        collect="overlap",
        compile=True,
        device="cpu",
        algorithm=PPOConfig(epochs=1, minibatches=2),
    )
    first, again = (_after_three_updates(config) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert "compile: the first update waits for it" in capsys.readouterr().out


def _after_three_updates(config: RunConfig) -> list[Tensor]:
    run = Run(config)
    try:
        assert len(list(islice(train(run), 3))) == 3
        return [param.detach().clone() for param in run.algorithm.policy.parameters()]
    finally:
        run.close()


@needs_compiler
def test_more_objects_of_a_class_than_torch_has_versions_for_are_compiled() -> None:
    class Doubling:
        def __init__(self) -> None:
            self.seen = 0

        @compilable
        def double(self, x: Tensor) -> Tensor:
            self.seen += not torch.compiler.is_compiling()
            return 2.0 * x

    for _ in range(torch._dynamo.config.recompile_limit + 2):
        made = Doubling()
        compile_marked(made, CPU)
        assert made.double(torch.ones(3)).tolist() == [2.0, 2.0, 2.0]
        assert not made.seen


def test_nothing_to_compile() -> None:
    class Plain:
        """An algorithm without marks."""

    with pytest.raises(UserError, match=r"--compile: .*Plain has marked nothing; see `compilable` in docs/extend.md"):
        compile_marked(Plain(), CPU)


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("\n\nno g++ found\nat all")

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(UserError, match=r"cannot compile on cpu here \(no g\+\+ found\); .* needs a C\+\+ compiler"):
        Run(RunConfig(env="cartpole", num_envs=4, rollout_length=4, device="cpu", compile=True), say=lambda _: None)


def test_only_what_is_marked_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def named(function: Any, **_: Any) -> Any:
        seen.append(function.__name__)
        return function

    monkeypatch.setattr(torch, "compile", named)
    config = SETTINGS["ppo"]
    spec = spec_for("ppo")
    policy = config.policy(SMALL, spec, "float32")
    algorithm = config.build(policy, spec=spec, num_envs=4, rollout_length=4, total_steps=100, seed=0)
    compile_marked(algorithm, CPU)
    assert seen == ["<lambda>", "_loss"]
    assert isinstance(algorithm, PPO)
    assert algorithm._loss.__self__ is algorithm  # type: ignore[attr-defined]  # a bound method still
