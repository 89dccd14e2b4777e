"""How soon Pong is played at 18 points and more, on the clock: greenroom beside other frameworks' loops.

Two pairs: `atari-pqn` beside PQN in CleanRL's style, `atari-ppo` beside Stable-Baselines3's PPO. Both of a pair learn
by the same algorithm with the same settings, network and number of actors; all are looked at equally often, on the same
games, off the clock. Run it on an idle machine, one run for each core at most (`--jobs 2 --train-args='--threads 1'`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness import (
    SB3,
    Options,
    Record,
    Trial,
    evaluations_of,
    greenroom_trial,
    options,
    parser,
    run_trials,
    script_trial,
)
from lost_sales_race import times
from report import Panel, Scores, group, plot_curves, write_table
from time_to_beat import first_and_for_good

GAME, WANTED = "ALE/Pong-v5", 18.0
TOTAL_STEPS, POINTS, LOOK_EPISODES = 1_000_000, 20, 8
"""Agent steps of a run, its evaluations on the way, and the games of each."""
EXPLORING = 0.4
"""Of a run of PQN: 400 000 steps until all actors are greedy, as many as the preset's study of four million gives."""


def trials_of(chosen: Options) -> list[Trial]:
    pqn = ("--preset", "atari-pqn", "--epsilon-fraction", str(EXPLORING))
    ppo = ("--preset", "atari-ppo", "--no-anneal")  # the preset's rate falls to zero, but a race asks how soon
    return [
        *(own(chosen, "PQN greenroom", "greenroom", seed, pqn) for seed in chosen.seeds),
        *(peer(chosen, "PQN CleanRL-style loop", "cleanrl", seed, "cleanrl_pqn.py") for seed in chosen.seeds),
        *(own(chosen, "PPO greenroom", "greenroom-ppo", seed, ppo) for seed in chosen.seeds),
        *(peer(chosen, f"PPO {SB3}", "sb3-ppo", seed, "sb3_pong.py") for seed in chosen.seeds),
    ]


def own(chosen: Options, method: str, name: str, seed: int, settings: Sequence[str]) -> Trial:
    """greenroom's; its run folder begins with `name`."""
    every = str((chosen.total_steps or TOTAL_STEPS) // POINTS)
    return greenroom_trial(
        chosen,
        task=GAME,
        env=GAME,
        method=method,
        seed=seed,
        run=chosen.run(name, seed),
        total_steps=TOTAL_STEPS,
        settings=(*settings, "--eval-every", every, "--eval-episodes", str(LOOK_EPISODES)),
    )


def peer(chosen: Options, method: str, name: str, seed: int, script: str) -> Trial:
    """The same by somebody else's loop, in `studies/`."""
    return script_trial(
        chosen,
        script=f"studies/{script}",
        task=GAME,
        method=method,
        seed=seed,
        run=chosen.run(name, seed),
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
            f"{GAME}, learned by PQN and by PPO, each with the same settings on both sides. Seconds of collecting and "
            f"learning at the first greedy evaluation ({LOOK_EPISODES} games) of at least {WANTED:g}, and at the first "
            "from which on all are: median over seeds, and their range. Then the return after training "
            f"({chosen.episodes} games; mean ± standard deviation over seeds) and agent steps per second. A run is "
            f"looked at {POINTS} times, so that it may have been there a twentieth of its seconds earlier. PPO's "
            "learning rate stays as it is."
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
