"""The contract that every algorithm of the table keeps, on every kind of space that it takes, with every option."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from algorithm_settings import SETTINGS
from greenroom.algorithms import ALGORITHMS
from greenroom.algorithms.check import check_algorithm
from greenroom.errors import UserError
from greenroom.memory import Memory, MemoryKind
from greenroom.networks import Mlp
from greenroom.policy import PolicyConfig
from greenroom.spec import MASK, ArraySpec, Bounded, Discrete, EnvSpec, MultiDiscrete

VECTOR = ArraySpec(shape=(3,))
SPECS: dict[str, EnvSpec] = {
    name: EnvSpec(name=name, obs=obs, action=action)
    for name, obs, action in (
        ("discrete", VECTOR, Discrete(n=4)),
        ("multi-discrete", VECTOR, MultiDiscrete(nvec=(2, 3))),
        ("bounded", VECTOR, Bounded(shape=(2,), low=(-1.0, 0.0), high=(1.0, 5.0))),
        ("dict", {"a": VECTOR, "b.c": ArraySpec(shape=(2,))}, Discrete(n=3)),
        ("masked", {"obs": VECTOR, MASK: ArraySpec(shape=(3,), low=0.0, high=1.0)}, Discrete(n=3)),
        ("masked choices", {"obs": VECTOR, MASK: ArraySpec(shape=(5,), low=0.0, high=1.0)}, MultiDiscrete(nvec=(2, 3))),
    )
}
SMALL = PolicyConfig(network=Mlp(hidden=(16,)), normalize_obs=True)


def takes(config: Any, spec: EnvSpec, settings: PolicyConfig) -> bool:
    """Whether the algorithm is for such a task; if not, it has to say so, and what is."""
    try:
        config.policy(settings, spec, "float32")
    except UserError as problem:
        assert "use" in str(problem)
        return False
    return True


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_keeps_the_contract(algo: str, spec: EnvSpec) -> None:
    if takes(SETTINGS[algo], spec, SMALL):
        check_algorithm(SETTINGS[algo], spec, policy=SMALL)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_is_for_something(algo: str) -> None:
    assert any(takes(ALGORITHMS[algo](), spec, PolicyConfig()) for spec in SPECS.values())


@pytest.mark.parametrize("kind", ["gru", "lstm"])
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_the_contract_with_a_memory(algo: str, kind: MemoryKind) -> None:
    config, settings = SETTINGS[algo], dataclasses.replace(SMALL, memory=Memory(memory=kind, memory_size=8))
    for spec in SPECS.values():
        if takes(config, spec, settings):
            check_algorithm(config, spec, policy=settings)
