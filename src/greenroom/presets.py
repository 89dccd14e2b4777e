"""Named settings that are known to work. A preset is a complete `RunConfig`; every field may be overridden.

`paac` is the released code's setting and `paac-paper` the printed one (Clemente et al. 2017); both count agent steps.
The others were tuned on the tasks that `docs/results.md` names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from greenroom.algorithms import AlgorithmConfig
from greenroom.algorithms.actor_critic import A2CConfig, Discounting, VTraceConfig
from greenroom.algorithms.critics import CriticConfig, steady_adam
from greenroom.algorithms.dqn import DQNConfig
from greenroom.algorithms.exploration import EpsilonGreedy
from greenroom.algorithms.ppo import PPOConfig
from greenroom.algorithms.q_learning import NStepQConfig, NStepSarsaConfig, PQNConfig
from greenroom.algorithms.replaying import Drawing
from greenroom.algorithms.sac import SACConfig
from greenroom.algorithms.targets import TargetNetwork
from greenroom.algorithms.td3 import TD3Config
from greenroom.config import RunConfig, component
from greenroom.envs.device import DEVICE_ENVIRONMENTS
from greenroom.errors import UserError, nearest
from greenroom.networks import Mlp, Nips
from greenroom.optim import Adam, RAdam, RMSprop, Schedule
from greenroom.policy import PolicyConfig
from greenroom.replay import ReplayConfig
from greenroom.values import HeadConfig


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


def _classic_vtrace(env: str) -> RunConfig:
    return RunConfig(
        env=env,
        num_envs=16,
        rollout_length=8,
        total_steps=500_000,
        algorithm=VTraceConfig(
            entropy_coef=0.0,
            discounting=Discounting(gamma=0.99, lam=0.95, scale_rewards=True),
            standardise_advantage=True,
            optimizer=Adam(learning_rate=2e-3),
        ),
        policy=PolicyConfig(separate_value=True, normalize_obs=True),
    )


_WIDE = Mlp(hidden=(128, 128), activation="relu")
_NORMED = Mlp(hidden=(128, 128), activation="relu", layer_norm=True)
_EXPLORING = EpsilonGreedy(epsilon_final=(0.01,), epsilon_fraction=0.3)
_SCALED = Discounting(gamma=0.99, lam=1.0, scale_rewards=True)


def _classic_nstep_q(env: str) -> RunConfig:
    return RunConfig(
        env=env,
        num_envs=16,
        rollout_length=16,
        total_steps=300_000,
        algorithm=NStepQConfig(
            discounting=_SCALED,
            exploration=_EXPLORING,
            optimizer=Adam(learning_rate=1e-3, max_grad_norm=10.0),
        ),
        policy=PolicyConfig(network=_NORMED, normalize_obs=True),
    )


def _classic_nstep_sarsa(env: str) -> RunConfig:
    return RunConfig(
        env=env,
        num_envs=16,
        rollout_length=16,
        total_steps=300_000,
        algorithm=NStepSarsaConfig(
            discounting=_SCALED,
            exploration=_EXPLORING,
            optimizer=Adam(learning_rate=1e-3, max_grad_norm=10.0),
        ),
        policy=PolicyConfig(network=_NORMED, normalize_obs=True),
    )


def _classic_pqn(env: str) -> RunConfig:
    return RunConfig(
        env=env,
        num_envs=32,
        rollout_length=32,
        total_steps=300_000,
        algorithm=PQNConfig(
            discounting=Discounting(gamma=0.99, lam=0.9, scale_rewards=True),
            exploration=_EXPLORING,
            epochs=4,
            minibatches=16,
            optimizer=RAdam(learning_rate=1e-3),
        ),
        policy=PolicyConfig(network=_NORMED, normalize_obs=True),
    )


def _classic_dqn(env: str) -> RunConfig:
    return RunConfig(
        env=env,
        num_envs=8,
        rollout_length=4,
        total_steps=100_000,
        algorithm=DQNConfig(
            drawing=Drawing(batch_size=128, replay_ratio=32.0, learning_starts=1000),
            replay=ReplayConfig(capacity=100_000, n_step=3),
            target=TargetNetwork(target_every=1, tau=0.01),
            exploration=EpsilonGreedy(epsilon_final=(0.02,), epsilon_fraction=0.2),
            optimizer=Adam(learning_rate=1e-3, max_grad_norm=10.0),
        ),
        policy=PolicyConfig(network=_WIDE),
    )


def _rainbow(start: RunConfig, *, v_min: float, v_max: float) -> RunConfig:
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


def _classic_rainbow(env: str) -> RunConfig:
    return _rainbow(_classic_dqn(env), v_min=-100.0, v_max=100.0)


def _continuous_sac(env: str) -> RunConfig:
    return RunConfig(
        env=env,
        num_envs=8,
        rollout_length=1,
        total_steps=20_000,
        algorithm=SACConfig(optimizer=dataclasses.replace(steady_adam(), learning_rate=1e-3)),
        policy=PolicyConfig(network=Mlp(hidden=(256, 256), activation="relu"), initialisation="fan_in"),
    )


def _continuous_td3(env: str) -> RunConfig:
    return RunConfig(
        env=env,
        num_envs=8,
        rollout_length=1,
        total_steps=20_000,
        algorithm=TD3Config(
            critics=CriticConfig(gamma=0.98), optimizer=dataclasses.replace(steady_adam(), learning_rate=1e-3)
        ),
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


def _atari_pqn(env: str) -> RunConfig:
    return RunConfig(
        env=env,
        num_envs=64,
        rollout_length=32,
        total_steps=10_000_000,
        eval_episodes=30,
        algorithm=PQNConfig(discounting=Discounting(gamma=0.99, lam=0.65), optimizer=RAdam(learning_rate=5e-4)),
        policy=PolicyConfig(network=Nips(layer_norm=True)),
    )


def _atari_dqn(env: str) -> RunConfig:
    return RunConfig(
        env=env,
        num_envs=32,
        rollout_length=4,
        total_steps=10_000_000,
        eval_episodes=30,
        algorithm=DQNConfig(
            drawing=Drawing(batch_size=256, replay_ratio=8.0, learning_starts=20_000),
            replay=ReplayConfig(capacity=1_000_000, n_step=3),
            target=TargetNetwork(target_every=500),
            exploration=EpsilonGreedy(epsilon_final=(0.01,), epsilon_fraction=0.05),
            optimizer=Adam(learning_rate=2e-4, max_grad_norm=10.0, eps=1.5e-4, schedule=Schedule(anneal=False)),
        ),
        policy=PolicyConfig(network=Nips()),
    )


def _device_pqn(env: str) -> RunConfig:
    return RunConfig(
        env=env,
        num_envs=4096,
        rollout_length=24,
        total_steps=10_000_000,
        eval_episodes=4096,
        algorithm=PQNConfig(
            discounting=Discounting(gamma=0.97, lam=0.9, scale_rewards=True),
            exploration=EpsilonGreedy(epsilon_final=(0.01,), epsilon_fraction=0.3),
            epochs=2,
            minibatches=16,
            optimizer=RAdam(learning_rate=3e-3),
        ),
        policy=PolicyConfig(network=Mlp(hidden=(64, 64), activation="relu", layer_norm=True), normalize_obs=True),
    )


PRESETS: dict[str, Preset] = {
    "paac": Preset(about="PAAC as released: 32 actors, 5 steps, 80 M steps (Atari)", algo="a2c", config=_paac),
    "paac-paper": Preset(about="PAAC as printed (Atari)", algo="a2c", config=_paac_paper),
    "atari-ppo": Preset(about="Atari from pixels with PPO", algo="ppo", config=_atari_ppo),
    "atari-pqn": Preset(about="Atari from pixels with Q(λ), without replay", algo="pqn", config=_atari_pqn),
    "atari-dqn": Preset(about="Atari from pixels with a replay of a million steps", algo="dqn", config=_atari_dqn),
    "atari-rainbow": Preset(
        about="the same with all of Rainbow",
        algo="dqn",
        config=lambda env: _rainbow(_atari_dqn(env), v_min=-10.0, v_max=10.0),
    ),
    "inventory": Preset(about="replenishment and other cheap batched models, PPO", algo="ppo", config=_inventory),
    "inventory-pqn": Preset(about="the same with Q(λ)", algo="pqn", config=_device_pqn),
    "classic-ppo": Preset(about="small observations, cheap steps, PPO", algo="ppo", config=_classic_ppo),
    "classic-a2c": Preset(about="small observations, cheap steps, A2C", algo="a2c", config=_classic_a2c),
    "classic-vtrace": Preset(about="the same for rollouts that lag (V-trace)", algo="vtrace", config=_classic_vtrace),
    "classic-nstep-q": Preset(about="small observations, n-step Q-learning", algo="nstep-q", config=_classic_nstep_q),
    "classic-nstep-sarsa": Preset(
        about="small observations, n-step Sarsa", algo="nstep-sarsa", config=_classic_nstep_sarsa
    ),
    "classic-pqn": Preset(about="small observations, Q(λ) without replay", algo="pqn", config=_classic_pqn),
    "classic-dqn": Preset(about="small observations, replay", algo="dqn", config=_classic_dqn),
    "classic-rainbow": Preset(about="the same with all of Rainbow", algo="dqn", config=_classic_rainbow),
    "continuous": Preset(about="continuous control (MuJoCo-style), PPO", algo="ppo", config=_continuous),
    "continuous-sac": Preset(about="continuous control, small tasks, SAC", algo="sac", config=_continuous_sac),
    "continuous-td3": Preset(about="continuous control, small tasks, TD3", algo="td3", config=_continuous_td3),
    "mujoco-sac": Preset(
        about="continuous control, MuJoCo, SAC", algo="sac", config=lambda env: _of_mujoco(_continuous_sac(env))
    ),
    "mujoco-td3": Preset(
        about="continuous control, MuJoCo, TD3", algo="td3", config=lambda env: _of_mujoco(_continuous_td3(env))
    ),
}

_CLASSIC = {
    "a2c": "classic-a2c",
    "ppo": "classic-ppo",
    "vtrace": "classic-vtrace",
    "nstep-q": "classic-nstep-q",
    "nstep-sarsa": "classic-nstep-sarsa",
    "pqn": "classic-pqn",
    "dqn": "classic-dqn",
    "sac": "continuous-sac",
    "td3": "continuous-td3",
}

_DEFAULTS: dict[str, dict[str | None, str]] = {
    "atari": {None: "paac", "a2c": "paac", "ppo": "atari-ppo", "pqn": "atari-pqn", "dqn": "atari-dqn"},
    "device": {None: "inventory", **_CLASSIC, "ppo": "inventory", "pqn": "inventory-pqn"},
    "mujoco": {None: "continuous", **_CLASSIC, "ppo": "continuous", "sac": "mujoco-sac", "td3": "mujoco-td3"},
    "other": {None: "classic-ppo", **_CLASSIC},
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
