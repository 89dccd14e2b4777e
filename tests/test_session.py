"""A run from start to end, stopped and continued: nothing lost, nothing twice, and the same bits as without a stop."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from greenroom import archive, checkpoint, examination, session, sitting
from greenroom.algorithms import AlgorithmConfig
from greenroom.algorithms.actor_critic import A2CConfig
from greenroom.algorithms.dqn import DQNConfig
from greenroom.algorithms.ppo import PPOConfig
from greenroom.algorithms.replaying import Drawing
from greenroom.algorithms.rewards import Discounting
from greenroom.config import RunConfig, dump, load
from greenroom.control import SOCKET
from greenroom.errors import EnvironmentFault, UserError
from greenroom.evaluation import evaluate
from greenroom.folder import RunFolder
from greenroom.networks import Mlp, Nips
from greenroom.optim import Adam, RMSprop, Schedule
from greenroom.outcome import Outcome
from greenroom.policy import PolicyConfig
from greenroom.replay import ReplayConfig
from greenroom.session import launch, resume
from greenroom.training import Run, train
from greenroom.types import Progress

DISCOUNTING = Discounting(gamma=0.9, lam=0.8, scale_rewards=True)
PPO = PPOConfig(discounting=DISCOUNTING, optimizer=Adam(learning_rate=0.01), epochs=2, minibatches=2)
ALGORITHMS: dict[str, AlgorithmConfig] = {
    "a2c": A2CConfig(discounting=DISCOUNTING, optimizer=RMSprop(learning_rate=0.01)),
    "ppo": PPO,
}
STAGES: dict[str, dict[str, Any]] = {
    "device": {"env": "lost-sales", "env_kwargs": {"horizon": 10}},
    "inline": {"env": "CartPole-v1", "stage": "inline"},
    "workers": {"env": "CartPole-v1", "stage": "workers", "num_workers": 2},
    "joint": {"env": "CartPole-v1", "stage": "joint", "num_workers": 2},
}


def small(stage: str = "device", algo: str = "ppo", **changes: Any) -> RunConfig:
    """Ten updates of 32 steps, a log line after each, checkpoints after the 4th and 8th."""
    config = RunConfig(
        **STAGES[stage],
        num_envs=8,
        rollout_length=4,
        total_steps=320,
        algorithm=ALGORITHMS[algo],
        policy=PolicyConfig(network=Mlp(hidden=(8,)), separate_value=True, normalize_obs=True),
        eval_episodes=8,
        save_every=128,
        log_seconds=0.0,
        sinks=(),
        threads=1,
    )
    return dataclasses.replace(config, **changes)


@pytest.fixture(autouse=True)
def no_baselines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison with classical rules has its own tests, and takes seconds."""
    monkeypatch.setattr("greenroom.baselines.report", lambda *args, **kwargs: None)


