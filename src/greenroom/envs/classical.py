"""Classical answers for lost sales: the optimum by dynamic programming, and the textbooks' rules with their costs.

Costs are averages per period over an infinite horizon, computed exactly while the state space allows it and simulated
beyond; then there is no optimum. Definitions follow Zipkin 2008 (Operations Research 56(5):1256-1263). One difference:
his constant order for a high penalty lets stock grow to a ceiling; here it is a constant order and nothing else.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from greenroom import seeding
from greenroom.envs.lost_sales import PARAMETERS, LostSales, demand_probabilities, order_bound
from greenroom.errors import UserError

Orders = Callable[[Tensor], Tensor]
"""A rule: inventory `[B, L]` (y, q1 … q_{L-1}; whole numbers of any dtype) to orders int64 `[B]`, on its device."""

_LARGEST_GRID = 10_000_000
"""Pairs of state and order up to which dynamic programming is tried (8 bytes each, several arrays)."""
_LARGEST_CHAIN = 3_000_000
"""Transitions up to which the cost of a rule is computed exactly."""
_LARGEST_STOCK = 200
"""Units up to which the myopic rule is followed through simulation (its cost grows with the square)."""
_TAIL = 1e-8
"""In a rule's transitions, demand beyond the point where this probability is left is lumped there."""
_TOLERANCE = 1e-6
"""Largest error of an exact cost, as a share of it."""
_ACTORS, _PERIODS = 512, 1000
"""Size of a simulation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One way of ordering, and what it costs."""

    name: str
    """Its name and parameters, for a table."""
    cost: float
    """Average cost per period."""
    exact: bool
    """Whether `cost` was computed rather than simulated."""
    orders: Orders
    """The rule itself."""


@dataclass(frozen=True, slots=True)
class OrderUpTo:
    """Order up to `level` units of stock and pipeline together (base-stock)."""

    level: int
    cap: int | None = None
    """Never order more than this at once (capped base-stock); None for no cap."""
    reorder: int | None = None
    """Order only at a position of at most this, the s of an (s, S) rule; None to order in every period."""

    def __call__(self, inventory: Tensor) -> Tensor:
        """Orders int64 `[B]` for inventory `[B, L]`."""
        position = inventory.sum(1).long()
        order = (self.level - position).clamp(0, self.cap)
        return order if self.reorder is None else order * (position <= self.reorder)


@dataclass(frozen=True, slots=True)
class Constant:
    """The same order in every period, whatever the stock."""

    order: int

    def __call__(self, inventory: Tensor) -> Tensor:
        """Orders int64 `[B]` for inventory `[B, L]`."""
        return torch.full((len(inventory),), self.order, dtype=torch.int64, device=inventory.device)


class Table:
    """A rule written out: the order for every (y, q1 … q_{L-1}); beyond its edges it is read at the edge."""

    def __init__(self, orders: Tensor) -> None:
        self.orders = orders
        self._flat = {orders.device: orders.reshape(-1)}

    def __call__(self, inventory: Tensor) -> Tensor:
        """Orders int64 `[B]` for inventory `[B, L]`."""
        if inventory.device not in self._flat:
            self._flat[inventory.device] = self.orders.reshape(-1).to(inventory.device)
        index = torch.zeros(len(inventory), dtype=torch.int64, device=inventory.device)
        for column, size in zip(inventory.long().unbind(1), self.orders.shape, strict=True):
            index = index * size + column.clamp(max=size - 1)
        return self._flat[inventory.device][index]


