"""Replenishment with lost sales and a lead time, as batched tensor code (Zipkin 2008, Operations Research 56(5)).

One period: the order placed L periods ago has arrived and the state (y, q1 … q_{L-1}) is seen, y = on hand including
that arrival, q = orders still on their way, next first → place the order z → demand d → pay
h·(y−d)⁺ + p·(d−y)⁺ + K·[z > 0] → next y = (y−d)⁺ + q1. L = 1: today's order is usable in the next period.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from greenroom.envs.model import State, Transition
from greenroom.errors import UserError, nearest
from greenroom.spec import ArraySpec, Discrete, EnvSpec

Demand = Literal["poisson", "geometric"]
Start = Literal["random", "empty"]
PerActor = float | Sequence[float] | Tensor
"""One value for all actors, or one value per actor."""

PARAMETERS = ("mean", "holding", "penalty", "lead_time", "order_cost")


def demand_probabilities(demand: Demand, mean: float, tail: float = 1e-13) -> Tensor:
    """P(d = 0), P(d = 1), … as float64, as far as the probability of more is below `tail`; sums to 1.

    Geometric counts failures: P(d = k) = (1−r)·r^k with r = mean / (1 + mean), k = 0, 1, 2, …
    """
    if demand == "geometric":
        log_r = math.log(mean / (1 + mean))
        count = torch.arange(math.ceil(math.log(tail) / log_r), dtype=torch.float64)
        log_probability = log_r * count
    else:
        # Bernstein's inequality with a Poisson variance: P(d ≥ mean + x) ≤ exp(−x² / (2·mean + 2·x/3)).
        spread = -math.log(tail)
        size = math.ceil(mean + spread / 3 + math.sqrt(spread**2 / 9 + 2 * mean * spread)) + 1
        count = torch.arange(size, dtype=torch.float64)
        log_probability = count * math.log(mean) - mean - torch.lgamma(count + 1)
    probability = log_probability.exp()
    return probability / probability.sum()


def order_bound(demand: Demand, mean: float, holding: float, penalty: float, order_cost: float) -> int:
    """A largest order that leaves room above every optimal one: 12 at mean demand 5 and h : p up to 1 : 39.

    Without a fixed cost no optimal order exceeds the smallest z with P(d ≤ z) ≥ p / (p+h) (Morton 1969, SIAM Review
    11(4)). A fixed cost adds about one economic lot, √(2·K·mean/h).
    """
    cumulative = demand_probabilities(demand, mean).cumsum(0)
    fractile = int((cumulative < penalty / (penalty + holding)).sum())
    return max(math.ceil(2 * mean) + 2, fractile + 2 + math.ceil(math.sqrt(2 * order_cost * mean / holding)))


@dataclass(frozen=True, kw_only=True)
class LostSales:
    """Choose how many units to order, every period; the reward is minus the period's cost."""

    demand: Demand = "poisson"
    """Law of the demand per period: poisson, or geometric on 0, 1, 2, …"""
    mean: PerActor = 5.0
    """Mean demand per period, above 0; a list gives one value per actor."""
    holding: PerActor = 1.0
    """Cost per unit left at the end of a period (h), above 0; a list gives one value per actor."""
    penalty: PerActor = 4.0
    """Cost per unit of demand that was lost (p), above 0; a list gives one value per actor."""
    lead_time: int | Sequence[int] | Tensor = 4
    """Periods from placing an order to using it (L), at least 1; a list gives one value per actor."""
    order_cost: PerActor = 0.0
    """Fixed cost of placing an order, whatever its size (K), 0 or more; a list gives one value per actor."""
    max_order: int = 0
    """Largest order on offer; 0 for one with room above every optimal order (12 at mean demand 5)."""
    horizon: int = 200
    """Periods until an episode is truncated; 0 for never."""
    start: Start = "random"
    """Stock and pipeline at the start: random over a wide range, so that learning sees many states, or empty."""
    observe_parameters: bool = False
    """Append log(1 + x) of mean, holding, penalty, lead time and order cost to the observation."""

    def __post_init__(self) -> None:
        for name, given, known in (("demand", self.demand, get_args(Demand)), ("start", self.start, get_args(Start))):
            if given not in known:
                raise UserError(f"lost-sales: no {name} {given!r}{nearest(str(given), known)}")
        if not isinstance(self.observe_parameters, bool):
            raise UserError(f"lost-sales: observe_parameters must be true or false, not {self.observe_parameters!r}")
        for name in PARAMETERS:
            given = getattr(self, name)
            # A tuple can be compared, hashed and written to a file.
            listed = given.tolist() if isinstance(given, Tensor) else given
            object.__setattr__(self, name, tuple(listed) if isinstance(listed, Sequence) else listed)
            _check(name, self._values(name))
        for name in ("max_order", "horizon"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 0:
                raise UserError(f"lost-sales: {name} must be a whole number, 0 or more, not {getattr(self, name)!r}")
        if len(lengths := {len(self._values(name)) for name in self._listed}) > 1:
            raise UserError(f"lost-sales: {', '.join(self._listed)} have lists of unequal lengths: {sorted(lengths)}")

    @property
    def spec(self) -> EnvSpec:
        """Observation: (y, q1 … q_{L-1}) divided by the mean demand over all actors. Action: the order in units."""
        costs = ("holding", "penalty", "ordering") if any(self._values("order_cost")) else ("holding", "penalty")
        return EnvSpec(
            name="lost-sales",
            obs=ArraySpec(shape=(self._width + len(PARAMETERS) * self.observe_parameters,), low=0.0),
            action=Discrete(n=self.largest_order + 1),
            signals=costs,
        )

    @property
    def terminates(self) -> bool:
        """A shop never ends."""
        return False

    @cached_property
    def largest_order(self) -> int:
        """`max_order`, or the largest `order_bound` of all actors."""
        given = {name: self._values(name) for name in ("mean", "holding", "penalty", "order_cost")}
        size = max(len(values) for values in given.values())
        cases = zip(*(values if len(values) == size else values * size for values in given.values()), strict=True)
        return self.max_order or max(order_bound(self.demand, *case) for case in set(cases))

    def initial(self, num_envs: int, generator: torch.Generator, device: torch.device) -> State:
        """State: `inventory` float32 `[B, L]` (the longest L; a shorter one leaves zeros at the end).

        A random start has y uniform on 0 … 3·mean and every q uniform on 0 … 2·mean, at most the largest order.
        """
        for name in self._listed:
            if len(self._values(name)) != num_envs:
                raise UserError(f"lost-sales: {name} lists {len(self._values(name))} values for {num_envs} actors")
        shape = (num_envs, self._width)
        if self.start == "empty":
            return {"inventory": torch.zeros(shape, device=device)}
        ceiling = torch.full((self._width,), min(round(2 * self._scale), self.largest_order) + 1.0, device=device)
        ceiling[0] = round(3 * self._scale) + 1
        inventory = (torch.rand(shape, generator=generator, device=device) * ceiling).floor()
        used = torch.arange(self._width, device=device) < self._tensor("lead_time", device).view(-1, 1)
        return {"inventory": inventory * used}

    def step(self, state: State, action: Tensor, generator: torch.Generator) -> Transition:
        """One period, from placing `action` (int64 `[B]`, units) to the next arrival."""
        inventory = state["inventory"]
        device = inventory.device
        on_hand, order = inventory[:, 0], action.to(inventory.dtype)
        balance = on_hand - self._draw_demand(len(action), generator, device)
        left = balance.clamp(min=0)
        following = torch.nn.functional.pad(inventory[:, 1:], (0, 1))
        following[:, 0] += left
        if "lead_time" in self._listed:
            following.scatter_add_(1, self._tensor("lead_time", device).view(-1, 1) - 1, order[:, None])
        else:
            following[:, -1] += order
        signals = {
            "holding": self._tensor("holding", device) * left,
            "penalty": self._tensor("penalty", device) * (left - balance),
        }
        cost = signals["holding"] + signals["penalty"]
        if any(self._values("order_cost")):
            signals["ordering"] = self._tensor("order_cost", device) * (order > 0)
            cost = cost + signals["ordering"]
        return Transition(state={"inventory": following}, reward=-cost, terminated=None, signals=signals)

    def observe(self, state: State) -> Tensor:
        """float32 `[B, L]`, or `[B, L + 5]` with the parameters."""
        seen = state["inventory"] / self._scale
        if not self.observe_parameters:
            return seen
        return torch.cat([seen, self._known(seen.device).expand(len(seen), -1)], dim=1)

    def _draw_demand(self, num_envs: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """One uniform number per actor through the inverse distribution function: int64 `[B]`."""
        uniform = torch.rand(num_envs, 1, generator=generator, device=device)
        table = self._demand_table(device)
        # One row serves all actors as a flat table; searchsorted wants the leading axes of both to agree otherwise.
        return torch.searchsorted(table[0] if len(table) == 1 else table, uniform, right=True).squeeze(1)

    @cached_property
    def _width(self) -> int:
        return int(max(self._values("lead_time")))

    @cached_property
    def _scale(self) -> float:
        means = self._values("mean")
        return sum(means) / len(means)

    @cached_property
    def _listed(self) -> tuple[str, ...]:
        """The parameters that were given per actor."""
        return tuple(name for name in PARAMETERS if isinstance(getattr(self, name), tuple))

    def _values(self, name: str) -> tuple[float, ...]:
        given = getattr(self, name)
        return given if isinstance(given, tuple) else (given,)

    @cached_property
    def _on_device(self) -> dict[tuple[str, torch.device], Tensor]:
        """Parameters as tensors, made once per device."""
        return {}

    def _tensor(self, name: str, device: torch.device) -> Tensor:
        """The parameter as `[1]` or `[B]`: float32, or int64 for the lead time."""
        if (name, device) not in self._on_device:
            dtype = torch.int64 if name == "lead_time" else torch.float32
            self._on_device[name, device] = torch.tensor(self._values(name), dtype=dtype, device=device)
        return self._on_device[name, device]

    def _demand_table(self, device: torch.device) -> Tensor:
        """P(d ≤ k) for k = 0, 1, …: float32 `[1, M]` or `[B, M]`, the last entry 1."""
        if ("demand", device) not in self._on_device:
            rows = {mean: demand_probabilities(self.demand, mean).cumsum(0) for mean in set(self._values("mean"))}
            size = max(len(row) for row in rows.values())
            padded = {mean: torch.nn.functional.pad(row, (0, size - len(row)), value=1.0) for mean, row in rows.items()}
            table = torch.stack([padded[mean] for mean in self._values("mean")])
            self._on_device["demand", device] = table.float().to(device)
        return self._on_device["demand", device]

    def _known(self, device: torch.device) -> Tensor:
        """log(1 + parameter): float32 `[1, 5]` or `[B, 5]`."""
        columns = torch.broadcast_tensors(*(self._tensor(name, device).float() for name in PARAMETERS))
        return torch.stack(columns, dim=1).log1p()


def _check(name: str, values: tuple[float, ...]) -> None:
    """Refuse what makes no sense, naming the parameter."""
    least = {"lead_time": "a whole number, 1 or more", "order_cost": "0 or more"}.get(name, "above 0")
    for value in values:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        whole = number and isinstance(value, int) and value >= 1
        if not (whole if name == "lead_time" else number and (value > 0 or (name == "order_cost" and value == 0))):
            raise UserError(f"lost-sales: {name} must be {least}, not {value!r}")
    if not values:
        raise UserError(f"lost-sales: {name} is an empty list")
