"""The native EnvPool stage (optional extra): ids "envpool:Pong-v5", "envpool:CartPole-v1", … behind `Environment`.

EnvPool starts the next episode in the step *after* an end, and ignores that step's action. Here the ended environments,
and only those, take that step within the same `recv`, so that no action is lost and both observations are kept. (Not by
`reset(env_ids)`: with `episodic_life` that would restart a game of which one life was lost.)

EnvPool's own options and defaults apply: its Atari presses FIRE at a start and does not clip rewards. A task that ends
by itself in the very step of its time limit is reported by EnvPool as `truncated` alone, except in Atari.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from greenroom.cores import make_room
from greenroom.envs.ale import check_discrete
from greenroom.envs.base import EpisodeTracker
from greenroom.envs.faults import BY_DEFAULT, FaultConfig
from greenroom.envs.rows import Rows
from greenroom.envs.spaces import Array, Leaf, layout_of
from greenroom.envs.tensors import env_seeds, spec_of
from greenroom.errors import UserError, nearest
from greenroom.types import Obs, Step, cat_obs, map_obs

PREFIX = "envpool:"

# EnvPool's configuration keys that are not a person's to set.
_STAGE_OPTIONS = {"num_envs", "batch_size", "num_threads", "seed", "env_seed"}
_STAGE_OPTIONS |= {"max_num_players", "base_path", "gym_reset_return_info"}


def options_of(env: str) -> dict[str, Any]:
    """The options of the task that `env` names, each with its default.

    Raises:
        UserError: EnvPool is not installed, or has no such task.
    """
    try:
        import envpool
    except ImportError as error:
        raise UserError(f'{env} needs the extra "envpool": pip install "greenroom[envpool]" ({error})') from error
    task = env.removeprefix(PREFIX)
    if task not in envpool.list_all_envs():
        hint = nearest(task, envpool.list_all_envs())
        hint = hint if "did you mean" in hint else "; envpool.list_all_envs() names what there is"
        raise UserError(f"unknown EnvPool task {task!r} in {env!r}{hint}")
    config = envpool.make_spec(task).config._asdict()
    return {name: default for name, default in config.items() if name not in _STAGE_OPTIONS}


class EnvPoolEnvironment:
    """B EnvPool environments stepped by C++ threads. Cannot be snapshotted."""

    def __init__(
        self,
        env: str,
        num_envs: int,
        kwargs: Mapping[str, object],
        *,
        num_threads: int = 0,
        faults: FaultConfig = BY_DEFAULT,
    ) -> None:
        """Look up the task; the simulators start at the first `reset`, because EnvPool seeds them only then.

        Args:
            env: "envpool:" and EnvPool's own id.
            num_envs: B.
            kwargs: EnvPool's configuration of the task, such as `max_episode_steps` or `episodic_life`.
            num_threads: simulator threads; 0 takes one for each core.
            faults: whether an environment that answers with NaN or infinity ends the run, or is reset.

        Raises:
            UserError: EnvPool is not installed, unknown task or option, bad value, unsupported space.
        """
        options = options_of(env)
        import envpool

        self._task = env.removeprefix(PREFIX)
        for name in kwargs:
            if name not in options:
                raise UserError(f"{env} has no option {name!r}" + nearest(name, options))
        try:
            with _quiet():
                spec = envpool.make_spec(self._task, **kwargs)
                stack = getattr(spec.config, "stack_num", getattr(spec.config, "frame_stack", 1))  # pictures, numbers
                layout = layout_of(spec.gymnasium_observation_space, spec.gymnasium_action_space, (), stack)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"EnvPool does not take these options of {env}: {dict(kwargs)} ({error})") from error
        self._layout = replace(layout, leaves=tuple(_unbounded(leaf) for leaf in layout.leaves))
        self.spec, self.device = spec_of(self._layout, env), torch.device("cpu")
        self._kwargs, self.num_envs, self._num_threads = dict(kwargs), num_envs, num_threads
        self._tracker = EpisodeTracker(num_envs)
        self._rows = Rows(num_envs, faults)
        self._pool: Any = None
        self._sent = False

    def reset(self, seed: int) -> Obs:
        """Start B new episodes in new simulators (EnvPool cannot seed old ones). Returns obs `[B, ...]`."""
        import envpool

        self.close()
        with _quiet():
            self._pool = envpool.make(
                self._task,
                env_type="gymnasium",
                num_envs=self.num_envs,
                num_threads=self._num_threads,
                env_seed=env_seeds(seed, self.num_envs),
                **self._kwargs,
            )
            obs, _ = self._pool.reset()
        self._tracker.reset()
        self._rows.started(seed)
        return self._obs(obs)

    def send(self, action: Tensor) -> None:
        """Hand over one action per environment and return at once.

        Raises:
            ValueError: a discrete action outside `0 … n-1`.
            RuntimeError: not reset, or the last answer has not been fetched.
        """
        if self._sent or self._pool is None:
            raise RuntimeError("send comes after reset or recv")
        check_discrete(action, self.spec)
        self._pool.send(self._decode(action.numpy()))
        self._sent = True

    def recv(self) -> Step:
        """Wait for all B environments, then start the next episode of those that ended.

        Raises:
            EnvironmentFault: one answered with NaN or infinity.
            RuntimeError: nothing was sent (EnvPool would wait for ever).
        """
        if not self._sent:
            raise RuntimeError("recv comes after send")
        self._sent = False
        values, reward, terminated, truncated, info = self._pool.recv()
        make_room()
        obs = self._obs(values)
        score, ended = reward, terminated | truncated
        if "terminated" in info and "lives" in info:  # Atari: episodes and returns are whole games, scores unclipped
            game_over = info["terminated"].astype(bool)
            score, terminated, ended = info["reward"], terminated | game_over, truncated | game_over
        self._rows.stepped()
        lost, faults = self._rows.failed(
            obs, torch.from_numpy(reward), {}, step_of=lambda index: self._tracker.length_of(index) + 1
        )
        if lost is not None:
            here = lost.numpy()
            reward, score = np.where(here, 0.0, reward), np.where(here, 0.0, score)
            terminated, truncated, ended = terminated & ~here, truncated | here, ended & ~here
            obs = self._anew(obs, lost)
        cut = torch.from_numpy(terminated | truncated)
        final_obs = map_obs(lambda part: part[cut], obs)
        if bool((over := cut if lost is None else cut & ~lost).any()):
            obs = self._next_episodes(obs, over)
        finished = torch.from_numpy(ended)
        episodes = self._tracker.update(torch.from_numpy(score).float(), finished, {})
        self._rows.finished(finished)
        self._tracker.forget([index for fault in faults for index in fault.restarted])
        return Step(
            obs=obs,
            reward=torch.from_numpy(reward).float(),
            terminated=torch.from_numpy(terminated),
            truncated=torch.from_numpy(truncated),
            final_obs=final_obs,
            episodes=episodes,
            signals={},
            faults=faults,
        )

    def close(self) -> None:
        """Stop the threads and free the simulators."""
        self._sent = False
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _next_episodes(self, obs: Obs, cut: Tensor) -> Obs:
        """`obs` with the first observations of the next episodes where `cut`."""
        ids = cut.nonzero().squeeze(1)
        ignored = np.zeros((len(ids), *self._layout.action.shape), self._layout.action.dtype)
        first, *_ = self._pool.step(self._decode(ignored), ids.numpy())
        return self._with(obs, ids, first)

    def _anew(self, obs: Obs, lost: Tensor) -> Obs:
        """`obs` with the first observations of new episodes where the old ones are `lost`."""
        ids = lost.nonzero().squeeze(1)
        first, _ = self._pool.reset(ids.numpy())
        return self._with(obs, ids, first)

    def _with(self, obs: Obs, ids: Tensor, first: Any) -> Obs:
        """`obs` with the rows `first`, in EnvPool's form, in the places `ids`."""
        # Rows of `obs` first, those of `first` behind them; then pick each environment's own.
        rows = torch.arange(self.num_envs)
        rows[ids] = self.num_envs + torch.arange(len(ids))
        return map_obs(lambda part: part[rows], cat_obs([obs, self._obs(first)]))

    def _decode(self, action: Array) -> Array:
        """A batch of actions in the form that EnvPool takes."""
        form = self._layout.action
        shifted = action + np.asarray(form.start).reshape(form.shape) if form.start else action
        return np.asarray(shifted).reshape(len(action), *form.given).astype(form.given_dtype)

    def _obs(self, values: Any) -> Obs:
        """A batch of observations from EnvPool's form; always a copy, because EnvPool may use its memory again."""
        parts = {leaf.name: _encode(leaf, values) for leaf in self._layout.leaves}
        return parts if self._layout.is_dict else parts[""]


