"""A run's health: each check finds what it is for and is silent otherwise; what was asked is done about it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from greenroom import checkpoint, monitor, sitting
from greenroom.algorithms.actor_critic import A2CConfig
from greenroom.algorithms.rewards import Discounting
from greenroom.cli import main
from greenroom.config import RunConfig, dump, load
from greenroom.envs.device import DEVICE_ENVIRONMENTS
from greenroom.envs.lost_sales import LostSales
from greenroom.errors import ExitCode, UserError
from greenroom.evaluation import Evaluation
from greenroom.health import leaps, learning, world
from greenroom.health.finding import Action, Check, Finding, Gathering, Remembering, Subject, found
from greenroom.health.settings import HealthConfig
from greenroom.monitor import Alarm
from greenroom.session import launch, resume
from greenroom.status import look
from greenroom.training import Run, train
from greenroom.types import Episodes, Progress, Rollout
from test_session import PowerCut, assert_equal, final_state, lines, power_cut, small

T, B = 4, 8
HEALTHY = {
    "policy_loss": 0.1,
    "value_loss": 1.0,
    "entropy": 0.6,
    "grad_norm": 1.0,
    "explained_variance": 0.5,
    "approx_kl": 0.01,
    "learning_rate": 1e-4,
}


@pytest.fixture(autouse=True)
def no_baselines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greenroom.baselines.report", lambda *args, **kwargs: None)


def subject(**changes: Any) -> Subject:
    facts: dict[str, Any] = {
        "parameters": lambda: [torch.ones(2)],
        "num_envs": B,
        "total_steps": 100_000,
        "lag": 0,
        "gamma": 0.9,
        "learning_rate": 2e-4,
        "reward_scale": lambda: 1.0,
    }
    return Subject(**facts | changes)


def news(n: int, *, seconds: float = 0.0, version: int | None = None, **changes: Any) -> Progress:
    """The n-th update of a run in which all is well, but for `changes` to its metrics and its rollout's fields."""
    generator = torch.Generator().manual_seed(n)
    metrics = HEALTHY | {name: changes.pop(name) for name in list(changes) if name in (*HEALTHY, "replay_size")}
    fields: dict[str, Any] = {
        "obs": torch.randn(T + 1, B, 3, generator=generator),
        "action": torch.zeros(T, B, dtype=torch.int64),
        "reward": 1.0 + 0.1 * torch.randn(T, B, generator=generator),
        "terminated": torch.zeros(T, B, dtype=torch.bool),
        "truncated": torch.zeros(T, B, dtype=torch.bool),
        "final_obs": torch.zeros(0, 3),
        "extras": {"value": torch.ones(T, B)},
        "state": {},
        "next_state": {},
        "final_state": {},
        "version": n - 1 if version is None else version,
        "episodes": ended(),
    }
    return Progress(
        env_steps=n * T * B,
        updates=n,
        seconds=seconds,
        rollout=Rollout(**fields | changes),
        metrics={name: torch.tensor(value) for name, value in metrics.items()},
        time_split={},
    )


def ended(returns: list[float] | None = None, **signals: list[float]) -> Episodes:
    values = torch.tensor(returns or [])
    return Episodes(
        index=torch.arange(len(values)) % B,
        returns=values,
        lengths=torch.full((len(values),), 5),
        signals={name: torch.tensor(given) for name, given in signals.items()},
    )


def after_health(check: Any, **changes: Any) -> Finding | None:
    """What `check` says of an update that differs by `changes`, having seen sixty where all was well."""
    for n in range(1, 61):
        assert tell(check, news(n)) is None
    said = [tell(check, news(n, **changes)) for n in range(61, 121)]
    return next((finding for finding in said if finding is not None), None)


def tell(check: Any, progress: Progress) -> Finding | None:
    if isinstance(check, Gathering):
        check.gather(progress)
    result: Finding | None = check(progress)
    return result


def nan_at(t: int, index: int) -> torch.Tensor:
    reward = torch.ones(T, B)
    reward[t, index] = math.nan
    return reward