@pytest.fixture
def after(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`after(n, action)`: do something in the next sitting when its run has learned `n` times."""

    def plan(updates: int, action: Any) -> None:
        def watched(run: Run) -> Iterator[Progress]:
            for progress in train(run):
                if progress.updates == updates:
                    monkeypatch.setattr(session, "train", train)
                    action()
                yield progress

        monkeypatch.setattr(session, "train", watched)

    yield plan


def ctrl_c() -> None:
    """What a terminal does on Ctrl-C."""
    signal.raise_signal(signal.SIGINT)


class PowerCut(Exception):
    """Nothing in greenroom catches it."""


def power_cut() -> None:
    raise PowerCut


def final_state(outcome: Outcome) -> Any:
    """All that a run's newest checkpoint holds, but for the time it took."""
    path = checkpoint.latest(outcome.folder.checkpoints)
    assert path is not None
    state = checkpoint.load(path)
    assert state["run"].pop("seconds") > 0
    return state


def assert_equal(left: Any, right: Any, where: str = "state") -> None:
    """Equal to the last bit."""
    assert type(left) is type(right), where
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_equal(left[key], right[key], f"{where}/{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for index, pair in enumerate(zip(left, right, strict=True)):
            assert_equal(*pair, f"{where}/{index}")
    elif isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype and torch.equal(left, right), where
    elif isinstance(left, np.ndarray):
        assert np.array_equal(left, right), where
    else:
        assert left == right, where


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_clock(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    clock = ("seconds", "steps_per_second")
    return [{k: v for k, v in record.items() if k not in clock and not k.startswith("time/")} for record in records]


def test_the_run_folder_is_complete(tmp_path: Path) -> None:
    config = small(sinks=("tensorboard",), eval_every=160)
    outcome = launch(config, run_dir=tmp_path / "run", quiet=True)
    folder = outcome.folder
    assert outcome.finished and outcome.evaluation is not None
    logs = "evaluations.jsonl findings.jsonl metrics.jsonl spent.json tensorboard"
    contents = f"checkpoints config.yaml curve.png environment.json {logs} train.lock"
    assert sorted(path.name for path in folder.path.iterdir()) == contents.split()
    assert load(folder.config.read_text(), "config.yaml") == config
    assert load(dump(config), "dump") == config

    metrics = lines(folder.metrics)
    assert [record["env_steps"] for record in metrics] == list(range(32, 321, 32))
    assert [record["updates"] for record in metrics] == list(range(1, 11))
    assert [record["lag"] for record in metrics] == [0] * 10
    seconds = [record["seconds"] for record in metrics]
    assert seconds == sorted(seconds) and seconds[0] > 0
    last = metrics[-1]
    assert last["episodes"] == 32, "8 environments whose episodes take 10 periods, for 40 periods"
    assert last["length_mean"] == 10
    assert last["return_mean"] == pytest.approx(-last["signal/holding"] - last["signal/penalty"], rel=1e-5)
    assert last["steps_per_second"] > 0
    split = [last[f"time/{name}"] for name in ("env", "act", "wait", "learn")]
    assert all(value >= 0 for value in split)
    assert 0 < sum(record["time/cpu"] for record in metrics) <= time.process_time()
    assert sum(split) == pytest.approx(seconds[-1] - seconds[-2], rel=0.2)
    for name in ("policy_loss", "value_loss", "entropy", "grad_norm", "learning_rate"):
        assert math.isfinite(last[f"loss/{name}"])

    evaluations = lines(folder.evaluations)
    assert [record["env_steps"] for record in evaluations] == [160, 320]
    assert {"mean", "std", "iqm", "ci95", "cvar5", "episodes", "length_mean", "seconds"} <= evaluations[-1].keys()
    assert evaluations[-1]["mean"] == outcome.evaluation.mean

    described = json.loads(folder.environment.read_text())
    assert described["torch"] == torch.__version__ and described["cores"] >= 1 and "git" in described
    events = EventAccumulator(str(folder.tensorboard)).Reload()
    assert [event.step for event in events.Scalars("loss/policy_loss")] == list(range(32, 321, 32))
    assert [event.step for event in events.Scalars("evaluation/mean")] == [160, 320]
    assert folder.curve.read_bytes().startswith(b"\x89PNG")


COMBINATIONS = [
    *[
        (stage, algo, collect)
        for stage in ("device", "inline")
        for algo in ALGORITHMS
        for collect in ("sync", "double")
    ],
    ("workers", "a2c", "sync"),
    ("workers", "ppo", "double"),
    ("joint", "ppo", "double"),
    ("device", "a2c", "overlap"),
    ("inline", "ppo", "overlap"),
    ("workers", "ppo", "overlap"),
]


@pytest.mark.parametrize(("stage", "algo", "collect"), COMBINATIONS)
def test_ctrl_c_and_resume_change_no_bit(tmp_path: Path, after: Any, stage: str, algo: str, collect: str) -> None:
    config = small(stage, algo, collect=collect)
    whole = launch(config, run_dir=tmp_path / "whole", quiet=True)
    after(7, ctrl_c)
    stopped = launch(config, run_dir=tmp_path / "stopped", quiet=True)
    assert not stopped.finished and stopped.evaluation is None
    newest = checkpoint.latest(stopped.folder.checkpoints)
    assert newest is not None and checkpoint.env_steps_of(newest) == 7 * 32, "saved where it stopped"
    continued = resume(stopped.folder.path, quiet=True)
    assert continued.finished
    assert_equal(final_state(continued), final_state(whole))
    for log in ("metrics", "evaluations"):
        logs = [without_clock(lines(getattr(outcome.folder, log))) for outcome in (continued, whole)]
        assert logs[0] == logs[1]


def test_the_log_tells_how_far_acting_is_behind(tmp_path: Path) -> None:
    outcome = launch(small(collect="overlap", lag=2), run_dir=tmp_path / "run", quiet=True)
    assert [record["lag"] for record in lines(outcome.folder.metrics)] == [0, 1] + [2] * 8


def test_a_run_may_move_between_inline_and_workers(tmp_path: Path, after: Any) -> None:
    """`--stage auto` measures anew when a run resumes, and may choose otherwise."""
    whole = launch(small("inline"), run_dir=tmp_path / "whole", quiet=True)
    after(3, ctrl_c)
    folder = launch(small("inline"), run_dir=tmp_path / "moved", quiet=True).folder
    folder.config.write_text(dump(small("workers")))
    moved = resume(folder.path, quiet=True)
    assert_equal(final_state(moved)["run"]["algorithm"], final_state(whole)["run"]["algorithm"])


def test_a_run_that_goes_on_elsewhere_says_what_is_other(
    tmp_path: Path, after: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    after(3, ctrl_c)
    folder = launch(small(), run_dir=tmp_path / "run", quiet=True).folder
    before = json.loads(folder.environment.read_text())
    folder.environment.write_text(json.dumps(before | {"torch": "1.0", "cores": 77}))
    resume(folder.path)
    told = " ".join(capsys.readouterr().err.split())
    assert f"not what this run has been on so far: torch {torch.__version__} (was 1.0); it goes on" in told
    assert json.loads((folder.path / "environment-96.json").read_text())["torch"] == torch.__version__


def test_a_power_cut_between_checkpoints_leaves_no_duplicate_and_no_gap(tmp_path: Path, after: Any) -> None:
    config = small(eval_every=96)
    whole = launch(config, run_dir=tmp_path / "whole", quiet=True)
    after(7, power_cut)
    with pytest.raises(PowerCut):
        launch(config, run_dir=tmp_path / "cut", quiet=True)
    before = lines(tmp_path / "cut" / "metrics.jsonl")
    assert [record["updates"] for record in before] == [1, 2, 3, 4, 5, 6], "two later than the checkpoint"
    continued = resume(tmp_path / "cut", quiet=True)
    assert_equal(final_state(continued), final_state(whole))
    assert without_clock(lines(continued.folder.metrics)) == without_clock(lines(whole.folder.metrics))
    assert without_clock(lines(continued.folder.evaluations)) == without_clock(lines(whole.folder.evaluations))


def test_a_later_end_is_as_if_it_had_been_planned(tmp_path: Path) -> None:
    """Only where no schedule looks at the end of the run: an annealed learning rate would differ before it."""
    constant = Adam(learning_rate=0.01, schedule=Schedule(anneal=False))
    config = small(algorithm=dataclasses.replace(PPO, optimizer=constant))
    whole = launch(config, run_dir=tmp_path / "whole", quiet=True)
    short = launch(dataclasses.replace(config, total_steps=160), run_dir=tmp_path / "short", quiet=True)
    assert short.finished
    continued = resume(tmp_path / "short", total_steps=320, quiet=True)
    assert_equal(final_state(continued)["run"], final_state(whole)["run"])
    assert load(continued.folder.config.read_text(), "config.yaml") == config


def test_a_later_end_stretches_the_schedule(tmp_path: Path) -> None:
    launch(small(total_steps=160), run_dir=tmp_path / "run", quiet=True)
    continued = resume(tmp_path / "run", total_steps=320, quiet=True)
    rates = [record["loss/learning_rate"] for record in lines(continued.folder.metrics)]
    assert rates[4] == pytest.approx(0.01 * (1 - 128 / 160))
    assert rates[5] == pytest.approx(0.01 * (1 - 160 / 320))


@pytest.mark.parametrize("stage", ["device", "inline"])
def test_evaluating_during_training_changes_nothing(tmp_path: Path, stage: str) -> None:
    outcomes = [launch(small(stage, eval_every=every), run_dir=tmp_path / str(every), quiet=True) for every in (0, 32)]
    assert [len(lines(outcome.folder.evaluations)) for outcome in outcomes] == [1, 10]
    assert_equal(*(final_state(outcome)["run"] for outcome in outcomes))


def test_atari_resumes_with_new_episodes_and_says_so(
    tmp_path: Path, after: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config = RunConfig(
        env="ALE/Pong-v5",
        env_kwargs={"max_num_frames_per_episode": 200},
        num_envs=2,
        num_workers=1,
        rollout_length=2,
        total_steps=12,
        algorithm=PPOConfig(minibatches=1, epochs=1),
        policy=PolicyConfig(network=Nips(), precision="float32"),
        eval_episodes=1,
        sinks=(),
        threads=1,
    )
    after(2, ctrl_c)
    assert not launch(config, run_dir=tmp_path / "run", quiet=True).finished
    capsys.readouterr()
    outcome = resume(tmp_path / "run")
    said = capsys.readouterr()
    assert "new episodes begin" in said.err and said.out == ""
    assert outcome.finished
    assert final_state(outcome)["run"]["updates"] == 3


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    launch(small(), run_dir=tmp_path / "run", quiet=True)
    content = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="nothing was overwritten; continue it with `greenroom resume`"):
        launch(small(seed=1), run_dir=tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match="has taken all its 320 steps; give a larger --total-steps"):
        resume(tmp_path / "run", quiet=True)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == content


def test_the_best_checkpoint_is_the_one_that_was_evaluated_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    means = iter([1.0, 3.0, 2.0, 2.5])

    def scripted(*args: Any, **kwargs: Any) -> Any:
        return dataclasses.replace(evaluate(*args, **kwargs), mean=next(means))

    monkeypatch.setattr(examination, "evaluate", scripted)
    outcome = launch(small(eval_every=96, keep=1), run_dir=tmp_path / "run", quiet=True)
    best, latest = (find(outcome.folder.checkpoints) for find in (checkpoint.best, checkpoint.latest))
    assert best is not None and checkpoint.env_steps_of(best) == 192
    assert latest is not None and checkpoint.env_steps_of(latest) == 320
    assert set(outcome.folder.checkpoints.glob("step_*")) == {best, latest}
    means = iter([2.9])
    resume(tmp_path / "run", total_steps=352, quiet=True)
    assert checkpoint.best(outcome.folder.checkpoints) == best, "a resumed run remembers how good it was"

    means = iter([9.0])
    saves = count_saves(monkeypatch)
    resume(tmp_path / "run", total_steps=384, quiet=True)
    best = checkpoint.best(outcome.folder.checkpoints)
    assert best is not None and checkpoint.env_steps_of(best) == 384, "the final evaluation counts too"
    assert saves == [384], "marked, not written again"
    assert set(outcome.folder.checkpoints.glob("step_*")) == {best}


def count_saves(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps of all checkpoints written from now on."""
    written: list[int] = []
    save = checkpoint.save

    def counted(*args: Any, **kwargs: Any) -> Path:
        written.append(kwargs["env_steps"])
        return save(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "save", counted)
    return written


def test_each_moment_is_saved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it is due, the last, and the best at the same time."""
    means = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr(
        examination, "evaluate", lambda *a, **k: dataclasses.replace(evaluate(*a, **k), mean=next(means))
    )
    saves = count_saves(monkeypatch)
    launch(small(eval_every=128, save_every=64), run_dir=tmp_path / "run", quiet=True)
    assert saves == [64, 128, 192, 256, 320]


def with_replay(**changes: Any) -> RunConfig:
    """Like `small`, with an algorithm that has a replay."""
    algorithm = DQNConfig(
        replay=ReplayConfig(capacity=200, n_step=2, prioritised=True),
        drawing=Drawing(batch_size=16, replay_ratio=1.0, learning_starts=64),
    )
    policy = PolicyConfig(network=Mlp(hidden=(8,)))
    return small("inline", algorithm=algorithm, policy=policy, **changes)


@pytest.fixture
def replay_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its arrays get files of their own."""
    monkeypatch.setattr(archive, "LARGE", 100)


def replay_in(path: Path) -> Any:
    """What a checkpoint holds of the replay's memory."""
    return checkpoint.load(path)["run"]["algorithm"]["replay"]["memory"]


@pytest.mark.usefixtures("replay_is_large")
def test_the_replay_is_in_the_newest_checkpoint_and_the_resumed_run_is_the_same(tmp_path: Path, after: Any) -> None:
    whole = launch(with_replay(), run_dir=tmp_path / "whole", quiet=True)
    after(7, ctrl_c)
    stopped = launch(with_replay(), run_dir=tmp_path / "stopped", quiet=True)
    *older, newest = sorted(stopped.folder.checkpoints.glob("step_*"))
    assert len(replay_in(newest)["arrays"]["reward"]) == 200 + 8 and [replay_in(path) for path in older] == [{}]
    assert len(list(newest.glob("transient_*.bin"))) > 5 and not list(older[0].glob("transient*"))
    continued = resume(stopped.folder.path, quiet=True)
    assert_equal(final_state(continued), final_state(whole))
    assert without_clock(lines(continued.folder.metrics)) == without_clock(lines(whole.folder.metrics))


@pytest.mark.usefixtures("replay_is_large")
def test_resumed_from_an_older_checkpoint_the_replay_begins_empty_and_a_line_says_so(
    tmp_path: Path, after: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    after(7, ctrl_c)
    folder = launch(with_replay(), run_dir=tmp_path / "run", quiet=True).folder
    older, newest = sorted(folder.checkpoints.glob("step_*"))
    (newest / "manifest.json").write_bytes(b"")
    capsys.readouterr()
    continued = resume(folder.path)
    said = capsys.readouterr().err
    assert f"going back to {older}; lost, so it begins empty: run/algorithm/replay/memory" in " ".join(said.split())
    sizes = [record["loss/replay_size"] for record in lines(folder.metrics)]
    assert sizes == [32, 64, 96, 128, 32, 64, 96, 128, 160, 192]
    assert continued.finished and len(replay_in(sorted(folder.checkpoints.glob("step_*"))[-1])) > 0


def test_a_final_evaluation_that_fails_loses_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(*args: Any, **kwargs: Any) -> Any:
        raise UserError("an episode does not end")

    monkeypatch.setattr(examination, "evaluate", endless)
    with pytest.raises(UserError, match="does not end"):
        launch(small(save_every=10_000), run_dir=tmp_path / "run", quiet=True)
    newest = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert newest is not None and checkpoint.env_steps_of(newest) == 320


def test_the_curve_is_the_last_that_a_run_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever finds it may take the run for complete: everything else is there, and nothing is left to be swept."""
    found: list[set[str]] = []

    def looked(run: Run, folder: RunFolder, say: Any) -> None:
        found.append({path.name for path in folder.path.iterdir()})
        shown = EventAccumulator(str(folder.path / "tensorboard"))
        shown.Reload()
        assert len(shown.Scalars("train/updates")) == 10

    monkeypatch.setattr(sitting, "report", looked)
    launch(small(sinks=("tensorboard",)), run_dir=tmp_path / "run", quiet=True)
    assert found == [{path.name for path in (tmp_path / "run").iterdir()}]
    assert "spent.json" in found[0] and SOCKET not in found[0]


@pytest.mark.parametrize(
    ("owner", "moment"), [(sitting, "report"), (sitting.Sitting, "_judge"), (sitting.Sitting, "_evaluate")]
)
def test_killed_during_its_last_evaluation_a_run_is_completed_by_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, moment: str
) -> None:
    config = small(sinks=("tensorboard",), log_seconds=1e9)
    whole = launch(config, run_dir=tmp_path / "whole", quiet=True)
    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(owner, moment, lambda *_: power_cut())
        launch(config, run_dir=tmp_path / "cut", quiet=True)
    continued = resume(tmp_path / "cut", quiet=True)
    assert continued.finished and continued.evaluation is not None
    assert_equal(final_state(continued), final_state(whole))
    for log in ("metrics", "evaluations"):
        logs = [without_clock(lines(getattr(outcome.folder, log))) for outcome in (continued, whole)]
        assert logs[0] == logs[1] and len(logs[0]) == 1
    files = [sorted(path.name for path in one.folder.checkpoints.iterdir()) for one in (continued, whole)]
    assert files[0] == files[1] and continued.folder.curve.exists()
    assert checkpoint.best_score(continued.folder.checkpoints, until=320) == continued.evaluation.mean
    with pytest.raises(UserError, match="has taken all its 320 steps"):
        resume(tmp_path / "cut", quiet=True)


def test_killed_during_the_last_evaluation_of_a_longer_end_it_is_completed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(small(), run_dir=tmp_path / "run", quiet=True)
    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(sitting.Sitting, "_evaluate", lambda *_: power_cut())
        resume(tmp_path / "run", total_steps=640, quiet=True)
    completed = resume(tmp_path / "run", quiet=True)
    assert completed.finished and completed.evaluation is not None and completed.folder.curve.exists()
    assert [one["env_steps"] for one in lines(completed.folder.evaluations)] == [320, 640]
    with pytest.raises(UserError, match="has taken all its 640 steps"):
        resume(tmp_path / "run", quiet=True)


def test_killed_before_the_best_is_marked_a_resumed_run_marks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(eval_every=96, keep=1)
    whole = launch(config, run_dir=tmp_path / "whole", quiet=True)
    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(checkpoint, "mark_best", lambda *_, **__: power_cut())
        launch(config, run_dir=tmp_path / "cut", quiet=True)
    assert len(lines(tmp_path / "cut" / "evaluations.jsonl")) == 1
    continued = resume(tmp_path / "cut", quiet=True)
    best = [(one.folder.checkpoints / "best.json").read_bytes() for one in (continued, whole)]
    assert best[0] == best[1]
    assert [without_clock(lines(one.folder.evaluations)) for one in (continued, whole)].count(
        without_clock(lines(whole.folder.evaluations))
    ) == 2


def diverging(env: str) -> RunConfig:
    optimizer = Adam(learning_rate=1e30, schedule=Schedule(anneal=False))
    algorithm = dataclasses.replace(PPO, optimizer=optimizer)
    return small("inline", env=env, algorithm=algorithm, total_steps=3200, log_seconds=0.02, save_every=32)


def test_divergence_is_named_and_no_checkpoint_holds_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"diverged: after \d+ steps the policy's \S+ holds NaN.*lower --learning-rate"):
        launch(diverging("CartPole-v1"), run_dir=tmp_path / "run", quiet=True)
    for path in (tmp_path / "run" / "checkpoints").glob("step_*"):
        policy = checkpoint.load(path)["run"]["algorithm"]["policy"]
        assert all(tensor.isfinite().all() for tensor in policy.values())


def test_divergence_is_named_where_the_environment_notices_first(tmp_path: Path) -> None:
    config = dataclasses.replace(diverging("Pendulum-v1"), log_seconds=1e9, save_every=10**9)
    with pytest.raises(UserError, match="diverged: after 32 steps") as caught:
        launch(config, run_dir=tmp_path / "run", quiet=True)
    assert isinstance(caught.value.__context__, EnvironmentFault)


@pytest.mark.parametrize(
    ("before", "after_edit", "culprit"),
    [
        ("kind: adam", "kind: rmsprop", "trained with ppo and adam, config.yaml says ppo and rmsprop"),
        ("num_envs: 8", "num_envs: 16", r"does not fit config.yaml: .*\[8\].*\[16\]"),
        ("- 8", "- 9", "is from another network"),
    ],
)
def test_resuming_with_an_edited_config_names_what_does_not_fit(
    tmp_path: Path, after: Any, before: str, after_edit: str, culprit: str
) -> None:
    after(3, ctrl_c)
    folder = launch(small(), run_dir=tmp_path / "run", quiet=True).folder
    text = folder.config.read_text()
    assert before in text
    folder.config.write_text(text.replace(before, after_edit))
    log = folder.metrics.read_bytes()
    with pytest.raises(UserError, match=culprit):
        resume(folder.path, quiet=True)
    assert folder.metrics.read_bytes() == log
