"""Learning on a device of its own, as on a GPU: the same bits as here, and nobody waits for it who need not."""

from __future__ import annotations

import dataclasses
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from algorithm_settings import LENGTH, NUM_ENVS, SETTINGS
from elsewhere import DEVICE, Elsewhere
from greenroom import networks, training
from greenroom.algorithms import ALGORITHMS
from greenroom.algorithms.actor_critic import A2CConfig
from greenroom.algorithms.ppo import PPOConfig
from greenroom.config import RunConfig
from greenroom.memory import Memory
from greenroom.networks import Mlp, Nips
from greenroom.policy import PolicyConfig
from greenroom.training import Run, train

UPDATES = 4
SMALL = PolicyConfig(network=Mlp(hidden=(16,)), normalize_obs=True)
ANSWER = "_decide: action = decision.action.to(group.device)"
AT_ENDS = ("together", "<lambda>", "_restart", "carry")
"""Where episodes that ended are told of, kept, and begun anew."""
STATEFUL, REPLAYING = {"nstep-q", "nstep-sarsa", "pqn", "dqn"}, {"dqn", "sac", "td3"}


@pytest.fixture(autouse=True)
def one_tanh(monkeypatch: pytest.MonkeyPatch) -> None:
    """On most processors tanh is computed in another way here than on an accelerator, and rounds differently."""
    monkeypatch.setattr(networks, "_QUICK", True)


def config(**changes: Any) -> RunConfig:
    defaults: dict[str, Any] = {"num_envs": NUM_ENVS, "rollout_length": LENGTH, "threads": 1, "device": "cpu"}
    return RunConfig(**defaults | {"policy": SMALL, "total_steps": 100_000} | changes)


def learned(run: Run, updates: int = UPDATES) -> dict[str, Tensor]:
    """The policy's tensors after some updates, and what the last one said."""
    try:
        progress = list(islice(train(run), updates))[-1]
        return {**run.algorithm.policy.state_dict(), **progress.metrics}
    finally:
        run.close()


def learned_there(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Tensor], list[str]]:
    """The same by a run on the make-believe accelerator, and for what it was waited meanwhile."""
    monkeypatch.setattr(training, "choose_device", lambda config: DEVICE)
    with Elsewhere(monkeypatch) as accelerator:
        run = Run(config, say=lambda line: None)
        accelerator.waits.clear()
        found = learned(run)
        waits = list(accelerator.waits)
        assert all(part.device == DEVICE for part in run.algorithm.policy.state_dict().values())
        return {name: part.cpu() for name, part in found.items()}, waits


