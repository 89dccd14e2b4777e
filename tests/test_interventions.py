"""What is done to a run while it goes on, by an operator or by the disk: just what was asked, and nothing is lost."""

from __future__ import annotations

import dataclasses
import json
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from greenroom import checkpoint, examination, recovery, sitting
from greenroom.budget import Budget
from greenroom.cli import main
from greenroom.control import Request
from greenroom.errors import ExitCode, UserError
from greenroom.evaluation import evaluate
from greenroom.folder import RunFolder, sync
from greenroom.journal import Complaint
from greenroom.log import Appended
from greenroom.session import launch, resume
from greenroom.status import look
from test_session import (
    COMBINATIONS,
    PowerCut,
    assert_equal,
    final_state,
    lines,
    power_cut,
    small,
    with_replay,
    without_clock,
)

Plan = dict[int, list[Request | Callable[[], None]]]


@pytest.fixture(autouse=True)
def no_baselines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greenroom.baselines.report", lambda *args, **kwargs: None)


@pytest.fixture
def during(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Plan], list[Any]]]:
    """`during({n: […]})`: ask for things, or do some, after the n-th update, once. Returns the answers to come."""

    def plan(steps: Plan) -> list[Any]:
        answers: list[Any] = []

        def attend(self: Any, line: Any, signals: Any) -> None:
            for act in steps.pop(self.run.updates, []):
                if isinstance(act, Request):
                    try:
                        answers.append(self.intervene(act, user="tester"))
                    except UserError as problem:
                        answers.append(problem)
                else:
                    act()
            real(self, line, signals)

        monkeypatch.setattr(sitting.Sitting, "_attend", attend)
        return answers

    real = sitting.Sitting._attend
    yield plan


def assert_same_run(one: Any, other: Any) -> None:
    """Equal to the last bit, in what it is and in what it logged."""
    assert_equal(final_state(one), final_state(other))
    for log_name in ("metrics", "evaluations"):
        logs = [without_clock(lines(getattr(outcome.folder, log_name))) for outcome in (one, other)]
        assert logs[0] == logs[1]


@pytest.mark.parametrize(("stage", "algo", "collect"), COMBINATIONS)
def test_a_rollback_is_a_resume_within_the_live_run(
    tmp_path: Path, during: Any, stage: str, algo: str, collect: str
) -> None:
    config = small(stage, algo, collect=collect)
    whole = launch(config, run_dir=tmp_path / "whole", quiet=True)
    answers = during({7: [Request(verb="rollback", to=128, reason="to see")]})
    rolled = launch(config, run_dir=tmp_path / "rolled", quiet=True)
    assert answers == [{"checkpoint": "step_000000000128"}] and rolled.code == ExitCode.DONE
    assert_same_run(rolled, whole)
    (record,) = lines(rolled.folder.interventions)
    assert record.pop("time").endswith("+00:00")
    assert record == {
        "user": "tester",
        "verb": "rollback",
        "arguments": {"to": 128},
        "reason": "to see",
        "env_steps": 224,
        "outcome": {"checkpoint": "step_000000000128"},
    }
    assert look(rolled.folder.path)["rollbacks"] == 1


def test_after_a_rollback_a_power_cut_leaves_no_gap(tmp_path: Path, during: Any) -> None:
    whole = launch(small(), run_dir=tmp_path / "whole", quiet=True)
    during({9: [Request(verb="rollback", to=128), power_cut]})
    with pytest.raises(PowerCut):
        launch(small(), run_dir=tmp_path / "cut", quiet=True)
    assert [path.name for path in checkpoint.every(tmp_path / "cut" / "checkpoints")] == ["step_000000000128"]
    assert [record["updates"] for record in lines(tmp_path / "cut" / "metrics.jsonl")] == [1, 2, 3, 4]
    assert_same_run(resume(tmp_path / "cut", quiet=True), whole)
    assert len(lines(tmp_path / "cut" / "interventions.jsonl")) == 1, "history is not rewound"


def test_after_a_rollback_to_before_a_move_the_folder_tells_where_the_run_goes_on(tmp_path: Path, during: Any) -> None:
    during({6: [Request(verb="stop")], 8: [Request(verb="rollback", to=128)]})
    folder = launch(small(), run_dir=tmp_path / "run", quiet=True).folder
    before = json.loads(folder.environment.read_text())
    folder.environment.write_text(json.dumps(before | {"torch": "1.0"}))
    assert resume(folder.path, quiet=True).finished
    assert [path.name for path in folder.path.glob("environment-*")] == ["environment-128.json"]
    assert json.loads((folder.path / "environment-128.json").read_text())["torch"] == before["torch"]


