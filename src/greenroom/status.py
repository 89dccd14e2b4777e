"""How a run does: from its files, and from the run itself while it is alive."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.table import Table

from greenroom import checkpoint
from greenroom.budget import spent_before
from greenroom.config import load_file
from greenroom.control import Request, ask
from greenroom.errors import UserError
from greenroom.folder import RunFolder, trainer_of
from greenroom.health.finding import counts
from greenroom.lines import read_log

_FROM_METRICS = ("updates", "seconds", "return_mean", "steps_per_second", "env_restarts")
"""Of the newest line."""
_PATIENCE = 5.0
"""Seconds that a live run is given to answer; after that its files have to do."""


def look(run_dir: str | Path, *, timeout: float = _PATIENCE) -> dict[str, Any]:
    """How the run in a folder does, alive or not: plain values.

    Args:
        run_dir: the run's folder.
        timeout: how many seconds a live run has for its answer, which it gives after the update that it is in.

    Returns:
        `state`: `running`, `paused`, `busy` (alive, but in the middle of something long), `finished` or `stopped`;
        `process`: its id, if alive; `env_steps`, `total_steps`, `updates`, `seconds` of training; the newest
        `return_mean`, `steps_per_second` and `env_restarts`; `evaluation`: mean and 95 % interval of the newest one;
        `spent`: wall-clock seconds; the names of the newest `checkpoint` and the `best`; how many `interventions` and
        `rollbacks` there were; how many `findings` each check of its health has made; `cost`, if an hour has a price.
        Of a run that answers also `learning_rate`, and what the disk refuses: `unsaved`, `waiting_lines`. What is not
        known is None.

    Raises:
        UserError: not a run.
    """
    folder = RunFolder.open(Path(run_dir))
    config = load_file(folder.config)
    metrics, evaluation = _last(folder.metrics), _last(folder.evaluations)
    newest, best = checkpoint.latest(folder.checkpoints), checkpoint.best(folder.checkpoints)
    interventions = read_log(folder.interventions)
    findings = counts(read_log(folder.findings))
    steps = max(metrics.get("env_steps", 0), checkpoint.env_steps_of(newest) if newest else 0)
    process = trainer_of(folder.path)
    told: dict[str, Any] = {
        "run": str(folder.path),
        "state": "busy" if process is not None else "finished" if steps >= config.total_steps else "stopped",
        "process": process,
        "env_steps": steps,
        "total_steps": config.total_steps,
        **{name: metrics.get(name) for name in _FROM_METRICS},
        "evaluation": {name: evaluation[name] for name in ("env_steps", "mean", "ci95")} if evaluation else None,
        "spent": spent_before(folder.spent),
        "checkpoint": newest.name if newest else None,
        "best": best.name if best else None,
        "interventions": len(interventions),
        "findings": findings or None,
        "rollbacks": sum(one["verb"] == "rollback" and "refused" not in one["outcome"] for one in interventions),
    }
    if process is not None:
        # No answer, as in the middle of an update, or of starting or ending: the files have to do.
        with suppress(UserError):
            told |= ask(folder.path, Request(verb="status"), timeout=timeout)
    if config.budget.cost_per_hour:
        told["cost"] = config.budget.cost(told["spent"])
    return told


def table(told: dict[str, Any]) -> Table:
    """What `look` found, for a person."""
    shown = Table(box=None, show_header=False)
    for name, value in told.items():
        if value is None or value == "":
            continue
        if name == "evaluation":
            low, high = value["ci95"]
            value = f"{value['mean']:.6g} ({low:.6g} … {high:.6g}) after {value['env_steps']} steps"
        if name == "findings":
            value = ", ".join(f"{check} {number}" for check, number in value.items())
        shown.add_row(name.replace("_", " "), f"{value:.6g}" if isinstance(value, float) else str(value))
    return shown


def _last(path: Path) -> dict[str, Any]:
    """The last of them, or nothing."""
    return next(reversed(read_log(path)), {})
