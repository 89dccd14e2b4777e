"""Classic control and a MuJoCo task beside Stable-Baselines3 with its tuned settings, at one budget of agent steps.

Both sides are trained and evaluated by the commands that the records show. The evaluation is the same code on
the same episodes.
"""

from __future__ import annotations

from harness import Options, Record, Trial, greenroom_trial, options, parser, run_trials, sb3_trial
from report import SCORE_HEADINGS, Panel, Scores, group, plot_curves, write_table

TASKS: dict[tuple[str, str], tuple[int, tuple[str, ...]]] = {
    ("CartPole-v1", "a2c"): (500_000, ()),
    ("CartPole-v1", "ppo"): (100_000, ()),
    ("Acrobot-v1", "a2c"): (200_000, ()),
    ("Acrobot-v1", "ppo"): (200_000, ()),
    ("Pendulum-v1", "ppo"): (
        100_000,
        ("--gamma", "0.9", "--num-envs", "4", "--rollout-length", "512", "--minibatches", "32"),
    ),
    ("InvertedDoublePendulum-v5", "ppo"): (300_000, ()),
}
"""By environment and algorithm: agent steps, and what greenroom sets besides the preset of the environment's family.

The budgets of CartPole and Pendulum are those that Stable-Baselines3's settings were tuned for; the others are shorter
(tuned: Acrobot 500 000 for A2C and 1 000 000 for PPO, InvertedDoublePendulum 1 000 000), for both sides alike.
"""


def trials_of(chosen: Options) -> list[Trial]:
    trials: list[Trial] = []
    for (env, algo), (total_steps, own) in TASKS.items():
        task = f"{env} {algo}"
        for seed in chosen.seeds:
            run = chosen.run("greenroom", env, algo, seed)
            settings = ("--algo", algo, *own)
            trials.append(
                greenroom_trial(
                    chosen,
                    task=task,
                    env=env,
                    method="greenroom",
                    seed=seed,
                    run=run,
                    total_steps=total_steps,
                    settings=settings,
                )
            )
            run = chosen.run("sb3", env, algo, seed)
            trials.append(sb3_trial(chosen, task=task, env=env, algo=algo, seed=seed, run=run, total_steps=total_steps))
    return trials


def rows_of(records: list[Record]) -> list[list[str]]:
    rows: list[list[str]] = []
    for (task, method), seeds in group(records).items():
        scores = Scores.of([record["evaluation"]["mean"] for record in seeds])
        seconds = Scores.of([record["seconds"] for record in seeds])
        steps = f"{seeds[0]['env_steps']:,}".replace(",", " ")
        rows.append([task, method, steps, str(len(seeds)), *scores.cells(1), f"{seconds.mean:.0f}"])
    return rows


def main() -> None:
    chosen = options("control", parser(__doc__ or "", seeds=range(1, 6), episodes=100).parse_args())
    records = run_trials(trials_of(chosen), chosen)
    write_table(
        chosen,
        title="Control beside Stable-Baselines3",
        explanation=(
            f"Return of the greedy policy after training, mean of {chosen.episodes} episodes for each seed. "
            "Agent steps are those of the training, the same for both but for the last rollout; seconds are those of "
            "one training run."
        ),
        headings=["task", "learner", "agent steps", "seeds", *SCORE_HEADINGS, "seconds"],
        rows=rows_of(records),
        records=records,
    )
    panels: dict[str, dict[str, list[Record]]] = {}
    for (task, method), seeds in group(records).items():
        panels.setdefault(task, {})[method] = seeds
    plot_curves(chosen.out / "curves.png", [Panel(title=task, groups=groups) for task, groups in panels.items()])


if __name__ == "__main__":
    main()