ILLNESSES: list[tuple[str, Check, dict[str, Any], str]] = [
    ("non_finite", learning.NonFinite().build(subject()), {"policy_loss": math.nan}, "the metric policy_loss"),
    (
        "non_finite",
        learning.NonFinite().build(subject()),
        {"reward": nan_at(2, 5)},
        "a reward (environment 5, time step 2 of",
    ),
    (
        "non_finite",
        learning.NonFinite().build(subject()),
        {"obs": torch.full((T + 1, B, 3), math.inf)},
        "observation (environment 0,",
    ),
    ("gradient_explosion", leaps.GradientExplosion().build(subject()), {"grad_norm": 150.0}, "is 150; normal was 1"),
    ("kl_spike", leaps.KlSpike().build(subject()), {"approx_kl": 1.0}, "is 1; normal was 0.01"),
    ("rate_leap", leaps.RateLeap().build(subject()), {"learning_rate": 0.01}, "is 0.01; normal was 0.0001"),
    ("entropy_collapse", learning.EntropyCollapse().build(subject()), {"entropy": 0.01}, "0.6 at first"),
    (
        "value_reach",
        learning.ValueReach().build(subject()),
        {"extras": {"value": torch.full((T, B), 50.0)}},
        "gamma 0.9",
    ),
    (
        "critic_blind",
        learning.CriticBlind().build(subject()),
        {"explained_variance": -0.5, "value_loss": 2.0},
        "for 40 looks",
    ),
    ("policy_lag", learning.PolicyLag().build(subject()), {"version": 50}, "the bound is 0"),
    ("reward_shift", world.RewardShift().build(subject()), {"reward": torch.full((T, B), 1000.0)}, "are 1e+03 in size"),
    ("reward_shift", world.RewardShift().build(subject()), {"reward": torch.full((T, B), -1.0)}, "changed its sign"),
    ("frozen_observations", world.StandStill().build(subject())[0], {"obs": torch.ones(T + 1, B, 3)}, "of 100% of"),
]


@pytest.mark.parametrize(
    ("name", "check", "illness", "words"), ILLNESSES, ids=[f"{one[0]}-{n}" for n, one in enumerate(ILLNESSES)]
)
def test_each_check_finds_what_it_is_for_and_nothing_before(
    name: str, check: Check, illness: dict[str, Any], words: str
) -> None:
    finding = after_health(check, **illness)
    assert finding is not None
    assert finding.check == name and words in finding.message
    assert finding.updates >= 61 and finding.env_steps == finding.updates * T * B


@pytest.mark.parametrize(("wins", "told"), [(0, True), (2, False)])
def test_a_game_that_is_learned_does_not_change_its_sign(wins: int, told: bool) -> None:
    """Of 20 points that are played between two looks `wins` are won; then all but as many."""
    check = world.RewardShift().build(subject())
    lost, won = torch.zeros(T * B), torch.zeros(T * B)
    lost[:20], won[:20] = -1.0, 1.0
    lost[:wins], won[:wins] = 1.0, -1.0
    for n in range(1, 61):
        assert check(news(n, reward=lost.reshape(T, B))) is None
    assert (check(news(61, reward=won.reshape(T, B))) is not None) == told


def rare(size: float) -> torch.Tensor:
    """Small costs, and one large reward."""
    reward = torch.full((T, B), -0.05)
    reward[1, 2] = size
    return reward


def test_a_goal_that_is_reached_is_no_change_of_scale_or_sign() -> None:
    check = world.RewardShift().build(subject())
    for n in range(1, 61):
        assert tell(check, news(n, reward=torch.full((T, B), -0.05))) is None
    assert tell(check, news(61, reward=rare(1000.0))) is None, "more than a hundred times as much on average"
    assert tell(check, news(62, reward=rare(3.0))) is None, "as much on average, with the other sign"
    assert tell(check, news(63, reward=torch.full((T, B), 0.05))) is not None
    assert tell(check, news(64, reward=torch.full((T, B), -50.0))) is not None


