"""Small observations and cheap steps."""

from __future__ import annotations

import dataclasses

from greenroom.algorithms.actor_critic import A2CConfig, VTraceConfig
from greenroom.algorithms.dqn import DQNConfig
from greenroom.algorithms.exploration import EpsilonGreedy
from greenroom.algorithms.ppo import PPOConfig
from greenroom.algorithms.q_learning import NStepQConfig, NStepSarsaConfig, PQNConfig
from greenroom.algorithms.replaying import Drawing
from greenroom.algorithms.rewards import Discounting
from greenroom.algorithms.targets import TargetNetwork
from greenroom.config import RunConfig
from greenroom.networks import Mlp
from greenroom.optim import Adam, RAdam
from greenroom.policy import PolicyConfig
from greenroom.presets.atari import all_of_rainbow
from greenroom.replay import ReplayConfig

_WIDE = Mlp(hidden=(128, 128), activation="relu")
_NORMED = Mlp(hidden=(128, 128), activation="relu", layer_norm=True)
_SCALED = Discounting(gamma=0.99, lam=0.95, scale_rewards=True)
_LONGEST = dataclasses.replace(_SCALED, lam=1.0)
_EXPLORING = EpsilonGreedy(epsilon_final=(0.01,), epsilon_fraction=0.3)


def ppo(env: str) -> RunConfig:
    """PPO."""
    return RunConfig(
        env=env,
        num_envs=16,
        rollout_length=64,
        total_steps=200_000,
        algorithm=PPOConfig(
            epochs=10, minibatches=8, entropy_coef=0.0, discounting=_SCALED, optimizer=Adam(learning_rate=1e-3)
        ),
        policy=PolicyConfig(separate_value=True, normalize_obs=True),
    )


def a2c(env: str) -> RunConfig:
    """A2C with what PPO has besides its objective."""
    return _one_update(env, A2CConfig)


def vtrace(env: str) -> RunConfig:
    """A2C's settings, for rollouts that lag."""
    return _one_update(env, VTraceConfig)


def _one_update(env: str, algorithm: type[A2CConfig | VTraceConfig]) -> RunConfig:
    """An actor-critic that learns from each rollout once."""
    return RunConfig(
        env=env,
        num_envs=16,
        rollout_length=8,
        total_steps=500_000,
        algorithm=algorithm(
            entropy_coef=0.0,
            discounting=_SCALED,
            standardise_advantage=True,
            optimizer=Adam(learning_rate=2e-3),
        ),
        policy=PolicyConfig(separate_value=True, normalize_obs=True),
    )


def nstep_q(env: str) -> RunConfig:
    """n-step Q-learning."""
    return _nstep(env, NStepQConfig)


def nstep_sarsa(env: str) -> RunConfig:
    """n-step Sarsa."""
    return _nstep(env, NStepSarsaConfig)


def _nstep(env: str, algorithm: type[NStepQConfig | NStepSarsaConfig]) -> RunConfig:
    """Values of actions from the longest returns of a rollout."""
    return RunConfig(
        env=env,
        num_envs=16,
        rollout_length=16,
        total_steps=300_000,
        algorithm=algorithm(
            discounting=_LONGEST,
            exploration=_EXPLORING,
            optimizer=Adam(learning_rate=1e-3, max_grad_norm=10.0),
        ),
        policy=PolicyConfig(network=_NORMED, normalize_obs=True),
    )


def pqn(env: str) -> RunConfig:
    """Q(λ) without replay."""
    return RunConfig(
        env=env,
        num_envs=16,
        rollout_length=32,
        total_steps=300_000,
        algorithm=PQNConfig(
            discounting=Discounting(gamma=0.99, lam=0.65, scale_rewards=True),
            epochs=4,
            minibatches=8,
            optimizer=RAdam(learning_rate=1e-3),
        ),
        policy=PolicyConfig(network=_NORMED),
    )


def dqn(env: str) -> RunConfig:
    """DQN with 3-step returns and a soft target."""
    return RunConfig(
        env=env,
        num_envs=8,
        rollout_length=16,
        total_steps=100_000,
        algorithm=DQNConfig(
            reward_scale=0.1,  # returns of some 10, as from clipped rewards: larger ones made learning unsteady
            drawing=Drawing(batch_size=128, replay_ratio=32.0, learning_starts=1000),
            replay=ReplayConfig(capacity=100_000, n_step=3),
            target=TargetNetwork(target_every=1, tau=0.01),
            exploration=EpsilonGreedy(epsilon_final=(0.04,), epsilon_fraction=0.16),
            optimizer=Adam(learning_rate=1e-3, max_grad_norm=10.0),
        ),
        policy=PolicyConfig(network=_WIDE, normalize_obs=True),
    )


def rainbow(env: str) -> RunConfig:
    """All of Rainbow."""
    return all_of_rainbow(dqn(env), v_min=-10.0, v_max=10.0)
