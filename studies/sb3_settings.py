"""Stable-Baselines3's tuned settings: those of RL Baselines3 Zoo, written out.

From the package rl_zoo3 2.9.2, `hyperparams/ALGORITHM.yml` (Raffin 2020, https://github.com/DLR-RM/rl-baselines3-zoo);
what they leave out is Stable-Baselines3's default. The zoo names older versions of the MuJoCo tasks; here the settings
are used on v5. The two pendulums have none of their own for SAC and TD3: the zoo's `default` is used, as by the zoo.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

CARTPOLE_WITHOUT_VELOCITY = "greenroom.envs.tasks:cartpole_without_velocity"
"""The zoo's CartPoleNoVel-v1."""


def linear(start: float) -> Callable[[float], float]:
    """The zoo's `lin_X`: from X to zero over the budget."""
    return lambda remaining: remaining * start


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One entry of the zoo."""

    total_steps: int
    """The zoo's own budget."""
    n_envs: int = 1
    policy: str = "MlpPolicy"
    normalize: bool = False
    """Observations and rewards by `VecNormalize`, with the algorithm's gamma."""
    noise_std: float = 0.0
    """Standard deviation of normally distributed noise on the actions; 0: without."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Of the algorithm's constructor."""


_CARTPOLE_PPO = Settings(
    total_steps=100_000,
    n_envs=8,
    arguments={
        "n_steps": 32,
        "batch_size": 256,
        "gae_lambda": 0.8,
        "gamma": 0.98,
        "n_epochs": 20,
        "ent_coef": 0.0,
        "learning_rate": linear(0.001),
        "clip_range": linear(0.2),
    },
)
_CARTPOLE_DQN = Settings(
    total_steps=50_000,
    arguments={
        "learning_rate": 2.3e-3,
        "batch_size": 64,
        "buffer_size": 100_000,
        "learning_starts": 1000,
        "gamma": 0.99,
        "target_update_interval": 10,
        "train_freq": 256,
        "gradient_steps": 128,
        "exploration_fraction": 0.16,
        "exploration_final_eps": 0.04,
        "policy_kwargs": {"net_arch": [256, 256]},
    },
)
_ACROBOT_DQN = Settings(
    total_steps=100_000,
    arguments={
        "learning_rate": 6.3e-4,
        "batch_size": 128,
        "buffer_size": 50_000,
        "learning_starts": 0,
        "gamma": 0.99,
        "target_update_interval": 250,
        "train_freq": 4,
        "gradient_steps": -1,
        "exploration_fraction": 0.12,
        "exploration_final_eps": 0.1,
        "policy_kwargs": {"net_arch": [256, 256]},
    },
)


def _with_quantiles(settings: Settings, number: int) -> Settings:
    """QR-DQN's settings where the zoo has the same ones for DQN."""
    network = {"net_arch": [256, 256], "n_quantiles": number}
    return replace(settings, arguments=settings.arguments | {"policy_kwargs": network})


