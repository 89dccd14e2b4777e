"""Lost sales with published optima (Poisson 5, holding 1): penalty 4 at lead times 1 to 4, and 39 at lead time 4."""

from __future__ import annotations

import json
from pathlib import Path

from harness import Options, Record, Trial, greenroom_trial, options, parser, run_trials
from report import Panel, Scores, group, plot_curves, write_table

PROBLEMS = [(4, 1), (4, 2), (4, 3), (4, 4), (39, 4)]
"""Penalty for a unit of lost demand, lead time."""
TOTAL_STEPS = 10_000_000


def trials_of(chosen: Options) -> list[Trial]:
    return [
        greenroom_trial(
            chosen,
            task=f"p={penalty} L={lead_time}",
            env="lost-sales",
            method="greenroom",
            seed=seed,
            run=chosen.run(f"p{penalty}", f"L{lead_time}", seed),
            total_steps=TOTAL_STEPS,
            settings=("--env.penalty", str(penalty), "--env.lead_time", str(lead_time)),
        )
        for penalty, lead_time in PROBLEMS
        for seed in chosen.seeds
    ]


def end_table(run: Path) -> Record:
    """The run's own end-of-run table: costs per period beside the optimum and the classical rules."""
    return {"baselines": json.loads((run / "baselines.json").read_text())}


def rows_of(records: list[Record]) -> list[list[str]]:
    rows: list[list[str]] = []
    for (task, _), seeds in group(records).items():
        tables = [record["baselines"] for record in seeds]
        optimum, rules = tables[0]["optimum"], tables[0]["rules"]
        best = min(rules, key=lambda name: float(rules[name]))
        cost = Scores.of([table["learned"]["cost"] for table in tables])
        gap = Scores.of([100 * (table["learned"]["cost"] / optimum - 1) for table in tables])
        rows.append(
            [
                task,
                str(len(seeds)),
                f"{optimum:.4f}",
                f"{cost.mean:.4f} ± {cost.std:.4f}",
                f"{gap.mean:+.2f} ± {gap.std:.2f}",
                f"[{gap.ci95[0]:+.2f}, {gap.ci95[1]:+.2f}]",
                f"{best}, {100 * (rules[best] / optimum - 1):+.2f}",
                f"{Scores.of([record['seconds'] for record in seeds]).mean:.0f}",
            ]
        )
    return rows


def main() -> None:
    chosen = options("lost-sales", parser(__doc__ or "", seeds=range(1, 6), episodes=1000).parse_args())
    records = run_trials(trials_of(chosen), chosen, end_table)
    write_table(
        chosen,
        title="Lost sales beside the optimum",
        explanation=(
            "Cost per period of the greedy policy (mean ± standard deviation over seeds), its gap to the optimum, and "
            "the best classical rule's. Every number of a run is in its `baselines`."
        ),
        headings=["problem", "seeds", "optimum", "cost", "gap, %", "95 % interval", "best rule, gap, %", "seconds"],
        rows=rows_of(records),
        records=records,
    )
    panels = [Panel(title=task, groups={method: seeds}) for (task, method), seeds in group(records).items()]
    plot_curves(chosen.out / "curves.png", panels)


if __name__ == "__main__":
    main()
