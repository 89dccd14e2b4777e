"""Statistics of scores against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenroom.maths import statistics
from greenroom.maths.statistics import Floats


def floats(*values: float) -> Floats:
    return np.array(values, dtype=np.float64)


def test_mean_and_std_reduce_the_last_axis() -> None:
    samples = np.array([[1.0, 2.0, 3.0, 4.0], [5.0, 5.0, 5.0, 5.0]])
    assert statistics.mean(samples).tolist() == [2.5, 5.0]
    assert statistics.std(samples).tolist() == [pytest.approx(np.sqrt(5.0 / 3.0)), 0.0]


def test_std_of_one_sample_is_zero() -> None:
    assert statistics.std(floats(7.0)) == 0.0
    assert statistics.std(np.ones((3, 1))).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], 3.5),
        ([100, 5, 4, 3, 2, 6, -50, 1], 3.5),  # drops -50, 1 and 6, 100
        ([1, 2, 3, 4, 100], 3.0),
        ([1, 2, 30], 11.0),  # a quarter of three is less than one
        ([0, 0, 1, 2, 3, 4, 5, 9, 9, 99], 4.0),  # drops two of ten on either side
        ([6], 6.0),
    ],
)
def test_iqm(samples: list[float], expected: float) -> None:
    assert statistics.iqm(floats(*samples)) == expected


def test_iqm_reduces_the_last_axis() -> None:
    assert statistics.iqm(np.array([[9.0, 1.0, 2.0, 0.0], [0.0, 0.0, 4.0, 8.0]])).tolist() == [1.5, 2.0]


@pytest.mark.parametrize(
    ("size", "expected"),
    [(1, 0.0), (10, 0.0), (20, 0.0), (21, 0.5), (100, 2.0), (140, 3.0)],
)
def test_cvar_is_the_mean_of_the_worst_twentieth(size: int, expected: float) -> None:
    shuffled = np.random.default_rng(1).permutation(size).astype(np.float64)
    assert statistics.cvar(shuffled) == expected


def test_cvar_of_another_fraction() -> None:
    assert statistics.cvar(floats(4, 1, 3, 2), 0.5) == 1.5
    assert statistics.cvar(floats(4, 1, 3, 2), 1.0) == 2.5
    assert statistics.cvar(np.arange(100.0), 0.07) == 3.0  # of 7, although 0.07 * 100 is more than 7


def test_probability_of_improvement_counts_ties_half() -> None:
    assert statistics.probability_of_improvement(floats(2, 3), floats(1, 2, 2)) == pytest.approx(5 / 6)
    assert statistics.probability_of_improvement(floats(1, 2, 3), floats(2, 2)) == 0.5
    assert statistics.probability_of_improvement(floats(5), floats(1, 2)) == 1.0
    assert statistics.probability_of_improvement(floats(1, 2), floats(5)) == 0.0


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=8),
    st.lists(st.integers(-3, 3), min_size=1, max_size=8),
)
def test_one_of_two_groups_is_better_or_they_tie(x: list[int], y: list[int]) -> None:
    forth = statistics.probability_of_improvement(floats(*x), floats(*y))
    back = statistics.probability_of_improvement(floats(*y), floats(*x))
    assert forth + back == pytest.approx(1.0)


def test_bootstrap_agrees_with_the_normal_interval_of_a_mean() -> None:
    samples = np.random.default_rng(3).normal(10.0, 2.0, size=400)
    low, high = statistics.bootstrap_interval(
        statistics.mean, samples, generator=np.random.default_rng(0), resamples=20_000
    )
    half = 1.96 * float(statistics.std(samples)) / 20.0
    assert low == pytest.approx(samples.mean() - half, abs=0.05 * half)
    assert high == pytest.approx(samples.mean() + half, abs=0.05 * half)


def test_bootstrap_of_two_values_knows_all_outcomes() -> None:
    """The mean of two draws from {0, 1} is 0, ½ or 1 with probability ¼, ½, ¼."""
    ends = {
        confidence: statistics.bootstrap_interval(
            statistics.mean, floats(0, 1), generator=np.random.default_rng(0), confidence=confidence
        )
        for confidence in (0.95, 0.4)
    }
    assert ends == {0.95: (0.0, 1.0), 0.4: (0.5, 0.5)}


def test_bootstrap_repeats_with_its_generator_and_does_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = np.random.default_rng(5).normal(size=50)

    def interval(seed: int) -> tuple[float, float]:
        return statistics.bootstrap_interval(statistics.iqm, samples, generator=np.random.default_rng(seed))

    whole = interval(0)
    assert interval(0) == whole
    assert interval(1) != whole
    monkeypatch.setattr(statistics, "_CHUNK", 50 * 7)
    assert interval(0) == whole


def test_bootstrap_resamples_each_stratum_on_its_own() -> None:
    """Two strata without spread have no interval; pooled, the same numbers would have a wide one."""

    def grand_mean(*groups: Floats) -> Floats:
        return statistics.mean(np.concatenate(groups, axis=-1))

    strata = (np.zeros(3), np.full(9, 8.0))
    assert statistics.bootstrap_interval(grand_mean, *strata, generator=np.random.default_rng(0)) == (6.0, 6.0)
    low, high = statistics.bootstrap_interval(
        statistics.mean, np.concatenate(strata), generator=np.random.default_rng(0)
    )
    assert low < 5.0 and high > 7.0


def test_area_under_a_curve_is_its_mean_height() -> None:
    x, y = floats(0, 1, 3), floats(0, 2, 2)
    assert statistics.area_under_curve(x, y) == pytest.approx(5 / 3)
    assert statistics.area_under_curve(x, y, 0.5, 2.0) == pytest.approx(2.75 / 1.5)
    assert statistics.area_under_curve(x, y, -1.0, 5.0) == pytest.approx((0 + 1 + 4 + 4) / 6)


def test_area_without_width_is_the_height() -> None:
    assert statistics.area_under_curve(floats(4), floats(7)) == 7.0
    assert statistics.area_under_curve(floats(0, 2), floats(0, 6), 1.0, 1.0) == 3.0


@pytest.mark.parametrize(
    ("level", "expected"),
    [(0.0, 0.0), (-1.0, 0.0), (5.0, 5.0), (10.0, 10.0), (12.0, 32.0), (20.0, 40.0), (20.1, None)],
)
def test_first_crossing(level: float, expected: float | None) -> None:
    """The curve rises to 10, falls back to 0 and rises to 20; only the first time counts."""
    assert statistics.first_crossing(floats(0, 10, 20, 40), floats(0, 10, 0, 20), level) == expected


def test_first_crossing_of_negative_scores() -> None:
    assert statistics.first_crossing(floats(100, 200), floats(-30, -10), -15.0) == 175.0
