"""Named settings that are known to work. A preset is a complete `RunConfig`; every field may be overridden.

`paac` is the released code's setting and `paac-paper` the printed one (Clemente et al. 2017); both count agent steps.
The others were tuned on the tasks that `docs/results.md` names.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from greenroom.algorithms import AlgorithmConfig
from greenroom.config import RunConfig, by_default, component
from greenroom.envs.device import model_of
from greenroom.errors import UserError, nearest
from greenroom.presets import atari, classic, continuous, inventory


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A setting and what it is for."""

    about: str
    """One line for `greenroom list`."""
    algo: str
    """Name of the algorithm it sets."""
    config: Callable[[str], RunConfig]
    """The run's configuration for an environment's name."""


PRESETS: dict[str, Preset] = {
    "paac": Preset(about="PAAC as released: 32 actors, 5 steps, 80 M steps (Atari)", algo="a2c", config=atari.paac),
    "paac-paper": Preset(about="PAAC as printed (Atari)", algo="a2c", config=atari.paac_paper),
    "atari-ppo": Preset(about="Atari from pixels with PPO", algo="ppo", config=atari.ppo),
    "atari-pqn": Preset(about="Atari from pixels with Q(λ), without replay", algo="pqn", config=atari.pqn),
    "atari-dqn": Preset(about="Atari from pixels with a replay of a million steps", algo="dqn", config=atari.dqn),
    "rainbow": Preset(
        about="the same with all of Rainbow",
        algo="dqn",
        config=atari.rainbow,
    ),
    "inventory": Preset(about="replenishment and other cheap batched models, PPO", algo="ppo", config=inventory.ppo),
    "classic-ppo": Preset(about="small observations, cheap steps, PPO", algo="ppo", config=classic.ppo),
    "classic-a2c": Preset(about="small observations, cheap steps, A2C", algo="a2c", config=classic.a2c),
    "classic-vtrace": Preset(about="the same for rollouts that lag (V-trace)", algo="vtrace", config=classic.vtrace),
    "classic-nstep-q": Preset(about="small observations, n-step Q-learning", algo="nstep-q", config=classic.nstep_q),
    "classic-nstep-sarsa": Preset(
        about="small observations, n-step Sarsa", algo="nstep-sarsa", config=classic.nstep_sarsa
    ),
    "classic-pqn": Preset(about="small observations, Q(λ) without replay", algo="pqn", config=classic.pqn),
    "classic-dqn": Preset(about="small observations, replay", algo="dqn", config=classic.dqn),
    "classic-rainbow": Preset(about="the same with all of Rainbow", algo="dqn", config=classic.rainbow),
    "continuous": Preset(about="continuous control (MuJoCo-style), PPO", algo="ppo", config=continuous.ppo),
    "continuous-sac": Preset(about="continuous control, small tasks, SAC", algo="sac", config=continuous.sac),
    "continuous-td3": Preset(about="continuous control, small tasks, TD3", algo="td3", config=continuous.td3),
    "mujoco-sac": Preset(
        about="continuous control, MuJoCo, SAC",
        algo="sac",
        config=continuous.mujoco_sac,
    ),
    "mujoco-td3": Preset(
        about="continuous control, MuJoCo, TD3",
        algo="td3",
        config=continuous.mujoco_td3,
    ),
}

_CLASSIC: dict[str | None, str] = {
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
    "device": {None: "inventory", **_CLASSIC, "ppo": "inventory"},
    "mujoco": {None: "continuous", **_CLASSIC, "ppo": "continuous", "sac": "mujoco-sac", "td3": "mujoco-td3"},
    "other": {None: "classic-ppo", **_CLASSIC},
}
"""Family of environments → algorithm (None: not chosen) → preset."""


def _family(env: str) -> str:
    """Which defaults fit; nothing is built to find out."""
    if env.startswith("ALE/"):
        return "atari"
    with contextlib.suppress(UserError):  # whoever builds it will say what is wrong
        if model_of(env):
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
        config = PRESETS[by_algo[None]].config(env)
        # What only actor-critics have is the preset's own algorithm's.
        policy = dataclasses.replace(config.policy, separate_value=False, initial_log_std=0.0)
        return dataclasses.replace(config, algorithm=by_default(chosen), policy=policy)
    if name not in PRESETS:
        raise UserError(f"no preset {name!r}{nearest(name, PRESETS)}")
    entry = PRESETS[name]
    if algo is not None and entry.algo != algo:
        raise UserError(f"preset {name!r} is for {entry.algo}, not {algo}; leave out --algo or --preset")
    return entry.config(env)