def test_tensorboard_shows_no_point_twice_after_a_rollback(tmp_path: Path, during: Any) -> None:
    during({7: [Request(verb="rollback", to=128)]})
    outcome = launch(small(sinks=("tensorboard",)), run_dir=tmp_path / "run", quiet=True)
    events = EventAccumulator(str(outcome.folder.tensorboard)).Reload()
    assert [event.step for event in events.Scalars("loss/policy_loss")] == list(range(32, 321, 32))


def test_a_rollback_takes_the_replay_along_or_says_that_it_is_lost(
    tmp_path: Path, during: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = launch(with_replay(), run_dir=tmp_path / "whole", quiet=True)
    during({5: [Request(verb="rollback", to=128)]})
    assert_same_run(launch(with_replay(), run_dir=tmp_path / "newest", quiet=True), whole)
    during({9: [Request(verb="rollback", to=128)]})
    capsys.readouterr()
    older = launch(with_replay(), run_dir=tmp_path / "older")
    said = " ".join(capsys.readouterr().err.split())
    assert "lost, so it begins empty: run/algorithm/replay/memory" in said
    sizes = [record["loss/replay_size"] for record in lines(older.folder.metrics)]
    assert sizes == [32, 64, 96, 128, 32, 64, 96, 128, 160, 192]
    after_resume = resume_from_older(tmp_path, during)
    assert_same_run(older, after_resume)


def resume_from_older(tmp_path: Path, during: Any) -> Any:
    """The same as a rollback of a run with a replay to an older checkpoint, by a resume."""
    during({9: [power_cut]})
    with pytest.raises(PowerCut):
        launch(with_replay(), run_dir=tmp_path / "resumed", quiet=True)
    (checkpoint.every(tmp_path / "resumed" / "checkpoints")[-1] / "manifest.json").write_bytes(b"")
    return resume(tmp_path / "resumed", quiet=True)


def test_what_is_good_to_go_back_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, during: Any) -> None:
    scores = iter([(1.0, (0.5, 1.5)), (3.0, (2.0, 4.0)), (2.5, (1.9, 3.1)), (0.0, (-1.0, 1.0))])

    def scripted(*args: Any, **kwargs: Any) -> Any:
        mean, ci95 = next(scores)
        return dataclasses.replace(evaluate(*args, **kwargs), mean=mean, ci95=ci95)

    monkeypatch.setattr(examination, "evaluate", scripted)
    during({9: [power_cut]})
    with pytest.raises(PowerCut):
        launch(small(eval_every=64, save_every=64, keep=10), run_dir=tmp_path / "run", quiet=True)
    folder = RunFolder(path=tmp_path / "run")
    names = [checkpoint.env_steps_of(path) for path in checkpoint.every(folder.checkpoints)]
    assert names == [64, 128, 192, 256], "evaluated at each: bad, best, as good as the best, bad"
    assert checkpoint.env_steps_of(recovery.choose(folder, None)) == 192
    assert checkpoint.env_steps_of(recovery.choose(folder, 64)) == 64
    with pytest.raises(UserError, match=r"no checkpoint of 65 steps .*; there are: 64, 128, 192, 256"):
        recovery.choose(folder, 65)
    folder.evaluations.unlink()
    assert checkpoint.env_steps_of(recovery.choose(folder, None)) == 128, "the one that was marked"
    (folder.checkpoints / "best.json").unlink()
    assert checkpoint.env_steps_of(recovery.choose(folder, None)) == 256, "nothing was evaluated: the newest"


def test_a_rollback_behind_the_best_knows_what_is_the_best_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, during: Any
) -> None:
    """Evaluated after 64 steps: 1, then 3, and after the rollback 0.5: what the first one said still counts."""
    scores = iter([1.0, 3.0, *[0.5] * 10])

    def scripted(*args: Any, **kwargs: Any) -> Any:
        return dataclasses.replace(evaluate(*args, **kwargs), mean=next(scores))

    monkeypatch.setattr(examination, "evaluate", scripted)
    during({5: [Request(verb="rollback", to=64)]})
    outcome = launch(small(eval_every=64, save_every=64, keep=2), run_dir=tmp_path / "run", quiet=True)
    best = checkpoint.find(outcome.folder.checkpoints, "best")
    assert checkpoint.env_steps_of(best) == 64 and checkpoint.best_score(outcome.folder.checkpoints, until=320) == 1.0


