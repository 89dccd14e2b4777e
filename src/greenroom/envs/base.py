"""The seam to the world: what every stage offers, and the bookkeeping that they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from greenroom.spec import EnvSpec
from greenroom.types import Episodes, Obs, Step

Stage = Literal["auto", "native", "workers", "joint", "inline", "device"]
"""Where environments are stepped; with `auto`, `choose` says where."""


class Environment(Protocol):
    """B environments stepped together. Same-step reset; `terminated` and `truncated` are never merged."""

    @property
    def spec(self) -> EnvSpec:
        """What one environment looks like."""
        ...

    @property
    def num_envs(self) -> int:
        """B."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its tensors live and where it wants its actions."""
        ...

    def reset(self, seed: int) -> Obs:
        """Start B new episodes; the same seed gives the same episodes for the same actions. Returns obs `[B, ...]`."""
        ...

    def send(self, action: Tensor) -> None:
        """Hand over one action per environment (shape by `spec.action`) and return at once where the stage can."""
        ...

    def recv(self) -> Step:
        """Wait for the answer to the last `send`."""
        ...

    def close(self) -> None:
        """Give everything back (processes, shared memory, threads). May be called twice."""
        ...


@runtime_checkable
class Snapshotable(Protocol):
    """A stage that may be able to copy its simulators, so that a resumed run continues the very same episodes."""

    @property
    def can_snapshot(self) -> bool:
        """Whether these simulators can be copied."""
        ...

    def state_dict(self) -> dict[str, object]:
        """Tensors, numbers, strings, bytes, lists and dicts of these. Not between `send` and `recv`."""
        ...

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue from `state`; the following `recv`s are those of the environment that was saved."""
        ...


class EpisodeTracker:
    """Sums rewards, steps and signals of the running episodes of B environments."""

    def __init__(self, num_envs: int, signals: tuple[str, ...] = (), device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._num_envs, self._names = num_envs, signals
        self.reset()

    def reset(self) -> None:
        """Forget everything: B new episodes start."""
        self._returns = torch.zeros(self._num_envs, device=self._device)
        self._lengths = torch.zeros(self._num_envs, dtype=torch.int64, device=self._device)
        self._signals = {name: torch.zeros(self._num_envs, device=self._device) for name in self._names}

    def update(self, reward: Tensor, ended: Tensor, signals: dict[str, Tensor]) -> Episodes:
        """Count one step and hand out the episodes that ended.

        Args:
            reward: float `[B]`, the environment's own.
            ended: bool `[B]`, here or on the processor.
            signals: float `[B]` for every declared name.
        """
        self._returns += reward
        self._lengths += 1
        for name, total in self._signals.items():
            total += signals[name]
        index = ended.nonzero().squeeze(1).to(self._device)
        episodes = Episodes(
            index=index,
            returns=self._returns.index_select(0, index),
            lengths=self._lengths.index_select(0, index),
            signals={name: total.index_select(0, index) for name, total in self._signals.items()},
        )
        for total in (self._returns, self._lengths, *self._signals.values()):
            total.index_fill_(0, index, 0)
        return episodes

    def forget(self, index: Sequence[int]) -> None:
        """The running episodes of these environments came to nothing, and new ones begin."""
        for total in (self._returns, self._lengths, *self._signals.values()) if index else ():
            total[list(index)] = 0

    def length_of(self, index: int) -> int:
        """Steps so far of an environment's running episode."""
        return int(self._lengths[index])

    def state_dict(self) -> dict[str, object]:
        """The running sums."""
        return {name: total.clone() for name, total in self._totals().items()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue the running sums."""
        for name, total in self._totals().items():
            saved = state[name]
            assert isinstance(saved, Tensor)
            total.copy_(saved)

    def _totals(self) -> dict[str, Tensor]:
        signals = {f"signal.{name}": total for name, total in self._signals.items()}
        return {"returns": self._returns, "lengths": self._lengths, **signals}
