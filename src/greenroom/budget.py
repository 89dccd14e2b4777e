"""What a run may take before it ends by itself: wall-clock time and money. Steps are `total_steps`."""

from __future__ import annotations

from dataclasses import dataclass

from greenroom.errors import UserError


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
