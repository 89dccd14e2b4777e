"""Stable-Baselines3: its A2C and PPO on the fastest vectors there are, without worker processes or monitors."""

from __future__ import annotations

import contextlib

from common import TASKS, Clock, options, report

args = options((*TASKS, "lost-sales-ppo"))

import ale_py.vector_env
import gymnasium
import numpy as np
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv
from tasks import LostSales

torch.set_num_threads(args.threads)


class Vector(VecEnv):
    """A batch that steps at once (Gymnasium's, ALE's, or our own) as SB3's vector of environments."""

    def __init__(self, batch) -> None:
        super().__init__(batch.num_envs, batch.single_observation_space, batch.single_action_space)
        self._batch = batch
        self._nothing = [{} for _ in range(self.num_envs)]

    def reset(self):
        return self._batch.reset(seed=0)[0]

    def step_async(self, actions) -> None:
        self._actions = actions

    def step_wait(self):
        obs, reward, terminated, truncated, info = self._batch.step(self._actions)
        done = terminated | truncated
        infos = self._nothing
        if done.any():
            final = info.get("final_obs", obs)
            infos = [
                {"terminal_observation": final[i], "TimeLimit.truncated": bool(truncated[i])} if done[i] else {}
                for i in range(self.num_envs)
            ]
        return obs, reward.astype(np.float32), done, infos

    def close(self) -> None:
        pass

    def get_attr(self, attr_name, indices=None):
        return [None] * self.num_envs

    def set_attr(self, attr_name, value, indices=None) -> None:
        raise NotImplementedError

    def env_method(self, method_name, *method_args, indices=None, **method_kwargs):
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [False] * self.num_envs


class Enough(Exception):
    """Ends `learn`."""


class Ticking(BaseCallback):
    """Counts a rollout when the next one begins: what was learned of it is then behind us."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock, self._seen = clock, 0

    def _on_rollout_start(self) -> None:
        steps, self._seen = self.num_timesteps - self._seen, self.num_timesteps
        if steps and self._clock.passed(steps):
            raise Enough

    def _on_step(self) -> bool:
        return True


def make():
    """The batch, and what it is called."""
    if args.task == "lost-sales-ppo":
        return LostSales(args.num_envs), "numpy batch"
    if not args.atari:
        made = gymnasium.make_vec("CartPole-v1", args.num_envs, vectorization_mode="vector_entry_point")
        return made, "Gymnasium's numpy batch"
    made = ale_py.vector_env.AtariVectorEnv(
        "pong", args.num_envs, num_threads=args.threads, autoreset_mode="SameStep", repeat_action_probability=0.0
    )
    return made, f"ALE's vector, {args.threads} threads"


batch, called = make()
kind = "CnnPolicy" if args.atari else "MlpPolicy"  # NatureCNN; two networks of 64 × 64
common = {"n_steps": args.rollout_length, "device": "cpu", "seed": 1}
if args.ppo:
    size = args.batch // args.minibatches
    learner = PPO(kind, Vector(batch), n_epochs=args.epochs, batch_size=size, **common)
else:
    learner = A2C(kind, Vector(batch), **common)
clock = Clock(args)
with contextlib.suppress(Enough):
    learner.learn(10**9, callback=Ticking(clock))
report(clock, "stable-baselines3", f"{called}; torch {args.threads} threads", learner.policy.parameters())
