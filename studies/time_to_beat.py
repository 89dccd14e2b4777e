"""How soon the learned policy of `make train` beats the conventional rules, on the clock.

The command is that of `make train` with more checkpoints. Each is then put beside the exact optimum as the end of a run
is. The clock is that of collecting and learning; saving, evaluating and starting up are not in it. Run it on an idle
machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

import greenroom
from greenroom import baselines, curves
from greenroom.config import load_file
from greenroom.policy import Actor
from harness import Options, Record, greenroom_trial, options, parser, run_trials
from report import write_table

TOTAL_STEPS = 10_000_000
EVERY = 10 * 4096 * 24
"""Agent steps between the checkpoints that are looked at: 10 updates."""
EVALUATION_SEED = 1000


def points_of(run: Path) -> Record:
    """Seconds and gap to the optimum of every checkpoint, and of the classical rules."""
    return beside_optimum(run, policies(run), load_file(run / "config.yaml").seed)


def policies(run: Path) -> Iterator[tuple[int, Actor]]:
    """The policies of a run's checkpoints in order, with the agent steps that each had learned from."""
    for path in sorted((run / "checkpoints").glob("step_*")):
        yield int(path.name.split("_")[1].split(".")[0]), greenroom.load_policy(run, which=path.name)[1]


def beside_optimum(run: Path, learned: Iterable[tuple[int, Actor]], seed: int = EVALUATION_SEED) -> Record:
    """`points_of` what a run `learned`: agent steps and policy. Its `metrics.jsonl` has the clock."""
    clock = curves.read_curve(run / "metrics.jsonl", "env_steps")
    seconds_at = dict(zip(clock.env_steps.astype(int).tolist(), clock.seconds.tolist(), strict=True))
    points: list[dict[str, float]] = []
    rules: dict[str, float] = {}
    for steps, policy in learned:
        table = baselines.report(policy, "lost-sales", {}, seed=seed, device="cpu")
        assert table is not None and table.optimum is not None
        optimum = table.optimum
        rules = {name: 100 * (rule.cost / optimum - 1) for name, rule in table.rules.items()}
        points.append({"env_steps": steps, "seconds": _nearest(seconds_at, steps), "gap": table.gap.mean})
    return {"points": points, "rules": rules}


def _nearest(seconds_at: dict[int, float], steps: int) -> float:
    """The clock at the first line of metrics at or after `steps`: never too early."""
    return min((seconds for at, seconds in seconds_at.items() if at >= steps), default=max(seconds_at.values()))


def seconds_below(record: Record, level: float) -> tuple[float, float]:
    """Seconds of the first checkpoint with a gap below `level`, and of the first of those that all stay below it.

    Infinite if there is none.
    """
    return first_and_for_good((point["seconds"], point["gap"] < level) for point in record["points"])


def first_and_for_good(looks: Iterable[tuple[float, bool]]) -> tuple[float, float]:
    """Seconds of the first of the looks that `reached` the goal, and of the first from which on all did.

    Infinite if there is none.
    """
    first = last = math.inf
    for seconds, reached in looks:
        first = min(first, seconds) if reached else first
        last = min(last, seconds) if reached else math.inf
    return first, last


def cell(seconds: float) -> str:
    return f"{seconds:.1f}" if math.isfinite(seconds) else "never"


def draw(records: Sequence[Record], path: Path, *, title: str, labels: Sequence[str]) -> None:
    """Write a PNG: every record's gap over seconds, those with the same label in the same colour, and the rules'."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    names = list(dict.fromkeys(labels))
    for number, (record, label) in enumerate(zip(records, labels, strict=True)):
        seconds, gaps = ([point[key] for point in record["points"]] for key in ("seconds", "gap"))
        shown = label if label not in labels[:number] else None
        axes.plot(seconds, gaps, marker="o", markersize=3, color=f"C{names.index(label)}", label=shown)
    beside = axes.get_yaxis_transform()
    rules = sorted(records[0]["rules"].items(), key=lambda rule: float(rule[1]))
    for number, (name, gap) in enumerate(rules):
        axes.axhline(gap, color="0.6", linewidth=1, linestyle="--")
        where = 0.99 - 0.27 * (number % 2)  # neighbouring lines may be close: side by side, their names stay apart
        axes.text(
            where,
            gap,
            f"{name} {gap:+.2f} %",
            transform=beside,
            ha="right",
            va="bottom" if number % 2 else "top",
            fontsize=8,
        )
    axes.set(xlabel="seconds of training", ylabel="cost over the optimum, %", yscale="log", ylim=(0.1, 100))
    axes.set_xlim(left=0)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title(title)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    chosen: Options = options("time-to-beat", parser(__doc__ or "", seeds=range(1, 4), episodes=4096).parse_args())
    trials = [
        greenroom_trial(
            chosen,
            task="p=4 L=4",
            env="lost-sales",
            method="greenroom",
            seed=seed,
            run=chosen.run("seed", seed),
            total_steps=TOTAL_STEPS,
            settings=("--save-every", str(EVERY), "--keep", "1000", "--log-seconds", "0.2"),
        )
        for seed in chosen.seeds
    ]
    records = run_trials(trials, chosen, points_of)
    rows = []
    for record in records:
        best = min(record["rules"].values())
        cells = map(cell, (*seconds_below(record, best), *seconds_below(record, 1.0)))
        rows.append([str(record["seed"]), *cells, f"{record['seconds']:.0f}", f"{record['points'][-1]['gap']:+.2f}"])
    write_table(
        chosen,
        title="Time to beat the conventional rules",
        explanation=(
            "Seconds of training at the first checkpoint that costs less than the best classical rule, and after which "
            "all later ones do; the same for less than 1 % over the optimum; then the whole training's seconds and the "
            "last checkpoint's gap."
        ),
        headings=["seed", "beats all rules", "for good", "within 1 %", "for good", "seconds in all", "final gap, %"],
        rows=rows,
        records=records,
    )
    draw(
        records,
        chosen.out / "gap.png",
        title="lost-sales: the learned policy and the conventional rules",
        labels=[f"seed {record['seed']}" for record in records],
    )


if __name__ == "__main__":
    main()
