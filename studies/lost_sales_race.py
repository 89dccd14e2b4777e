"""Which algorithm is first within 1 % of the optimum of lost sales (lead time 4, penalty 4), on the clock.

Every algorithm at the best settings known for it, and Stable-Baselines3's PPO. The clock is that of
`studies/time_to_beat.py`: collecting and learning; saving, evaluating and starting up are not in it. Run it on an idle
machine, one run for each core at most (`--jobs 2 --train-args='--threads 1'`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from greenroom import folder
from harness import SB3, Options, Record, Trial, greenroom_trial, options, parser, run_trials, script_trial
from report import Scores, group, write_table
from time_to_beat import beside_optimum, cell, draw, points_of, seconds_below

TASK = "p=4 L=4"
LEVEL = 1.0
"""Percent over the optimum."""
POINTS = 20
"""Checkpoints of a run that are put beside the optimum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One of the runners."""

    steps: int
    """Agent steps."""
    settings: str
    """Options of `greenroom train`, beside the preset for this environment."""


_COSTS = "--gamma 0.97 --lam 0.9 --scale-rewards --normalize-obs"
_ONE_UPDATE = f"{_COSTS} --num-envs 128 --rollout-length 16 --learning-rate 1e-3 --entropy-coef 0.01"
TABLE = {
    "ppo": Entry(steps=2_000_000, settings="--algo ppo --num-envs 256 --minibatches 8 --entropy-coef 0.01"),
    "a2c": Entry(steps=10_000_000, settings=f"--algo a2c {_ONE_UPDATE}"),
    "vtrace": Entry(steps=10_000_000, settings=f"--algo vtrace {_ONE_UPDATE}"),
    "nstep-q": Entry(
        steps=10_000_000,
        settings=f"--algo nstep-q {_COSTS} --num-envs 512 --rollout-length 8 --learning-rate 2e-3 "
        "--epsilon-fraction 0.1",
    ),
    "pqn": Entry(
        steps=10_000_000,
        settings=f"--algo pqn {_COSTS} --num-envs 512 --rollout-length 16 --minibatches 8 --learning-rate 2e-3 "
        "--hidden 128 128 --epsilon-fraction 0.2",
    ),
    "dqn": Entry(
        steps=2_000_000,
        settings="--algo dqn --gamma 0.97 --num-envs 512 --rollout-length 4 --normalize-obs --capacity 200000 "
        "--batch-size 512 --replay-ratio 4 --learning-starts 20000",
    ),
}
"""By algorithm. Runs are as long as it takes each to stop improving."""


def trials_of(chosen: Options) -> list[Trial]:
    own = [
        greenroom_trial(
            chosen,
            task=TASK,
            env="lost-sales",
            method=algo,
            seed=seed,
            run=chosen.run(algo, seed),
            total_steps=entry.steps,
            settings=(
                *entry.settings.split(),
                *("--save-every", str((chosen.total_steps or entry.steps) // POINTS)),
                *("--keep", "1000", "--log-seconds", "0.2"),
            ),
        )
        for algo, entry in TABLE.items()
        for seed in chosen.seeds
    ]
    return own + [peer_trial(chosen, seed) for seed in chosen.seeds]


def peer_trial(chosen: Options, seed: int) -> Trial:
    """Stable-Baselines3's PPO on the same shops."""
    return script_trial(
        chosen,
        script="studies/sb3_lost_sales.py",
        task=TASK,
        method=f"{SB3} ppo",
        seed=seed,
        run=chosen.run("sb3", "ppo", seed),
        total_steps=TABLE["ppo"].steps,
    )


def points(run: Path) -> Record:
    """`points_of`, whoever's run it is."""
    if folder.is_run(run):
        return points_of(run)
    import sb3_lost_sales  # Stable-Baselines3 is not installed where the tests run

    return beside_optimum(run, sb3_lost_sales.policies(run))


def times(seconds: Sequence[float]) -> str:
    """Median and range; a run that never got there took infinitely long."""
    low, high = cell(min(seconds)), cell(max(seconds))
    return f"{cell(float(np.median(seconds)))} ({low}–{high})" if low != high else low


def rows_of(records: Sequence[Record]) -> list[list[str]]:
    """One row for every algorithm, the first to arrive first."""
    rows: list[tuple[float, list[str]]] = []
    for (_, algo), seeds in group(records).items():
        first, for_good = zip(*(seconds_below(record, LEVEL) for record in seeds), strict=True)
        gap = Scores.of([record["points"][-1]["gap"] for record in seeds])
        steps = f"{seeds[0]['env_steps']:,}".replace(",", " ")
        seconds = Scores.of([record["seconds"] for record in seeds]).mean
        cells = [algo, str(len(seeds)), times(first), times(for_good), f"{gap.mean:+.2f} ± {gap.std:.2f}"]
        rows.append((float(np.median(first)), [*cells, steps, f"{seconds:.0f}"]))
    return [cells for _, cells in sorted(rows, key=lambda row: row[0] if math.isfinite(row[0]) else math.inf)]


def main() -> None:
    chosen = options("race", parser(__doc__ or "", seeds=range(1, 4), episodes=4096).parse_args())
    records = run_trials(trials_of(chosen), chosen, points)
    write_table(
        chosen,
        title="Lost sales: which algorithm is first within 1 % of the optimum",
        explanation=(
            "Seconds of training at the first checkpoint that costs less than 1 % over the optimum, and after which "
            "all later ones do: median over seeds, and their range. Then the last checkpoint's gap (mean ± standard "
            f"deviation over seeds), and the whole training's agent steps and seconds. A run is looked at {POINTS} "
            "times, so that it may have arrived up to a twentieth of its seconds earlier."
        ),
        headings=["algorithm", "seeds", "within 1 %", "for good", "final gap, %", "agent steps", "seconds in all"],
        rows=rows_of(records),
        records=records,
    )
    draw(
        records,
        chosen.out / "gap.png",
        title="lost-sales: the family, and the conventional rules",
        labels=[record["method"] for record in records],
    )


if __name__ == "__main__":
    main()
