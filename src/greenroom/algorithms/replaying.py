"""How often to learn from a replay: batches in proportion to what was collected; and what is said of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from greenroom.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How many batches are drawn from the replay, and when the first."""

    batch_size: int = 256
    """Samples of a batch; one update is made on each."""
    replay_ratio: float = 256.0
    """Samples consumed per sample collected: replay_ratio / batch_size updates per agent step."""
    learning_starts: int = 1000
    """Agent steps, summed over environments, that only fill the replay."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.learning_starts < 0:
            raise UserError(
                f"batch_size must be at least 1 and learning_starts at least 0, not {self.batch_size} and "
                f"{self.learning_starts}"
            )
        if not 0.0 < self.replay_ratio < float("inf"):  # NaN included
            raise UserError(f"replay_ratio must be a finite number greater than 0, not {self.replay_ratio}")

    def build(self) -> Draws:
        """The clock, before the first step."""
        return Draws(self)


def drawing_of(config: Any) -> Drawing | None:
    """How an algorithm's config says to draw from a replay, however deep that lies; None: it does not."""
    if isinstance(config, Drawing):
        return config
    parts = (getattr(config, item.name) for item in fields(config))
    found = (drawing_of(part) for part in parts if is_dataclass(part))
    return next((drawing for drawing in found if drawing is not None), None)


def with_drawing(config: Any, **changes: Any) -> Any:
    """An algorithm's config with `changes` to its `Drawing`; as it is, if it has none."""
    if isinstance(config, Drawing):
        return replace(config, **changes)
    parts = {item.name: getattr(config, item.name) for item in fields(config)}
    held = {name: part for name, part in parts.items() if is_dataclass(part) and drawing_of(part) is not None}
    return replace(config, **{name: with_drawing(part, **changes) for name, part in held.items()}) if held else config


class Draws:
    """The clock of the replay: what is due is drawn, the fraction of a batch that is left over is carried on."""

    def __init__(self, config: Drawing) -> None:
        self.config = config
        self.steps = 0
        self.batches = 0
        self._owed = 0.0

    @property
    def started(self) -> bool:
        """Whether `learning_starts` agent steps have been collected."""
        return self.steps >= self.config.learning_starts

    def due(self, new_steps: int) -> int:
        """How many batches to draw now that `new_steps` more agent steps are in the replay.

        Every step after the first `learning_starts` calls for `replay_ratio` samples.
        """
        self.steps += new_steps
        counted = min(new_steps, max(0, self.steps - self.config.learning_starts))
        self._owed += self.config.replay_ratio * counted / self.config.batch_size
        due = int(self._owed)
        self._owed -= due
        self.batches += due
        return due

    def start_anew(self) -> None:
        """Fill the replay as at the start: it was lost."""
        self.steps, self._owed = 0, 0.0

    def state_dict(self) -> dict[str, Any]:
        """Steps and batches so far, and the fraction carried."""
        return {"steps": self.steps, "batches": self.batches, "owed": self._owed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.steps, self.batches, self._owed = state["steps"], state["batches"], state["owed"]


class Report:
    """Means over the updates of one `learn`, of which there may be none: then what was last found stands."""

    def __init__(self, *names: str, device: torch.device) -> None:
        self._last = {name: torch.zeros((), device=device) for name in names}

    def __call__(self, updates: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Takes each update's metrics; returns the same keys every time, scalars on the device, at first zeros."""
        found = {name: [one[name] for one in updates if name in one] for name in self._last}
        self._last = {name: torch.stack(parts).mean() if parts else self._last[name] for name, parts in found.items()}
        return dict(self._last)

    def state_dict(self) -> dict[str, Tensor]:
        """The last metrics."""
        return dict(self._last)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue with saved ones."""
        self._last = {name: state[name].to(last.device) for name, last in self._last.items()}
