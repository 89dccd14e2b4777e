"""How many threads tensor operations get: by the size of what they compute, and told if others have the cores."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from greenroom.algorithms.actor_critic import A2CConfig
from greenroom.config import RunConfig
from greenroom.memory import Memory
from greenroom.networks import Impala, Mlp, Nature, Nips
from greenroom.policy import ActorCritic, PolicyConfig
from greenroom.spec import MASK, ArraySpec, Discrete, EnvSpec
from greenroom.threads import crowding, limited, operations, worthwhile
from greenroom.training import Run, choose_threads

CPU = torch.device("cpu")
VECTOR = EnvSpec(name="vector", obs=ArraySpec(shape=(100,)), action=Discrete(n=2))
PICTURE = EnvSpec(
    name="picture", obs=ArraySpec(shape=(4, 84, 84), dtype=torch.uint8, low=0, high=255), action=Discrete(n=2)
)
CONFIG = RunConfig(env="lost-sales", num_envs=4, rollout_length=8, algorithm=A2CConfig(), device="cpu")


def policy(spec: EnvSpec, **changes: Any) -> ActorCritic:
    return ActorCritic(PolicyConfig(**changes), spec, "float32")


@pytest.mark.parametrize(("rows", "expected"), [(1, 1), (1628, 1), (1629, 2), (2443, 2), (2444, 3), (10**6, 4)])
def test_as_many_as_have_enough_to_compute(rows: int, expected: int) -> None:
    # 100 × 100 + 100 × (2 + 1) multiply-adds a row are 20 600 operations; a thread wants 2^24.
    with limited(4):
        assert worthwhile(policy(VECTOR, network=Mlp(hidden=(100,))), VECTOR, rows, device=CPU) == expected


def test_convolutions_count_every_pixel() -> None:
    with limited(4):
        assert worthwhile(policy(PICTURE, network=Nips()), PICTURE, 16, device=CPU) == 4


def test_parts_masks_and_memories_are_seen_too() -> None:
    obs = {"x": ArraySpec(shape=(100,)), MASK: ArraySpec(shape=(2,), low=0, high=1)}
    spec = EnvSpec(name="parts", obs=obs, action=Discrete(n=2))
    for size, expected in ((8, 1), (512, 4)):
        net = policy(spec, network=Mlp(hidden=(8,)), memory=Memory(memory="gru", memory_size=size))
        with limited(4):
            assert worthwhile(net, spec, 64, device=CPU) == expected


@pytest.mark.parametrize("network", [Nips(layer_norm=True), Nature(), Impala()])
def test_operations_are_counted_as_torch_does(network: Nips | Nature | Impala) -> None:
    net = policy(PICTURE, network=network, memory=Memory(memory="gru", memory_size=8))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.act(torch.zeros(1, 4, 84, 84, dtype=torch.uint8), net.initial_state(1), None)
    assert operations(net, PICTURE) == counter.get_total_flops() > 2**22


def test_what_a_gpu_computes_is_not_counted() -> None:
    with limited(4):
        assert worthwhile(policy(VECTOR), VECTOR, 1, device=torch.device("cuda")) == 4


def test_a_limit_ends() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), limited(before + 2):
        assert torch.get_num_threads() == before + 2
        _ = 1 / 0
    assert torch.get_num_threads() == before


def test_a_run_takes_what_it_needs_and_gives_it_back() -> None:
    with limited(3):
        for asked, expected in ((0, 1), (2, 2)):
            said: list[str] = []
            run = Run(dataclasses.replace(CONFIG, threads=asked), say=said.append)
            assert torch.get_num_threads() == expected
            run.close()
            assert torch.get_num_threads() == 3
            assert any(line.startswith(f"threads: {expected} of 3") for line in said) == (asked == 0)
        with pytest.raises(Exception, match="no pixels"):
            Run(dataclasses.replace(CONFIG, algorithm=Broken(), threads=2), say=said.append)
        assert torch.get_num_threads() == 3


class Broken(A2CConfig):
    """Cannot be built."""

    def policy(self, *_: Any) -> Any:
        """Fails."""
        raise RuntimeError("no pixels")


@pytest.mark.parametrize(("slower", "told"), [(0.5, False), (30.0, True)])
def test_a_busy_machine_is_told(monkeypatch: pytest.MonkeyPatch, slower: float, told: bool) -> None:
    monkeypatch.setattr("greenroom.training.crowding", lambda threads: slower)
    monkeypatch.setattr("greenroom._torch_came_first", False)
    said: list[str] = []
    net = policy(VECTOR)
    with limited(2):
        count = choose_threads(dataclasses.replace(CONFIG, threads=2), net, VECTOR, CPU, said.append)
        assert choose_threads(CONFIG, net, VECTOR, CPU, lambda line: None) == 1, "one waits for nobody"
    assert count == 2, "it is told, not changed: the same run has the same number every time"
    assert said == (
        ["this machine is busy with something else: 2 threads take 30.0 times as long as one for the same small "
        "operation; while that lasts, --threads 1 is faster"]
        if told
        else []
    )  # fmt: skip


def test_torch_before_greenroom_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greenroom.training.crowding", lambda threads: 1.0)
    monkeypatch.setattr("greenroom._torch_came_first", True)
    said: list[str] = []
    net = policy(VECTOR)
    with limited(2):
        for threads in (1, 2):
            choose_threads(dataclasses.replace(CONFIG, threads=threads), net, VECTOR, CPU, said.append)
    assert len(said) == 2 and said[0].startswith("threads: 1 of 2"), "one thread waits for nobody"
    assert "import greenroom first, or set GOMP_SPINCOUNT=5000" in said[1]


@pytest.mark.parametrize(
    ("first", "given", "told"),
    [("", {}, "False 5000"), ("torch", {}, "True 5000"), ("torch", {"GOMP_SPINCOUNT": "7"}, "False 7")],
)
def test_how_long_threads_wait_is_set_before_torch_reads_it(first: str, given: dict[str, str], told: str) -> None:
    script = "import os, sys; sys.modules |= dict.fromkeys(sys.argv[1:], sys); import greenroom; "
    script += "print(greenroom._torch_came_first, os.environ['GOMP_SPINCOUNT'])"
    environ = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", script, *first.split()], env=environ | given, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == told


def test_crowding_is_a_ratio_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def passes() -> float:
        clock[0] += {1: 2.0, 2: 5.0}[torch.get_num_threads()]
        return clock[0]

    monkeypatch.setattr(time, "perf_counter", passes)
    with limited(1):
        assert crowding(2) == 2.5
        assert torch.get_num_threads() == 1
