"""How soon Pong is played at 18 points and more, on the clock: greenroom's `atari-pqn`, and PQN in CleanRL's style.

Both learn by the same algorithm with the same settings, network and number of actors; both are looked at equally often,
on the same games, off the clock. Run it on an idle machine, one run for each core at most
(`--jobs 2 --train-args='--threads 1'`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness import Options, Record, Trial, evaluations_of, greenroom_trial, options, parser, run_trials, script_trial
from lost_sales_race import times
from report import Panel, Scores, group, plot_curves, write_table
from time_to_beat import first_and_for_good

GAME, WANTED = "ALE/Pong-v5", 18.0
TOTAL_STEPS, POINTS, LOOK_EPISODES = 1_000_000, 20, 8
"""Agent steps of a run, its evaluations on the way, and the games of each."""
EXPLORING = 0.4
"""Of a run: 400 000 steps until all actors are greedy, as many as the preset's study of four million gives them."""


def trials_of(chosen: Options) -> list[Trial]:
    every = str((chosen.total_steps or TOTAL_STEPS) // POINTS)
    explores = ("--epsilon-fraction", str(EXPLORING))
    own = [
        greenroom_trial(
            chosen,
            task=GAME,
            env=GAME,
            method="greenroom",
            seed=seed,
            run=chosen.run("greenroom", seed),
            total_steps=TOTAL_STEPS,
            settings=("--preset", "atari-pqn", *explores, "--eval-every", every, "--eval-episodes", str(LOOK_EPISODES)),
        )
        for seed in chosen.seeds
    ]
    return own + [peer_trial(chosen, seed) for seed in chosen.seeds]


def peer_trial(chosen: Options, seed: int) -> Trial:
    """The same by the loop in CleanRL's style."""
    return script_trial(
        chosen,
        script="studies/cleanrl_pqn.py",
        task=GAME,
        method="CleanRL-style loop",
        seed=seed,
        run=chosen.run("cleanrl", seed),
        total_steps=TOTAL_STEPS,
    )


def seconds_to(record: Record, wanted: float) -> tuple[float, float]:
    """Seconds at the first evaluation of at least `wanted`, and at the first from which on all are; infinite: never."""
    return first_and_for_good((seconds, score >= wanted) for _, seconds, score in record["evaluations"])


def rows_of(records: Sequence[Record]) -> list[list[str]]:
    rows: list[list[str]] = []
    for (_, method), seeds in group(records).items():
        first, for_good = zip(*(seconds_to(record, WANTED) for record in seeds), strict=True)
        score = Scores.of([record["evaluation"]["mean"] for record in seeds])
        rate = np.median([record["env_steps"] / record["seconds"] for record in seeds])
        spread = f"{score.mean:.1f} ± {score.std:.1f}"
        rows.append([method, str(len(seeds)), times(first), times(for_good), spread, f"{rate:.0f}"])
    return rows


def main() -> None:
    chosen = options("pong-race", parser(__doc__ or "", seeds=range(1, 4), episodes=30).parse_args())
    records = run_trials(trials_of(chosen), chosen, lambda run: {"evaluations": evaluations_of(run)})
    write_table(
        chosen,
        title="Pong: how soon it is played at 18",
        explanation=(
            f"{GAME}. Seconds of collecting and learning at the first greedy evaluation ({LOOK_EPISODES} games) of at "
            f"least {WANTED:g}, and at the first from which on all are: median over seeds, and their range. Then the "
            f"return after training ({chosen.episodes} games; mean ± standard deviation over seeds) and agent steps "
            f"per second. A run is looked at {POINTS} times, so that it may have been there a twentieth of its seconds "
            "earlier."
        ),
        headings=["learner", "seeds", f"at {WANTED:g}", "for good", "in the end", "steps/s"],
        rows=rows_of(records),
        records=records,
    )
    groups = {
        method: [{**record, "curve": record["evaluations"]} for record in seeds]
        for (_, method), seeds in group(records).items()
    }
    plot_curves(
        chosen.out / "curves.png",
        [Panel(title=GAME, groups=groups, landmarks={"wanted": WANTED})],
        score=f"return of {LOOK_EPISODES} greedy games",
    )


if __name__ == "__main__":
    main()
