"""Environments as tensors of which a row is no number now and then."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from greenroom.envs.model import State, Transition
from greenroom.spec import ArraySpec, Discrete, EnvSpec


@dataclass(frozen=True, kw_only=True)
class Leaky:
    """Three random numbers, episodes of 20 steps; each step pays 1, and goes wrong with probability `chance`."""

    fault: str = "nan"
    """`nan`: the state, and so the observation; `reward`: the reward is infinite."""
    chance: float = 0.02
    log: str = ""
    """A file that is told when, by the machine's monotonic clock."""

    @property
    def spec(self) -> EnvSpec:
        return EnvSpec(name="leaky", obs=ArraySpec(shape=(3,)), action=Discrete(n=2))

    @property
    def horizon(self) -> int:
        return 20

    @property
    def terminates(self) -> bool:
        return False

    def initial(self, num_envs: int, generator: torch.Generator, device: torch.device) -> State:
        return {"seen": torch.rand((num_envs, 3), generator=generator, device=device)}

    def step(self, state: State, action: Tensor, generator: torch.Generator) -> Transition:
        drawn = torch.rand((len(action), 4), generator=generator, device=action.device)
        wrong, seen = drawn[:, 3] < self.chance, drawn[:, :3]
        if self.log and bool(wrong.any()):
            Path(self.log).write_text(repr(time.monotonic()))
        reward = torch.ones_like(drawn[:, 3])
        if self.fault == "reward":
            reward = reward.masked_fill(wrong, torch.inf)
        else:
            seen = seen.masked_fill(wrong[:, None], torch.nan)
        return Transition(state={"seen": seen}, reward=reward, terminated=None, signals={})

    def observe(self, state: State) -> Tensor:
        return state["seen"]