def test_after_a_rollback_an_evaluation_is_logged_again(tmp_path: Path, during: Any) -> None:
    """Even of the steps at which the sitting began, with an evaluation that had been made."""
    during({5: [power_cut]})
    with pytest.raises(PowerCut):
        launch(small(eval_every=64, save_every=64, keep=10), run_dir=tmp_path / "run", quiet=True)
    during({5: [Request(verb="rollback", to=64)]})
    outcome = resume(tmp_path / "run", quiet=True)
    assert [one["env_steps"] for one in lines(outcome.folder.evaluations)] == [64, 128, 192, 256, 320]


def test_a_changed_learning_rate_is_part_of_the_run(tmp_path: Path, during: Any) -> None:
    slower = Request(verb="set", factor=0.5)
    during({3: [slower]})
    whole = launch(small(), run_dir=tmp_path / "whole", quiet=True)
    rates = [record["loss/learning_rate"] for record in lines(whole.folder.metrics)]
    planned = [0.01 * (1 - updates / 10) for updates in range(10)]
    assert rates == pytest.approx(planned[:3] + [rate / 2 for rate in planned[3:]])
    during({3: [slower], 7: [Request(verb="stop")]})
    stopped = launch(small(), run_dir=tmp_path / "stopped", quiet=True)
    assert stopped.code == ExitCode.STOPPED and not stopped.finished
    assert_same_run(resume(stopped.folder.path, quiet=True), whole)


def test_a_change_right_after_a_save_is_saved_too(tmp_path: Path, during: Any) -> None:
    during({4: [Request(verb="set", factor=0.5)]})
    whole = launch(small(), run_dir=tmp_path / "whole", quiet=True)
    during({4: [Request(verb="set", factor=0.5), Request(verb="stop")]})
    stopped = launch(small(), run_dir=tmp_path / "stopped", quiet=True)
    assert_same_run(resume(stopped.folder.path, quiet=True), whole)


def test_a_rollback_with_a_named_change_and_a_full_disk(tmp_path: Path, during: Any, disk: dict[str, bool]) -> None:
    """The log cannot grow at that moment; what is then written is what belongs after the rollback."""
    config = small(sinks=("tensorboard",))
    slower, back = Request(verb="set", factor=0.5), Request(verb="rollback", to=128)
    during({4: [slower]})
    whole = launch(config, run_dir=tmp_path / "whole", quiet=True)
    answers = during({6: [turn(disk, "logs", True)], 7: [back, slower], 8: [turn(disk, "logs", False)]})
    monitored = launch(config, run_dir=tmp_path / "run", quiet=True)
    assert answers[0] == {"checkpoint": "step_000000000128"}
    assert_same_run(monitored, whole)
    events = EventAccumulator(str(monitored.folder.tensorboard)).Reload()
    assert [event.step for event in events.Scalars("loss/policy_loss")] == list(range(32, 321, 32))


def test_a_learning_rate_can_be_named(tmp_path: Path, during: Any) -> None:
    answers = during({5: [Request(verb="set", learning_rate=0.001)]})
    outcome = launch(small(), run_dir=tmp_path / "run", quiet=True)
    assert answers == [{"learning_rate": pytest.approx(0.001)}]
    rates = [record["loss/learning_rate"] for record in lines(outcome.folder.metrics)]
    assert rates[5:] == pytest.approx([0.001 * (10 - updates) / 5 for updates in range(5, 10)]), "annealing goes on"