def as_loaded(part: Any) -> Any:
    """A state as a checkpoint gives it back: with all tensors here."""
    if isinstance(part, dict):
        return type(part)({name: as_loaded(one) for name, one in part.items()})
    if isinstance(part, list):
        return [as_loaded(one) for one in part]
    return part.to("cpu", copy=True) if isinstance(part, Tensor) else part


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(part, other[name]) for name, part in one.items())


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_learns_the_same_there(algo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    continuous = algo in ("sac", "td3")
    task = {"env": "probe-continuous"} if continuous else {"env": "lost-sales", "env_kwargs": {"horizon": 6}}
    chosen = config(algorithm=SETTINGS[algo], **task)
    expected = learned(Run(chosen, say=lambda line: None))
    found, waits = learned_there(chosen, monkeypatch)
    assert same(found, expected)
    # Waited is for episodes, when some have ended, and until it is known there who did; of tasks that may end at any
    # step, at each. A replay's frames are numbered by the processor. The probe's tables cross whenever it is asked.
    ends = {"together", "update"} | ({"<lambda>", "step", "initial"} if continuous else {"_restart", "recv"})
    places = [wait.split(":")[0] for wait in waits]
    tables = [place for place in places if place in ("_demand_table", "_tensor")]
    assert len(tables) == (0 if continuous else 3), "once a run"
    assert {*places} - {*tables} <= ends | ({"write", "_push"} if algo in REPLAYING else set())
    if algo not in REPLAYING:
        # An episode's number, return, length and two signals; who ended, three times, and where actors carry something
        # along once more.
        of_an_end = 5 + 3 + (algo in STATEFUL)
        assert len(waits) - len(tables) == of_an_end * LENGTH * UPDATES // 6


def test_an_actor_s_answer_is_all_that_atari_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a stack's newest picture crosses, until a game begins, and two groups take turns."""
    chosen = config(
        env="ALE/Breakout-v5",
        env_kwargs={"life_loss": "terminate", "max_num_frames_per_episode": 60},
        num_envs=4,
        collect="double",
        algorithm=A2CConfig(),
        policy=PolicyConfig(network=Nips(), precision="float32", channels_last="off"),
    )
    expected = learned(Run(chosen, say=lambda line: None))
    found, waits = learned_there(chosen, monkeypatch)
    assert same(found, expected)
    assert [wait for wait in waits if wait.split(":")[0] not in AT_ENDS] == [ANSWER] * (2 * LENGTH * UPDATES)
    assert 0 < len(waits) - 2 * LENGTH * UPDATES < LENGTH * UPDATES


@pytest.mark.parametrize("collect", ["sync", "double"])
def test_there_acting_is_compiled_as_well(collect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is handed to torch, which cannot compile for a make-believe device: the loss, and how the policy acts."""
    chosen = config(env="cartpole", algorithm=PPOConfig(epochs=2, minibatches=2), collect=collect)
    expected = learned(Run(chosen, say=lambda line: None))
    handed: list[str] = []

    def taken(function: Any, **_: Any) -> Any:
        handed.append(function.__name__)
        return function

    monkeypatch.setattr(torch, "compile", taken)
    found, _ = learned_there(dataclasses.replace(chosen, compile=True), monkeypatch)
    assert same(found, expected)
    assert handed == ["<lambda>", "_loss", "act"]


@pytest.mark.parametrize(
    "task",
    [
        {"env": "cartpole"},
        {
            "env": "gym_envs:Counter",
            "stage": "inline",
            "policy": PolicyConfig(network=Mlp(), memory=Memory(memory="gru")),
        },
        {"env": "gym_envs:stacked_cartpole", "stage": "inline"},
    ],
)
def test_other_tasks_are_learned_the_same_there(task: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = config(algorithm=PPOConfig(epochs=2, minibatches=2), **task)
    expected = learned(Run(chosen, say=lambda line: None))
    found, waits = learned_there(chosen, monkeypatch)
    assert same(found, expected)
    each_step = [wait for wait in waits if wait.split(":")[0] not in AT_ENDS]
    assert len(each_step) == LENGTH * UPDATES, "once, for who ended or for the actions"


@pytest.mark.filterwarnings("ignore:.*to a meta parameter:UserWarning")  # a real one would not be written to
@pytest.mark.parametrize("algo", ["ppo", "dqn"])
def test_a_run_there_is_saved_and_resumed(algo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = config(env="lost-sales", env_kwargs={"horizon": 6}, algorithm=SETTINGS[algo])
    expected = learned(Run(chosen, say=lambda line: None))
    monkeypatch.setattr(training, "choose_device", lambda config: DEVICE)
    with Elsewhere(monkeypatch):
        run = Run(chosen, say=lambda line: None)
        assert len(list(islice(train(run), UPDATES - 1))) == UPDATES - 1
        saved = as_loaded(run.state_dict())
        run.close()
        again = Run(chosen, say=lambda line: None)
        again.load_state_dict(saved)
        found = {name: part.cpu() for name, part in learned(again, updates=1).items()}
    assert same(found, expected)


def test_the_accelerator_refuses_what_a_gpu_would(monkeypatch: pytest.MonkeyPatch) -> None:
    here = torch.ones(3)
    with Elsewhere(monkeypatch) as accelerator:
        there = torch.ones(3, device=DEVICE)
        with pytest.raises(AssertionError, match="1 of its tensors are on the processor, 1 on the device"):
            there + here
        with pytest.raises(AssertionError, match="index_select"):
            there.index_select(0, torch.tensor([1]))
        assert torch.equal((there + 2.0 * torch.tensor(3.0)).cpu(), torch.full((3,), 7.0))
        assert accelerator.waits == ["a test"]
        assert there[torch.tensor([0, 2])].sum().item() == 2.0
        assert len(accelerator.waits) == 2
