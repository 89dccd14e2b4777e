"""Presets: PAAC's two hold the published numbers, each fits its kind of environment, and wrong names get an answer."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from greenroom.algorithms import ALGORITHMS
from greenroom.algorithms.actor_critic import A2CConfig, VTraceConfig
from greenroom.config import RunConfig
from greenroom.envs.ale import AleConfig
from greenroom.errors import UserError
from greenroom.networks import Nips
from greenroom.optim import RMSprop, RMSpropTF
from greenroom.policy import ActorCritic
from greenroom.presets import PRESETS, preset
from greenroom.spec import ArraySpec, Discrete, EnvSpec

PONG = "ALE/Pong-v5"
PONG_SPEC = EnvSpec(name=PONG, obs=ArraySpec(shape=(4, 84, 84), dtype=torch.uint8), action=Discrete(n=6))


def paac(name: str) -> tuple[RunConfig, A2CConfig, RMSprop]:
    config = preset(name, PONG)
    assert isinstance(config.algorithm, A2CConfig)
    assert isinstance(config.algorithm.optimizer, RMSprop)
    return config, config.algorithm, config.algorithm.optimizer


@pytest.mark.parametrize("name", ["paac", "paac-paper"])
def test_what_both_presets_share(name: str) -> None:
    """n_e 32, t_max 5, γ 0.99; RMSProp with decay 0.99 and ε 0.1 at 0.0007·n_e = 0.0224."""
    config, algorithm, optimizer = paac(name)
    assert (config.num_envs, config.rollout_length) == (32, 5)
    assert (algorithm.discounting.gamma, algorithm.discounting.lam) == (0.99, 1.0)
    assert (optimizer.decay, optimizer.eps) == (0.99, 0.1)
    assert optimizer.schedule.at(optimizer.learning_rate, 0, num_envs=32, total_steps=1) == pytest.approx(0.0224)
    assert optimizer.schedule.at(optimizer.learning_rate, 0, num_envs=256, total_steps=1) == pytest.approx(0.1792)
    assert config.policy.network == Nips()
    assert config.policy.initialisation == "fan_in"
    assert not (config.policy.separate_value or config.policy.normalize_obs)
    assert not (algorithm.standardise_advantage or algorithm.discounting.scale_rewards)
    assert isinstance(optimizer.build([torch.nn.Parameter(torch.zeros(1))]), RMSpropTF)
    assert not config.env_kwargs  # the stage's own defaults are PAAC's


def test_the_emulator_s_defaults_are_paac_s() -> None:
    ale = AleConfig()
    assert (ale.repeat_action_probability, ale.frameskip, ale.maxpool, ale.stack_num, ale.noop_max) == (
        0,
        4,
        True,
        4,
        30,
    )
    assert (ale.img_height, ale.img_width, ale.grayscale) == (84, 84, True)
    assert (ale.life_loss, ale.reward_clipping, ale.full_action_space) == ("none", True, False)


def test_the_released_code() -> None:
    """β 0.02, clip 3.0, 0.25·(R−V)², everything × 5, annealed to zero over 80 M steps, of which there are as many."""
    config, algorithm, optimizer = paac("paac")
    assert (algorithm.entropy_coef, optimizer.max_grad_norm, algorithm.loss_scale) == (0.02, 3.0, 5.0)
    assert algorithm.value_coef * 0.5 == 0.25
    assert config.total_steps == 80_000_000
    rates = [
        optimizer.schedule.at(optimizer.learning_rate, steps, num_envs=32, total_steps=config.total_steps)
        for steps in (20_000_000, 80_000_000, 90_000_000)
    ]
    assert rates == pytest.approx([0.0168, 0.0, 0.0])
    short = optimizer.schedule.at(optimizer.learning_rate, 20_000_000, num_envs=32, total_steps=20_000_000)
    assert short == pytest.approx(0.0168)  # a shorter run follows the same schedule


def test_the_paper() -> None:
    """β 0.01, clip 40, weight 1 on (R−V)², no loss scale; 115 M steps at a learning rate that stays."""
    config, algorithm, optimizer = paac("paac-paper")
    assert (algorithm.entropy_coef, optimizer.max_grad_norm, algorithm.loss_scale) == (0.01, 40.0, 1.0)
    assert algorithm.value_coef * 0.5 == 1.0
    assert config.total_steps == 115_000_000
    last = optimizer.schedule.at(optimizer.learning_rate, 115_000_000, num_envs=32, total_steps=config.total_steps)
    assert last == pytest.approx(0.0224)


def test_paac_s_policy() -> None:
    """677 943 parameters at 6 actions, all within ±1/√fan_in; greater fan-in, smaller range."""
    config = preset("paac", PONG)
    policy = config.algorithm.policy(config.policy, PONG_SPEC, "float32")
    assert isinstance(policy, ActorCritic)
    assert sum(param.numel() for param in policy.parameters()) == 677_943
    assert float(policy.value_head.bias.detach().abs()) <= 1 / 16


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_complete(name: str) -> None:
    chosen = PRESETS[name]
    config = preset(name, "some-env")
    assert config.env == "some-env"
    assert config.algo == chosen.algo
    assert config.algo in ALGORITHMS
    assert chosen.about and "\n" not in chosen.about
    assert config.total_steps >= config.steps_per_update
    assert dataclasses.replace(config, collect="double").collect == "double"  # an even number of actors


@pytest.mark.parametrize(
    ("env", "algo", "expected"),
    [
        (PONG, None, "paac"),
        (PONG, "ppo", "atari-ppo"),
        ("lost-sales", None, "inventory"),
        ("lost-sales", "a2c", "classic-a2c"),
        ("CartPole-v1", None, "classic-ppo"),
        ("CartPole-v1", "a2c", "classic-a2c"),
        ("HalfCheetah-v5", None, "continuous"),
        ("my.package:factory", None, "classic-ppo"),
    ],
)
def test_defaults_by_family(env: str, algo: str | None, expected: str) -> None:
    assert preset(None, env, algo=algo) == preset(expected, env)


def test_an_algorithm_without_a_preset_gets_its_defaults_in_the_family_s_surroundings() -> None:
    chosen = preset(None, PONG, algo="greenroom.algorithms.actor_critic:VTraceConfig")
    assert chosen == dataclasses.replace(preset("paac", PONG), algorithm=VTraceConfig())


@pytest.mark.parametrize(
    ("name", "algo", "message"),
    [
        ("pac", None, "no preset 'pac'; did you mean 'paac'?"),
        ("zzz", None, "no preset 'zzz'; known: atari-dqn, "),
        ("paac", "ppo", "preset 'paac' is for a2c, not ppo; leave out --algo or --preset"),
        (None, "pp0", "no algorithm 'pp0'; did you mean 'ppo'?"),
    ],
)
def test_wrong_names(name: str | None, algo: str | None, message: str) -> None:
    with pytest.raises(UserError) as caught:
        preset(name, PONG, algo=algo)
    assert str(caught.value).startswith(message)
