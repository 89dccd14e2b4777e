"""Atari from pixels.

`paac` is the released code's setting and `paac_paper` the printed one (Clemente et al. 2017); both count agent steps.
"""

from __future__ import annotations

import dataclasses

from greenroom.algorithms.actor_critic import A2CConfig
from greenroom.algorithms.dqn import DQNConfig
from greenroom.algorithms.exploration import EpsilonGreedy
from greenroom.algorithms.ppo import PPOConfig
from greenroom.algorithms.q_learning import PQNConfig
from greenroom.algorithms.replaying import Drawing
from greenroom.algorithms.rewards import Discounting
from greenroom.algorithms.targets import TargetNetwork
from greenroom.config import RunConfig
from greenroom.networks import Nips
from greenroom.optim import Adam, RAdam, RMSprop, Schedule
from greenroom.policy import PolicyConfig
from greenroom.replay import ReplayConfig
from greenroom.values import HeadConfig


def paac(env: str) -> RunConfig:
    """PAAC as released."""
    return RunConfig(
        env=env,
        num_envs=32,
        rollout_length=5,
        total_steps=80_000_000,
        eval_episodes=30,
        algorithm=A2CConfig(
            discounting=Discounting(gamma=0.99, lam=1.0),
            entropy_coef=0.02,
            value_coef=0.5,  # 0.25 (R-V)²
            loss_scale=5.0,
            optimizer=RMSprop(
                learning_rate=0.0007,
                decay=0.99,
                eps=0.1,
                max_grad_norm=3.0,
                schedule=Schedule(scaling="linear", anneal=True, anneal_steps=80_000_000),
            ),
        ),
        policy=PolicyConfig(network=Nips(), initialisation="fan_in"),
    )


def paac_paper(env: str) -> RunConfig:
    """PAAC as printed."""
    return RunConfig(
        env=env,
        num_envs=32,
        rollout_length=5,
        total_steps=115_000_000,
        eval_episodes=30,
        algorithm=A2CConfig(
            discounting=Discounting(gamma=0.99, lam=1.0),
            entropy_coef=0.01,
            value_coef=2.0,  # weight 1 on (R-V)²
            loss_scale=1.0,
            optimizer=RMSprop(
                learning_rate=0.0007,
                decay=0.99,
                eps=0.1,
                max_grad_norm=40.0,
                # Annealing is the released code's; over its 80 M steps the last 35 M of these would learn nothing.
                schedule=Schedule(scaling="linear", anneal=False),
            ),
        ),
        policy=PolicyConfig(network=Nips(), initialisation="fan_in"),
    )


def ppo(env: str) -> RunConfig:
    """PPO on one box: few actors, long rollouts."""
    return RunConfig(
        env=env,
        num_envs=16,
        rollout_length=64,
        total_steps=5_000_000,
        eval_episodes=30,
        algorithm=PPOConfig(
            epochs=4,
            minibatches=4,
            clip=0.1,
            entropy_coef=0.01,
            optimizer=Adam(learning_rate=5e-4),
        ),
        # Not customary for PPO, but Pong needed several times the steps without (docs/results.md).
        policy=PolicyConfig(network=Nips(layer_norm=True)),
    )


def pqn(env: str) -> RunConfig:
    """Q(λ) without replay (after Gallici et al. 2024), on fewer actors than theirs."""
    return RunConfig(
        env=env,
        num_envs=64,
        rollout_length=32,
        total_steps=10_000_000,
        eval_episodes=30,
        algorithm=PQNConfig(discounting=Discounting(gamma=0.99, lam=0.65), optimizer=RAdam(learning_rate=5e-4)),
        policy=PolicyConfig(network=Nips(layer_norm=True)),
    )


def dqn(env: str) -> RunConfig:
    """DQN with a replay of a million steps."""
    return RunConfig(
        env=env,
        num_envs=32,
        rollout_length=4,
        total_steps=10_000_000,
        eval_episodes=30,
        algorithm=DQNConfig(
            drawing=Drawing(batch_size=256, replay_ratio=8.0, learning_starts=20_000),
            replay=ReplayConfig(capacity=1_000_000, n_step=3),
            target=TargetNetwork(target_every=200),
            exploration=EpsilonGreedy(epsilon_final=(0.01,), epsilon_fraction=0.05),
            optimizer=Adam(learning_rate=5e-4, max_grad_norm=10.0, eps=1.5e-4, schedule=Schedule(anneal=False)),
        ),
        policy=PolicyConfig(network=Nips(layer_norm=True)),
    )


def all_of_rainbow(start: RunConfig, *, v_min: float, v_max: float) -> RunConfig:
    """A DQN run with all that Rainbow puts together (Hessel et al. 2018): noise explores instead of ε."""
    algorithm = start.algorithm
    assert isinstance(algorithm, DQNConfig)
    rainbow = dataclasses.replace(
        algorithm,
        double=True,
        head=HeadConfig(dueling=True, distribution="c51", v_min=v_min, v_max=v_max, noisy=True),
        replay=dataclasses.replace(algorithm.replay, n_step=3, prioritised=True),
        exploration=EpsilonGreedy(epsilon_start=0.0, epsilon_final=(0.0,)),
    )
    return dataclasses.replace(start, algorithm=rainbow)


def rainbow(env: str) -> RunConfig:
    """All of Rainbow, for clipped rewards."""
    return all_of_rainbow(dqn(env), v_min=-10.0, v_max=10.0)