def test_rewards_between_two_looks_are_known_to_the_check_of_values() -> None:
    check: Any = learning.ValueReach().build(subject())
    large = news(1, reward=rare(100.0))
    check.gather(large)
    check.gather(news(2, reward=rare(math.inf)))
    for n in range(3, 9):
        assert tell(check, news(n, extras={"value": torch.full((T, B), 900.0)})) is None, "100 / (1 - 0.9) is within"
    copied: Any = learning.ValueReach().build(subject())
    copied.memory = {"largest": 100.0}  # as checkpoints of version 0.1.0 may have it
    assert tell(copied, news(9, extras={"value": torch.full((T, B), 900.0)})) is None


def test_rewards_of_one_s_own_algorithm_may_be_anything(tmp_path: Path) -> None:
    """An attribute of that name is greenroom's only where it is greenroom's class."""
    run = Run(RunConfig(env="cartpole", num_envs=4, algorithm=A2CConfig(discounting=Discounting(scale_rewards=True))))
    try:
        algorithm: Any = run.algorithm
        assert monitor._reward_scale(run) == pytest.approx(1.0)
        next(train(run))
        assert 0.0 < monitor._reward_scale(run) != 1.0
        algorithm.rewards = []
        assert monitor._reward_scale(run) == 1.0
    finally:
        run.close()


def test_a_constraint_that_is_newer_than_the_checkpoint_begins_now() -> None:
    check = world.Constraint({"cost": 1.0, "wear": 1.0}, 10)
    check.memory = {"cost": [0.0] * 5}
    assert tell(check, news(1, episodes=ended([1.0, 1.0], cost=[0.0, 0.0], wear=[2.0, 2.0]))) is not None


def test_nan_in_the_policy_is_found() -> None:
    check = learning.NonFinite().build(subject(parameters=lambda: [torch.tensor([1.0, math.nan])]))
    finding = check(news(1))
    assert finding is not None and "a parameter of the policy" in finding.message


def test_slow_drift_is_seen_beside_the_frozen_baseline() -> None:
    check = leaps.GradientExplosion().build(subject())
    norms = [1.1**n for n in range(1, 120)]
    said = [check(news(n, grad_norm=norm)) for n, norm in enumerate(norms, start=1)]
    first = next(finding for finding in said if finding is not None)
    assert first.value < 100 * norms[first.updates - 17], "no leap beside the rolling one"
    assert first.value > first.limit >= 1000


def test_a_schedule_may_do_with_the_learning_rate_what_it_likes() -> None:
    check = leaps.RateLeap().build(subject(learning_rate=2e-4))
    warm_up = [2e-4 * min(1.0, n / 500) for n in range(1, 600)]
    annealed_and_rolled_back = [2e-4 * (1.0 - n / 100) for n in range(99)] + [2e-4]
    for n, rate in enumerate([*warm_up, *annealed_and_rolled_back], start=1):
        assert check(news(n, learning_rate=rate)) is None


def test_entropy_may_fall_late_and_continuous_entropy_may_be_negative() -> None:
    check = learning.EntropyCollapse().build(subject(total_steps=100 * T * B))
    assert after_health(check, entropy=0.0) is None, "more than half of the run is over"
    gaussian: dict[str, Any] = {"action": torch.zeros(T, B, 2)}
    check = learning.EntropyCollapse().build(subject())
    said = [check(news(n, entropy=2.0 - n / 5, **gaussian)) for n in range(1, 90)]
    assert said[39] is None and said[-1] is not None


def test_solved_tasks_critics_may_explain_nothing() -> None:
    check = learning.CriticBlind().build(subject())
    assert after_health(check, explained_variance=-5.0, value_loss=0.01) is None


def test_an_algorithm_without_a_metric_is_left_in_peace() -> None:
    checks = [one.check for one in HealthConfig().watch(subject())]
    for n in range(1, 60):
        bare = dataclasses.replace(news(n, extras={}), metrics={"loss": torch.tensor(1.0)})
        assert [tell(check, bare) for check in checks] == [None] * len(checks)


def test_a_replay_that_fills_is_no_baseline() -> None:
    check = leaps.GradientExplosion().build(subject())
    for n in range(1, 100):
        assert check(news(n, grad_norm=0.0 if n < 50 else 1e6, replay_size=1.0)) is None


