"""The configuration: it survives being written down, refuses what it does not know, and every option has one name."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from greenroom.algorithms import ALGORITHMS
from greenroom.algorithms.actor_critic import A2CConfig
from greenroom.algorithms.critics import CriticConfig
from greenroom.algorithms.dqn import DQNConfig
from greenroom.algorithms.ppo import PPOConfig
from greenroom.algorithms.replaying import Drawing
from greenroom.algorithms.rewards import Discounting
from greenroom.algorithms.sac import SACConfig
from greenroom.cli import Train
from greenroom.commands.options import Start
from greenroom.config import KINDS, NETWORKS, OPTIMIZERS, RunConfig, dump, load, to_dict
from greenroom.errors import UserError
from greenroom.networks import Impala, Mlp
from greenroom.optim import Adam, RMSprop, Schedule
from greenroom.policy import PolicyConfig
from greenroom.presets import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_being_written_down(name: str) -> None:
    config = PRESETS[name].config("some-env")
    assert load(dump(config), "config.yaml") == config


def test_every_component_survives_being_written_down() -> None:
    config = RunConfig(
        env="package.module:factory",
        env_kwargs={"size": 3, "names": ["a", "b"], "deep": {"x": 0.5, "none": None, "yes": True}},
        sinks=(),
        seed=2**40,
        algorithm=A2CConfig(
            discounting=Discounting(gamma=1.0, lam=0.0, scale_rewards=True),
            optimizer=Adam(learning_rate=1e-7, schedule=Schedule(scaling="sqrt", anneal_steps=5)),
        ),
        policy=PolicyConfig(network=Impala(width=2), channels_last="off"),
    )
    assert load(dump(config), "config.yaml") == config
    other = RunConfig(
        env="x",
        sinks=("wandb", "mlflow"),
        algorithm=PPOConfig(optimizer=RMSprop()),
        policy=PolicyConfig(network=Mlp(hidden=(1, 2, 3))),
    )
    assert load(dump(other), "config.yaml") == other


def test_what_is_written_is_complete_and_plain() -> None:
    text = dump(RunConfig(env="x"))
    assert "!!" not in text  # no Python objects
    data = yaml.safe_load(text)
    assert data.keys() == {field.name for field in dataclasses.fields(RunConfig)}
    assert data["algorithm"]["kind"] == "ppo"
    assert data["algorithm"]["optimizer"]["kind"] == "adam"
    assert data["policy"]["network"] == {
        "kind": "mlp",
        "hidden": [64, 64],
        "activation": "tanh",
        "layer_norm": False,
    }


def test_a_word_that_looks_like_a_number_stays_a_word() -> None:
    config = RunConfig(
        env="x", env_kwargs={"version": "12e5", "tag": "1e3", "rate": 1e-4, "much": 1e30, "day": "2026-01-01"}
    )
    assert load(dump(config), "text").env_kwargs == config.env_kwargs


def test_missing_keys_take_their_defaults() -> None:
    found = load("env: x\nalgorithm: {kind: a2c, discounting: {gamma: 1}}\n", "config.yaml")
    assert found == RunConfig(env="x", algorithm=A2CConfig(discounting=Discounting(gamma=1.0, lam=1.0)))
    assert isinstance(found.algorithm, A2CConfig)
    assert isinstance(found.algorithm.discounting.gamma, float)


def test_a_component_s_missing_keys_are_as_its_owner_has_them() -> None:
    """A2C's λ is 1 and PPO's 0.95; RMSProp's rate grows with the actors, and Adam's does not."""
    schedule = "optimizer: {kind: rmsprop, schedule: {anneal: false}}"
    found = load(f"env: x\nalgorithm: {{kind: ppo, discounting: {{gamma: 0.5}}, {schedule}}}", "config.yaml")
    optimizer = RMSprop(schedule=Schedule(scaling="linear", anneal=False))
    assert found.algorithm == PPOConfig(discounting=Discounting(gamma=0.5, lam=0.95), optimizer=optimizer)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("env: [", "c.yaml is not valid YAML"),
        ("env: !!bool x", "c.yaml is not valid YAML: KeyError"),
        ("env: 2001-13-45", "c.yaml is not valid YAML: ValueError: month must be in 1..12"),
        ("env: x\nalgorithm: {kind: '.a:b'}", "c.yaml: algorithm: .a:b: importing '.a' raised TypeError"),
        ("just words", "c.yaml: expected a mapping of RunConfig's fields, found 'just words'"),
        ("", "c.yaml: expected a mapping of RunConfig's fields, found None"),
        ("num_envs: 4", "c.yaml: missing key 'env'"),
        ("env: x\nnum_env: 4", "c.yaml: unknown key 'num_env'; did you mean 'num_envs'?"),
        ("env: x\nzzzz: 4", "c.yaml: unknown key 'zzzz'; known: "),
        ("env: x\n3: 4", "c.yaml: unknown key 3"),
        ("env: x\nkind: a2c", "c.yaml: unknown key 'kind'"),
        ("env: x\nnum_envs: four", "c.yaml: num_envs: expected int, found 'four'"),
        ("env: x\nnum_envs: 4.0", "c.yaml: num_envs: expected int, found 4.0"),
        ("env: x\nnum_envs: true", "c.yaml: num_envs: expected int, found True"),
        ("env: 3", "c.yaml: env: expected str, found 3"),
        ("env: x\nnum_envs: 0", "c.yaml: num_envs must be at least 1, not 0"),
        ("env: x\nstage: worker", "c.yaml: stage: 'worker' is not a valid value; did you mean 'workers'?"),
        ("env: x\nsinks: tensorboard", "c.yaml: sinks: expected a list, found 'tensorboard'"),
        (
            "env: x\nsinks: [tensorbord]",
            "c.yaml: sinks[0]: 'tensorbord' is not a valid value; did you mean 'tensorboard'?",
        ),
        ("env: x\nenv_kwargs: {1: 2}", "c.yaml: env_kwargs: expected a mapping with names as keys, found {1: 2}"),
        ("env: x\nalgorithm: ppo", "c.yaml: algorithm: expected a mapping with `kind`, one of a2c, ppo"),
        ("env: x\nalgorithm: {epochs: 2}", "c.yaml: algorithm: expected a mapping with `kind`, one of a2c, ppo"),
        ("env: x\nalgorithm: {kind: pp}", "c.yaml: algorithm: no algorithm 'pp'; did you mean 'ppo'?"),
        ("env: x\nalgorithm: {kind: mlp}", "c.yaml: algorithm: no algorithm 'mlp'; known: a2c, "),
        ("env: x\nalgorithm: {kind: ppo, epoch: 2}", "c.yaml: algorithm: unknown key 'epoch'; did you mean 'epochs'?"),
        ("env: x\nalgorithm: {kind: ppo, clip: big}", "c.yaml: algorithm: clip: expected float, found 'big'"),
        (
            f"env: x\nalgorithm: {{kind: ppo, clip: {10**400}}}",
            "c.yaml: algorithm: clip: expected float, found a whole number that is too large for one",
        ),
        (
            "env: x\nalgorithm: {kind: a2c, discounting: {gamma: 2}}",
            "c.yaml: algorithm: discounting: gamma and lam must lie in [0, 1], not 2.0 and 1.0",
        ),
        (
            "env: x\npolicy: {network: {kind: mlp, hidden: [8, x]}}",
            "c.yaml: policy: network: hidden[1]: expected int, found 'x'",
        ),
        ("env: x\npolicy: {kind: mlp}", "c.yaml: policy: unknown key 'kind'"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(text, "c.yaml")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout_length": 0}, "rollout_length must be at least 1, not 0"),
        ({"keep": 0}, "keep must be at least 1, not 0"),
        ({"seed": -1}, "seed must not be negative, and is -1"),
        ({"collect": "double", "num_envs": 7}, "collect=double halves the actors: num_envs must be even, not 7"),
        ({"lag": 3}, "lag=3 is for collect=overlap; sync always acts with the newest weights"),
        ({"lag": 0, "collect": "overlap"}, "lag must be at least 1, not 0"),
    ],
)
def test_impossible_runs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        RunConfig(env="x", **changes)


def test_derived_sizes() -> None:
    config = RunConfig(env="x", num_envs=6, rollout_length=7, total_steps=1005)
    for algorithm, rows in (
        (PPOConfig(minibatches=6), 7),
        (A2CConfig(), 42),
        (DQNConfig(drawing=Drawing(batch_size=96)), 96),
        (SACConfig(critics=CriticConfig(drawing=Drawing(batch_size=48))), 48),
    ):
        assert dataclasses.replace(config, algorithm=algorithm).steps_per_gradient == rows
    assert (config.steps_per_update, config.save_interval, config.algo) == (42, 100, "ppo")
    assert dataclasses.replace(config, save_every=8).save_interval == 8
    assert dataclasses.replace(config, total_steps=3).save_interval == 1


def test_kinds_have_one_name_each() -> None:
    tables = (ALGORITHMS, NETWORKS, OPTIMIZERS)
    assert len(KINDS) == sum(len(table) for table in tables)
    assert len(set(KINDS.values())) == len(KINDS)


def leaves(plain: dict[str, Any]) -> Iterator[str]:
    """Option names: on the command line the components' own names are left out."""
    for name, value in plain.items():
        if name in ("kind", "env_kwargs"):
            continue
        if isinstance(value, dict):
            yield from leaves(value)
        else:
            yield name


