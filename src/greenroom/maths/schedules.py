"""How learning rates depend on the number of actors and on time."""

from __future__ import annotations

import math
from typing import Literal

ScalingRule = Literal["constant", "linear", "sqrt", "capped"]

REFERENCE_ENVS = 32
"""PAAC's number of actors, at which all growing rules agree."""
CAP_ENVS = 128
"""`capped` stops growing here: the paper reports that the linear rule can diverge at 256 actors."""


def scaled_learning_rate(base: float, num_envs: int, rule: ScalingRule) -> float:
    """Learning rate for `num_envs` actors.

    `constant`: `base`. `linear`: `base * num_envs` (PAAC, with base 0.0007: 0.0224 at 32 actors). `sqrt`: the linear
    rule's rate at 32 actors, growing with the square root from there. `capped`: linear up to 128 actors, then constant.

    Args:
        base: > 0; per actor for the growing rules.
        num_envs: ≥ 1.
        rule: which of the four.
    """
    if rule == "constant":
        return base
    if rule == "linear":
        return base * num_envs
    if rule == "sqrt":
        return base * REFERENCE_ENVS * math.sqrt(num_envs / REFERENCE_ENVS)
    return base * min(num_envs, CAP_ENVS)


def linear_decay(step: int, horizon: int) -> float:
    """Factor that falls from 1 at step 0 to 0 at `horizon` and stays there."""
    return 1.0 - min(1.0, step / horizon)
