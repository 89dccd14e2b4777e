"""Replenishment, and other cheap batched models."""

from __future__ import annotations

from greenroom.algorithms.ppo import PPOConfig
from greenroom.algorithms.rewards import Discounting
from greenroom.config import RunConfig
from greenroom.networks import Mlp
from greenroom.optim import Adam
from greenroom.policy import PolicyConfig


def ppo(env: str) -> RunConfig:
    """PPO on thousands of actors."""
    return RunConfig(
        env=env,
        num_envs=4096,
        rollout_length=24,
        total_steps=10_000_000,
        eval_episodes=4096,
        algorithm=PPOConfig(
            epochs=2,
            minibatches=16,
            entropy_coef=0.001,
            discounting=Discounting(gamma=0.97, lam=0.9, scale_rewards=True),
            optimizer=Adam(learning_rate=3e-3),
        ),
        policy=PolicyConfig(network=Mlp(hidden=(64, 64)), separate_value=True),
    )
