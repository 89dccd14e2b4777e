"""Environments that do what greenroom has no say in: they change directory, fork helpers, or end the process."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from typing import Any

import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv


class Elsewhere(CartPoleEnv):
    """Goes to another directory: when it is built, or in its hundredth step."""

    def __init__(self, to: str, late: bool) -> None:
        super().__init__()
        self.to, self.left = to, 100 if late else 0
        if not late:
            os.chdir(to)

    def step(self, action: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            os.chdir(self.to)
        return super().step(action)  # type: ignore[no-untyped-call]  # Gymnasium's has no annotations


class Helped(CartPoleEnv):
    """Has a forked process of its own, which it ends when it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.helper = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600.0,), daemon=True)
        self.helper.start()

    def close(self) -> None:
        self.helper.terminate()
        self.helper.join()


class Jammed(gymnasium.Env[Any, Any]):
    """Cannot be built."""

    def __init__(self, leave: bool = False) -> None:
        if leave:
            sys.exit("no licence")
        raise KeyError("data.csv")


def endless() -> gymnasium.Env[Any, Any]:
    """Is never built."""
    while True:
        time.sleep(1.0)
