"""The end-of-run table: what the learned policy costs beside the conventional answers to the same problem.

Only environments with conventional answers are listed in `BASELINES`; another joins by adding a function there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor

from greenroom import seeding
from greenroom.envs.classical import Rule, classical_rules
from greenroom.envs.device import DeviceEnvironment
from greenroom.envs.lost_sales import PARAMETERS, LostSales
from greenroom.evaluation import evaluation_mode
from greenroom.policy import Actor
from greenroom.types import Obs

_ACTORS, _PERIODS = 1024, 4000
"""Size of the evaluation, which runs twice, for the policy and for what it is compared with."""
_COLLAPSED_SHARE, _COLLAPSED_COST = 0.9, 0.95
"""Collapsed: one order makes up this share of all, and the cost is at least this share of the best constant order's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean with its uncertainty, over independent actors."""

    mean: float
    stderr: float

    @property
    def ci95(self) -> tuple[float, float]:
        """95 % interval: the mean ± 1.96 standard errors."""
        return self.mean - 1.96 * self.stderr, self.mean + 1.96 * self.stderr


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineReport:
    """A learned policy beside the conventional ones; lower costs are better."""

    environment: str
    """Name of the environment."""
    cost: Estimate
    """Cost per period of the learned policy, greedy."""
    reference: Rule
    """The optimum if it is known, else the best rule."""
    gap: Estimate
    """Cost of the learned policy above the reference's, in percent of the latter, both having met the same chance."""
    rules: dict[str, Rule]
    """The conventional rules by kind, the optimum not among them."""
    usual_order: int
    """The learned policy's most frequent order."""
    usual_share: float
    """Its share of all orders."""
    periods: int
    """Periods simulated, summed over actors."""

    @property
    def optimum(self) -> float | None:
        """Least possible cost per period; None where it is unknown."""
        return self.reference.cost if self.reference.name == "optimum" else None

    @property
    def collapsed(self) -> bool:
        """Whether the policy orders nearly the same whatever it sees, and pays for it."""
        pays = self.cost.mean >= _COLLAPSED_COST * self.rules["constant order"].cost
        return self.usual_share >= _COLLAPSED_SHARE and pays and self.cost.ci95[0] > self._best.cost

    @property
    def _best(self) -> Rule:
        return min(self.rules.values(), key=lambda rule: rule.cost)

    @property
    def verdict(self) -> str:
        """One plain line."""
        best = self._best
        worst = max(self.rules.values(), key=lambda rule: rule.cost)
        percent = 100 * (self.cost.mean / best.cost - 1)
        low, high = self.cost.ci95
        if self.collapsed:
            return (
                f"COLLAPSED to the constant order {self.usual_order}: {100 * self.usual_share:.0f} % of the learned "
                f"orders are the same, {percent:.1f} % behind the best classical rule ({best.name})"
            )
        if high < best.cost:
            return f"beats the best classical rule ({best.name}) by {-percent:.2f} %"
        if low <= best.cost:
            return f"level with the best classical rule ({best.name})"
        if low > worst.cost:
            return f"WORSE than every classical rule: {percent:.1f} % behind the best ({best.name})"
        return f"{percent:.2f} % behind the best classical rule ({best.name})"

    def to_json(self) -> dict[str, object]:
        """All numbers, as one record."""
        return {
            "environment": self.environment,
            "learned": {"cost": self.cost.mean, "stderr": self.cost.stderr, "ci95": list(self.cost.ci95)},
            "optimum": self.optimum,
            "reference": self.reference.name,
            "gap_percent": {"mean": self.gap.mean, "stderr": self.gap.stderr, "ci95": list(self.gap.ci95)},
            "rules": {kind: rule.cost for kind, rule in self.rules.items()},
            "names": {kind: rule.name for kind, rule in self.rules.items()},
            "usual_order": self.usual_order,
            "usual_share": self.usual_share,
            "collapsed": self.collapsed,
            "verdict": self.verdict,
            "periods": self.periods,
        }

    def table(self) -> Table:
        """For the terminal: cheapest first, the learned policy among the others, the verdict below."""
        table = Table(title=f"{self.environment}: cost per period", caption=self.verdict)
        table.add_column("policy")
        table.add_column("cost", justify="right")
        table.add_column("95 % interval", justify="right")
        table.add_column(f"over {self.reference.name}, %", justify="right")
        interval = "[{:.4f}, {:.4f}]".format(*self.cost.ci95)
        gap = "{:+.2f} [{:+.2f}, {:+.2f}]".format(self.gap.mean, *self.gap.ci95)
        rows: list[tuple[float, tuple[str, str, str, str], str]] = [
            (self.cost.mean, ("learned", f"{self.cost.mean:.4f}", interval, gap), "bold")
        ]
        others = {self.reference.name: self.reference} | {rule.name: rule for rule in self.rules.values()}
        for rule in others.values():
            above = f"{100 * (rule.cost / self.reference.cost - 1):+.2f}"
            rows.append((rule.cost, (rule.name, f"{rule.cost:.4f}", "exact" if rule.exact else "simulated", above), ""))
        for _, cells, style in sorted(rows, key=lambda row: row[0]):
            table.add_row(*cells, style=style)
        return table


