"""Named settings that are known to work. A preset is a complete `RunConfig`; every field may be overridden.

`paac` is the released code's setting and `paac-paper` the printed one (Clemente et al. 2017); both count agent steps.
The others were tuned on the tasks that `docs/results.md` names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from greenroom.algorithms import AlgorithmConfig
from greenroom.algorithms.actor_critic import A2CConfig, Discounting
from greenroom.algorithms.ppo import PPOConfig
from greenroom.config import RunConfig, component
from greenroom.envs.device import DEVICE_ENVIRONMENTS
from greenroom.errors import UserError, nearest
from greenroom.networks import Mlp, Nips
from greenroom.optim import Adam, RMSprop, Schedule
from greenroom.policy import PolicyConfig


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A setting and what it is for."""

    about: str
    """One line for `greenroom list`."""
    algo: str
    """Name of the algorithm it sets."""
    config: Callable[[str], RunConfig]
    """The run's configuration for an environment's name."""


def _paac(env: str) -> RunConfig:
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


def _paac_paper(env: str) -> RunConfig:
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


def _atari_ppo(env: str) -> RunConfig:
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
        policy=PolicyConfig(network=Nips()),
    )


def _inventory(env: str) -> RunConfig:
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


def _classic_ppo(env: str) -> RunConfig:
    return RunConfig(
        env=env,
        num_envs=16,
        rollout_length=64,
        total_steps=200_000,
        algorithm=PPOConfig(
            epochs=10,
            minibatches=8,
            entropy_coef=0.0,
            discounting=Discounting(gamma=0.99, lam=0.95, scale_rewards=True),
            optimizer=Adam(learning_rate=1e-3),
        ),
        policy=PolicyConfig(separate_value=True, normalize_obs=True),
    )


def _classic_a2c(env: str) -> RunConfig:
    return RunConfig(
        env=env,
        num_envs=16,
        rollout_length=8,
        total_steps=500_000,
        algorithm=A2CConfig(
            entropy_coef=0.0,
            discounting=Discounting(gamma=0.99, lam=0.95, scale_rewards=True),
            standardise_advantage=True,
            optimizer=Adam(learning_rate=2e-3),
        ),
        policy=PolicyConfig(separate_value=True, normalize_obs=True),
    )


def _continuous(env: str) -> RunConfig:
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


PRESETS: dict[str, Preset] = {
    "paac": Preset(about="PAAC as released: 32 actors, 5 steps, 80 M steps (Atari)", algo="a2c", config=_paac),
    "paac-paper": Preset(about="PAAC as printed (Atari)", algo="a2c", config=_paac_paper),
    "atari-ppo": Preset(about="Atari from pixels with PPO", algo="ppo", config=_atari_ppo),
    "inventory": Preset(about="replenishment and other cheap batched models, PPO", algo="ppo", config=_inventory),
    "classic-ppo": Preset(about="small observations, cheap steps, PPO", algo="ppo", config=_classic_ppo),
    "classic-a2c": Preset(about="small observations, cheap steps, A2C", algo="a2c", config=_classic_a2c),
    "continuous": Preset(about="continuous control (MuJoCo-style), PPO", algo="ppo", config=_continuous),
}

_DEFAULTS: dict[str, dict[str | None, str]] = {
    "atari": {None: "paac", "a2c": "paac", "ppo": "atari-ppo"},
    "device": {None: "inventory", "ppo": "inventory", "a2c": "classic-a2c"},
    "mujoco": {None: "continuous", "ppo": "continuous", "a2c": "classic-a2c"},
    "other": {None: "classic-ppo", "ppo": "classic-ppo", "a2c": "classic-a2c"},
}
"""Family of environments → algorithm (None: not chosen) → preset."""


def _family(env: str) -> str:
    """Which defaults fit, from the name alone: nothing is built to find out."""
    if env.startswith("ALE/"):
        return "atari"
    if env in DEVICE_ENVIRONMENTS:
        return "device"
    import gymnasium

    registered = gymnasium.registry.get(env)
    point = registered.entry_point if registered is not None else None
    return "mujoco" if isinstance(point, str) and point.startswith("gymnasium.envs.mujoco") else "other"


def preset(name: str | None, env: str, *, algo: str | None = None) -> RunConfig:
    """The configuration of a preset for one environment.

    Args:
        name: a key of `PRESETS`; None picks one by the environment's family and `algo`.
        env: the environment.
        algo: the algorithm the preset must be for, by name or as `package.module:Config`; None takes any.

    Raises:
        UserError: no such preset, or it is for another algorithm.
    """
    if name is None:
        by_algo = _DEFAULTS[_family(env)]
        if algo in by_algo:
            return PRESETS[by_algo[algo]].config(env)
        # Without a preset of its own: the component's defaults in the family's surroundings.
        chosen = component(AlgorithmConfig, str(algo))
        return dataclasses.replace(PRESETS[by_algo[None]].config(env), algorithm=chosen())
    if name not in PRESETS:
        raise UserError(f"no preset {name!r}{nearest(name, PRESETS)}")
    entry = PRESETS[name]
    if algo is not None and entry.algo != algo:
        raise UserError(f"preset {name!r} is for {entry.algo}, not {algo}; leave out --algo or --preset")
    return entry.config(env)
