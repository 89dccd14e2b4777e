"""Comparing runs whose curves are straight lines, and the pictures of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure
from matplotlib.image import imread
from rich.console import Console

from greenroom.comparison import Comparison, compare
from greenroom.curves import read_config, read_curve
from greenroom.errors import UserError
from greenroom.folder import RunFolder
from greenroom.plots import Band, _frame_scores, comparison_picture, format_count, format_seconds, learning_curve

Line = Callable[[float], float]
Record = dict[str, object]


def write_lines(path: Path, records: Sequence[Record]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def make_run(
    path: Path,
    *,
    seed: int = 0,
    env: str = "line",
    env_kwargs: Record | None = None,
    algo: str = "a2c",
    rate: float = 0.1,
    evaluation: Line | None = None,
    training: Line | None = None,
    steps: Sequence[int] = range(0, 101, 10),
) -> Path:
    """A run folder whose scores are functions of `env_steps`; ten steps take a second."""
    path.mkdir(parents=True)
    config = {"env": env, "env_kwargs": env_kwargs or {}, "seed": seed, "algorithm": {"kind": algo, "rate": rate}}
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    clock: list[tuple[int, Record]] = [(x, {"env_steps": x, "updates": x, "seconds": x / 10}) for x in steps]
    if evaluation is not None:
        scored = [(now, evaluation(x)) for x, now in clock]
        write_lines(path / "evaluations.jsonl", [now | {"mean": y, "ci95": [y - 1, y + 1]} for now, y in scored])
    if training is not None:
        write_lines(path / "metrics.jsonl", [now | {"return_mean": training(x)} for x, now in clock])
    return path


def shown(comparison: Comparison) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(comparison.table())
    return capture.get()


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """From -100: `good` comes to 0 in 100 steps, `slow` to -50."""
    good = make_run(tmp_path / "good", algo="a2c", evaluation=lambda x: x - 100.0)
    slow = make_run(tmp_path / "slow", algo="ppo", evaluation=lambda x: x / 2 - 100.0)
    return good, slow


def milestones(comparison: Comparison, group: int) -> list[tuple[float | None, float | None, int]]:
    return [(m.env_steps, m.seconds, m.reached) for m in comparison.groups[group].milestones]


def test_negative_returns_are_measured_from_the_lowest_start_to_the_best_end(pair: tuple[Path, Path]) -> None:
    comparison = compare(pair)
    assert (comparison.score, comparison.start, comparison.reference) == ("evaluation return", -100.0, 0.0)
    assert milestones(comparison, 0) == [(50.0, 5.0, 1), (90.0, 9.0, 1), (95.0, 9.5, 1)]
    assert milestones(comparison, 1) == [(100.0, 10.0, 1), (None, None, 0), (None, None, 0)]
    assert [group.area for group in comparison.groups] == [-50.0, -75.0]
    assert [group.mean for group in comparison.groups] == [0.0, -50.0]
    assert [group.improvement for group in comparison.groups] == [0.5, 0.0]
    assert all(group.ci95 is None and group.improvement_ci95 is None for group in comparison.groups)
    assert comparison.warning == ""


def test_a_reference_of_ones_own(pair: tuple[Path, Path]) -> None:
    comparison = compare(pair, reference=-60.0)
    assert milestones(comparison, 0) == [(20.0, 2.0, 1), (36.0, 3.6, 1), (38.0, 3.8, 1)]
    assert milestones(comparison, 1) == [(40.0, 4.0, 1), (72.0, 7.2, 1), (76.0, 7.6, 1)]


@pytest.mark.parametrize("reference", [-100.0, -200.0, float("nan")])
def test_a_reference_must_be_above_the_start(pair: tuple[Path, Path], reference: float) -> None:
    with pytest.raises(UserError, match="is not above -100"):
        compare(pair, reference=reference)


def test_runs_that_differ_in_the_seed_are_one_group(tmp_path: Path) -> None:
    """Ends at 10, 20 and 60; one of the other group at 20. The median run counts, one that never arrives as last."""
    ends = (10.0, 20.0, 60.0)
    seeds = [
        make_run(tmp_path / f"s{seed}", seed=seed, evaluation=lambda x, end=end: end * x / 100)  # type: ignore[misc]
        for seed, end in enumerate(ends)
    ]
    other = make_run(tmp_path / "other", seed=0, rate=0.5, evaluation=lambda x: 20.0 * x / 100)
    comparison = compare([seeds[0], other, *seeds[1:]], reference=20.0)
    first, second = comparison.groups
    assert (first.name, second.name) == ("algorithm.rate=0.1", "algorithm.rate=0.5")
    assert first.runs == tuple(seeds) and second.runs == (other,)
    assert first.final.tolist() == [10.0, 20.0, 60.0]
    assert first.mean == 30.0
    assert first.area == 15.0
    assert first.ci95 is not None and 10.0 <= first.ci95[0] < 30.0 < first.ci95[1] <= 60.0
    assert second.improvement == 0.5  # better than one, equal to one, worse than one
    assert second.improvement_ci95 is None  # a single run has no spread to resample
    # 50 % is 10: after 100, 50 and 16.7 steps. 90 % is 18: never, after 90 and 30.
    assert milestones(comparison, 0)[:2] == [(50.0, 5.0, 3), (90.0, 9.0, 2)]
    assert "90 (2/3)" in shown(comparison)


def test_most_runs_of_a_group_must_arrive(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a", seed=0, evaluation=lambda x: x),
        make_run(tmp_path / "b", seed=1, evaluation=lambda x: x / 10),
    ]
    comparison = compare(runs, reference=100.0)
    assert milestones(comparison, 0) == [(None, None, 1)] * 3
    assert "— (1/2)" in shown(comparison)


def test_both_groups_are_resampled_for_the_interval_of_an_improvement(tmp_path: Path) -> None:
    def group(name: str, ends: Sequence[float]) -> str:
        runs = [
            make_run(tmp_path / f"{name}{seed}", seed=seed, evaluation=lambda x, end=end: x * end)  # type: ignore[misc]
            for seed, end in enumerate(ends)
        ]
        return f"{name}={','.join(map(str, runs))}"

    comparison = compare([group("old", [1, 2, 3]), group("new", [2, 3, 4]), group("best", [5, 6, 7])])
    assert [group.name for group in comparison.groups] == ["old", "new", "best"]
    assert [group.improvement for group in comparison.groups] == [0.5, pytest.approx(7 / 9), 1.0]
    ends = comparison.groups[1].improvement_ci95
    assert ends is not None and 0.0 < ends[0] < 0.5 and ends[1] == 1.0
    assert comparison.groups[2].improvement_ci95 == (1.0, 1.0)


def test_a_final_score_is_the_mean_of_the_last_tenth(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", evaluation=lambda x: x, steps=range(30))
    assert compare([run]).groups[0].mean == 28.0  # of 27, 28, 29


def test_areas_are_taken_over_the_steps_that_all_runs_share(tmp_path: Path) -> None:
    long = make_run(tmp_path / "long", algo="a2c", evaluation=lambda x: x, steps=range(0, 201, 20))
    late = make_run(tmp_path / "late", algo="ppo", evaluation=lambda x: 7.0 + x, steps=range(50, 101, 10))
    assert [group.area for group in compare([long, late]).groups] == [75.0, 82.0]
    never = make_run(tmp_path / "never", algo="dqn", evaluation=lambda x: x, steps=range(300, 401, 10))
    comparison = compare([long, never])
    assert [group.area for group in comparison.groups] == [None, None]
    assert comparison.to_json()["groups"][0]["area"] is None  # type: ignore[index]


def test_training_returns_are_used_for_all_unless_all_have_evaluations(tmp_path: Path) -> None:
    both = make_run(tmp_path / "both", algo="a2c", evaluation=lambda x: x, training=lambda x: x - 5)
    only = make_run(tmp_path / "only", algo="ppo", training=lambda x: x - 7)
    comparison = compare([both, only])
    assert comparison.score == "training return"
    assert [group.mean for group in comparison.groups] == [95.0, 93.0]
    assert compare([both]).score == "evaluation return"
    once = make_run(
        tmp_path / "once", algo="dqn", training=lambda x: x, evaluation=lambda x: float("nan") if x < 100 else x
    )
    assert compare([once]).score == "training return", "one evaluation is no curve"


def test_nothing_learned_is_said(tmp_path: Path) -> None:
    comparison = compare([make_run(tmp_path / "a", evaluation=lambda x: -x)])
    assert "no progress to measure" in comparison.warning
    assert milestones(comparison, 0) == [(None, None, 0)] * 3
    assert comparison.warning in " ".join(shown(comparison).split())


def test_different_environments_are_compared_with_a_warning(tmp_path: Path) -> None:
    short = make_run(tmp_path / "a", env="lost-sales", env_kwargs={"lead_time": 1}, evaluation=lambda x: x)
    long = make_run(tmp_path / "b", env="lost-sales", env_kwargs={"lead_time": 4}, evaluation=lambda x: x)
    comparison = compare([short, long])
    assert [group.name for group in comparison.groups] == ["lost-sales(lead_time=1)", "lost-sales(lead_time=4)"]
    assert "different environments" in comparison.warning
    assert "different environments" in shown(comparison)
    with pytest.raises(UserError, match=r"group 'both' mixes environments \(lost-sales\(lead_time=1\), lost"):
        compare([f"both={short},{long}"])


def test_groups_are_called_after_the_first_option_that_tells_them_apart(
    tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    assert [group.name for group in compare(pair).groups] == ["a2c", "ppo"]
    assert compare(pair[:1]).groups[0].name == "good"
    third = make_run(tmp_path / "third", algo="ppo", rate=0.2, evaluation=lambda x: x)
    assert [group.name for group in compare([*pair, third]).groups] == ["good", "slow", "third"]
    here = make_run(tmp_path / "x" / "third", algo="a2c", rate=0.2, evaluation=lambda x: x)
    names = [group.name for group in compare([*pair, third, here]).groups]
    assert names == [str(run) for run in (*pair, third, here)]


def test_a_named_group_beside_folders(pair: tuple[Path, Path]) -> None:
    good, slow = pair
    assert [group.name for group in compare([f"mine={good}", slow]).groups] == ["mine", "slow"]
    with pytest.raises(UserError, match="another group is also called 'slow'"):
        compare([f"slow={good}", slow])
    with pytest.raises(UserError, match="group 'mine' is given twice"):
        compare([f"mine={good}", f"mine={slow}"])


def test_a_folder_with_an_equals_sign_is_a_folder(tmp_path: Path) -> None:
    run = make_run(tmp_path / "rate=0.1", evaluation=lambda x: x)
    assert compare([run]).groups[0].runs == (run,)


def test_the_table_and_json_hold_the_numbers(pair: tuple[Path, Path]) -> None:
    comparison = compare(pair)
    text = shown(comparison)
    for expected in ("line: evaluation return", "to 95 %", "-100 (lowest start) to 0 (reference)", "9.5 s", "0.00"):
        assert expected in " ".join(text.split()), expected
    content = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    assert (content["start"], content["reference"], content["picture"]) == (-100.0, 0.0, None)
    slow = content["groups"][1]
    assert slow["milestones"][0] == {"share": 0.5, "env_steps": 100.0, "seconds": 10.0, "reached": 1}
    assert (slow["mean"], slow["std"], slow["iqm"], slow["final"]) == (-50.0, 0.0, -50.0, [-50.0])
    assert (slow["probability_of_improvement"], slow["runs"]) == (0.0, [str(pair[1])])


def test_names_are_not_read_as_markup(pair: tuple[Path, Path]) -> None:
    assert "[red]hot" in shown(compare([f"[red]hot={pair[0]}"]))


def test_bad_input_is_answered_with_a_remedy(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match="nothing to compare"):
        compare([])
    with pytest.raises(UserError, match="did you mean 'good'"):
        compare([tmp_path / "goood"])
    with pytest.raises(UserError, match="good is given twice"):
        compare([pair[0], tmp_path / "." / "good"])
    silent = make_run(tmp_path / "silent", training=lambda x: float("nan"))
    with pytest.raises(UserError, match=r"silent/metrics.jsonl holds no return of a finished episode"):
        compare([silent])
    (silent / "config.yaml").write_text("{")
    with pytest.raises(UserError, match=r"silent/config.yaml is not YAML"):
        compare([silent])
    (silent / "config.yaml").write_text("just words")
    with pytest.raises(UserError, match=r"silent/config.yaml does not hold options"):
        read_config(RunFolder.open(silent))


def test_a_last_line_cut_short_is_ignored_and_another_is_not(tmp_path: Path) -> None:
    run = make_run(tmp_path / "killed", evaluation=lambda x: x)
    path = run / "evaluations.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"env_steps": 110, "sec')
    assert compare([run]).groups[0].mean == 100.0
    path.write_text('{"env_steps": 1\n' + whole)
    with pytest.raises(UserError, match=r"evaluations.jsonl, line 1 is not a log line"):
        compare([run])
    path.write_text("[1, 2]\n" + whole)
    with pytest.raises(UserError, match="line 1"):
        compare([run])


def test_points_are_in_order_and_without_repeats(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    points = [(10, 1.0), (30, 9.0), (20, 2.0), (30, 3.0)]
    write_lines(path, [{"env_steps": x, "seconds": x / 10, "return_mean": y} for x, y in points])
    with path.open("a") as file:
        file.write('{"env_steps": 40, "seconds": 4, "return_mean": null}\n{"env_steps": 50, "seconds": 5}\n')
    curve = read_curve(path, "return_mean")
    assert curve.env_steps.tolist() == [10.0, 20.0, 30.0]
    assert curve.score.tolist() == curve.low.tolist() == curve.high.tolist() == [1.0, 2.0, 3.0]
    assert len(read_curve(tmp_path / "none.jsonl", "return_mean")) == 0


def test_a_comparison_is_drawn_once(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    output = tmp_path / "both.png"
    assert compare(pair, output=output).picture == output
    assert imread(output).shape == (720, 1650, 4)
    drawn = output.read_bytes()
    with pytest.raises(UserError, match="exists already and was not overwritten"):
        compare(pair, output=output)
    assert output.read_bytes() == drawn
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both.png", "good", "slow"]
    assert compare(pair, output=tmp_path / "both.svg").picture == tmp_path / "both.svg"
    assert "<svg" in (tmp_path / "both.svg").read_text()


@pytest.mark.parametrize(("name", "fault"), [("a.txt", "use one of .pdf, .png, .svg"), ("none/a.png", "no folder")])
def test_a_picture_needs_a_place_and_a_format(pair: tuple[Path, Path], tmp_path: Path, name: str, fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        compare(pair, output=tmp_path / name)


def test_a_learning_curve_replaces_the_earlier_one(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", training=lambda x: x, evaluation=lambda x: x + 5, steps=range(0, 1000, 10))
    picture = learning_curve(run)
    assert picture == run / "curve.png"
    plain = imread(picture)
    assert plain.shape == (720, 1200, 4)
    evaluations = (run / "evaluations.jsonl").read_text()
    (run / "evaluations.jsonl").write_text("")
    learning_curve(run)
    assert not np.array_equal(imread(picture), plain)
    (run / "evaluations.jsonl").write_text(evaluations)
    learning_curve(run)
    assert np.array_equal(imread(picture), plain)
    assert sorted(path.name for path in run.iterdir()) == [
        "config.yaml",
        "curve.png",
        "evaluations.jsonl",
        "metrics.jsonl",
    ]


@pytest.mark.parametrize("steps", [range(0), range(1), range(0, 20, 10), range(0, 100000, 1000)])
def test_a_learning_curve_of_any_length(tmp_path: Path, steps: range) -> None:
    """A first return far below all others is no reason to warn or fail either."""
    run = make_run(tmp_path / "run", training=lambda x: -1e6 if x == 0 else -5.0, steps=steps)
    assert imread(learning_curve(run)).shape == (720, 1200, 4)


def test_a_picture_of_several_runs_names_a_bad_start_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels: list[str] = []
    monkeypatch.setattr("greenroom.plots._save", lambda figure, path: labels.append(figure.axes[0].get_ylabel()))
    score = np.array([-1000.0, *np.linspace(-20.0, -10.0, 50)])
    bands = {"a": Band(x=np.arange(51.0), mean=score, spread=np.zeros(51))}
    comparison_picture(
        tmp_path / "x.png", title="", score_name="mean", by_steps=bands, by_seconds=bands, reference=-5.0
    )
    assert labels == ["mean (from −1,000, below the frame)"]


def test_a_bad_start_is_left_out_of_the_frame_and_named() -> None:
    axes = Figure().add_subplot()
    axes.set_ylabel("mean return")
    _frame_scores(axes, np.array([-1000.0, *np.linspace(-20.0, -10.0, 50)]), [-5.0])
    low, high = axes.get_ylim()
    assert -25.0 < low < -20.0 and -5.0 < high < -3.0
    assert axes.get_ylabel() == "mean return (from −1,000, below the frame)"


def test_an_even_curve_is_framed_whole() -> None:
    axes = Figure().add_subplot()
    axes.set_ylabel("mean return")
    _frame_scores(axes, np.linspace(0.0, 100.0, 50))
    assert axes.get_ylim() == (-5.0, 105.0)
    assert axes.get_ylabel() == "mean return"


def test_a_learning_curve_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        learning_curve(tmp_path)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (42, "42"), (999, "999"), (999.9, "1 k"), (1500, "1.5 k"), (1_234_567, "1.23 M"), (3e9, "3 G")],
)
def test_counts_are_legible(value: float, expected: str) -> None:
    assert format_count(value) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.25, "0.25 s"), (35, "35 s"), (119, "119 s"), (754, "12.6 min"), (11_520, "3.2 h"), (259_200, "3 d")],
)
def test_times_are_legible(seconds: float, expected: str) -> None:
    assert format_seconds(seconds) == expected
