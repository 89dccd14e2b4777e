"""What a check is, and what it finds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from rich.table import Table
from torch import Tensor

from greenroom.errors import UserError
from greenroom.types import Progress

Severity = Literal["info", "warning", "critical"]
Action = Literal["off", "record", "warn", "slow", "pause", "rollback", "stop"]
"""What is done about a finding. `record`: a line in `findings.jsonl`; all that follow tell the person too."""

ACTING = ("slow", "pause", "rollback", "stop")
"""Those that change the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One trouble that a check has found."""

    check: str
    """The check's name."""
    severity: Severity
    message: str
    """For an engineer: what is wrong, with which numbers, beside what was normal, and what to do."""
    value: float
    """What was measured."""
    limit: float
    """What it should have stayed within."""
    env_steps: int
    updates: int


def require_at_least(least: int, **counts: int) -> None:
    """Refuse a setting that is too small.

    Raises:
        UserError: it is.
    """
    for name, count in counts.items():
        if count < least:
            raise UserError(f"{name} must be at least {least}, not {count}")


Check = Callable[[Progress], Finding | None]
"""Looks at one update's news; its `metrics` are on the CPU by then, so that reading them waits for nothing."""


@runtime_checkable
class Remembering(Protocol):
    """A check that depends on what it saw before: all of that is in `memory`, which belongs to the checkpoint."""

    memory: dict[str, Any]
    """Numbers, strings, lists, tensors, and mappings of these."""


@runtime_checkable
class Gathering(Protocol):
    """A check that needs something of every update, not only of those that are looked at."""

    def gather(self, progress: Progress) -> None:
        """Take in one update's news, without reading its metrics."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a check may know of the run before it begins."""

    parameters: Callable[[], list[Tensor]]
    """Everything that the policy consists of now."""
    num_envs: int
    total_steps: int
    lag: int
    """How many updates the acting weights may be behind."""
    gamma: float | None
    """The discount; None where the algorithm's config has none."""
    learning_rate: float | None
    """The configured one, before any schedule; None where the algorithm's config has none."""
    reward_scale: Callable[[], float]
    """What the learner multiplies rewards with now."""


def found(progress: Progress, check: str, severity: Severity, message: str, *, value: float, limit: float) -> Finding:
    """A finding of now."""
    return Finding(
        check=check,
        severity=severity,
        message=message,
        value=value,
        limit=limit,
        env_steps=progress.env_steps,
        updates=progress.updates,
    )


def metric(progress: Progress, name: str) -> float | None:
    """A metric's value; None where the algorithm has none such, or has not learned yet (replays report zeros then)."""
    value = progress.metrics.get(name)
    if value is None or ("replay_size" in progress.metrics and float(progress.metrics.get("grad_norm", 1.0)) == 0.0):
        return None
    return float(value)


def counts(records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many findings each check has made."""
    return dict(Counter(record["check"] for record in records))


def table(records: Sequence[Mapping[str, Any]]) -> Table:
    """The lines of `findings.jsonl` in a row for each check."""
    shown = Table(box=None, title="health", title_justify="left")
    for heading in ("check", "severity", "findings", "first at", "last at", "done"):
        shown.add_column(heading, justify="right" if heading in ("findings", "first at", "last at") else "left")
    for check, number in counts(records).items():
        own = [record for record in records if record["check"] == check]
        severity = max((record["severity"] for record in own), key=("info", "warning", "critical").index)
        done = ", ".join(dict.fromkeys(record["done"] for record in own))
        shown.add_row(check, severity, str(number), str(own[0]["env_steps"]), str(own[-1]["env_steps"]), done)
    return shown
