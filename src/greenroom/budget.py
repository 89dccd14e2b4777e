"""What a run may take before it ends by itself: wall-clock time and money. Steps are `total_steps`."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from greenroom.errors import UserError
from greenroom.folder import write_json


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits on a run. One that reaches a limit ends well, saved, and says how to go on."""

    deadline: float = 0.0
    """Wall-clock seconds of the whole run, earlier sittings, evaluations and pauses included; 0: no limit."""
    cost_per_hour: float = 0.0
    """Price of this machine for an hour, in any currency."""
    cost_budget: float = 0.0
    """The most that the run may cost at `cost_per_hour`; 0: no limit."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0.0 <= value < float("inf"):  # NaN included
                raise UserError(f"{name} must be a finite number of at least 0, not {value}")
        if self.cost_budget and not self.cost_per_hour:
            raise UserError(f"a cost_budget of {self.cost_budget:g} needs to know the cost_per_hour")

    def cost(self, spent: float) -> float:
        """The price of so many seconds."""
        return spent / 3600.0 * self.cost_per_hour

    def exceeded(self, spent: float) -> str | None:
        """Which limit a run of `spent` wall-clock seconds has reached, and how to raise it; None: no limit."""
        if self.deadline and spent >= self.deadline:
            return f"its deadline of {self.deadline:g} seconds is over; give a later --deadline to train on"
        if self.cost_budget and self.cost(spent) >= self.cost_budget:
            return f"its cost budget of {self.cost_budget:g} is used up; give a larger --cost-budget to train on"
        return None


class Spending:
    """Wall-clock seconds of a run, earlier sittings included. In a file of its own: no rollback takes them back."""

    def __init__(self, path: Path) -> None:
        self._path, self._before, self._since = path, spent_before(path), time.monotonic()

    @property
    def seconds(self) -> float:
        """So far."""
        return self._before + time.monotonic() - self._since

    def note(self) -> None:
        """Write them down, if the disk lets us; a sitting that is killed loses what came since the last time."""
        with suppress(OSError):
            write_json(self._path, {"seconds": self.seconds})


def spent_before(path: Path) -> float:
    """What was written down in the file `path`; 0 if nothing was."""
    try:
        return float(json.loads(path.read_bytes())["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