class Problem:
    """Lost sales with one value for every parameter, in the units in which it is solved."""

    def __init__(self, model: LostSales) -> None:
        listed = [name for name in PARAMETERS if isinstance(getattr(model, name), tuple)]
        if listed:
            raise UserError(f"lost-sales: the classical rules need one {listed[0]} for all actors, not a list")
        self.model = model
        self.mean, self.holding, self.penalty, lead_time, self.order_cost = (
            float(getattr(model, name)) for name in PARAMETERS
        )
        self.lead_time = int(lead_time)
        self.probability = demand_probabilities(model.demand, self.mean)

    @property
    def variance(self) -> float:
        """Of the demand in one period."""
        return self.mean * (1 + self.mean) if self.model.demand == "geometric" else self.mean

    @property
    def fractile(self) -> float:
        """p / (p + h): how often a single period's demand should be met."""
        return self.penalty / (self.penalty + self.holding)

    @cached_property
    def largest_order(self) -> int:
        """Largest order worth considering (`order_bound` has the reason); one unit of slack without a fixed cost."""
        if self.order_cost:
            bound = order_bound(self.model.demand, self.mean, self.holding, self.penalty, self.order_cost)
            return max(bound, self.backorder_level // (self.lead_time + 1))
        return int((self.probability.cumsum(0) < self.fractile).sum()) + 1

    @cached_property
    def backorder_level(self) -> int:
        """The optimal base-stock level if demand waited instead of being lost: more than lost sales ever need."""
        total = np.ones(1)
        for _ in range(self.lead_time + 1):
            total = np.convolve(total, self.probability.numpy())
        return int((total.cumsum() < self.fractile).sum())

    def period_cost(self, size: int) -> Tensor:
        """Expected holding and penalty cost of a period that starts with 0 … size-1 units: float64 `[size]`."""
        demand = torch.arange(len(self.probability), dtype=torch.float64)
        balance = torch.arange(size, dtype=torch.float64)[:, None] - demand
        return (self.holding * balance.clamp(min=0) + self.penalty * (-balance).clamp(min=0)) @ self.probability

    def left_over(self, size: int) -> Tensor:
        """P(v units are left | y were there) for y, v < size: float64 `[size, size]`."""
        used = torch.arange(size)[:, None] - torch.arange(size)
        possible = (used >= 0) & (used < len(self.probability))
        chance = self.probability[used.clamp(0, len(self.probability) - 1)] * possible
        chance[:, 0] += 1 - chance.sum(1)
        return chance


class Grid:
    """All states with stock up to Y and orders up to Z as one array, for dynamic programming.

    A function of the state is float64 `[Y+1, Z+1, …]` over (y, q1 … q_{L-1}); one of state and order has z as its last
    axis. Stock beyond Y is taken for Y; no rule computed here orders when it has that much.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.orders = problem.largest_order + 1
        self.stock = problem.backorder_level + (self.orders if problem.order_cost else 0) + 1
        self._left_over = problem.left_over(self.stock)
        self._arrival = (torch.arange(self.stock)[:, None] + torch.arange(self.orders)).clamp(max=self.stock - 1)

    @staticmethod
    def pairs(problem: Problem) -> int:
        """How many pairs of state and order there would be."""
        return int((problem.backorder_level + 1) * (problem.largest_order + 1) ** problem.lead_time)

    def expect(self, values: Tensor) -> Tensor:
        """E[values(next state)] for a function of the next (y, q1 …), by the present (y, q1 …) and one order more."""
        arrived = values[self._arrival.flatten()].reshape(self.stock, -1)
        return (self._left_over @ arrived).reshape(self.stock, self.orders, *values.shape[1:])

    def optimum(self) -> tuple[float, Table]:
        """Least average cost and a rule that attains it, by relative value iteration (Puterman 1994, §8.5)."""
        immediate = self.problem.period_cost(self.stock).view(-1, *[1] * self.problem.lead_time)
        immediate = immediate + self.problem.order_cost * (torch.arange(self.orders) > 0)
        values = torch.zeros(self.stock, *[self.orders] * (self.problem.lead_time - 1), dtype=torch.float64)
        while True:
            by_order = immediate + self.expect(values)
            change = (updated := by_order.amin(-1)) - values
            low, high = float(change.min()), float(change.max())
            if high - low < _TOLERANCE * high:
                return (low + high) / 2, Table(by_order.argmin(-1))
            values = updated - updated.flatten()[0]

    def myopic(self, periods: int) -> Table:
        """The order that is best for the first `periods` (1 or 2) periods whose cost it can still change."""
        cost = self.problem.period_cost(self.stock)
        for _ in range(self.problem.lead_time):
            cost = self.expect(cost)
        # The cost L periods ahead by state and order; for a second period, the order after that is the myopic one.
        return Table((cost + self.expect(cost.amin(-1)) if periods == 2 else cost).argmin(-1))


class Myopic:
    """The rule of `Grid.myopic(1)` without a table: follows the distribution of stock until the order arrives."""

    def __init__(self, problem: Problem) -> None:
        size = problem.backorder_level + 1
        self._left_over = problem.left_over(size)
        units = torch.arange(size)
        self._units = units
        order = torch.arange(problem.largest_order + 1)
        self._cost = problem.period_cost(size + len(order))[units[:, None] + order]

    def __call__(self, inventory: Tensor) -> Tensor:
        """Orders int64 `[B]` for inventory `[B, L]`."""
        device = inventory.device
        top = len(self._units) - 1
        units, left_over = self._units.to(device), self._left_over.to(device)
        on_hand, *pipeline = inventory.long().unbind(1)
        chance = left_over[on_hand.clamp(max=top)]
        for arriving in pipeline:
            place = (units + arriving[:, None]).clamp(max=top)
            chance = torch.zeros_like(chance).scatter_add_(1, place, chance) @ left_over
        return (chance @ self._cost.to(device)).argmin(1)


def average_cost(model: LostSales, orders: Orders) -> tuple[float, bool]:
    """Average cost per period of a rule that starts from nothing, and whether it is exact (else simulated)."""
    problem = Problem(model)
    exact = _chain_cost(problem, orders)
    return (exact, True) if exact is not None else (_simulated_cost(problem, orders), False)


def _chain_cost(problem: Problem, orders: Orders) -> float | None:
    """Cost of a rule by value iteration over the states it can reach; None if those are too many."""
    base = 1 << (62 // problem.lead_time)
    power = base ** torch.arange(problem.lead_time)
    demand = torch.arange(int((problem.probability.cumsum(0) < 1 - _TAIL).sum()) + 1)
    chance = problem.probability[: len(demand)].clone()
    chance[-1] += 1 - chance.sum()

    # A state is one number: y + base·q1 + base²·q2 + …; dividing it by the base lets the first order arrive.
    states, found, followers, costs = [torch.empty(0, dtype=torch.int64)], torch.zeros(1, dtype=torch.int64), [], []
    known = states[0]
    while len(found):
        known = torch.cat([known, found]).sort().values
        if len(known) * len(demand) > _LARGEST_CHAIN:
            return None
        inventory = (found[:, None] // power) % base
        order, on_hand = orders(inventory), inventory[:, 0]
        if int(order.max()) + int(on_hand.max()) >= base // 2:
            return None
        following = (on_hand[:, None] - demand).clamp(min=0) + (found // base + order * power[-1])[:, None]
        states.append(found)
        followers.append(following)
        costs.append(problem.period_cost(int(on_hand.max()) + 1)[on_hand] + problem.order_cost * (order > 0))
        candidates = following.unique()
        place = torch.searchsorted(known, candidates).clamp(max=len(known) - 1)
        found = candidates[known[place] != candidates]

    rank = torch.cat(states).argsort()
    follower = torch.searchsorted(known, torch.cat(followers)[rank])
    cost = torch.cat(costs)[rank]
    values = torch.zeros_like(cost)
    while True:
        change = (updated := cost + values[follower] @ chance) - values
        low, high = float(change.min()), float(change.max())
        if high - low < _TOLERANCE * high:
            return (low + high) / 2
        values = updated - updated[0]


def _simulated_cost(problem: Problem, orders: Orders) -> float:
    """Cost of a rule from simulation; every rule meets the same demand."""
    model = dataclasses.replace(problem.model, start="empty", horizon=0)
    generator = seeding.generator(0, "classical")
    state = model.initial(_ACTORS, generator, torch.device("cpu"))
    warm_up, total = 50 + 10 * problem.lead_time, 0.0
    for period in range(warm_up + _PERIODS):
        transition = model.step(state, orders(state["inventory"]), generator)
        state = transition.state
        total -= float(transition.reward.mean()) * (period >= warm_up)
    return total / _PERIODS


def constant_cost(problem: Problem, order: int) -> float:
    """Exact average cost of ordering `order` < mean units in every period: stock is a one-dimensional random walk."""
    # The tail of the stock falls by a factor of about exp(−2·drift/variance) a unit: beyond this size, 1e-10 is left.
    size = order + 64 + math.ceil(12 * problem.variance / (problem.mean - order))
    shift = (torch.arange(size) + order).clamp(max=size - 1)
    transition = torch.zeros(size, size, dtype=torch.float64).index_add_(1, shift, problem.left_over(size))
    # Stationary distribution: x·(T − 1) = 0 with one column replaced by the sum, which is 1.
    system = transition - torch.eye(size, dtype=torch.float64)
    system[:, -1] = 1.0
    right = torch.zeros(size, dtype=torch.float64)
    right[-1] = 1.0
    stationary = torch.linalg.solve(system.T, right)
    return float(stationary @ problem.period_cost(size)) + problem.order_cost * (order > 0)


def _best(cost: Callable[[tuple[int, ...]], float], start: tuple[int, ...]) -> tuple[int, ...]:
    """Walk from neighbour to better neighbour (each number up, down or as it is) until there is none.

    Steps begin at a sixteenth of the largest number and halve down to 1.
    """
    known: dict[tuple[int, ...], float] = {}

    def looked_up(point: tuple[int, ...]) -> float:
        if point not in known:
            known[point] = cost(point) if min(point) >= 0 else math.inf
        return known[point]

    here, stride = start, max(1, max(start) // 16)
    while stride:
        around = [
            tuple(place + stride * step for place, step in zip(here, steps, strict=True))
            for steps in itertools.product((0, -1, 1), repeat=len(here))
        ]
        best = min(around, key=looked_up)  # the first of equals, so `here` where it is no worse
        if best == here:
            stride //= 2
        here = best
    return here


def classical_rules(model: LostSales) -> dict[str, Rule]:
    """The optimum and the best rule of every classical kind.

    Returns:
        Rules by kind: `optimum` and `myopic-2` where dynamic programming is within reach, else `myopic` unless stocks
        run to hundreds of units; with a fixed cost per order `(s, S)` and `capped (s, S)`; always `capped base-stock`,
        `base-stock` and `constant order`.

    Raises:
        UserError: a parameter differs between actors.
    """
    problem = Problem(model)
    rules: dict[str, Rule] = {}

    def add(kind: str, orders: Orders, detail: str = "") -> None:
        cost, exact = average_cost(model, orders)
        rules[kind] = Rule(name=f"{kind} {detail}".strip(), cost=cost, exact=exact, orders=orders)

    if Grid.pairs(problem) <= _LARGEST_GRID:
        grid = Grid(problem)
        cost, table = grid.optimum()
        rules["optimum"] = Rule(name="optimum", cost=cost, exact=True, orders=table)
        add("myopic-2", grid.myopic(2))
    elif problem.backorder_level <= _LARGEST_STOCK:
        add("myopic", Myopic(problem))
    if problem.order_cost:
        _add_reorder_rules(problem, add)
    (level,) = _best(lambda at: average_cost(model, OrderUpTo(at[0]))[0], (problem.backorder_level,))
    first = (level + 1, math.ceil(problem.mean))
    ceiling, cap = _best(lambda at: average_cost(model, OrderUpTo(at[0], cap=at[1]))[0], first)
    add("capped base-stock", OrderUpTo(ceiling, cap=cap), f"S = {ceiling}, r = {cap}")
    add("base-stock", OrderUpTo(level), f"S = {level}")
    order = _best_constant(problem)
    rules["constant order"] = Rule(
        name=f"constant order {order}", cost=constant_cost(problem, order), exact=True, orders=Constant(order)
    )
    return rules


def _add_reorder_rules(problem: Problem, add: Callable[[str, Orders, str], None]) -> None:
    """Start from the lot that is best without chance, around the level that is best without a fixed cost."""
    lot = round(math.sqrt(2 * problem.order_cost * problem.mean / problem.holding))
    middle = problem.backorder_level

    def cost(at: tuple[int, ...]) -> float:
        reorder, level, *cap = at
        return average_cost(problem.model, OrderUpTo(level, cap=cap[0] if cap else None, reorder=reorder))[0]

    low, high = _best(cost, (max(middle - lot // 2, 0), middle + lot // 2))
    add("(s, S)", OrderUpTo(high, reorder=low), f"= ({low}, {high})")
    low, high, cap = _best(cost, (low, high, lot))
    add("capped (s, S)", OrderUpTo(high, cap=cap, reorder=low), f"= ({low}, {high}), r = {cap}")


def _best_constant(problem: Problem) -> int:
    """Start where the heavy-traffic cost p·ε + h·variance/(2ε) of ordering ε less than the mean is least."""
    largest = math.ceil(problem.mean) - 1
    shortfall = math.sqrt(problem.holding * problem.variance / (2 * problem.penalty))
    first = min(largest, max(0, round(problem.mean - shortfall)))
    (order,) = _best(lambda at: constant_cost(problem, at[0]) if at[0] <= largest else math.inf, (first,))
    return order
