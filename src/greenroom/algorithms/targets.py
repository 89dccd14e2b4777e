"""Target networks: slow copies of a network that give the values learned from."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from greenroom.errors import UserError

M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def track(target: nn.Module, source: nn.Module, tau: float) -> None:
    """Move every parameter and float buffer of `target` the share `tau` of the way to those of `source`.

    1 is a hard update (a copy). Buffers of other types (counters) are copied. The two modules are of the same making.
    """
    for mine, theirs in zip(target.state_dict().values(), source.state_dict().values(), strict=True):
        if mine.is_floating_point() and tau < 1.0:
            mine.lerp_(theirs, tau)
        else:
            mine.copy_(theirs)


@dataclass(frozen=True, kw_only=True)
class TargetNetwork:
    """Whether values learned from are those of a slower copy of the network (Mnih et al. 2015)."""

    target_every: int = 0
    """Updates from one move of the target network to the next; 0: there is none, the network learns from itself."""
    tau: float = 1.0
    """Share of the way that a move goes, in (0, 1]; 1 is a copy."""

    def __post_init__(self) -> None:
        if self.target_every < 0:
            raise UserError(f"target_every must not be negative, and is {self.target_every}")
        if not 0.0 < self.tau <= 1.0:
            raise UserError(f"tau must lie in (0, 1], not {self.tau}")

    def build(self, source: M) -> Target[M]:
        """The target network of `source`, at first equal to it."""
        return Target(self, source)


class Target(Generic[M]):
    """A network that follows another one."""

    def __init__(self, config: TargetNetwork, source: M) -> None:
        self.config, self.source = config, source
        self.exists = config.target_every > 0
        self.network = copy.deepcopy(source).requires_grad_(False) if self.exists else source
        """The network to learn from: `source` itself if there is no other."""
        self.updates = 0
        """How often `source` has been updated."""

    def follow(self) -> None:
        """Take note of an update of `source`."""
        self.updates += 1
        if self.exists and self.updates % self.config.target_every == 0:
            track(self.network, self.source, self.config.tau)

    def state_dict(self) -> dict[str, Any]:
        """The network, if it is one of its own, and the number of updates."""
        return {"network": self.network.state_dict() if self.exists else {}, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.updates = state["updates"]
        if self.exists:
            self.network.load_state_dict(state["network"])
