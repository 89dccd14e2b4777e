"""The lost-sales model: its sequence of events, its demand, its parameters, and the published costs of known rules."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from greenroom.envs.classical import Grid, OrderUpTo, Problem
from greenroom.envs.device import DeviceEnvironment
from greenroom.envs.lost_sales import LostSales, demand_probabilities, order_bound
from greenroom.errors import UserError

Orders = Callable[[Tensor], Tensor]


def simulate(model: LostSales, orders: Orders, periods: int = 1200, actors: int = 512) -> tuple[float, float]:
    """Mean cost per period and its standard error, actors being independent batches."""
    shop = DeviceEnvironment(dataclasses.replace(model, horizon=0, start="empty"), actors)
    shop.reset(3)
    total = torch.zeros(actors, dtype=torch.float64)
    for period in range(100 + periods):
        shop.send(orders(shop.state["inventory"]))
        reward = shop.recv().reward
        if period >= 100:
            total -= reward
    cost = total / periods
    return float(cost.mean()), float(cost.std() / math.sqrt(actors))


@pytest.mark.parametrize("lead_time", [1, 2, 4])
def test_sequence_of_one_period(lead_time: int) -> None:
    model = LostSales(lead_time=lead_time, holding=1.5, penalty=4.0, order_cost=7.0)
    generator = torch.Generator().manual_seed(0)
    state = model.initial(1000, generator, torch.device("cpu"))
    before = state["inventory"].clone()
    order = torch.randint(0, 13, (1000,), generator=generator)
    transition = model.step(state, order, generator)
    left, lost = transition.signals["holding"] / 1.5, transition.signals["penalty"] / 4.0
    demand = before[:, 0] - left + lost
    assert torch.equal(state["inventory"], before)
    assert torch.equal(left, (before[:, 0] - demand).clamp(min=0)) and not (left * lost).any()
    assert torch.equal(transition.signals["ordering"], 7.0 * (order > 0))
    assert torch.equal(-transition.reward, 1.5 * left + 4.0 * lost + 7.0 * (order > 0))
    pipeline = torch.cat([before[:, 1:], order[:, None].float()], dim=1)
    assert torch.equal(transition.state["inventory"][:, 0], left + pipeline[:, 0])
    assert torch.equal(transition.state["inventory"][:, 1:], pipeline[:, 1:])


@pytest.mark.parametrize(("demand", "mean"), [("poisson", 5.0), ("geometric", 5.0), ("poisson", 0.3)])
def test_demand_has_its_law(demand: str, mean: float) -> None:
    model = LostSales(demand=demand, mean=mean, start="empty", lead_time=1)  # type: ignore[arg-type]
    draws = 400_000
    generator = torch.Generator().manual_seed(1)
    # An empty shop loses exactly the demand.
    state = model.initial(draws, generator, torch.device("cpu"))
    lost = model.step(state, torch.zeros(draws, dtype=torch.int64), generator).signals["penalty"] / 4.0
    expected = demand_probabilities(model.demand, mean) * draws
    seen = torch.bincount(lost.long(), minlength=len(expected)).double()
    often = expected > 20
    chi_square = float(((seen - expected).square() / expected)[often].sum())
    freedom = int(often.sum())
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)
    assert abs(float(seen[~often].sum() - expected[~often].sum())) < 60


def test_demand_probabilities_against_definitions() -> None:
    poisson = demand_probabilities("poisson", 5.0)
    geometric = demand_probabilities("geometric", 5.0)
    for count in range(12):
        assert float(poisson[count]) == pytest.approx(math.exp(-5) * 5**count / math.factorial(count), rel=1e-12)
        assert float(geometric[count]) == pytest.approx(1 / 6 * (5 / 6) ** count, rel=1e-12)
    for mean in (0.01, 1.0, 80.0, 900.0):
        probability = demand_probabilities("poisson", mean)
        assert float(probability @ torch.arange(len(probability), dtype=torch.float64)) == pytest.approx(mean, rel=1e-9)


@pytest.mark.parametrize(
    ("penalty", "lead_time", "level", "cap", "published"),
    [
        (4.0, 1, 12, None, 4.1628),
        (4.0, 1, 12, 6, 4.0654),
        (4.0, 2, 16, None, 4.6386),
        (4.0, 4, 25, None, 5.1978),
        (4.0, 4, 26, 5, 4.7979),
        (39.0, 4, 34, 6, 10.8926),
    ],
)
def test_published_costs_of_order_up_to_rules(
    penalty: float, lead_time: int, level: int, cap: int | None, published: float
) -> None:
    cost, stderr = simulate(LostSales(penalty=penalty, lead_time=lead_time), OrderUpTo(level, cap=cap))
    assert stderr < 0.003 * published
    assert abs(cost - published) < 4 * stderr + 5e-5


@pytest.mark.parametrize(("lead_time", "published"), [(2, 4.4060), (4, 4.8171)])
def test_published_costs_of_myopic_2(lead_time: int, published: float) -> None:
    model = LostSales(lead_time=lead_time)
    cost, stderr = simulate(model, Grid(Problem(model)).myopic(2))
    assert abs(cost - published) < 4 * stderr + 5e-5


def test_published_cost_with_geometric_demand() -> None:
    cost, stderr = simulate(LostSales(demand="geometric", lead_time=2), OrderUpTo(17, cap=4))
    assert abs(cost - 10.322) < 4 * stderr + 5e-4


@pytest.mark.parametrize(("lead_time", "published"), [(1, 4.0407), (2, 4.3953)])
def test_lead_time_is_not_off_by_one(lead_time: int, published: float) -> None:
    model = LostSales(lead_time=lead_time)
    _, optimal = Grid(Problem(model)).optimum()
    cost, stderr = simulate(model, optimal)
    assert abs(cost - published) < 4 * stderr + 5e-5
    for other in {3.2774, 4.0407, 4.3953, 4.5987} - {published}:
        assert abs(cost - other) > 20 * stderr


def test_one_value_per_actor_equals_separate_environments() -> None:
    lists: dict[str, list[float] | list[int]] = {
        "mean": [3.0, 5.0, 8.0, 5.0],
        "holding": [1.0, 2.0, 1.0, 0.5],
        "penalty": [4.0, 9.0, 39.0, 4.0],
        "lead_time": [1, 3, 2, 4],
        "order_cost": [0.0, 5.0, 0.0, 2.0],
    }
    together = DeviceEnvironment(LostSales(**lists, start="empty"), 4)  # type: ignore[arg-type]
    together.reset(5)
    alone = [
        DeviceEnvironment(LostSales(**{name: values[i] for name, values in lists.items()}, start="empty"), 4)  # type: ignore[arg-type]
        for i in range(4)
    ]
    for shop in alone:
        shop.reset(5)
    generator = torch.Generator().manual_seed(0)
    for _ in range(250):
        order = torch.randint(0, 9, (4,), generator=generator)
        together.send(order)
        step = together.recv()
        for i, shop in enumerate(alone):
            shop.send(order)
            assert float(shop.recv().reward[i]) == float(step.reward[i])


def test_lead_times_are_padded_at_the_end() -> None:
    model = LostSales(lead_time=[1, 3])
    state = model.initial(2, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert state["inventory"].shape == (2, 3) and not state["inventory"][0, 1:].any()
    following = model.step(state, torch.tensor([6, 6]), torch.Generator()).state["inventory"]
    assert not following[0, 1:].any() and following[0, 0] >= 6
    assert following[1, 2] == 6


def test_observation_is_inventory_in_mean_demands() -> None:
    model = LostSales(mean=4.0, lead_time=3)
    seen = model.observe({"inventory": torch.tensor([[8.0, 0.0, 2.0]])})
    assert torch.equal(seen, torch.tensor([[2.0, 0.0, 0.5]]))


def test_observation_does_not_betray_the_mean_unless_asked() -> None:
    hidden = LostSales(mean=[3.0, 7.0], lead_time=1)
    inventory = {"inventory": torch.tensor([[5.0], [5.0]])}
    assert torch.equal(hidden.observe(inventory), torch.tensor([[1.0], [1.0]]))
    shown = dataclasses.replace(hidden, observe_parameters=True)
    assert shown.observe(inventory).shape == (2, 6) and shown.spec.obs == dataclasses.replace(
        hidden.spec.obs,  # type: ignore[type-var]
        shape=(6,),
    )
    logs = torch.tensor([[3.0, 1.0, 4.0, 1.0, 0.0], [7.0, 1.0, 4.0, 1.0, 0.0]]).log1p()
    assert torch.allclose(shown.observe(inventory)[:, 1:], logs)


def test_random_start_is_wide_and_stays_within_its_range() -> None:
    model = LostSales()
    inventory = model.initial(20_000, torch.Generator().manual_seed(0), torch.device("cpu"))["inventory"]
    assert inventory[:, 0].min() == 0 and inventory[:, 0].max() == 15
    assert inventory[:, 1:].min() == 0 and inventory[:, 1:].max() == 10
    assert torch.equal(inventory, inventory.round())
    empty = LostSales(start="empty").initial(3, torch.Generator(), torch.device("cpu"))["inventory"]
    assert not empty.any()


def test_spec() -> None:
    spec = LostSales().spec
    assert spec.signals == ("holding", "penalty") and spec.action.n == 13  # type: ignore[union-attr]
    assert LostSales(order_cost=5.0).spec.signals == ("holding", "penalty", "ordering")
    assert LostSales(max_order=20).largest_order == 20


def test_order_bound_leaves_room_above_every_optimal_order() -> None:
    assert [order_bound("poisson", 5.0, 1.0, penalty, 0.0) for penalty in (4.0, 39.0)] == [12, 12]
    for model in (LostSales(lead_time=1), LostSales(lead_time=1, demand="geometric", penalty=39.0)):
        orders = Grid(Problem(model)).optimum()[1].orders
        assert int(orders.max()) < model.largest_order


def test_a_list_and_a_tensor_become_the_same_value() -> None:
    assert LostSales(mean=[3.0, 5.0]) == LostSales(mean=torch.tensor([3.0, 5.0]))
    assert hash(LostSales(mean=[3.0, 5.0])) == hash(LostSales(mean=(3.0, 5.0)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"demand": "poison"}, "did you mean 'poisson'"),
        ({"start": "full"}, "start 'full'"),
        ({"mean": 0.0}, "mean must be above 0"),
        ({"penalty": [4.0, -1.0]}, "penalty must be above 0, not -1"),
        ({"holding": float("nan")}, "holding must be above 0"),
        ({"lead_time": 0}, "lead_time must be a whole number, 1 or more"),
        ({"lead_time": 2.5}, "lead_time must be a whole number"),
        ({"order_cost": -1.0}, "order_cost must be 0 or more"),
        ({"mean": []}, "empty"),
        ({"mean": [1.0, 2.0], "penalty": [1.0, 2.0, 3.0]}, "unequal lengths"),
        ({"horizon": -1}, "horizon must be"),
        ({"max_order": 1.5}, "max_order must be"),
    ],
)
def test_wrong_values_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LostSales(**wrong)  # type: ignore[arg-type]


def test_a_list_for_another_number_of_actors_is_refused() -> None:
    with pytest.raises(UserError, match="mean lists 2 values for 3 actors"):
        DeviceEnvironment(LostSales(mean=[1.0, 2.0]), 3).reset(0)
