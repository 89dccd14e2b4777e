"""Atari from pixels: Pong with a preset of one's choice, with PQN or with DQN, or the `paac` preset on Breakout.

The evaluation keeps the environment's settings of the training, so its episodes too start with up to 30 no-ops; their
returns are the game's own, unclipped.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from harness import Options, Record, Trial, greenroom_trial, options, parser, run_trials
from report import Panel, Scores, group, plot_curves, write_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """One of them."""

    name: str
    title: str
    game: str
    preset: str
    total_steps: int
    evaluate: tuple[str, ...] = ()
    landmarks: dict[str, float] = field(default_factory=dict)


STUDIES = {
    "pong": Study(
        name="pong",
        title="Pong from pixels",
        game="ALE/Pong-v5",
        preset="atari-ppo",
        total_steps=2_500_000,
        landmarks={"wanted": 18.0},
    ),
    "pong-pqn": Study(
        name="pong-pqn",
        title="Pong from pixels, values without a replay",
        game="ALE/Pong-v5",
        preset="atari-pqn",
        total_steps=4_000_000,
        landmarks={"wanted": 18.0},
    ),
    "pong-dqn": Study(
        name="pong-dqn",
        title="Pong from pixels, values from a replay",
        game="ALE/Pong-v5",
        preset="atari-dqn",
        total_steps=2_500_000,
        landmarks={"wanted": 18.0},
    ),
    "paac": Study(
        name="paac-breakout",
        title="The paac preset on Breakout",
        game="ALE/Breakout-v5",
        preset="paac",
        total_steps=5_000_000,
        # As the authors play: a greedy policy that never serves the ball would wait out the emulator's time limit.
        evaluate=("--sample",),
        # As reported by the paper and its sources after 80 M steps and more: where the curve is heading.
        landmarks={"human": 27.9, "random": 1.6, "PAAC, small network": 470.1, "PAAC, larger network": 565.3},
    ),
}


def trials_of(study: Study, chosen: Options, preset: str) -> list[Trial]:
    trials = [
        greenroom_trial(
            chosen,
            task=study.game,
            env=study.game,
            method=preset,
            seed=seed,
            run=chosen.run(preset, seed),
            total_steps=study.total_steps,
            settings=("--preset", preset),
        )
        for seed in chosen.seeds
    ]
    return [replace(trial, evaluate=(*trial.evaluate, *study.evaluate)) for trial in trials]


def rows_of(records: list[Record]) -> list[list[str]]:
    rows: list[list[str]] = []
    for (_, preset), seeds in group(records).items():
        for record in seeds:
            about = record["evaluation"]
            low, high = about["ci95"]
            rows.append(
                [
                    preset,
                    str(record["seed"]),
                    f"{record['env_steps'] / 1e6:.2f} M",
                    f"{record['seconds'] / 3600:.2f}",
                    f"{about['mean']:.2f} ± {about['std']:.2f}",
                    f"[{low:.2f}, {high:.2f}]",
                    str(about["episodes"]),
                ]
            )
        if len(seeds) > 1:
            scores = Scores.of([record["evaluation"]["mean"] for record in seeds])
            rows.append([preset, "all", "", "", *scores.cells(2)[::2], ""])
    return rows


def main() -> None:
    made = parser(__doc__ or "", seeds=[1], episodes=30)
    made.add_argument("study", choices=sorted(STUDIES))
    made.add_argument("--preset", help="instead of the study's own")
    given = made.parse_args()
    study = STUDIES[given.study]
    chosen = options(study.name, given)
    records = run_trials(trials_of(study, chosen, given.preset or study.preset), chosen)
    marks = "; ".join(f"{name} {level:g}" for name, level in study.landmarks.items())
    write_table(
        chosen,
        title=study.title,
        explanation=(
            f"{study.game}: return of the policy ({'sampled' if study.evaluate else 'greedy'} actions) over "
            f"{chosen.episodes} episodes with no-op starts (mean ± standard deviation over episodes). Steps are agent "
            f"steps, four frames each. Landmarks: {marks}."
        ),
        headings=["preset", "seed", "agent steps", "hours", "return", "95 % interval", "episodes"],
        rows=rows_of(records),
        records=records,
    )
    # Levels far above the curve would press it flat: only those within its reach are drawn.
    top = 1.2 * max(point[2] for record in records for point in record["curve"])
    near = {name: level for name, level in study.landmarks.items() if level <= max(top, 0)}
    groups = {preset: seeds for (_, preset), seeds in group(records).items()}
    plot_curves(chosen.out / "curves.png", [Panel(title=study.game, groups=groups, landmarks=near)])


if __name__ == "__main__":
    main()
