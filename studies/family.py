"""The whole family on small tasks, five seeds each, beside Stable-Baselines3 where it has the same algorithm.

Discrete actions: CartPole, Acrobot and LunarLander. Continuous ones: Pendulum and two MuJoCo tasks. Memory: CartPole
that does not show its velocities. Both sides get the same number of agent steps and are evaluated by the same code on
the same episodes. What `studies/control.py` has measured already (a2c, ppo) is not run again, but is in the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness import SB3, Options, Record, Trial, greenroom_trial, options, parser, records_of, run_trials, sb3_trial
from report import Panel, Scores, findings, group, improvement, plot_curves, write_table

ENVIRONMENTS = {"CartPole-without-velocity": "greenroom.envs.tasks:cartpole_without_velocity"}
"""What `greenroom train` calls a task, where that is not its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An algorithm on a task."""

    steps: int
    """Agent steps, of both sides."""
    settings: str
    """Options of `greenroom train`, beside the preset of the environment's family."""
    rival: str = ""
    """The same algorithm in `sb3_settings.SETTINGS`, if Stable-Baselines3 has it."""


_RAINBOW = "--preset classic-rainbow --epsilon-start 1.0 --epsilon-final 0.1 --epsilon-fraction 0.5 --replay-ratio 16"
"""Noise alone explores too little where rewards are rare."""
_QUANTILES = "--algo dqn --distribution quantile --atoms 25"
_MORE = "--replay-ratio 128"
"""On Acrobot: as often as Stable-Baselines3's settings draw."""
_WIDE = "--hidden 256 256 --replay-ratio 64"
_LANDER = "--no-check-bounds"
"""LunarLander can fly out of its own observation space."""
_OFTEN = "--num-envs 8 --rollout-length 5 --gamma 0.995"
"""On LunarLander: from fewer updates on more steps most of these algorithms learned to hover."""
_POLICY = (
    f"{_OFTEN} --lam 1.0 --learning-rate 8.3e-4 --entropy-coef 0.001 --no-standardise-advantage --hidden 128 128 "
    "--activation relu"
)
_SAC_SOON = "--learning-starts 100"
"""On MuJoCo's pendulums: the zoo has no settings of its own for them, and Stable-Baselines3 begins as soon."""
_TD3_SOON = "--learning-starts 100 --learning-rate 1e-3 --hidden 400 300"
"""As `_SAC_SOON`, with Stable-Baselines3's network and rate."""
_GRU = "--no-separate-value --memory gru --memory-size 64"
_PPO_MEMORY = "--algo ppo --rollout-length 32 --minibatches 4 --no-separate-value --memory-size 64"