def _unbounded(leaf: Leaf) -> Leaf:
    """EnvPool writes "no upper bound" as a type's largest number, "no lower bound" as its smallest *positive* one."""
    limits = (np.finfo(np.float32), np.finfo(np.float64))
    low = -math.inf if leaf.low in [float(limit.tiny) for limit in limits] else leaf.low
    return replace(leaf, low=low, high=math.inf if leaf.high in [float(limit.max) for limit in limits] else leaf.high)


def _quiet() -> warnings.catch_warnings[None]:
    """EnvPool's bounds lose digits as float32, and Gymnasium warns of each: nothing that anybody can mend."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)


def _encode(leaf: Leaf, values: Any) -> Tensor:
    """This leaf's part of a batch of observations, `[N, *leaf.shape]`; categories become one-hot vectors."""
    for key in leaf.path:
        values = values[key]
    if not leaf.count:
        return torch.from_numpy(np.array(values, dtype=leaf.dtype).reshape(len(values), *leaf.shape))
    chosen = np.reshape(values, (len(values), -1)) - np.asarray(leaf.start)
    offset = np.cumsum((0, *leaf.count[:-1]))
    rows = np.zeros((len(values), *leaf.shape), leaf.dtype)
    np.put_along_axis(rows, chosen + offset, 1, axis=1)
    return torch.from_numpy(rows)
