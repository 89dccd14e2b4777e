"""Continuous control."""

from __future__ import annotations

import dataclasses

from greenroom.algorithms.critics import CriticConfig, steady_adam
from greenroom.algorithms.ppo import PPOConfig
from greenroom.algorithms.replaying import Drawing
from greenroom.algorithms.rewards import Discounting
from greenroom.algorithms.sac import SACConfig
from greenroom.algorithms.td3 import TD3Config
from greenroom.config import RunConfig
from greenroom.networks import Mlp
from greenroom.optim import Adam
from greenroom.policy import PolicyConfig
from greenroom.replay import ReplayConfig


def ppo(env: str) -> RunConfig:
    """PPO."""
    return RunConfig(
        env=env,
        num_envs=8,
        rollout_length=256,
        total_steps=1_000_000,
        algorithm=PPOConfig(
            epochs=10,
            minibatches=32,
            entropy_coef=0.0,
            discounting=Discounting(gamma=0.99, lam=0.95, scale_rewards=True),
            optimizer=Adam(learning_rate=3e-4),
        ),
        policy=PolicyConfig(separate_value=True, normalize_obs=True),
    )


_QUICK = dataclasses.replace(steady_adam(), learning_rate=1e-3)


def sac(env: str) -> RunConfig:
    """SAC, for small tasks."""
    return _from_replay(env, SACConfig(optimizer=_QUICK))


def td3(env: str) -> RunConfig:
    """TD3, for small tasks."""
    return _from_replay(env, TD3Config(critics=CriticConfig(gamma=0.98), optimizer=_QUICK))


def _from_replay(env: str, algorithm: SACConfig | TD3Config) -> RunConfig:
    """Few actors, an update for every step, and wide networks."""
    return RunConfig(
        env=env,
        num_envs=8,
        rollout_length=1,
        total_steps=20_000,
        algorithm=algorithm,
        policy=PolicyConfig(network=Mlp(hidden=(256, 256), activation="relu"), initialisation="fan_in"),
    )


def _of_mujoco(start: RunConfig) -> RunConfig:
    """Longer, slower and with more random actions before the first update, as MuJoCo's tasks need."""
    algorithm = start.algorithm
    assert isinstance(algorithm, SACConfig | TD3Config)
    critics = dataclasses.replace(
        algorithm.critics,
        gamma=0.99,
        drawing=Drawing(batch_size=256, replay_ratio=256.0, learning_starts=10_000),
        replay=ReplayConfig(capacity=1_000_000),
    )
    slower = dataclasses.replace(algorithm, critics=critics, optimizer=steady_adam())
    return dataclasses.replace(start, total_steps=1_000_000, algorithm=slower)


def mujoco_sac(env: str) -> RunConfig:
    """SAC, with the paper's learning rate and replay."""
    return _of_mujoco(sac(env))


def mujoco_td3(env: str) -> RunConfig:
    """TD3, with the replay of the paper and the learning rate of its authors' later code."""
    return _of_mujoco(td3(env))
