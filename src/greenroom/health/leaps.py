"""Checks of metrics that should not leap: gradients, steps of the policy, the learning rate.

Every class with `on_…` is a check's config: thresholds, what to do about a finding, and `build`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from greenroom.health import baseline
from greenroom.health.finding import Action, Check, Finding, Subject, found, metric
from greenroom.types import Progress


@dataclass(kw_only=True)
class Above:
    """A metric far above its rolling or its frozen baseline."""

    name: str
    metric: str
    """Which of the algorithm's metrics."""
    label: str
    """What people call it."""
    advice: str
    leap: float
    """So many times the rolling median is too much."""
    drift: float
    """So many times the frozen median is too much."""
    floor: float = 0.0
    """Below this, nothing is too much."""
    memory: dict[str, Any] = field(default_factory=dict)

    def __call__(self, progress: Progress) -> Finding | None:
        """Compare, then learn."""
        value = metric(progress, self.metric)
        if value is None or not math.isfinite(value):
            return None
        result = None
        if baseline.ready(self.memory):
            lately, first = baseline.rolling(self.memory), baseline.frozen(self.memory)
            leap, drift = self.leap * lately, self.drift * first
            limit = max(self.floor, min(leap, drift))
            if value > limit:
                normal = f"{lately:.3g} lately and {first:.3g} at first"
                message = f"the {self.label} is {value:.3g}; normal was {normal} (limit {limit:.3g}). {self.advice}"
                result = found(progress, self.name, "warning", message, value=value, limit=limit)
        baseline.learn(self.memory, value)
        return result


@dataclass(frozen=True, kw_only=True)
class GradientExplosion:
    """The gradient's norm before clipping, far above what it was."""

    on_gradient_explosion: Action = "warn"
    """The gradient's norm explodes."""
    gradient_leap: float = 100.0
    """So many times its median of the last 32 looks is too much."""
    gradient_drift: float = 1000.0
    """So many times its median of the first looks is too much."""

    def build(self, subject: Subject) -> Check:
        """The check."""
        return Above(
            name="gradient_explosion",
            metric="grad_norm",
            label="gradient's norm",
            advice="Look for a leap in rewards or observations; lower the learning rate or max_grad_norm",
            leap=self.gradient_leap,
            drift=self.gradient_drift,
        )


@dataclass(frozen=True, kw_only=True)
class KlSpike:
    """One update moves the policy much further than updates do."""

    on_kl_spike: Action = "warn"
    """An update moves the policy too far."""
    kl_leap: float = 20.0
    """So many times the median KL of the last 32 looks is too much."""
    kl_drift: float = 50.0
    """So many times the median KL of the first looks is too much."""
    kl_floor: float = 0.3
    """Nats; less is never too much."""

    def build(self, subject: Subject) -> Check:
        """The check."""
        return Above(
            name="kl_spike",
            metric="approx_kl",
            label="KL divergence between the policies before and after an update",
            advice="Lower the learning rate or the epochs, or set a target_kl",
            leap=self.kl_leap,
            drift=self.kl_drift,
            floor=self.kl_floor,
        )


@dataclass(frozen=True, kw_only=True)
class RateLeap:
    """The learning rate itself, far above what the run was told: a slip in `greenroom set`, or in a schedule."""

    on_rate_leap: Action = "warn"
    """The learning rate leaps."""
    rate_leap: float = 10.0
    """So many times its median of the last 32 looks, or of the first ones, is too much, if above the configured one."""

    def build(self, subject: Subject) -> Check:
        """The check."""
        return Above(
            name="rate_leap",
            metric="learning_rate",
            label="learning rate",
            advice="If nobody meant that, set it back (greenroom set RUN lr=…) and roll back",
            leap=self.rate_leap,
            drift=self.rate_leap,
            floor=subject.learning_rate or 0.0,  # schedules, and rollbacks along them, stay below
        )