TABLE: dict[tuple[str, str], Entry] = {
    ("CartPole-v1", "vtrace"): Entry(steps=300_000, settings="--algo vtrace"),
    ("CartPole-v1", "nstep-q"): Entry(steps=300_000, settings="--algo nstep-q"),
    ("CartPole-v1", "nstep-sarsa"): Entry(steps=300_000, settings="--algo nstep-sarsa"),
    ("CartPole-v1", "pqn"): Entry(steps=200_000, settings="--algo pqn"),
    ("CartPole-v1", "dqn"): Entry(steps=100_000, settings="--algo dqn", rival="dqn"),
    ("CartPole-v1", "dqn-quantile"): Entry(steps=100_000, settings=_QUANTILES, rival="qrdqn"),
    ("CartPole-v1", "rainbow"): Entry(steps=100_000, settings=f"{_RAINBOW} --v-min 0 --v-max 10"),
    ("Acrobot-v1", "vtrace"): Entry(steps=200_000, settings="--algo vtrace"),
    ("Acrobot-v1", "nstep-q"): Entry(steps=300_000, settings="--algo nstep-q --rollout-length 8"),
    ("Acrobot-v1", "nstep-sarsa"): Entry(steps=300_000, settings="--algo nstep-sarsa --rollout-length 8"),
    ("Acrobot-v1", "pqn"): Entry(steps=200_000, settings="--algo pqn"),
    ("Acrobot-v1", "dqn"): Entry(steps=100_000, settings=f"--algo dqn {_MORE}", rival="dqn"),
    ("Acrobot-v1", "dqn-quantile"): Entry(steps=100_000, settings=f"{_QUANTILES} {_MORE}", rival="qrdqn"),
    ("Acrobot-v1", "rainbow"): Entry(steps=100_000, settings=f"{_RAINBOW} --v-min -10 --v-max 0"),
    ("LunarLander-v3", "a2c"): Entry(steps=500_000, settings=f"--algo a2c {_LANDER} {_POLICY}", rival="a2c"),
    ("LunarLander-v3", "ppo"): Entry(
        steps=500_000,
        settings=(
            f"{_LANDER} --algo ppo --rollout-length 256 --gamma 0.999 --lam 0.98 --entropy-coef 0.01 "
            "--learning-rate 5e-4"
        ),
        rival="ppo",
    ),
    ("LunarLander-v3", "vtrace"): Entry(steps=500_000, settings=f"--algo vtrace {_LANDER} {_POLICY}"),
    ("LunarLander-v3", "nstep-q"): Entry(
        steps=500_000, settings=f"--algo nstep-q {_LANDER} {_OFTEN} --epsilon-fraction 0.5"
    ),
    ("LunarLander-v3", "nstep-sarsa"): Entry(
        steps=500_000, settings=f"--algo nstep-sarsa {_LANDER} {_OFTEN} --epsilon-fraction 0.5"
    ),
    ("LunarLander-v3", "pqn"): Entry(steps=500_000, settings=f"{_LANDER} --algo pqn"),
    ("LunarLander-v3", "dqn"): Entry(steps=100_000, settings=f"{_LANDER} --algo dqn {_WIDE}", rival="dqn"),
    ("LunarLander-v3", "dqn-quantile"): Entry(
        steps=100_000, settings=f"{_LANDER} {_QUANTILES} {_WIDE} --gamma 0.995", rival="qrdqn"
    ),
    ("LunarLander-v3", "rainbow"): Entry(steps=100_000, settings=f"{_LANDER} {_RAINBOW} --v-min -30 --v-max 30"),
    ("Pendulum-v1", "sac"): Entry(steps=20_000, settings="--algo sac", rival="sac"),
    ("Pendulum-v1", "td3"): Entry(steps=20_000, settings="--algo td3", rival="td3"),
    ("InvertedDoublePendulum-v5", "sac"): Entry(steps=40_000, settings=f"--algo sac {_SAC_SOON} --anneal", rival="sac"),
    ("InvertedDoublePendulum-v5", "td3"): Entry(steps=20_000, settings=f"--algo td3 {_TD3_SOON}", rival="td3"),
    ("InvertedPendulum-v5", "ppo"): Entry(steps=100_000, settings="--algo ppo", rival="ppo"),
    ("InvertedPendulum-v5", "sac"): Entry(steps=20_000, settings=f"--algo sac {_SAC_SOON}", rival="sac"),
    ("InvertedPendulum-v5", "td3"): Entry(steps=20_000, settings=f"--algo td3 {_TD3_SOON}", rival="td3"),
    ("CartPole-without-velocity", "ppo"): Entry(steps=100_000, settings="--algo ppo"),
    ("CartPole-without-velocity", "ppo-gru"): Entry(steps=100_000, settings=f"{_PPO_MEMORY} --memory gru"),
    ("CartPole-without-velocity", "ppo-lstm"): Entry(
        steps=100_000, settings=f"{_PPO_MEMORY} --memory lstm", rival="recurrent-ppo"
    ),
    ("CartPole-without-velocity", "a2c-gru"): Entry(steps=300_000, settings=f"--algo a2c --rollout-length 16 {_GRU}"),
    ("CartPole-without-velocity", "vtrace-gru"): Entry(
        steps=300_000, settings=f"--algo vtrace --rollout-length 16 {_GRU}"
    ),
    ("CartPole-without-velocity", "nstep-q-gru"): Entry(
        steps=300_000, settings="--algo nstep-q --memory gru --memory-size 64"
    ),
    ("CartPole-without-velocity", "pqn-gru"): Entry(
        steps=100_000,
        settings=(
            "--algo pqn --memory gru --memory-size 64 --hidden 64 --num-envs 16 --minibatches 4 --learning-rate 5e-4 "
            "--epsilon-fraction 0.5"
        ),
    ),
    ("CartPole-without-velocity", "dqn-gru"): Entry(
        steps=100_000,
        settings=(
            "--algo dqn --memory gru --memory-size 64 --hidden 64 --rollout-length 8 --sequence-length 16 --burn-in 8 "
            "--batch-size 256"
        ),
    ),
}
"""By task and algorithm, as the table calls them. Where there is a rival, the budget is near the zoo's own.

Shorter than what Stable-Baselines3's settings were tuned for are those of LunarLander's ppo and of the MuJoCo tasks,
for both sides alike.
"""