def test_throughput_that_halves_for_long_is_found() -> None:
    check = learning.ThroughputDrop(throughput_seconds=1.0).build(subject())
    seconds, said = 0.0, []
    for n in range(1, 40):
        seconds += 1.0 if n < 20 or n == 22 else 2.5
        said.append(check(news(n, seconds=seconds)))
    first = next(finding for finding in said if finding is not None)
    assert first.updates == 25, "the third in a row"


def collapse(**changes: Any) -> world.Returns:
    return world.ReturnCollapse(**changes).build(subject())


def test_returns_that_collapse_in_training_are_found_and_noise_is_not() -> None:
    check = collapse()
    generator = torch.Generator().manual_seed(0)
    means = [10.0] * 20 + [100.0] * 40 + [90.0] * 20 + [12.0] * 40
    said = []
    for n, mean in enumerate(means, start=1):
        returns = (mean + 20.0 * torch.randn(20, generator=generator)).tolist()
        said.append(tell(check, news(n, episodes=ended(returns))))
    first = next(finding for finding in said if finding is not None)
    assert 81 <= first.updates <= 90 and "of training" in first.message


def evaluation(mean: float, half: float) -> Evaluation:
    fields = {field.name: 0.0 for field in dataclasses.fields(Evaluation)}
    values: dict[str, Any] = fields | {"mean": mean, "ci95": (mean - half, mean + half)}
    return Evaluation(**values)


def test_evaluations_are_compared_by_their_intervals() -> None:
    check = collapse()
    for mean, half in ((10.0, 2.0), (100.0, 5.0), (60.0, 5.0), (20.0, 90.0)):
        check.evaluated(evaluation(mean, half))
        assert check(news(1)) is None
    check.evaluated(evaluation(20.0, 5.0))
    finding = check(news(2))
    assert finding is not None and "was 100 at best (95 … 105)" in finding.message


def test_what_was_gained_before_the_first_evaluation_counts_too() -> None:
    check = collapse()
    for n in range(1, 7):
        assert tell(check, news(n, episodes=ended([10.0 + n % 2] * 20))) is None
    for n, (mean, told) in enumerate(((100.0, False), (40.0, False), (20.0, True)), start=7):
        check.evaluated(evaluation(mean, 0.0))
        finding = check(news(n))
        assert (finding is not None) == told, f"of the 90 from 10 to 100, {100 - mean:g} are lost"


def test_a_constraints_cost_is_compared_with_its_budget() -> None:
    check = world.Constraint({"cost": 5.0}, 100)
    assert all(tell(check, news(n, episodes=ended([1.0] * 4, cost=[4.0, 5.0, 6.0, 4.5]))) is None for n in range(30))
    finding = [tell(check, news(n, episodes=ended([1.0] * 4, cost=[7.0, 8.0, 6.0, 7.5]))) for n in range(30)][-1]
    assert finding is not None and "had cost 7.1" in finding.message
    with pytest.raises(UserError, match=r"no signal 'cost'; did you mean 'costs'"):
        tell(check, news(1, episodes=ended([1.0], costs=[1.0])))


@pytest.mark.parametrize("kind", ["clipped", "masked"])
def test_actions_that_are_clipped_or_masked_too_often(kind: str) -> None:
    def rollout(share: float) -> dict[str, Any]:
        if kind == "clipped":
            sample = torch.where(torch.rand(T, B, 2) < share, 2.0, 0.5)
            return {"action": torch.zeros(T, B, 2), "extras": {"sample": sample, "value": torch.ones(T, B)}}
        return {"obs": {"x": torch.randn(T + 1, B, 3), "action_mask": (torch.rand(T + 1, B, 50) >= share).float()}}

    check = world.ActionLimits().build(subject())
    torch.manual_seed(0)
    assert all(check(news(n, **rollout(0.5))) is None for n in range(60))
    finding = [check(news(n, **rollout(1.0))) for n in range(60)][-1]
    assert finding is not None and f"of the actions were {kind} lately" in finding.message


