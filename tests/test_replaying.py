"""When batches of the replay are due, and what is reported of the updates on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from greenroom.algorithms.replaying import Drawing, Report
from greenroom.errors import UserError


def test_batches_are_due_in_proportion_to_the_steps_after_the_start() -> None:
    """3 samples for each of 8 new steps are 24, so that 2.4 batches of 10 are due each time."""
    draws = Drawing(batch_size=10, replay_ratio=3.0, learning_starts=20).build()
    due = [draws.due(8) for _ in range(13)]
    assert due[:2] == [0, 0]
    assert due[2] == 1  # 4 steps of the 24 come after the first 20
    assert sum(due) == int(3 * (13 * 8 - 20) / 10) == draws.batches
    assert set(due[3:]) == {2, 3}


def test_the_fraction_of_a_batch_is_carried_and_saved() -> None:
    config = Drawing(batch_size=256, replay_ratio=32.0, learning_starts=0)
    draws = config.build()
    assert [draws.due(3) for _ in range(6)] == [0, 0, 1, 0, 0, 1]
    assert draws.due(3) == 0
    resumed = config.build()
    resumed.load_state_dict(draws.state_dict())
    assert [resumed.due(3) for _ in range(4)] == [draws.due(3) for _ in range(4)] == [1, 0, 0, 1]
    assert resumed.batches == draws.batches == 4


def test_learning_starts_counts_every_environment_s_steps() -> None:
    draws = Drawing(batch_size=1, replay_ratio=1.0, learning_starts=16).build()
    assert not draws.started
    assert (draws.due(15), draws.started) == (0, False)
    assert (draws.due(1), draws.started) == (0, True)
    assert draws.due(5) == 5
    assert Drawing(learning_starts=0).build().started


def test_a_report_holds_the_means_and_then_the_last_ones() -> None:
    report = Report("loss", "rare", device=torch.device("cpu"))
    assert {name: value.item() for name, value in report([]).items()} == {"loss": 0.0, "rare": 0.0}
    one, two = {"loss": torch.tensor(1.0)}, {"loss": torch.tensor(4.0), "rare": torch.tensor(7.0)}
    assert {name: value.item() for name, value in report([one, two]).items()} == {"loss": 2.5, "rare": 7.0}
    resumed = Report("loss", "rare", device=torch.device("cpu"))
    resumed.load_state_dict(report.state_dict())
    for each in (report, resumed):
        assert {name: value.item() for name, value in each([]).items()} == {"loss": 2.5, "rare": 7.0}
        assert {name: value.item() for name, value in each([one]).items()} == {"loss": 1.0, "rare": 7.0}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1 and learning_starts at least 0, not 0 and 1000"),
        ({"learning_starts": -1}, "not 256 and -1"),
        ({"replay_ratio": 0.0}, "replay_ratio must be a finite number greater than 0, not 0.0"),
        ({"replay_ratio": float("nan")}, "not nan"),
    ],
)
def test_impossible_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Drawing(**values)
