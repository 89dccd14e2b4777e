"""The studies' machinery: records survive an interruption, are not mixed, and come from whole runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import harness
import report

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
