"""Any stage of greenroom's as Stable-Baselines3's vector of environments, so that both learn on the very same ones."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from greenroom.envs.base import Environment
from greenroom.spec import ArraySpec, Discrete
from greenroom.types import Obs, Step


class StageVecEnv(VecEnv):  # type: ignore[misc] # Stable-Baselines3 is not installed where types are checked
    """A stage whose observation is one array and whose actions are numbered."""

    def __init__(self, stage: Environment, seed: int) -> None:
        self._stage, self._first_seed = stage, seed
        obs, action = stage.spec.obs, stage.spec.action
        assert isinstance(obs, ArraySpec) and isinstance(action, Discrete)
        kind = np.uint8 if obs.dtype == torch.uint8 else np.float32
        space = gymnasium.spaces.Box(obs.low, obs.high, obs.shape, kind)
        super().__init__(stage.num_envs, space, gymnasium.spaces.Discrete(action.n))
        self._nothing: list[dict[str, Any]] = [{} for _ in range(stage.num_envs)]

    def reset(self) -> NDArray[Any]:
        return _array(self._stage.reset(self._first_seed)).copy()

    def step_async(self, actions: NDArray[np.int64]) -> None:
        self._stage.send(torch.as_tensor(actions))

    def step_wait(self) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        step = self._stage.recv()
        done = (step.terminated | step.truncated).numpy()
        # Its learner keeps what it is given, and a step's tensors are the stage's own.
        return _array(step.obs).copy(), step.reward.numpy().copy(), done, self._about(step, done)

    def _about(self, step: Step, done: NDArray[np.bool_]) -> list[dict[str, Any]]:
        """What its learner asks of an episode's end: the last observation, whether it was cut, and the return."""
        if not done.any():
            return self._nothing
        about: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for row, last in zip(np.flatnonzero(done), _array(step.final_obs), strict=True):
            about[row] = {"terminal_observation": last, "TimeLimit.truncated": bool(step.truncated[row])}
        ended = step.episodes
        for row, value, length in zip(*map(Tensor.tolist, (ended.index, ended.returns, ended.lengths)), strict=True):
            about[row]["episode"] = {"r": value, "l": length}
        return about

    def close(self) -> None:
        self._stage.close()

    def get_attr(self, attr_name: str, indices: object = None) -> list[None]:
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: object, indices: object = None) -> None:
        raise NotImplementedError

    def env_method(self, method_name: str, *args: object, indices: object = None, **kwargs: object) -> list[object]:
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: object, indices: object = None) -> list[bool]:
        return [False] * self.num_envs


def _array(obs: Obs) -> NDArray[Any]:
    assert isinstance(obs, Tensor)
    return obs.numpy()
