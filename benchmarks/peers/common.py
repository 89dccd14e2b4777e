"""What the peers' scripts share: their options, when to start and stop counting, and the line that they print.

A script trains as its framework does, counts whole rounds of collecting and learning once it is warm, prints one JSON
object as the last line of its output, and ends. Standard library only: every peer has an environment of its own.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

TASKS = ("atari-a2c", "atari-ppo", "cartpole-ppo")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a peer is told."""

    task: str
    num_envs: int
    rollout_length: int
    epochs: int
    minibatches: int
    threads: int
    """Of torch, and of the environments' vector where it has any."""
    seconds: float
    """How long to count."""
    warm_up: float
    """Seconds of training before that, at least one update."""

    @property
    def atari(self) -> bool:
        """Whether it is Pong from pixels; else it is CartPole."""
        return self.task.startswith("atari")

    @property
    def ppo(self) -> bool:
        """Whether it is PPO; else it is A2C."""
        return self.task.endswith("ppo")

    @property
    def batch(self) -> int:
        """Agent steps of one rollout."""
        return self.num_envs * self.rollout_length


def options(tasks: Sequence[str] = TASKS) -> Options:
    """What was given on the command line; sets the threads of the libraries that are not loaded yet."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", choices=tasks, required=True)
    parser.add_argument("--num-envs", type=int, required=True)
    parser.add_argument("--rollout-length", type=int, required=True)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--minibatches", type=int, default=1)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--warm-up", type=float, default=3.0)
    given = Options(**vars(parser.parse_args()))
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    return given


class Clock:
    """Counts agent steps, learning included, from the first update after the warm-up."""

    def __init__(self, given: Options) -> None:
        self.steps, self.seconds = 0, 0.0
        self._wanted, self._warm = given.seconds, time.perf_counter() + given.warm_up
        self._begin: float | None = None

    def passed(self, steps: int) -> bool:
        """Tell that `steps` more were taken and learned from. Returns whether that is enough."""
        now = time.perf_counter()
        if self._begin is None:
            self._begin = now if now >= self._warm else None
            return False
        self.steps += steps
        self.seconds = now - self._begin
        return self.seconds >= self._wanted


def report(clock: Clock, package: str, setting: str, parameters: Iterable[Any] = ()) -> None:
    """Print the result: agent steps and seconds, the package's version, how it was run, and how much it trained.

    `parameters` are the tensors that are trained, each once.
    """
    version = importlib.metadata.version(package) if package else ""
    line = {"steps": clock.steps, "seconds": clock.seconds, "version": version, "setting": setting}
    if number := sum(tensor.numel() for tensor in parameters):
        line["more"] = {"parameters": float(number)}
    sys.stdout.flush()
    print(json.dumps(line), flush=True)


def unsupported(why: str) -> None:
    """End: this peer has no such thing."""
    raise SystemExit(why)
