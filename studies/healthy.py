"""The healthy runs of docs/results once more, watched with default settings: what do the health checks find?

Every run of greenroom's that another study has a record of is trained again by the same command, unless its record
already says what was found in it. Left out are those that are sick on purpose: queues of old weights.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from harness import SB3, Options, Record, Trial, options, records_of, run_trials, runner
from report import Scores, findings, group, write_table

STUDIES = ("control", "family", "lag", "lost-sales", "time-to-beat", "pong", "pong-pqn", "paac-breakout")
SICK = ("lag=4", "lag=16", "lag=64")
"""Methods of the lag study that are there to show what goes wrong."""


def healthy(study: str) -> Iterator[Record]:
    """The records of a study's runs of greenroom's that were meant to go well, under the names they have here."""
    for record in records_of(study):
        if record["method"] not in (SB3, *SICK):
            yield record | {"task": f"{study}: {record['task']}"}


def trials_of(chosen: Options) -> list[Trial]:
    """A trial for every run of which it is not known yet what the checks find in it."""
    trials: list[Trial] = []
    for study in STUDIES:
        for record in healthy(study):
            if record.get("findings") is not None:
                continue
            train, evaluate = (shlex.split(command) for command in record["commands"])
            before = train[train.index("--run-dir") + 1]
            run = chosen.run(study, Path(before).name)
            trials.append(
                Trial(
                    task=record["task"],
                    method=record["method"],
                    seed=record["seed"],
                    run=run,
                    train=tuple(str(run) if word == before else word for word in train),
                    evaluate=tuple(str(run) if word == before else word for word in evaluate),
                    resume=("greenroom", "resume", str(run)),
                )
            )
    return trials


def rows_of(watched: list[Record], recorded: list[Record]) -> list[list[str]]:
    """One row for each task and method: the score that its study has beside the one of the watched runs."""
    groups, before = group(watched), group(recorded)
    rows: list[list[str]] = []
    for (task, method), seeds in groups.items():
        steps = f"{seeds[0]['env_steps']:,}".replace(",", " ")
        scores = [
            Scores.of([record["evaluation"]["mean"] for record in records]) for records in (before[task, method], seeds)
        ]
        spread = [f"{score.mean:.1f} ± {score.std:.1f}" for score in scores]
        rows.append([task, method, str(len(seeds)), steps, *spread, findings(seeds)])
    every = [record for seeds in groups.values() for record in seeds]
    return [*rows, ["all", "", str(len(every)), "", "", "", findings(every)]]


def main() -> None:
    chosen = options("healthy", runner(__doc__ or "").parse_args())
    again = run_trials(trials_of(chosen), chosen, extra=lambda run: {"curve": []})
    recorded = [record for study in STUDIES for record in healthy(study)]
    known = [record for record in recorded if record.get("findings") is not None]
    write_table(
        chosen,
        title="What health checks find in healthy runs",
        explanation=(
            "Every run of greenroom's in the other studies, in full and with the checks' default settings; those made "
            "before there were checks were made again by the same commands. Scores are means and standard deviations "
            "over seeds of what the evaluations gave: in the study, and of the watched runs."
        ),
        headings=["study and task", "method", "runs", "agent steps each", "score", "watched", "findings"],
        rows=rows_of([*known, *again], recorded),
        records=again,
    )


if __name__ == "__main__":
    main()