def lost_sales(
    policy: Actor, kwargs: Mapping[str, object], seed: int, device: torch.device | str
) -> BaselineReport | None:
    """Lost sales: costs per period in the long run, from an empty shop and after a warm-up.

    The policy and the reference meet the same demand. Where the reference's cost is known exactly, the policy's is
    taken to be that plus the mean difference, which is far less uncertain than its own mean.

    Returns:
        None where parameters differ between actors: there is no one problem to compare on.
    """
    model = dataclasses.replace(LostSales(**kwargs), start="empty", horizon=0)  # type: ignore[arg-type]  # checked there
    if any(isinstance(getattr(model, name), tuple) for name in PARAMETERS):
        return None
    rules = classical_rules(model)
    reference = rules.pop("optimum", None) or min(rules.values(), key=lambda rule: rule.cost)
    seed = seeding.derive(seed, "baselines")
    with evaluation_mode(policy), torch.no_grad():
        learned, counts = _play(model, seed, device, _orders_of(policy))
    known, _ = _play(model, seed, device, lambda obs, inventory: reference.orders(inventory))
    difference = _estimate(learned - known)
    usual = int(counts.argmax())
    return BaselineReport(
        environment="lost-sales",
        cost=(
            dataclasses.replace(difference, mean=reference.cost + difference.mean)
            if reference.exact
            else _estimate(learned)
        ),
        reference=reference,
        gap=Estimate(
            mean=100 * difference.mean / reference.cost,
            stderr=100 * difference.stderr / reference.cost,
        ),
        rules=rules,
        usual_order=usual,
        usual_share=float(counts[usual] / counts.sum()),
        periods=_ACTORS * _PERIODS,
    )


def _orders_of(policy: Actor) -> Callable[[Obs, Tensor], Tensor]:
    """The policy's greedy orders, one period after the other."""
    state = policy.initial_state(_ACTORS)

    def choose(obs: Obs, inventory: Tensor) -> Tensor:
        nonlocal state
        decision = policy.act(obs, state, None)
        state = decision.state
        return decision.action

    return choose


def _play(
    model: LostSales, seed: int, device: torch.device | str, choose: Callable[[Obs, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Mean cost per period of every actor, float64 `[B]`, and how often each order was placed, int64 `[N]`."""
    shop = DeviceEnvironment(model, _ACTORS, device)
    obs = shop.reset(seed)
    total = torch.zeros(_ACTORS, dtype=torch.float64, device=shop.device)
    counts = torch.zeros(model.largest_order + 1, dtype=torch.int64, device=shop.device)
    warm_up = 100 + 10 * int(shop.state["inventory"].shape[1])
    for period in range(warm_up + _PERIODS):
        order = choose(obs, shop.state["inventory"])
        shop.send(order)
        step = shop.recv()
        obs = step.obs
        if period >= warm_up:
            total -= step.reward
            # A rule may order more than is on offer to the policy; only the policy's counts are used.
            place = order.clamp(max=model.largest_order)
            counts.scatter_add_(0, place, torch.ones_like(place))
    return (total / _PERIODS).cpu(), counts.cpu()


def _estimate(samples: Tensor) -> Estimate:
    """Mean of independent samples `[B]`."""
    return Estimate(mean=float(samples.mean()), stderr=float(samples.std() / len(samples) ** 0.5))


Baseline = Callable[[Actor, Mapping[str, object], int, torch.device | str], BaselineReport | None]
"""Policy, environment arguments, seed and device to the table; None if there is no conventional answer for these."""

BASELINES: dict[str, Baseline] = {"lost-sales": lost_sales}
"""Environments with conventional answers."""


def report(
    policy: Actor, env_name: str, kwargs: Mapping[str, object], *, seed: int, device: torch.device | str
) -> BaselineReport | None:
    """Set the greedy policy beside the conventional answers to its problem.

    Args:
        policy: trained; used in evaluation mode, on `device`.
        env_name: the environment it was trained on.
        kwargs: that environment's parameters, as given to it.
        seed: of this evaluation alone: training shares no draw with it, even if the number is the same.
        device: where the policy lives and the evaluation runs.

    Returns:
        None if nothing conventional is known for this environment or these parameters.
    """
    return BASELINES[env_name](policy, kwargs, seed, device) if env_name in BASELINES else None