def test_an_algorithm_that_does_not_tell_its_updaters_says_so(
    tmp_path: Path, during: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greenroom.algorithms.ppo.PPO.updaters", (), raising=False)
    monkeypatch.setattr("greenroom.algorithms.ppo.PPO.__setattr__", ignore_updaters)
    answers = during({2: [Request(verb="set", factor=0.5), Request(verb="status")]})
    outcome = launch(small(), run_dir=tmp_path / "run", quiet=True)
    assert outcome.finished
    assert "has no attribute `updaters`" in str(answers[0]) and "docs/extend.md" in str(answers[0])
    assert answers[1]["learning_rate"] is None
    assert "refused" in lines(outcome.folder.interventions)[0]["outcome"]


def ignore_updaters(self: Any, name: str, value: Any) -> None:
    if name != "updaters":
        object.__setattr__(self, name, value)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, ExitCode.STOPPED),
        (signal.SIGTERM, ExitCode.PREEMPTED),
        (signal.SIGUSR1, ExitCode.PREEMPTED),
        (signal.SIGUSR2, ExitCode.PREEMPTED),
    ],
)
def test_every_signal_that_asks_to_go_has_its_code(
    tmp_path: Path, during: Any, number: signal.Signals, code: ExitCode
) -> None:
    during({7: [lambda: signal.raise_signal(number)]})
    outcome = launch(small(), run_dir=tmp_path / "run", quiet=True)
    assert outcome.code == code and outcome.ending is not None and outcome.ending.reason == number.name
    newest = checkpoint.latest(outcome.folder.checkpoints)
    assert newest is not None and checkpoint.env_steps_of(newest) == 224
    assert lines(outcome.folder.interventions)[0]["outcome"] == {"exit_code": code}


def test_a_clusters_notice_does_not_make_its_sigterm_an_exit_at_once(tmp_path: Path, during: Any) -> None:
    during({7: [lambda: signal.raise_signal(signal.SIGUSR1), lambda: signal.raise_signal(signal.SIGTERM)]})
    assert launch(small(), run_dir=tmp_path / "run", quiet=True).code == ExitCode.PREEMPTED


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bool]]:
    """A disk that refuses `logs` or `checkpoints` while these are set."""
    refuses = {"logs": False, "checkpoints": False}
    append = Appended.append

    def guarded(self: Appended, block: bytes) -> None:
        if refuses["logs"]:
            raise OSError(28, "No space left on device")
        append(self, block)

    def guarded_sync(path: Path) -> None:
        if refuses["checkpoints"]:
            raise OSError(30, "Read-only file system")
        sync(path)

    monkeypatch.setattr(Appended, "append", guarded)
    monkeypatch.setattr(checkpoint, "sync", guarded_sync)
    yield refuses


def turn(disk: dict[str, bool], name: str, to: bool) -> Callable[[], None]:
    return lambda: disk.update({name: to})


def test_log_lines_wait_for_a_full_disk(
    tmp_path: Path, during: Any, disk: dict[str, bool], capsys: pytest.CaptureFixture[str]
) -> None:
    config = small(sinks=("tensorboard",), eval_every=96)
    whole = launch(config, run_dir=tmp_path / "whole", quiet=True)
    capsys.readouterr()
    asked = [Request(verb="checkpoint", reason="just now"), Request(verb="status")]
    answers = during({2: [turn(disk, "logs", True)], 5: asked, 7: [turn(disk, "logs", False)]})
    outcome = launch(config, run_dir=tmp_path / "run")
    said = " ".join(capsys.readouterr().err.split())
    assert outcome.code == ExitCode.DONE
    assert answers[1]["waiting_lines"] == 5, "three updates, an evaluation and an intervention"
    assert_same_run(outcome, whole)
    events = [EventAccumulator(str(one.folder.tensorboard)).Reload() for one in (outcome, whole)]
    for name in ("loss/policy_loss", "evaluation/mean"):
        points = [[(event.step, event.value) for event in one.Scalars(name)] for one in events]
        assert points[0] == points[1]
    assert [record["reason"] for record in lines(outcome.folder.interventions)] == ["just now"]
    assert said.count("cannot write log lines") == 1 and "No space left on device" in said
    assert "all lines that waited are written" in said


def test_saving_goes_on_by_itself_when_the_disk_takes_it(
    tmp_path: Path, during: Any, disk: dict[str, bool], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sitting, "_UNTRIED", 0.0)
    whole = launch(small(), run_dir=tmp_path / "whole", quiet=True)
    capsys.readouterr()
    asked = [Request(verb="checkpoint"), Request(verb="status")]
    answers = during({3: [turn(disk, "checkpoints", True)], 5: asked, 6: [turn(disk, "checkpoints", False)]})
    outcome = launch(small(keep=9), run_dir=tmp_path / "run")
    said = " ".join(capsys.readouterr().err.split())
    assert "cannot save checkpoint" in str(answers[0]) and "Read-only file system" in answers[1]["unsaved"]
    saved = [checkpoint.env_steps_of(path) for path in checkpoint.every(outcome.folder.checkpoints)]
    assert saved == [224, 256, 320], "the first chance after the disk was back, then as planned"
    assert said.count("warning: cannot save checkpoint") == 1 and "checkpoints can be saved again" in said
    assert outcome.code == ExitCode.DONE
    assert_same_run(outcome, whole)


