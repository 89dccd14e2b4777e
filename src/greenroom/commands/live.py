"""Commands for a live run, from another terminal: see how it does, pause, stop, save, roll back, change."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import Positional

from greenroom.control import Request, Verb, ask
from greenroom.display import new_console
from greenroom.errors import UserError
from greenroom.folder import RunFolder
from greenroom.status import look, table


@dataclass(frozen=True, kw_only=True)
class Status:
    """Show how a run does, whether it is alive or not."""

    run_dir: Positional[Path]
    """The run's folder."""
    json: bool = False
    """Print one JSON object and nothing else."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """What every command that intervenes is given."""

    run_dir: Positional[Path]
    """The run's folder."""
    reason: str = ""
    """Why: kept in interventions.jsonl."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True, kw_only=True)
class Pause(Intervention):
    """Let a live run wait after this update; its environments stay as they are."""


@dataclass(frozen=True, kw_only=True)
class ResumeLive(Intervention):
    """Let a paused live run go on."""


@dataclass(frozen=True, kw_only=True)
class Stop(Intervention):
    """Let a live run save and end after this update; `resume` continues it."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Intervention):
    """Let a live run save a checkpoint after this update."""


@dataclass(frozen=True, kw_only=True)
class Rollback(Intervention):
    """Let a live run go back to a checkpoint, and train on from there."""

    to: int | None = None
    """The checkpoint's agent steps; by default the newest that an evaluation found good."""


@dataclass(frozen=True, kw_only=True)
class Set(Intervention):
    """Change a live run: `lr=3e-4` is its learning rate from now on, `lr=0.5x` halves what it is."""

    change: Positional[str]
    """lr=VALUE or lr=FACTORx; a schedule goes on from there in proportion."""


def _status(words: list[str]) -> None:
    options = tyro.cli(Status, args=words, prog="greenroom status")
    told = look(options.run_dir)
    if options.json:
        print(json.dumps(told))
    else:
        new_console().print(table(told))


def _asking(name: str, verb: Verb, options_of: type[Intervention]) -> Callable[[list[str]], None]:
    """The command that asks the run for `verb` and shows what it answers."""

    def command(words: list[str]) -> None:
        options = tyro.cli(options_of, args=words, prog=f"greenroom {name}")
        request = Request(verb=verb, reason=options.reason, **_arguments(options))
        answer = ask(RunFolder.open(options.run_dir).path, request)
        told = ", ".join(f"{key} {value}" for key, value in answer.items())
        new_console().print(f"{name}: {told or 'done'}", markup=False, highlight=False, soft_wrap=True)

    return command


def _arguments(options: Intervention) -> dict[str, Any]:
    match options:
        case Rollback(to=to):
            return {"to": to}
        case Set(change=change):
            return parse_change(change)
        case _:
            return {}


def parse_change(change: str) -> dict[str, float]:
    """What `lr=3e-4` (a rate) and `lr=0.5x` (a factor) ask for.

    Raises:
        UserError: it is neither.
    """
    name, equals, text = change.partition("=")
    if name not in ("lr", "learning_rate") or not equals:
        raise UserError(f"cannot set {change!r}; what can be set is lr=VALUE or lr=FACTORx")
    try:
        return {"factor": float(text[:-1])} if text.endswith("x") else {"learning_rate": float(text)}
    except ValueError:
        raise UserError(f"{change!r}: {text!r} is no number; give lr=VALUE or lr=FACTORx") from None


COMMANDS: dict[str, tuple[type, Callable[[list[str]], None]]] = {
    "status": (Status, _status),
    "pause": (Pause, _asking("pause", "pause", Pause)),
    "resume-live": (ResumeLive, _asking("resume-live", "resume", ResumeLive)),
    "stop": (Stop, _asking("stop", "stop", Stop)),
    "checkpoint": (Checkpoint, _asking("checkpoint", "checkpoint", Checkpoint)),
    "rollback": (Rollback, _asking("rollback", "rollback", Rollback)),
    "set": (Set, _asking("set", "set", Set)),
}
"""Name → its options, and what it does with the words after its name."""
