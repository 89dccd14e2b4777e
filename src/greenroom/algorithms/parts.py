"""What an algorithm's checkpoint is made of."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from greenroom.seeding import restore


class Stateful(Protocol):
    """Something whose state belongs in the checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """What has to be saved."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Continue from what was saved."""
        ...


class Parts:
    """Named parts of an algorithm, saved and continued together; a generator may be one of them."""

    def __init__(self, **parts: Stateful | torch.Generator) -> None:
        self._parts = parts

    def state_dict(self) -> dict[str, Any]:
        """Every part's state by its name."""
        return {
            name: part.get_state() if isinstance(part, torch.Generator) else part.state_dict()
            for name, part in self._parts.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        for name, part in self._parts.items():
            if isinstance(part, torch.Generator):
                restore(part, state[name])
            else:
                part.load_state_dict(state[name])


class Saved:
    """Whoever has all of its state in `_parts`."""

    _parts: Parts

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return self._parts.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self._parts.load_state_dict(state)
