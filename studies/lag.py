"""What acting with older weights costs: one update behind, and deep in a queue. CartPole, five seeds each.

`--collect overlap` collects the next rollouts while the learner learns. (a) One update behind, every on-policy
algorithm beside itself with `--collect sync`, with the settings of `studies/family.py` and `studies/control.py`. (b) A
queue of up to 64 rollouts: A2C, which takes them for its own, and V-trace, which corrects for the policy having moved
on. Both have the same settings, with which they are the same algorithm as long as nothing is old.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

import control
import family
from greenroom.lines import read_log
from greenroom.maths import statistics
from harness import Options, Record, Trial, evaluations_of, greenroom_trial, options, parser, run_trials
from report import Panel, Scores, Section, group, improvement, plot_curves, write_table

ENV = "CartPole-v1"
ON_POLICY = ("a2c", "ppo", "vtrace", "nstep-q", "nstep-sarsa", "pqn")
POINTS = 20
"""Evaluations of a run, the one at the end included."""

QUEUED = ("a2c", "vtrace")
LAGS = (0, 1, 4, 16, 64)
"""Updates that the acting weights are behind; 0 is `--collect sync`."""
QUEUE_STEPS = 600_000
QUEUE_SETTINGS = (
    "--num-envs 32 --rollout-length 8 --lam 1.0 --scale-rewards --no-standardise-advantage --entropy-coef 0.01 "
    "--value-coef 0.5 --loss-scale 1.0 --optimizer adam --learning-rate 5e-4 --no-anneal --separate-value "
    "--no-normalize-obs"
)
"""λ 1, because only then are the two algorithms' advantages the same at ratio 1; nothing that adapts by itself."""


def settings_of(algo: str) -> tuple[int, Sequence[str]]:
    """Agent steps and options of an algorithm on CartPole."""
    if (ENV, algo) in control.TASKS:
        steps, own = control.TASKS[ENV, algo]
        return steps, ("--algo", algo, *own)
    entry = family.TABLE[ENV, algo]
    return entry.steps, entry.settings.split()


def name_of(lag: int) -> str:
    return f"lag={lag}" if lag else "sync"


def collecting(lag: int) -> tuple[str, ...]:
    return ("--collect", "overlap", "--lag", str(lag)) if lag else ("--collect", "sync")


def trials_of(chosen: Options) -> list[Trial]:
    beside = [(f"one-behind {algo}", *settings_of(algo), lag) for algo in ON_POLICY for lag in (0, 1)]
    queue = [
        (f"queue {algo}", QUEUE_STEPS, ("--algo", algo, *QUEUE_SETTINGS.split()), lag)
        for algo in QUEUED
        for lag in LAGS
    ]
    return [
        greenroom_trial(
            chosen,
            task=task,
            env=ENV,
            method=name_of(lag),
            seed=seed,
            run=chosen.run(*task.split(), lag, seed),
            total_steps=steps,
            settings=(*settings, *collecting(lag), "--eval-every", str((chosen.total_steps or steps) // POINTS)),
        )
        for task, steps, settings, lag in [*beside, *queue]
        for seed in chosen.seeds
    ]


def measured(run: Path) -> Record:
    """The greedy evaluations on the way, and how old the rollouts were.

    `evaluations`: rows of agent steps, seconds and mean return. `lag`: the most updates that a rollout's weights were
    behind. `ratio`: the greatest ratio of probabilities, now to then, in a rollout (median over the run; V-trace only).
    """
    lines = read_log(run / "metrics.jsonl")
    ratios = [line["loss/ratio_max"] for line in lines if "loss/ratio_max" in line]
    return {
        "evaluations": evaluations_of(run),
        "lag": max(line["lag"] for line in lines),
        "ratio": float(np.median(ratios)) if ratios else None,
    }


def areas_of(seeds: Sequence[Record]) -> list[float]:
    """Mean height of each seed's curve of evaluations."""
    curves = [np.asarray(record["evaluations"], dtype=np.float64) for record in seeds]
    return [statistics.area_under_curve(curve[:, 0], curve[:, 2]) for curve in curves]


def beside_rows(groups: dict[tuple[str, str], list[Record]]) -> list[list[str]]:
    """One row for every algorithm that has both: `sync` and one update behind."""
    rows: list[list[str]] = []
    for algo in ON_POLICY:
        sync, behind = (groups.get((f"one-behind {algo}", name_of(lag))) for lag in (0, 1))
        if not sync or not behind:
            continue
        cells = [algo, f"{sync[0]['env_steps']:,}".replace(",", " "), str(len(sync))]
        for measure in (areas_of, family.scores_of):
            before, after = measure(sync), measure(behind)
            cells += [Scores.of(before).robust(1), Scores.of(after).robust(1), improvement(after, before)]
        rows.append(cells)
    return rows


def queue_rows(groups: dict[tuple[str, str], list[Record]]) -> list[list[str]]:
    rows: list[list[str]] = []
    for (task, _), seeds in groups.items():
        if not task.startswith("queue "):
            continue
        ratios = [record["ratio"] for record in seeds if record["ratio"] is not None]
        rows.append(
            [
                task.removeprefix("queue "),
                str(max(record["lag"] for record in seeds)),
                str(len(seeds)),
                Scores.of(areas_of(seeds)).robust(1),
                Scores.of(family.scores_of(seeds)).robust(1),
                f"{Scores.of(ratios).mean:.1f}" if ratios else "",
            ]
        )
    return rows


def panels_of(groups: dict[tuple[str, str], list[Record]]) -> list[Panel]:
    panels: dict[str, dict[str, list[Record]]] = {}
    for (task, method), seeds in groups.items():
        shown = [{**record, "curve": record["evaluations"]} for record in seeds]
        panels.setdefault(task, {})[method] = shown
    return [Panel(title=task, groups=shown) for task, shown in panels.items()]


def main() -> None:
    chosen = options("lag", parser(__doc__ or "", seeds=range(1, 6), episodes=100).parse_args())
    records = run_trials(trials_of(chosen), chosen, measured)
    groups = group(records)
    pair = ["sync", "one update behind", "P(behind is higher)"]
    write_table(
        chosen,
        title="Learning from older weights",
        explanation=(
            f"{ENV}. Area: mean return of the greedy policy over the training, from {POINTS} evaluations on the way. "
            f"Score: the same after training, {chosen.episodes} episodes. Both are interquartile means over seeds with "
            "95 % bootstrap intervals; P is the probability that a seed that learns one update behind ends higher than "
            "one that does not, ties counted half, with its interval: around 0.5 they are alike."
        ),
        headings=[
            "algorithm",
            "agent steps",
            "seeds",
            *(f"area, {name}" for name in pair),
            *(f"score, {name}" for name in pair),
        ],
        rows=beside_rows(groups),
        records=records,
        further=[
            Section(
                title="In a queue",
                explanation=(
                    f"The same network, optimiser and settings for both: `{QUEUE_SETTINGS}`. Lag is how many updates "
                    "the weights that acted were behind, at most. Ratio: how many times more probable the present "
                    "weights make the most changed action of a rollout, the median over the run, where the algorithm "
                    "measures it."
                ),
                headings=["algorithm", "lag", "seeds", "area", "score", "ratio"],
                rows=queue_rows(groups),
            )
        ],
    )
    plot_curves(chosen.out / "curves.png", panels_of(groups), score="return of the greedy policy")


if __name__ == "__main__":
    main()
