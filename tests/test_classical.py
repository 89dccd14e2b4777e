"""Exact costs of the optimum and of the classical rules, against print."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from greenroom.envs import classical
from greenroom.envs.classical import Constant, Grid, Myopic, OrderUpTo, Problem, Table, average_cost, classical_rules
from greenroom.envs.lost_sales import Demand, LostSales
from greenroom.errors import UserError

# Zipkin 2008, tables 3 and 4, and recomputed: demand, penalty, lead time; optimum, myopic-2, base-stock (level),
# capped base-stock (level, cap); digits as given.
TABLE = [
    ("poisson", 4, 1, "4.0407", "4.0407", "4.1628", 12, "4.0654", (12, 6)),
    ("poisson", 4, 2, "4.3953", "4.4060", "4.6386", 16, "4.4057", (17, 5)),
    ("poisson", 4, 3, "4.5987", "4.6357", "4.9750", 20, "4.6308", (21, 5)),
    ("poisson", 4, 4, "4.7285", "4.8171", "5.1978", 25, "4.7979", (26, 5)),
    ("poisson", 9, 4, "6.8359", "6.9196", "7.2709", 28, "6.9123", (29, 5)),
    ("poisson", 19, 4, "8.8872", "8.9601", "9.2319", 31, "8.9544", (31, 6)),
    ("poisson", 39, 2, "9.1064", "9.1177", "9.1903", 22, "9.1326", (22, 8)),
    ("poisson", 39, 4, "10.7944", "10.8398", "11.0623", 33, "10.8926", (34, 6)),
    ("geometric", 4, 1, "9.8175", "9.829", "10.042", 12, "9.871", (13, 5)),
    ("geometric", 4, 2, "10.2402", "10.291", "10.705", 15, "10.322", (17, 4)),
    ("geometric", 4, 3, "10.4667", "10.591", "11.134", 18, "10.524", (21, 4)),
]


def assert_printed(value: float, printed: str) -> None:
    """Equal to the digits given, up to one unit in the last place (print is not always rounded)."""
    unit = 10.0 ** -len(printed.partition(".")[2])
    assert value == pytest.approx(float(printed), abs=0.8 * unit)


@pytest.mark.parametrize(
    ("demand", "penalty", "lead_time", "optimum", "myopic", "base", "level", "capped", "ceiling_and_cap"), TABLE
)
def test_published_table(
    demand: Demand,
    penalty: int,
    lead_time: int,
    optimum: str,
    myopic: str,
    base: str,
    level: int,
    capped: str,
    ceiling_and_cap: tuple[int, int],
) -> None:
    rules = classical_rules(LostSales(demand=demand, penalty=penalty, lead_time=lead_time))
    assert all(rule.exact for rule in rules.values())
    assert_printed(rules["optimum"].cost, optimum)
    assert_printed(rules["myopic-2"].cost, myopic)
    assert_printed(rules["base-stock"].cost, base)
    assert_printed(rules["capped base-stock"].cost, capped)
    assert rules["base-stock"].orders == OrderUpTo(level)
    ceiling, cap = ceiling_and_cap
    assert rules["capped base-stock"].orders == OrderUpTo(ceiling, cap=cap)


@pytest.mark.parametrize(
    ("demand", "penalty", "printed"), [("poisson", 4, "5.27"), ("poisson", 9, "10.27"), ("geometric", 4, "11.00")]
)
def test_published_constant_order(demand: Demand, penalty: int, printed: str) -> None:
    assert_printed(
        classical_rules(LostSales(demand=demand, penalty=penalty, lead_time=1))["constant order"].cost, printed
    )


def test_constant_order_loses_the_difference_to_the_mean() -> None:
    low, high = (classical.constant_cost(Problem(LostSales(penalty=penalty)), 4) for penalty in (4.0, 39.0))
    assert high - low == pytest.approx(35.0, abs=1e-6)


@pytest.mark.parametrize(
    ("mean", "penalty", "printed"),
    [(5, 39, "9.1064"), (8, 4, "5.5636"), (3, 4, "3.4000"), (4, 4, "3.929"), (6, 4, "4.818"), (7, 4, "5.205")],
)
def test_optimum_at_other_means(mean: int, penalty: int, printed: str) -> None:
    assert_printed(Grid(Problem(LostSales(mean=mean, penalty=penalty, lead_time=2))).optimum()[0], printed)


def test_published_fixed_order_cost() -> None:
    """Bijvank, Bhulai and Huh 2015 (EJOR 241(2)), table 1."""
    rules = classical_rules(LostSales(lead_time=2, penalty=14.0, order_cost=5.0))
    assert_printed(rules["optimum"].cost, "11.46")
    assert_printed(rules["(s, S)"].cost, "11.62")
    assert_printed(rules["capped (s, S)"].cost, "11.50")
    assert rules["(s, S)"].orders == OrderUpTo(23, reorder=17)
    assert rules["capped (s, S)"].orders == OrderUpTo(23, cap=7, reorder=17)


@pytest.mark.parametrize(
    ("penalty", "lead_time", "level"), [(4, 1, 13), (4, 2, 18), (4, 4, 29), (9, 2, 20), (39, 2, 23)]
)
def test_backorder_level(penalty: int, lead_time: int, level: int) -> None:
    assert Problem(LostSales(penalty=penalty, lead_time=lead_time)).backorder_level == level


class Wider(Problem):
    """The same problem with more orders and more stock than it is said to need."""

    largest_order = 12
    backorder_level = 40


@pytest.mark.parametrize("penalty", [4.0, 39.0])
def test_larger_grid_changes_nothing(penalty: float) -> None:
    model = LostSales(lead_time=2, penalty=penalty)
    cost, table = Grid(Problem(model)).optimum()
    wider_cost, wider = Grid(Wider(model)).optimum()
    assert wider_cost == pytest.approx(cost, abs=1e-5)
    assert int(wider.orders.max()) < Problem(model).largest_order
    assert torch.equal(wider.orders[:10, :7], table.orders[:10, :7])


@pytest.mark.parametrize("lead_time", [1, 2, 3])
def test_optimal_table_attains_the_optimum(lead_time: int) -> None:
    model = LostSales(lead_time=lead_time)
    cost, table = Grid(Problem(model)).optimum()
    attained, exact = average_cost(model, table)
    assert exact and attained == pytest.approx(cost, abs=2e-5)


@pytest.mark.parametrize("demand", ["poisson", "geometric"])
def test_myopic_by_table_and_by_distribution_agree(demand: Demand) -> None:
    problem = Problem(LostSales(demand=demand, lead_time=3))
    table = Grid(problem).myopic(1)
    states = torch.cartesian_prod(torch.arange(12), torch.arange(6), torch.arange(6))
    assert torch.equal(table(states), Myopic(problem)(states))


def test_simulated_cost_agrees_with_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LostSales(lead_time=2)
    exact, _ = average_cost(model, OrderUpTo(16))
    monkeypatch.setattr(classical, "_LARGEST_CHAIN", 10)
    simulated, is_exact = average_cost(model, OrderUpTo(16))
    assert not is_exact and simulated == pytest.approx(exact, rel=0.01)


def test_no_optimum_where_the_state_space_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classical, "_ACTORS", 64)
    monkeypatch.setattr(classical, "_PERIODS", 200)
    rules = classical_rules(LostSales(lead_time=9))
    assert set(rules) == {"myopic", "capped base-stock", "base-stock", "constant order"}
    assert not rules["base-stock"].exact
    assert rules["capped base-stock"].cost < rules["base-stock"].cost


def test_rules_on_inventory() -> None:
    inventory = torch.tensor([[3.0, 4.0], [0.0, 0.0], [20.0, 5.0]])
    assert OrderUpTo(12)(inventory).tolist() == [5, 12, 0]
    assert OrderUpTo(12, cap=6)(inventory).tolist() == [5, 6, 0]
    assert OrderUpTo(12, reorder=6)(inventory).tolist() == [0, 12, 0]
    assert Constant(4)(inventory).tolist() == [4, 4, 4]
    table = Table(torch.tensor([[5, 4], [3, 2], [1, 0]]))
    assert table(torch.tensor([[0, 0], [1, 1], [9, 0], [1, 7]])).tolist() == [5, 2, 1, 2]


def test_one_value_per_actor_has_no_single_answer() -> None:
    with pytest.raises(UserError, match="one mean for all actors"):
        classical_rules(dataclasses.replace(LostSales(), mean=[3.0, 5.0]))