SETTINGS: dict[tuple[str, str], Settings] = {
    ("CartPole-v1", "a2c"): Settings(total_steps=500_000, n_envs=8, arguments={"ent_coef": 0.0}),
    ("CartPole-v1", "ppo"): _CARTPOLE_PPO,
    ("CartPole-v1", "dqn"): _CARTPOLE_DQN,
    ("CartPole-v1", "qrdqn"): _with_quantiles(_CARTPOLE_DQN, 10),
    (CARTPOLE_WITHOUT_VELOCITY, "recurrent-ppo"): replace(
        _CARTPOLE_PPO,
        policy="MlpLstmPolicy",
        normalize=True,
        arguments=_CARTPOLE_PPO.arguments
        | {
            "policy_kwargs": {
                "ortho_init": False,
                "activation_fn": torch.nn.ReLU,
                "lstm_hidden_size": 64,
                "enable_critic_lstm": True,
                "net_arch": {"pi": [64], "vf": [64]},
            }
        },
    ),
    ("Acrobot-v1", "a2c"): Settings(total_steps=500_000, n_envs=16, normalize=True, arguments={"ent_coef": 0.0}),
    ("Acrobot-v1", "ppo"): Settings(
        total_steps=1_000_000,
        n_envs=16,
        normalize=True,
        arguments={"n_steps": 256, "gae_lambda": 0.94, "gamma": 0.99, "n_epochs": 4, "ent_coef": 0.0},
    ),
    ("Acrobot-v1", "dqn"): _ACROBOT_DQN,
    ("Acrobot-v1", "qrdqn"): _with_quantiles(_ACROBOT_DQN, 25),
    ("LunarLander-v3", "a2c"): Settings(
        total_steps=200_000,
        n_envs=8,
        arguments={"gamma": 0.995, "n_steps": 5, "learning_rate": linear(0.00083), "ent_coef": 0.00001},
    ),
    ("LunarLander-v3", "ppo"): Settings(
        total_steps=1_000_000,
        n_envs=16,
        arguments={
            "n_steps": 1024,
            "batch_size": 64,
            "gae_lambda": 0.98,
            "gamma": 0.999,
            "n_epochs": 4,
            "ent_coef": 0.01,
        },
    ),
    ("LunarLander-v3", "dqn"): _ACROBOT_DQN,  # the zoo's entries for the two are the same
    ("LunarLander-v3", "qrdqn"): Settings(
        total_steps=100_000,
        arguments={
            "learning_rate": linear(1.5e-3),
            "batch_size": 128,
            "buffer_size": 100_000,
            "learning_starts": 10_000,
            "gamma": 0.995,
            "target_update_interval": 1,
            "train_freq": 256,
            "gradient_steps": -1,
            "exploration_fraction": 0.24,
            "exploration_final_eps": 0.18,
            "policy_kwargs": {"net_arch": [256, 256], "n_quantiles": 170},
        },
    ),
    ("Pendulum-v1", "ppo"): Settings(
        total_steps=100_000,
        n_envs=4,
        arguments={
            "n_steps": 1024,
            "gae_lambda": 0.95,
            "gamma": 0.9,
            "n_epochs": 10,
            "ent_coef": 0.0,
            "learning_rate": 1e-3,
            "clip_range": 0.2,
            "use_sde": True,
            "sde_sample_freq": 4,
        },
    ),
    ("Pendulum-v1", "sac"): Settings(total_steps=20_000, arguments={"learning_rate": 1e-3}),
    ("Pendulum-v1", "td3"): Settings(
        total_steps=20_000,
        noise_std=0.1,
        arguments={
            "gamma": 0.98,
            "buffer_size": 200_000,
            "learning_starts": 10_000,
            "gradient_steps": 1,
            "train_freq": 1,
            "learning_rate": 1e-3,
            "policy_kwargs": {"net_arch": [400, 300]},
        },
    ),
    ("InvertedDoublePendulum-v5", "ppo"): Settings(
        total_steps=1_000_000,
        n_envs=1,
        normalize=True,
        arguments={
            # The zoo says batch_size 512, which is more than the rollout holds: Stable-Baselines3 then uses all 128.
            "batch_size": 128,
            "n_steps": 128,
            "gamma": 0.98,
            "learning_rate": 0.000155454,
            "ent_coef": 1.05057e-06,
            "clip_range": 0.4,
            "n_epochs": 10,
            "gae_lambda": 0.8,
            "max_grad_norm": 0.5,
            "vf_coef": 0.695929,
        },
    ),
    ("InvertedDoublePendulum-v5", "sac"): Settings(total_steps=1_000_000),
    ("InvertedDoublePendulum-v5", "td3"): Settings(
        total_steps=1_000_000, noise_std=0.1, arguments={"train_freq": 1, "gradient_steps": 1}
    ),
    ("InvertedPendulum-v5", "ppo"): Settings(
        total_steps=1_000_000,
        n_envs=1,
        normalize=True,
        arguments={
            # The zoo says batch_size 64, which is more than the rollout holds: Stable-Baselines3 then uses all 32.
            "batch_size": 32,
            "n_steps": 32,
            "gamma": 0.999,
            "learning_rate": 0.000222425,
            "ent_coef": 1.37976e-07,
            "clip_range": 0.4,
            "n_epochs": 5,
            "gae_lambda": 0.9,
            "max_grad_norm": 0.3,
            "vf_coef": 0.19816,
        },
    ),
    ("InvertedPendulum-v5", "sac"): Settings(total_steps=1_000_000),
    ("InvertedPendulum-v5", "td3"): Settings(
        total_steps=1_000_000, noise_std=0.1, arguments={"train_freq": 1, "gradient_steps": 1}
    ),
}
"""By environment, as greenroom calls it, and algorithm."""
