"""The studies: records survive an interruption, are not mixed and come from whole runs; commands are greenroom's."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import atari
import control
import family
import harness
import healthy
import lag
import lost_sales
import lost_sales_race
import pong_race
import report
import sb3_settings
import time_to_beat
from greenroom import baselines, cli, session
from greenroom.config import RunConfig, to_dict
from greenroom.training import Run
from greenroom.types import Decision, Obs, State

LINES = [{"env_steps": 100 * n, "seconds": 0.1 * n, "return_mean": None if n == 1 else n} for n in range(1, 500)]
# A stand-in for `greenroom train`: it leaves a word about each call, and the files that a run leaves.
TRAIN = """
import json, pathlib, sys
run = pathlib.Path(sys.argv[1]); (run / "checkpoints").mkdir(parents=True, exist_ok=True)
(run / "checkpoints" / "latest").touch()
with open("calls", "a") as calls: calls.write(sys.argv[2] + "\\n")
if sys.argv[2] == "broken": raise SystemExit(3)
lines = json.loads(pathlib.Path("lines.json").read_text())
(run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository."""
    monkeypatch.setattr(harness, "ROOT", tmp_path)
    (tmp_path / "lines.json").write_text(json.dumps(LINES))
    return tmp_path


def options(*words: str) -> harness.Options:
    return harness.options("toy", harness.parser("", seeds=[1, 2], episodes=7).parse_args(list(words)))


def record(task: str, method: str, score: float, **more: Any) -> harness.Record:
    """What a study keeps of a run, as far as tables ask for it."""
    rest = {"seed": 1, "commands": [], "env_steps": 12_345, "seconds": 6.0, "curve": [[1, 0.1, 2.0], [9, 0.9, 3.0]]}
    return {"task": task, "method": method, "evaluation": {"mean": score}, **rest, **more}


def trial(chosen: harness.Options, seed: int, train: str = "first", resume: str = "") -> harness.Trial:
    run = chosen.run("toy", seed)
    return harness.Trial(
        task="toy",
        method="copy",
        seed=seed,
        run=run,
        train=("python", "-c", TRAIN, str(run), train),
        evaluate=("python", "-c", f"print('{{\"mean\": {seed}.5}}')"),
        resume=("python", "-c", TRAIN, str(run), resume) if resume else (),
    )


def calls(place: Path) -> list[str]:
    return (place / "calls").read_text().split()


def test_a_record_holds_the_whole_run_and_is_not_made_twice(place: Path) -> None:
    chosen = options("--jobs", "2")
    trials = [trial(chosen, seed) for seed in chosen.seeds]
    records = harness.run_trials(trials, chosen, lambda run: {"folder": run.name})
    assert [record["evaluation"] for record in records] == [{"mean": 1.5}, {"mean": 2.5}]
    assert records[0]["env_steps"] == 49900
    assert records[0]["seconds"] == 49.9
    assert records[0]["folder"] == "toy-1"
    assert len(records[0]["curve"]) <= harness.CURVE_POINTS
    assert records[0]["curve"][-1] == [49900, 49.9, 499.0]
    assert harness.run_trials(trials, chosen) == records
    assert calls(place) == ["first", "first"]


def test_a_record_of_another_command_is_neither_used_nor_overwritten(place: Path) -> None:
    chosen = options("--seeds", "1")
    harness.run_trials([trial(chosen, 1)], chosen)
    kept = (chosen.out / "results.json").read_text()
    with pytest.raises(SystemExit, match="from another command"):
        harness.run_trials([trial(chosen, 1, train="second")], chosen)
    assert (chosen.out / "results.json").read_text() == kept


def test_an_interrupted_training_is_resumed_only_by_its_own_trial(place: Path) -> None:
    chosen = options("--seeds", "1")
    with pytest.raises(SystemExit, match=r"exit code 3(.|\n)*toy-1\.log"):
        harness.run_trials([trial(chosen, 1, train="broken", resume="resumed")], chosen)
    assert not (chosen.out / "results.json").exists()
    harness.run_trials([trial(chosen, 1, train="broken", resume="resumed")], chosen)
    assert calls(place) == ["broken", "resumed"]

    (chosen.out / "results.json").unlink()
    harness.run_trials([trial(chosen, 1, train="other", resume="resumed")], chosen)
    assert calls(place) == ["broken", "resumed", "other"]


def test_a_training_that_ends_while_the_study_is_interrupted_is_not_trained_again(place: Path) -> None:
    chosen = options("--seeds", "1")
    only = trial(chosen, 1, train="first", resume="resumed")
    stopping, run = threading.Event(), subprocess.run

    def interrupted(*args: Any, **more: Any) -> Any:
        done = run(*args, **more)
        stopping.set()
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "run", interrupted)
        with pytest.raises(SystemExit) as ended:
            harness._run(only, 1, stopping, lambda run: {})
    assert ended.value.code == 130
    assert len(harness.run_trials([only], chosen)) == 1
    assert calls(place) == ["first"]


def test_a_run_without_an_episode_is_no_evidence(place: Path) -> None:
    (place / "lines.json").write_text(json.dumps(LINES[:1]))
    chosen = options("--seeds", "1")
    with pytest.raises(SystemExit, match="not one episode ended"):
        harness.run_trials([trial(chosen, 1)], chosen)


def test_a_dry_run_prints_the_commands_and_runs_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = options("--dry-run", "--train-args=--num-envs 8", "--total-steps", "500")
    planned = harness.greenroom_trial(
        chosen,
        task="cart",
        env="CartPole-v1",
        method="greenroom",
        seed=1,
        run=chosen.run("CartPole-v1", 1),
        total_steps=9,
        settings=("--algo", "ppo"),
    )
    with pytest.raises(SystemExit) as ended:
        harness.run_trials([planned], chosen)
    assert ended.value.code == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "greenroom train CartPole-v1 --total-steps 500 --seed 1 --run-dir runs/studies/toy/CartPole-v1-1"
        " --algo ppo --num-envs 8",
        "greenroom evaluate runs/studies/toy/CartPole-v1-1 --episodes 7 --seed 1000 --json",
    ]
    assert not (place / "runs").exists()


def test_scores_are_those_of_the_seeds() -> None:
    scores = report.Scores.of([1.0, 2.0, 3.0, 4.0, 100.0])
    assert (scores.mean, scores.iqm) == (22.0, 3.0)
    assert scores.std == pytest.approx(43.6177, abs=1e-4)
    assert 1.0 < scores.ci95[0] < scores.iqm < scores.mean < scores.ci95[1] < 100.0
    assert scores.cells(1)[:2] == ["22.0 ± 43.6", "3.0"]


def test_the_table_and_the_curves_are_written(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = options()
    records = harness.run_trials([trial(chosen, seed) for seed in chosen.seeds], chosen)
    report.write_table(chosen, title="Toy", explanation="Why.", headings=["a", "b"], rows=[["1", "2"]], records=records)
    text = (chosen.out / "table.md").read_text()
    assert "| a | b |\n| --- | --- |\n| 1 | 2 |\n" in text
    assert records[0]["commands"][1] in text
    report.plot_curves(chosen.out / "curves.png", [report.Panel(title="toy", groups={"copy": records})])
    assert (chosen.out / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_only_the_trials_that_fit_the_words_are_run(place: Path) -> None:
    chosen = options("--seeds", "1")
    tasks = {"A one": "ours", "A two": "ours", "B one": "theirs"}
    trials = [dataclasses.replace(trial(chosen, 1), task=task, method=method) for task, method in tasks.items()]

    def names(*only: str) -> list[str]:
        return [one.task for one in harness.chosen_of(trials, only)]

    assert names() == ["A one", "A two", "B one"]
    assert names("A") == ["A one", "A two"]
    assert names("two A", "theirs") == ["A two", "B one"]
    assert names("one ours") == ["A one"]
    with pytest.raises(SystemExit, match="'B two' fits no trial; the words are A, B, one, ours, theirs, two"):
        names("A", "B two")


def test_a_table_may_have_further_sections(place: Path) -> None:
    chosen = options()
    records = harness.run_trials([trial(chosen, 1)], chosen)
    more = report.Section(title="More", explanation="Also.", headings=["c"], rows=[["3"]])
    report.write_table(
        chosen, title="Toy", explanation="Why.", headings=["a"], rows=[["1"]], records=records, further=[more]
    )
    text = (chosen.out / "table.md").read_text()
    expected = "# Toy\n\nWhy.\n\n| a |\n| --- |\n| 1 |\n\n## More\n\nAlso.\n\n| c |\n| --- |\n| 3 |\n\nMade by"
    assert text.startswith(expected)


def test_improvement_counts_pairs() -> None:
    assert report.improvement([2.0, 2.0], [1.0, 1.0]) == "1.00 [1.00, 1.00]"
    assert report.improvement([1.0, 3.0], [2.0, 2.0]).startswith("0.50 [0.00, 1.00]")


def defaults(study: str) -> harness.Options:
    return harness.options(study, harness.parser("", seeds=[1], episodes=7).parse_args([]))


def atari_trials(chosen: harness.Options) -> list[harness.Trial]:
    own = [one for study in atari.STUDIES.values() for one in atari.trials_of(study, chosen, study.preset)]
    return own + pong_race.trials_of(chosen)


TRIALS: dict[str, Callable[[harness.Options], list[harness.Trial]]] = {
    "control": control.trials_of,
    "family": family.trials_of,
    "lag": lag.trials_of,
    "lost-sales": lost_sales.trials_of,
    "race": lost_sales_race.trials_of,
    "atari": atari_trials,
}


def given(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """What `greenroom train` would launch."""
    launched: list[RunConfig] = []

    def launch(config: RunConfig, **rest: object) -> None:
        launched.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "launch", launch)
    assert cli.main(words) == 130, f"greenroom does not understand {words}"
    return launched[0]


@pytest.mark.parametrize("study", TRIALS)
def test_greenroom_understands_every_command_and_can_build_its_run(study: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = TRIALS[study](defaults(study))
    assert len({one.key for one in trials}) == len({one.run for one in trials}) == len(trials)
    for one in trials:
        if one.train[0] != "greenroom":
            continue
        config = given(one.train[1:], monkeypatch)
        if study != "atari":  # a million frames take their time
            stage = config.stage if config.env == "lost-sales" else "inline"
            Run(dataclasses.replace(config, stage=stage), say=lambda line: None).close()


def test_both_sides_of_the_family_have_settings_and_the_same_budget() -> None:
    sides: dict[tuple[str, int], list[harness.Trial]] = {}
    for one in family.trials_of(defaults("family")):
        sides.setdefault((one.task, one.seed), []).append(one)
    pairs = [pair for pair in sides.values() if len(pair) == 2]
    assert {pair[1].task.split()[1] for pair in pairs} >= {
        "a2c",
        "ppo",
        "dqn",
        "sac",
        "td3",
        "ppo-lstm",
        "dqn-quantile",
    }
    for ours, theirs in pairs:
        env, algo = theirs.train[3], theirs.train[5]
        assert (env, algo) in sb3_settings.SETTINGS
        assert ours.train[2] == env
        assert (
            ours.train[ours.train.index("--total-steps") + 1] == theirs.train[theirs.train.index("--total-steps") + 1]
        )


def test_nothing_that_control_measures_is_measured_again() -> None:
    measured = {one.task for one in control.trials_of(defaults("control"))}
    assert not measured & {one.task for one in family.trials_of(defaults("family"))}


def test_the_family_table_says_where_ours_stands() -> None:
    runs = {"ours": [5.0, 6.0, 7.0], harness.SB3: [5.5, 6.0, 6.5]}
    records = [record("Cart a2c", method, score) for method, scores in runs.items() for score in scores]
    known = [record("Cart ppo", "ours", 3.0), record("Pole ppo", "ours", 1.0)]
    rows = family.rows_of(records, known)
    assert [row[:2] for row in rows] == [
        ["Cart ppo", "ours ([control](../control/table.md))"],
        ["Cart a2c", "ours"],
        ["Cart a2c", harness.SB3],
        ["Pole ppo", "ours ([control](../control/table.md))"],
    ]
    assert rows[1][2:5] == ["12 345", "3", "6.0 [5.0, 7.0]"]
    assert rows[1][6] == "within"
    assert rows[2][6:8] == ["", ""]
    assert family.standing([5.4, 5.4, 9.0], [5.5, 6.0, 6.5]) == "above"  # the IQM of three is their mean
    assert family.standing([5.4, 5.4, 5.4], [5.5, 6.0, 6.5]) == "BELOW"


def test_the_family_picture_has_both_sides_in_one_panel(tmp_path: Path) -> None:
    records = [record("Cart a2c", method, 1.0) for method in ("greenroom", harness.SB3)]
    (panel,) = family.panels_of([*records, record("Cart ppo", "greenroom", 1.0)])
    assert (list(panel.groups), list(panel.dashed)) == (["a2c", "ppo"], ["a2c"])
    report.plot_curves(tmp_path / "curves.png", [panel], score="height")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_in_the_queue_the_correction_is_the_only_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = [one for one in lag.trials_of(defaults("lag")) if one.task.startswith("queue ")]
    plain, corrected = (
        [to_dict(given(one.train[1:], monkeypatch)) for one in queue if one.task.endswith(algo)]
        for algo in ("a2c", "vtrace")
    )
    assert [(run["collect"], run["lag"]) for run in plain] == [
        ("sync", 1),
        *(("overlap", updates) for updates in (1, 4, 16, 64)),
    ]
    for ours, theirs in zip(plain, corrected, strict=True):
        own, other = ours.pop("algorithm"), theirs.pop("algorithm")
        assert ours == theirs
        assert {key: value for key, value in other.items() if key in own} == own | {"kind": "vtrace"}
        assert set(other) - set(own) == {"rho_max", "c_max"}
        assert own["discounting"]["lam"] == 1.0


def test_the_lag_study_reads_evaluations_and_lag(tmp_path: Path) -> None:
    clock = [
        {"env_steps": steps, "seconds": 1.0, "mean": mean, "ci95": [0, 9]} for steps, mean in ((10, 2.0), (30, 4.0))
    ]
    lines = [{"lag": updates, "loss/ratio_max": 1.0 + updates} for updates in (0, 3, 4)]
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in clock))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = lag.measured(tmp_path)
    assert found == {"evaluations": [[10.0, 1.0, 2.0], [30.0, 1.0, 4.0]], "lag": 4, "ratio": 4.0}

    other = {"evaluations": [[10, 1, 8.0], [30, 1, 8.0]], "lag": 0, "ratio": None}
    records = [
        record("one-behind pqn", "sync", 5.0, **found),
        record("one-behind pqn", "lag=1", 9.0, **other),
        record("one-behind ppo", "sync", 1.0, **other),
        record("queue a2c", "lag=4", 2.0, **found),
    ]
    groups = report.group(records)
    (beside,) = lag.beside_rows(groups)
    assert beside[0] == "pqn"
    assert [cell.split()[0] for cell in beside[3:]] == ["3.0", "8.0", "1.00", "5.0", "9.0", "1.00"]
    assert lag.queue_rows(groups) == [["a2c", "4", "1", "3.0 [3.0, 3.0]", "2.0 [2.0, 2.0]", "4.0"]]


def points(*gaps: float) -> list[dict[str, float]]:
    return [{"env_steps": 10 * n, "seconds": 2.0 * n, "gap": gap} for n, gap in enumerate(gaps, start=1)]


def test_the_race_is_won_by_the_first_to_arrive() -> None:
    assert time_to_beat.seconds_below({"points": points(9.0, 0.5, 2.0, 0.4, 0.3)}, 1.0) == (4.0, 8.0)
    assert time_to_beat.seconds_below({"points": points(0.5, 2.0)}, 1.0) == (2.0, math.inf)
    records = [
        record("p", "never", 0.0, points=points(9.0, 8.0)),
        record("p", "late", 0.0, points=points(9.0, 9.0, 0.5)),
        record("p", "early", 0.0, points=points(9.0, 0.5, 0.5)),
        record("p", "early", 0.0, points=points(0.5, 2.0, 0.7)),
        record("p", "early", 0.0, points=points(9.0, 9.0, 9.0)),
    ]
    assert [row[:5] for row in lost_sales_race.rows_of(records)] == [
        ["early", "3", "4.0 (2.0–never)", "6.0 (4.0–never)", "+3.40 ± 4.85"],
        ["late", "1", "6.0", "6.0", "+0.50 ± 0.00"],
        ["never", "1", "never", "never", "+8.00 ± 0.00"],
    ]


def test_pong_is_reached_at_the_first_evaluation_and_for_good_at_the_last_that_was_not_left() -> None:
    def looks(*scores: float) -> list[list[float]]:
        return [[100.0 * n, 2.0 * n, score] for n, score in enumerate(scores, start=1)]

    assert pong_race.seconds_to({"evaluations": looks(-21, 18, 17.9, 18, 20)}, 18.0) == (4.0, 8.0)
    assert pong_race.seconds_to({"evaluations": looks(-21, 18, 17.9)}, 18.0) == (4.0, math.inf)
    records = [
        record("p", "greenroom", 20.0, evaluations=looks(18, 19)),
        record("p", "greenroom", 21.0, evaluations=looks(-3, 19)),
        record("p", "loop", -3.0, evaluations=looks(-21, 3)),
    ]
    assert pong_race.rows_of(records) == [
        ["greenroom", "2", "3.0 (2.0–4.0)", "3.0 (2.0–4.0)", "20.5 ± 0.7", "2058"],
        ["loop", "1", "never", "never", "-3.0 ± 0.0", "2058"],
    ]


def test_a_point_of_the_race_is_a_policy_beside_the_optimum_at_the_clocks_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "_PERIODS", 50)
    lines = [{"env_steps": 100 * n, "seconds": 3.0 * n, "return_mean": None} for n in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    class Nothing:
        """Orders nothing."""

        def initial_state(self, num_envs: int) -> State:
            return {}

        def act(self, obs: Obs, state: State, generator: torch.Generator | None) -> Decision:
            assert isinstance(obs, torch.Tensor)
            return Decision(action=torch.zeros(len(obs), dtype=torch.int64), extras={}, state={})

    found = time_to_beat.beside_optimum(tmp_path, [(100, Nothing()), (250, Nothing())])
    assert [(point["env_steps"], point["seconds"]) for point in found["points"]] == [(100, 3.0), (250, 9.0)]
    # An empty shop loses 5 units at 4 each.
    assert found["points"][0]["gap"] == pytest.approx(100 * (20 / 4.73 - 1), abs=5.0)
    assert min(found["rules"].values()) > 0


def test_the_race_is_drawn_with_one_colour_for_each_algorithm(tmp_path: Path) -> None:
    rules = {"base-stock": 5.0, "myopic": 7.0}
    records = [record("p", algo, 0.0, points=points(9.0, 0.5), rules=rules) for algo in ("ppo", "ppo", "pqn")]
    time_to_beat.draw(records, tmp_path / "gap.png", title="race", labels=[one["method"] for one in records])
    assert (tmp_path / "gap.png").read_bytes().startswith(b"\x89PNG")


def test_findings_are_summed_up_where_they_are_known() -> None:
    known: list[harness.Record] = [
        {"findings": []},
        {"findings": ["kl_spike", "kl_spike"]},
        {"findings": ["dead_actor"]},
    ]
    assert report.findings(known) == "3 dead_actor, kl_spike"
    assert report.findings(known[:1]) == "0"
    assert report.findings([*known, {}]) == report.findings([{"findings": None}]) == ""


def test_healthy_runs_are_made_again_where_nothing_is_known_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(method: str, seed: int, **more: Any) -> harness.Record:
        run = f"runs/studies/lag/{method}-{seed}"
        commands = [f"greenroom train X --seed {seed} --run-dir {run} --lag 1", f"greenroom evaluate {run} --json"]
        score = {"mean": 10.0 * seed}
        return {"task": "X", "method": method, "seed": seed, "commands": commands, "evaluation": score} | more

    records = [made("lag=1", 1), made("lag=1", 2, env_steps=9000, findings=["kl_spike"]), made("lag=64", 1)]
    records.append(made(harness.SB3, 1))
    monkeypatch.setattr(healthy, "records_of", lambda study: records if study == "lag" else [])
    chosen = harness.options("healthy", harness.parser("", seeds=(), episodes=0).parse_args([]))
    (trial,) = healthy.trials_of(chosen)
    assert trial.commands == [
        "greenroom train X --seed 1 --run-dir runs/studies/healthy/lag-lag=1-1 --lag 1",
        "greenroom evaluate runs/studies/healthy/lag-lag=1-1 --json",
    ]
    assert trial.key == ("lag: X", "lag=1", 1)
    recorded = list(healthy.healthy("lag"))
    again = recorded[0] | {"findings": [], "evaluation": {"mean": 12.0}, "env_steps": 9000}
    rows = healthy.rows_of([recorded[1], again], recorded)
    assert rows == [
        ["lag: X", "lag=1", "2", "9 000", "15.0 ± 7.1", "16.0 ± 5.7", "1 kl_spike"],
        ["all", "", "2", "", "", "", "1 kl_spike"],
    ]