def test_what_is_refused_to_the_last_is_told_by_message_and_code(
    tmp_path: Path, disk: dict[str, bool], capsys: pytest.CaptureFixture[str]
) -> None:
    disk.update(logs=True, checkpoints=True)
    words = (
        "train probe-observation --num-envs 8 --rollout-length 4 --minibatches 2 --epochs 1 --total-steps 64 --sinks"
    )
    tiny = [*words.split(), "--hidden", "8", "--eval-episodes", "4", "--log-seconds", "0"]
    assert main([*tiny, "--run-dir", str(tmp_path / "run")]) == ExitCode.UNSAVED
    said = capsys.readouterr()
    out, err = " ".join(said.out.split()), " ".join(said.err.split())
    assert "mean" in out, "the final evaluation is shown all the same"
    assert "not saved, for the disk refuses: the state after 64 steps (cannot save checkpoint 64" in out
    assert "and 3 log lines" in out and "3 log lines could not be written and are lost" in err
    assert "Traceback" not in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_device_that_is_always_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunFolder, "metrics", property(lambda self: Path("/dev/full")))
    monkeypatch.setattr("greenroom.plots.learning_curve", lambda path: None)
    outcome = launch(small(), run_dir=tmp_path / "run", quiet=True)
    assert outcome.code == ExitCode.UNSAVED and outcome.unsaved == "11 log lines"


def test_a_block_that_does_not_fit_is_not_there_at_all(tmp_path: Path) -> None:
    file = Appended(tmp_path / "log")
    file.append(b"x" * 600)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            file.append(b"y" * 600)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "log").read_bytes() == b"x" * 600
    file.append(b"z")
    assert (tmp_path / "log").read_bytes() == b"x" * 600 + b"z"
    file.close()


def test_a_trouble_that_lasts_is_told_rarely_and_its_end_once() -> None:
    said: list[str] = []
    now = [0.0]
    complaint = Complaint(said.append, clock=lambda: now[0])
    complaint.relieve("fine")
    for _ in range(13):
        complaint.complain("full")
        now[0] += 100.0
    assert said == ["warning: full; training goes on"] * 3
    assert not complaint.waited(101.0) and complaint.waited(100.0)
    complaint.relieve("fine")
    complaint.relieve("fine")
    assert said[3:] == ["fine"] and not complaint.waited(0.0)


@pytest.mark.parametrize(
    ("limits", "culprit"),
    [
        ({"deadline": -1.0}, "deadline must be a finite number of at least 0"),
        ({"deadline": float("nan")}, "deadline must be a finite number of at least 0"),
        ({"cost_budget": 5.0}, "a cost_budget of 5 needs to know the cost_per_hour"),
    ],
)
def test_a_budget_without_sense_is_refused(limits: dict[str, float], culprit: str) -> None:
    with pytest.raises(UserError, match=culprit):
        Budget(**limits)


def test_what_is_spent_is_not_rewound(tmp_path: Path, during: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("greenroom.budget.time", SimpleNamespace(monotonic=lambda: clock[0]))

    def work() -> None:
        clock[0] += 10.0

    status = Request(verb="status")
    plan: Plan = {n: [work] for n in range(1, 6)}
    answers = during(plan | {6: [Request(verb="rollback", to=128), status, Request(verb="stop")]})
    folder = launch(small(), run_dir=tmp_path / "run", quiet=True).folder
    assert (answers[1]["spent"], answers[1]["env_steps"]) == (50.0, 128)
    assert look(folder.path)["spent"] == 50.0
    answers = during({5: [work, status, Request(verb="stop")]})
    resume(folder.path, quiet=True)
    assert answers[0]["spent"] == look(folder.path)["spent"] == 60.0
    during({6: [work]})
    with pytest.raises(UserError, match="its deadline of 60 seconds is over; give a later --deadline"):
        resume(folder.path, deadline=60.0, quiet=True)
    outcome = resume(folder.path, deadline=65.0, quiet=True)
    assert outcome.code == ExitCode.BUDGET and final_state(outcome)["run"]["updates"] == 6
    folder.spent.write_text("nonsense")
    assert look(folder.path)["spent"] == 0.0