@pytest.mark.parametrize(("algo", "network", "optimizer"), [*itertools.product(ALGORITHMS, NETWORKS, OPTIMIZERS)])
def test_every_option_has_one_name(algo: str, network: str, optimizer: str) -> None:
    kind: Any = ALGORITHMS[algo]
    config = RunConfig(
        env="x",
        algorithm=kind(optimizer=OPTIMIZERS[optimizer]()),
        policy=PolicyConfig(network=NETWORKS[network]()),
    )
    fields = [*dataclasses.fields(Train), *dataclasses.fields(Start)]
    of_the_command = [field.name for field in fields if field.name not in ("env", "run", "start")]
    counts = Counter([*leaves(to_dict(config)), *of_the_command])
    assert counts["gamma"] == counts["learning_rate"] == counts["preset"] == 1
    assert [name for name, count in counts.items() if count > 1] == []


def documented(kind: type) -> set[str]:
    """Names of fields that are followed by a docstring in the class's source."""
    import ast
    import inspect
    import textwrap

    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id
        for field, text in itertools.pairwise(body.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


@pytest.mark.parametrize("kind", [RunConfig, PolicyConfig, Discounting, Schedule, *KINDS.values()])
def test_every_option_is_explained(kind: type) -> None:
    assert {field.name for field in dataclasses.fields(kind)} == documented(kind)


def test_not_a_number_is_refused() -> None:
    with pytest.raises(UserError, match="learning_rate must be greater than 0, not nan"):
        Adam(learning_rate=math.nan)


def test_what_is_not_a_number_is_refused_wherever_it_is() -> None:
    for changes in (
        {"log_seconds": math.nan},
        {"algorithm": PPOConfig(clip=math.nan)},
        {"policy": PolicyConfig(initial_log_std=math.nan)},
    ):
        with pytest.raises(UserError, match=r"(log_seconds|clip|initial_log_std) is not a number \(NaN\)"):
            RunConfig(env="CartPole-v1", **changes)