def test_an_actor_that_stands_still_among_others_is_found() -> None:
    check = world.StandStill().build(subject())[1]
    for n in range(1, 61):
        assert tell(check, news(n)) is None
    said = []
    for n in range(61, 121):
        well = news(n).rollout
        assert isinstance(well.obs, torch.Tensor)
        obs, reward = well.obs, well.reward
        obs[:, 3], reward[:, 3] = 1.0, 0.0
        said.append(tell(check, news(n, obs=obs, reward=reward)))
    first = next(finding for finding in said if finding is not None)
    assert first.updates == 61 + 100 // T and "environment 3 stands still" in first.message


def test_an_episode_that_never_ends_among_others_is_found() -> None:
    check = world.StandStill().build(subject())[1]
    said = [tell(check, news(n, episodes=ended([1.0] * 7))) for n in range(1, 300)]
    first = next(finding for finding in said if finding is not None)
    assert "environment 7 stands still" in first.message and first.updates * T > 1000


def test_a_task_whose_observation_never_changes_is_no_trouble() -> None:
    for check in world.StandStill().build(subject()):
        assert all(tell(check, news(n, obs=torch.ones(T + 1, B, 3))) is None for n in range(1, 200))


def test_one_trouble_is_told_once_until_it_is_over() -> None:
    alarm = Alarm(cooldown=3)
    assert [alarm.rings(True) for _ in range(10)] == [True] + [False] * 9
    assert [alarm.rings(trouble) for trouble in (False, False, True, False, False, False, True)] == [False] * 6 + [True]
    alarm.rest()
    assert [alarm.rings(True) for _ in range(4)] == [False] * 3 + [True], "it has had its time to pass"


# Whole runs


class Sick:
    """Lost sales whose rewards are multiplied by `by` for some of its steps, rollbacks or not."""

    first, last, by, steps = 10**9, 10**9, 1.0, 0

    def __init__(self) -> None:
        self.inner = LostSales(horizon=10)
        self.spec, self.horizon, self.terminates = self.inner.spec, self.inner.horizon, self.inner.terminates
        self.initial, self.observe = self.inner.initial, self.inner.observe

    def step(self, state: Any, action: Any, generator: Any) -> Any:
        Sick.steps += 1
        transition = self.inner.step(state, action, generator)
        factor = Sick.by if Sick.first <= Sick.steps <= Sick.last else 1.0
        return dataclasses.replace(transition, reward=factor * transition.reward)


@pytest.fixture
def sick(monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunConfig]:
    """A config whose run of eighty updates meets rewards that change after the 30th, and what is done about it."""

    def make(action: Action = "warn", *, by: float = -1.0, last: int = 10**9, **changes: Any) -> RunConfig:
        for name, value in {"steps": 0, "first": 121, "last": last, "by": by}.items():
            monkeypatch.setattr(Sick, name, value)
        health: dict[str, Any] = {
            "reward_shift": world.RewardShift(on_reward_shift=action),
            "look_every": 1,
            "cooldown": 10,
        }
        own = {name: changes.pop(name) for name in list(changes) if name in HealthConfig.__dataclass_fields__}
        watched = HealthConfig(**health | own)
        given: dict[str, Any] = {"total_steps": 2560, "save_every": 640, "env_kwargs": {}, "monitor": watched}
        return small(env="sick", **given | changes)

    monkeypatch.setitem(DEVICE_ENVIRONMENTS, "sick", Sick)
    return make


