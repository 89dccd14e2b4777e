"""What is normal: medians of what was seen lately (rolling) and of what was seen first (frozen).

A leap shows beside the rolling one. A drift takes the rolling one along with it and shows beside the frozen one.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

ROLLING = 32
"""How many looks the rolling baseline reaches back."""
FROZEN = 16
"""How many looks make the frozen baseline."""
SKIPPED = 4
"""Looks before that, in which everything is still settling."""


def learn(memory: dict[str, Any], value: float) -> None:
    """Take `value` into the baselines in `memory`; NaN and infinity are no news of what is normal."""
    if not math.isfinite(value):
        return
    seen = memory["seen"] = memory.get("seen", 0) + 1
    memory["rolling"] = [*memory.get("rolling", []), value][-ROLLING:]
    first = memory.setdefault("frozen", [])
    if seen > SKIPPED and len(first) < FROZEN:
        first.append(value)


def ready(memory: dict[str, Any]) -> bool:
    """Whether enough was seen to call something abnormal."""
    return len(memory.get("frozen", [])) == FROZEN


def rolling(memory: dict[str, Any]) -> float:
    """The median of what was seen lately; ask only if `ready`."""
    return float(statistics.median(memory["rolling"]))


def frozen(memory: dict[str, Any]) -> float:
    """The median of what was seen first; ask only if `ready`."""
    return float(statistics.median(memory["frozen"]))


def spread(memory: dict[str, Any]) -> float:
    """The median distance of what was seen lately from its median."""
    middle = rolling(memory)
    return float(statistics.median(abs(value - middle) for value in memory["rolling"]))


def lasts(memory: dict[str, Any], wrong: bool, patience: int) -> bool:
    """Whether something has been wrong in each of the last `patience` looks."""
    memory["wrong"] = memory.get("wrong", 0) + 1 if wrong else 0
    return bool(memory["wrong"] >= patience)