def trials_of(chosen: Options) -> list[Trial]:
    trials: list[Trial] = []
    for (task, algo), entry in TABLE.items():
        env, name = ENVIRONMENTS.get(task, task), f"{task} {algo}"
        for seed in chosen.seeds:
            trials.append(
                greenroom_trial(
                    chosen,
                    task=name,
                    env=env,
                    method="greenroom",
                    seed=seed,
                    run=chosen.run("greenroom", task, algo, seed),
                    total_steps=entry.steps,
                    settings=entry.settings.split(),
                )
            )
            if entry.rival:
                run = chosen.run("sb3", task, entry.rival, seed)
                trials.append(
                    sb3_trial(chosen, task=name, env=env, algo=entry.rival, seed=seed, run=run, total_steps=entry.steps)
                )
    return trials


def scores_of(seeds: Sequence[Record]) -> list[float]:
    return [record["evaluation"]["mean"] for record in seeds]


def standing(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Where our interquartile mean is: `above`, `within` or `BELOW` the interval of theirs."""
    iqm, (low, high) = Scores.of(ours).iqm, Scores.of(theirs).iqm_ci95
    return "BELOW" if iqm < low else "above" if iqm > high else "within"


def rows_of(records: Sequence[Record], known: Sequence[Record]) -> list[list[str]]:
    """One row for every task, algorithm and learner, in the order of `TABLE`; those of `known` say whence they are."""
    groups = group([*known, *records])
    tasks = list(dict.fromkeys([*(task for task, _ in TABLE), *(name.split()[0] for name, _ in groups)]))
    algos = list(dict.fromkeys(name.split()[1] for name, _ in groups))

    def place(name: str, method: str) -> tuple[int, int, bool]:
        task, algo = name.split()
        return tasks.index(task), algos.index(algo), method == SB3

    rows: list[list[str]] = []
    for (task, method), seeds in sorted(groups.items(), key=lambda item: place(*item[0])):
        values, theirs = scores_of(seeds), scores_of(groups.get((task, SB3), []))
        beside = ["", ""] if method == SB3 or not theirs else [standing(values, theirs), improvement(values, theirs)]
        scores = Scores.of(values)
        steps = f"{seeds[0]['env_steps']:,}".replace(",", " ")
        source = " ([control](../control/table.md))" if seeds[0] in known else ""
        seconds = Scores.of([record["seconds"] for record in seeds]).mean
        spread = f"{scores.mean:.1f} ± {scores.std:.1f}"
        cells = [task, method + source, steps, str(len(seeds)), scores.robust(1), spread, *beside, f"{seconds:.0f}"]
        rows.append([*cells, findings(seeds)])
    return rows


def panels_of(records: Sequence[Record]) -> list[Panel]:
    """One panel a task: greenroom's algorithms as lines, Stable-Baselines3's dashed in the same colours."""
    ours: dict[str, dict[str, list[Record]]] = {}
    theirs: dict[str, dict[str, list[Record]]] = {}
    for (name, method), seeds in group(records).items():
        task, algo = name.split()
        (theirs if method == SB3 else ours).setdefault(task, {})[algo] = seeds
    return [Panel(title=task, groups=groups, dashed=theirs.get(task, {})) for task, groups in ours.items()]


def main() -> None:
    chosen = options("family", parser(__doc__ or "", seeds=range(1, 6), episodes=100).parse_args())
    records = run_trials(trials_of(chosen), chosen)
    known = records_of("control")
    write_table(
        chosen,
        title="The family of algorithms on small tasks",
        explanation=(
            f"Return of the greedy policy after training, mean of {chosen.episodes} episodes for each seed. IQM is the "
            "interquartile mean over seeds, with its 95 % bootstrap interval. Beside Stable-Baselines3 (and its "
            "contributions) with its tuned settings at the same number of agent steps: whether the IQM is above, "
            "within or below that interval of theirs, and the probability that a seed of greenroom's ends higher than "
            "one of theirs. On LunarLander QR-DQN's loss is compiled, which its own code does not do: the same "
            "arithmetic, many times as fast. Seconds are those of one training run. Findings: what the health checks "
            "found, with their default settings, in all seeds' runs; empty where they were not on yet."
        ),
        headings=[
            "task and algorithm",
            "learner",
            "agent steps",
            "seeds",
            "IQM [95 % interval]",
            "mean ± std over seeds",
            "beside",
            "P(higher)",
            "seconds",
            "findings",
        ],
        rows=rows_of(records, known),
        records=records,
    )
    plot_curves(chosen.out / "curves.png", panels_of([*known, *records]))


if __name__ == "__main__":
    main()
