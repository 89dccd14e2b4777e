"""The learning rate as a function of the number of actors and of time."""

from __future__ import annotations

import pytest

from greenroom.errors import UserError
from greenroom.maths.schedules import ScalingRule, linear_decay, scaled_learning_rate
from greenroom.optim import Schedule

ACTORS = (16, 32, 64, 128, 256)
"""Those of PAAC's study."""


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("constant", [0.0007] * 5),
        ("linear", [0.0112, 0.0224, 0.0448, 0.0896, 0.1792]),
        ("sqrt", [0.0224 / 2**0.5, 0.0224, 0.0224 * 2**0.5, 0.0448, 0.0224 * 8**0.5]),
        ("capped", [0.0112, 0.0224, 0.0448, 0.0896, 0.0896]),
    ],
)
def test_rules(rule: ScalingRule, expected: list[float]) -> None:
    assert [scaled_learning_rate(0.0007, count, rule) for count in ACTORS] == pytest.approx(expected)


def test_growing_rules_agree_at_32_actors() -> None:
    rules: tuple[ScalingRule, ...] = ("linear", "sqrt", "capped")
    assert [scaled_learning_rate(0.0007, 32, rule) for rule in rules] == pytest.approx([0.0224] * 3)


def test_linear_decay() -> None:
    assert [linear_decay(step, 100) for step in (0, 25, 50, 100, 150)] == [1.0, 0.75, 0.5, 0.0, 0.0]


def test_schedule_in_time() -> None:
    to_the_end = Schedule(scaling="linear")
    assert to_the_end.at(0.001, 0, num_envs=4, total_steps=1000) == pytest.approx(0.004)
    assert to_the_end.at(0.001, 500, num_envs=4, total_steps=1000) == pytest.approx(0.002)
    assert to_the_end.at(0.001, 1000, num_envs=4, total_steps=1000) == 0.0
    own_horizon = Schedule(scaling="linear", anneal_steps=2000)
    assert own_horizon.at(0.001, 500, num_envs=4, total_steps=1000) == pytest.approx(0.003)
    for_ever = Schedule(scaling="constant", anneal=False)
    assert for_ever.at(0.001, 999, num_envs=4, total_steps=1000) == 0.001


def test_a_negative_horizon_is_refused() -> None:
    with pytest.raises(UserError, match="anneal_steps must be at least 0, not -1"):
        Schedule(anneal_steps=-1)
