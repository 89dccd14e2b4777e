"""Memory across time: a recurrent layer behind the encoder, started anew wherever an episode ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from greenroom.errors import UserError
from greenroom.types import State, restart

MemoryKind = Literal["none", "gru", "lstm"]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a policy remembers of an episode."""

    memory: MemoryKind = "none"
    """`none`: it acts on what it sees; `gru` (Cho et al. 2014) or `lstm` (Hochreiter & Schmidhuber 1997)."""
    memory_size: int = 128
    """Width of the recurrent layer."""

    def __post_init__(self) -> None:
        if self.memory_size < 1:
            raise UserError(f"memory_size must be at least 1, not {self.memory_size}")

    def build(self, features: int, prefix: str = "") -> Recurrent | None:
        """The layer behind an encoder of so many `features`, or None; `prefix` sets its state apart from another's."""
        return None if self.memory == "none" else Recurrent(self.memory, features, self.memory_size, prefix)


class Recurrent(nn.Module):
    """A GRU or LSTM over sequences that may hold ends of episodes."""

    def __init__(self, kind: MemoryKind, inputs: int, size: int, prefix: str) -> None:
        super().__init__()
        self.size = size
        self.cell: nn.GRUCell | nn.LSTMCell = nn.GRUCell(inputs, size) if kind == "gru" else nn.LSTMCell(inputs, size)
        self.names = [prefix + name for name in (("hidden",) if kind == "gru" else ("hidden", "cell"))]

    def initial_state(self, num_envs: int) -> State:
        """Zeros `[num_envs, size]`."""
        return {name: self.cell.weight_hh.new_zeros(num_envs, self.size) for name in self.names}

    def forward(self, features: Tensor, state: State, cut: Tensor | None) -> tuple[Tensor, list[State]]:
        """Run over time.

        Args:
            features: float `[L, N, F]`.
            state: before the first step, `[N, size]` each.
            cut: bool `[L, N]`: an episode ended after this step, and the next one starts with zeros; None: nowhere.

        Returns:
            float `[L, N, size]`, and the state after each of the L steps, not yet started anew.
        """
        state = {name: state[name] for name in self.names}
        after: list[State] = []
        for t, now in enumerate(features.unbind(0)):
            if t and cut is not None:
                state = restart(state, self.initial_state(len(now)), cut[t - 1])
            before = tuple(state.values())
            new = self.cell(now, before[0] if len(before) == 1 else before)
            state = dict(zip(self.names, new if isinstance(new, tuple) else (new,), strict=True))
            after.append(state)
        return torch.stack([step[self.names[0]] for step in after]), after
