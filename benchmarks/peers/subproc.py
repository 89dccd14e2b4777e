"""Stable-Baselines3's SubprocVecEnv: steps of a Gymnasium environment with random actions, nothing learned."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import time

import numpy as np
from stable_baselines3.common.vec_env import SubprocVecEnv

from greenroom.envs.factory import Factory


def main() -> None:
    """Start the processes, step for a while, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--env", required=True)
    parser.add_argument("--kwargs", nargs="*", default=[], metavar="NAME=NUMBER")
    parser.add_argument("--num-envs", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--warm-up", type=float, default=0.5)
    given = parser.parse_args()
    kwargs = {name: int(value) for name, value in (word.split("=") for word in given.kwargs)}
    # Forked: the fastest start, and what steps is the same.
    vector = SubprocVecEnv([Factory(env=given.env, kwargs=kwargs).build] * given.num_envs, start_method="fork")
    rng = np.random.default_rng(0)
    actions = [rng.integers(vector.action_space.n, size=given.num_envs) for _ in range(64)]
    vector.reset()
    steps, begin, warm = 0, 0.0, time.perf_counter() + given.warm_up
    while not begin or time.perf_counter() - begin < given.seconds:
        vector.step(actions[steps % 64])
        steps += given.num_envs
        if not begin and time.perf_counter() >= warm:
            steps, begin = 0, time.perf_counter()
    taken = time.perf_counter() - begin
    vector.close()
    version = importlib.metadata.version("stable-baselines3")
    print(json.dumps({"steps": steps, "seconds": taken, "version": version, "setting": "forked"}))


if __name__ == "__main__":
    main()
