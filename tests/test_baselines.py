"""The end-of-run table: a known rule in the learner's place gets its known gap, and a collapse is called one."""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console
from torch import Tensor

from greenroom import baselines
from greenroom.baselines import BaselineReport, report
from greenroom.envs.classical import Constant, Grid, Orders, OrderUpTo, Problem
from greenroom.envs.lost_sales import LostSales
from greenroom.types import Decision, Obs, State

KWARGS: dict[str, object] = {"lead_time": 2}


class Played:
    """A rule on the inventory, playing the learned policy of a problem with mean demand 5."""

    def __init__(self, orders: Orders) -> None:
        self.orders = orders

    def initial_state(self, num_envs: int) -> State:
        return {}

    def act(self, obs: Obs, state: State, generator: torch.Generator | None) -> Decision:
        assert generator is None, "the table is about greedy actions"
        assert isinstance(obs, Tensor)
        return Decision(action=self.orders((obs * 5).round()), extras={}, state=state)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "_PERIODS", 500)


def table_for(orders: Orders, kwargs: dict[str, object] = KWARGS, seed: int = 1) -> BaselineReport:
    made = report(Played(orders), "lost-sales", kwargs, seed=seed, device="cpu")
    assert made is not None
    return made


def test_the_optimum_has_no_gap() -> None:
    made = table_for(Grid(Problem(LostSales(lead_time=2))).optimum()[1])
    assert made.gap.mean == 0.0 and made.gap.stderr == 0.0
    assert made.optimum == pytest.approx(4.3953, abs=5e-5) and made.cost.mean == made.optimum
    assert made.verdict.startswith("beats the best classical rule (capped base-stock S = 17, r = 5) by 0.2")
    assert not made.collapsed


@pytest.mark.parametrize(
    ("orders", "published"),
    [(OrderUpTo(16), 4.6386), (OrderUpTo(17, cap=5), 4.4057), (OrderUpTo(12), None)],
)
def test_a_known_rule_gets_its_known_cost(orders: Orders, published: float | None) -> None:
    made = table_for(orders)
    assert not made.collapsed
    if published is None:
        assert made.verdict.startswith("WORSE than every classical rule")
        return
    assert made.gap.stderr < 0.12
    assert abs(made.cost.mean - published) < 4 * made.cost.stderr + 5e-5
    assert abs(made.gap.mean - 100 * (published / 4.39530 - 1)) < 4 * made.gap.stderr + 2e-3
    assert "classical rule (capped base-stock S = 17, r = 5)" in made.verdict


def test_pairing_makes_the_gap_tight() -> None:
    """Over independent seeds the paired gap spreads far less than the policy's own cost would."""
    gaps = torch.tensor([table_for(OrderUpTo(17, cap=5), seed=seed).gap.mean for seed in range(8)])
    made = table_for(OrderUpTo(17, cap=5))
    assert 0.3 * made.gap.stderr < float(gaps.std()) < 3 * made.gap.stderr
    alone = 100 * 4.6 / (1024 * 500) ** 0.5 / 4.4  # the long-run standard deviation of the cost itself is 4.6
    assert made.gap.stderr < 0.6 * alone


@pytest.mark.parametrize("rule", [Constant(4), Constant(5)])
def test_a_collapse_is_obvious(rule: Constant) -> None:
    made = table_for(rule)
    assert made.collapsed and made.usual_order == rule.order and made.usual_share == 1.0
    assert made.verdict.startswith(f"COLLAPSED to the constant order {rule.order}")


def test_orders_that_hardly_vary_but_are_good_are_no_collapse() -> None:
    """Where a lost unit costs next to nothing, the constant order is as good as the optimum."""
    made = table_for(Constant(2), {"lead_time": 2, "penalty": 0.1})
    assert made.usual_share == 1.0 and made.gap.mean == pytest.approx(0.0, abs=0.1)
    assert not made.collapsed and made.verdict.startswith("level with")


def test_json_and_table_carry_the_numbers() -> None:
    made = table_for(OrderUpTo(16))
    record = json.loads(json.dumps(made.to_json()))
    assert record["learned"]["cost"] == made.cost.mean and record["optimum"] == made.optimum
    assert set(record["rules"]) == {"myopic-2", "capped base-stock", "base-stock", "constant order"}
    assert record["rules"]["base-stock"] == pytest.approx(4.6386, abs=5e-5)
    low, high = record["gap_percent"]["ci95"]
    assert low < record["gap_percent"]["mean"] < high
    console = Console(file=io.StringIO(), width=120)
    console.print(made.table())
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for expected in ("learned", "optimum", "4.3953", "myopic-2", "base-stock S = 16", "constant order 4", "5.2748"):
        assert expected in text


def test_same_seed_same_table_and_other_seed_another() -> None:
    first, again, other = (table_for(OrderUpTo(16), seed=seed).gap for seed in (1, 1, 2))
    assert first == again != other


def test_without_an_optimum_the_best_rule_is_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greenroom.envs.classical._LARGEST_GRID", 0)
    made = table_for(OrderUpTo(16))
    assert made.optimum is None and made.reference.name == "capped base-stock S = 17, r = 5"
    assert made.gap.mean == pytest.approx(100 * (4.6386 / 4.4057 - 1), abs=0.5)


@pytest.mark.parametrize(
    ("name", "kwargs"), [("probe-action", {}), ("CartPole-v1", {}), ("lost-sales", {"mean": [3.0, 5.0]})]
)
def test_nothing_conventional_is_known(name: str, kwargs: dict[str, object]) -> None:
    assert report(Played(Constant(4)), name, kwargs, seed=0, device="cpu") is None


class Alternating(torch.nn.Module):
    """Orders 4 and 5 in turn: what it did last is all that it goes by."""

    def initial_state(self, num_envs: int) -> State:
        return {"next": torch.full((num_envs,), 4)}

    def act(self, obs: Obs, state: State, generator: torch.Generator | None) -> Decision:
        assert not self.training and not torch.is_grad_enabled()
        return Decision(action=state["next"], extras={}, state={"next": 9 - state["next"]})


def test_a_memory_lasts_from_period_to_period_and_a_module_keeps_its_training_mode() -> None:
    policy = Alternating()
    made = report(policy, "lost-sales", KWARGS, seed=0, device="cpu")
    assert made is not None and made.usual_share == 0.5
    assert policy.training