def test_a_finding_is_kept_told_and_shown(tmp_path: Path, sick: Any, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = launch(sick(sinks=("tensorboard",)), run_dir=tmp_path / "run")
    (record,) = lines(outcome.folder.findings)
    assert (record["check"], record["severity"], record["done"]) == ("reward_shift", "critical", "warn")
    assert record["updates"] == 31 and record["env_steps"] == 31 * 32
    assert "health: reward_shift (critical): the mean reward is" in " ".join(capsys.readouterr().err.split())
    assert outcome.code == ExitCode.DONE and [dict(one) for one in outcome.findings] == [record]
    assert look(outcome.folder.path)["findings"] == {"reward_shift": 1}
    events = EventAccumulator(str(outcome.folder.tensorboard)).Reload()
    assert [event.step for event in events.Scalars("findings/value")] == [31 * 32]
    assert "findings/message/text_summary" in events.Tags()["tensors"]


def test_the_summary_is_printed(
    tmp_path: Path, sick: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "given.yaml").write_text(dump(sick()))
    monkeypatch.setenv("COLUMNS", "120")
    words = ["train", "--config", str(tmp_path / "given.yaml"), "--run-dir", str(tmp_path / "run"), "--quiet"]
    assert main([*words, "--on-reward-shift", "record"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"reward_shift +critical +1 +992 +992 +record", shown)
    assert main(["status", str(tmp_path / "run")]) == 0
    assert "reward_shift 1" in capsys.readouterr().out


def test_slow_lowers_the_learning_rate(tmp_path: Path, sick: Any) -> None:
    config = sick("slow", slow_factor=0.25)
    outcome = launch(config, run_dir=tmp_path / "run", quiet=True)
    (record,) = lines(outcome.folder.interventions)
    assert record["user"] == "check reward_shift" and record["arguments"] == {"factor": 0.25}
    assert "changed its sign" in record["reason"]
    rates = [line["loss/learning_rate"] for line in lines(outcome.folder.metrics)]
    assert rates[31] == pytest.approx(rates[30] * 0.25 * (80 - 31) / (80 - 30))


def test_pause_waits_for_an_operator(tmp_path: Path, sick: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = sitting.Sitting._attend

    def attend(self: Any, *given: Any) -> None:
        if self.paused:
            seen.append(self.run.updates)
            self.paused = False
        real(self, *given)

    monkeypatch.setattr(sitting.Sitting, "_attend", attend)
    assert launch(sick("pause"), run_dir=tmp_path / "run", quiet=True).finished
    assert seen == [31]


def test_stop_ends_the_run_saved_with_its_own_code(tmp_path: Path, sick: Any) -> None:
    outcome = launch(sick("stop"), run_dir=tmp_path / "run", quiet=True)
    assert outcome.code == ExitCode.UNHEALTHY and int(outcome.code) == 7 and not outcome.finished
    newest = checkpoint.latest(outcome.folder.checkpoints)
    assert newest is not None and checkpoint.env_steps_of(newest) == 31 * 32
    assert outcome.ending is not None and "check reward_shift" in outcome.ending.reason
    assert resume(outcome.folder.path, quiet=True).finished, "the trouble was told, and does not stop it twice"


def test_rollback_goes_back_with_a_named_change(tmp_path: Path, sick: Any) -> None:
    outcome = launch(sick("rollback", last=124), run_dir=tmp_path / "run", quiet=True)
    told = [(one["verb"], one["arguments"], one["env_steps"]) for one in lines(outcome.folder.interventions)]
    assert told == [("rollback", {}, 992), ("set", {"factor": 0.5}, 640)]
    assert "the learning rate × 0.5" in lines(outcome.folder.interventions)[0]["reason"]
    assert all(one["user"] == "check reward_shift" for one in lines(outcome.folder.interventions))
    assert len(lines(outcome.folder.findings)) == 1, "history: a rollback takes none of it back"
    assert outcome.finished and look(outcome.folder.path)["rollbacks"] == 1


def test_a_run_that_gets_no_better_is_stopped(tmp_path: Path, sick: Any) -> None:
    """A check that finds something at every look."""
    config = sick(
        check=("test_monitor:always=rollback",), most_interventions=2, cooldown=4, save_every=32, look_every=5
    )
    outcome = launch(config, run_dir=tmp_path / "run", quiet=True)
    assert outcome.code == ExitCode.UNHEALTHY
    found_by = [one["done"] for one in lines(outcome.folder.findings) if one["check"] == "test_monitor:always"]
    assert found_by == ["rollback", "rollback", "stop"]
    factors = [one["arguments"]["factor"] for one in lines(outcome.folder.interventions) if one["verb"] == "set"]
    assert factors == [0.5, 0.25]


def test_nan_rewards_are_rolled_back_from(tmp_path: Path, sick: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default they end the run as diverged; what was found is kept in both cases."""
    monkeypatch.setattr("greenroom.envs.rows.finite", lambda *parts: True)  # as on a GPU: the stage does not look
    with pytest.raises(UserError, match="diverged"):
        launch(sick(by=math.nan), run_dir=tmp_path / "run", quiet=True)
    assert next(one["check"] for one in lines(tmp_path / "run" / "findings.jsonl")) == "non_finite"
    config = sick(by=math.nan, last=125, non_finite=learning.NonFinite(on_non_finite="rollback"), look_every=10)
    outcome = launch(config, run_dir=tmp_path / "back", quiet=True)
    assert outcome.finished
    assert [one["verb"] for one in lines(outcome.folder.interventions)] == ["rollback", "set"] * 2
    told = [one["updates"] for one in lines(outcome.folder.findings)]
    assert told == [31, 21], "though looks are ten updates apart, and without a rest in between"


def without_time(path: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in one.items() if name != "time"} for one in lines(path)]


def test_a_resumed_run_finds_the_same(tmp_path: Path, sick: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = launch(sick(), run_dir=tmp_path / "whole", quiet=True)
    real = monitor.Monitor.look

    def cut(self: Any, progress: Progress) -> None:
        if progress.updates == 25:
            monkeypatch.setattr(monitor.Monitor, "look", real)
            power_cut()
        real(self, progress)

    config = sick()
    monkeypatch.setattr(monitor.Monitor, "look", cut)
    with pytest.raises(PowerCut):
        launch(config, run_dir=tmp_path / "cut", quiet=True)
    Sick.steps = 80  # where the checkpoint after 20 updates was
    continued = resume(tmp_path / "cut", quiet=True)
    assert without_time(continued.folder.findings) == without_time(whole.folder.findings) != []
    assert_equal(final_state(continued), final_state(whole))


def test_watching_changes_no_bit(tmp_path: Path) -> None:
    states = []
    for health in (True, False):
        config = small("inline", monitor=HealthConfig(health=health, look_every=1))
        states.append(final_state(launch(config, run_dir=tmp_path / str(health), quiet=True))["run"])
    assert_equal(*states)


# Checks of one's own


def always(progress: Progress) -> Finding | None:
    return found(progress, "whatever it calls itself", "info", "again", value=1.0, limit=0.0)


def broken(progress: Progress) -> Finding | None:
    raise ZeroDivisionError("oh")


def tensors(progress: Progress) -> Finding | None:
    return found(progress, "", "info", "again", value=torch.tensor(0.5), limit=np.float32(0.25))  # type: ignore[arg-type]


def shouting(progress: Progress) -> Finding | None:
    return found(progress, "", "error", "again", value=1.0, limit=0.0)  # type: ignore[arg-type]


class Counting:
    """Remembers."""

    def __init__(self) -> None:
        self.memory = {"looks": 0}

    def __call__(self, progress: Progress) -> Finding | None:
        self.memory["looks"] += 1
        return None if self.memory["looks"] < 10 else always(progress)


def own(*names: str, **changes: Any) -> RunConfig:
    return small(monitor=HealthConfig(check=names, look_every=1, **changes))


def test_a_check_of_ones_own_by_option(tmp_path: Path) -> None:
    config = own("test_monitor:always", "test_monitor:Counting=record", "test_monitor:broken")
    outcome = launch(config, run_dir=tmp_path / "run", quiet=True)
    told = {(one["check"], one["updates"], one["done"]): one["message"] for one in lines(outcome.folder.findings)}
    assert list(told)[:2] == [("test_monitor:always", 1, "warn"), ("test_monitor:broken", 1, "warn")]
    assert list(told)[2] == ("test_monitor:Counting", 10, "record") and len(told) == 3
    assert "has failed and is off now: ZeroDivisionError: oh" in told["test_monitor:broken", 1, "warn"]
    assert isinstance(Counting(), Remembering)


def test_what_a_check_of_ones_own_finds_is_written_in_plain_numbers(tmp_path: Path) -> None:
    outcome = launch(own("test_monitor:tensors", "test_monitor:shouting"), run_dir=tmp_path / "run", quiet=True)
    told = {one["check"]: one for one in lines(outcome.folder.findings)}
    assert (told["test_monitor:tensors"]["value"], told["test_monitor:tensors"]["limit"]) == (0.5, 0.25)
    assert "is off now: ValueError: severity 'error' is none of" in told["test_monitor:shouting"]["message"]


def test_what_could_not_be_done_does_not_count_as_done(tmp_path: Path, sick: Any) -> None:
    """There is no checkpoint yet at the first rollback that is asked for."""
    config = sick(
        check=("test_monitor:always=rollback",), most_interventions=1, cooldown=4, save_every=320, look_every=5
    )
    outcome = launch(config, run_dir=tmp_path / "run", quiet=True)
    tried = [(one["verb"], "refused" in one["outcome"]) for one in lines(outcome.folder.interventions)][:3]
    assert tried == [("rollback", True), ("rollback", False), ("set", False)]
    factors = [one["arguments"]["factor"] for one in lines(outcome.folder.interventions) if one["verb"] == "set"]
    assert factors == [0.5]


def test_a_check_of_ones_own_by_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint(name="nosy", value="test_monitor:always", group="greenroom.checks")

    def points(*, group: str) -> list[importlib.metadata.EntryPoint]:
        return [point] if group == "greenroom.checks" else []

    monkeypatch.setattr(importlib.metadata, "entry_points", points)
    outcome = launch(own(), run_dir=tmp_path / "run", quiet=True)
    assert [one["check"] for one in lines(outcome.folder.findings)] == ["nosy"]
    outcome = launch(own("nosy=off"), run_dir=tmp_path / "off", quiet=True)
    assert lines(outcome.folder.findings) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--check", "nowhere:check"], "--check nowhere:check: there is no module 'nowhere'"),
        (["--check", "test_monitor:nothing"], "module 'test_monitor' has no function 'nothing'"),
        (["--check", "nosy"], "no installed check 'nosy'"),
        (["--check", "test_monitor:always=shout"], "no action 'shout'"),
        (["--check", "test_monitor:T"], "is not a function of a Progress"),
        (["--constraint", "cost"], "give NAME=LIMIT"),
        (["--constraint", "cost=25", "--total-steps", "4096"], "the environment has no signal 'cost'"),
        (["--rollback-factor", "2"], r"rollback_factor must lie in (0, 1]"),
        (["--cooldown", "0"], "cooldown must be at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "cartpole", "--run-dir", str(tmp_path / "run"), "--quiet", *words]
    assert main(words) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_every_action_is_an_option_and_the_config_comes_back(tmp_path: Path) -> None:
    assert load(dump(own("a:b=stop", constraint=("cost=1",))), "text").monitor.check == ("a:b=stop",)
    names = {one.name for one in HealthConfig(constraint=("cost=1",)).watch(subject())}
    assert len(names) == 15
    words = [word for name in sorted(names) for word in (f"--on-{name.replace('_', '-')}", "record")]
    short = ["--total-steps", "2048", "--num-envs", "8", "--eval-episodes", "2", "--no-health", "--quiet"]
    assert main(["train", "cartpole", *short, *words, "--run-dir", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "config.yaml").read_text().count(": record\n") == len(names)


# docs/health.md

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "health.md").read_text(encoding="utf-8")


def test_the_documented_check_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "mychecks.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mychecks", raising=False)
    (command,) = re.findall(r"^greenroom train (.* --check .*)$", PAGE, re.MULTILINE)
    short = ["--total-steps", "2048", "--eval-episodes", "2", "--num-envs", "8", "--quiet"]
    words = ["train", *command.split(), *short, "--run-dir", str(tmp_path / "run")]
    assert main(words) == 0
    assert json.loads((tmp_path / "run" / "findings.jsonl").read_text().splitlines()[0])["check"] == "mychecks:hasty"


def test_every_check_is_documented() -> None:
    for one in HealthConfig(constraint=("cost=1",)).watch(subject()):
        assert re.search(rf"^\| `{one.name}` \|.*\| {one.action} \|", PAGE, re.MULTILINE), one.name
