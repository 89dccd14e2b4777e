"""What an environment written as batched tensor code has to provide: pure dynamics on a dict of tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from greenroom.spec import EnvSpec
from greenroom.types import Obs

State = dict[str, Tensor]
"""All that B environments remember: named tensors, each with leading axis B."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One step of B environments."""

    state: State
    """The states that follow, before any reset."""
    reward: Tensor
    """float32 `[B]`."""
    terminated: Tensor | None
    """bool `[B]`: the task itself ended. None from a model that never terminates."""
    signals: dict[str, Tensor]
    """float32 `[B]` for each name in `spec.signals`."""


class Model(Protocol):
    """The dynamics of a device environment: functions of tensors that keep nothing between calls.

    The number of draws taken from a generator must not depend on actions or states, so that every policy meets the
    same chance events (common random numbers).
    """

    @property
    def spec(self) -> EnvSpec:
        """What one environment looks like."""
        ...

    @property
    def horizon(self) -> int:
        """Steps until an episode is truncated; 0 for never."""
        ...

    @property
    def terminates(self) -> bool:
        """Whether a step can terminate. If not, the stage knows all ends in advance and never waits for the device."""
        ...

    def initial(self, num_envs: int, generator: torch.Generator, device: torch.device) -> State:
        """The first states of B episodes."""
        ...

    def step(self, state: State, action: Tensor, generator: torch.Generator) -> Transition:
        """Apply one action per environment (shape by `spec.action`). Must not change `state`."""
        ...

    def observe(self, state: State) -> Obs:
        """What is seen of B states: `[B, ...]`."""
        ...
