"""Errors that are a person's to mend: what was wrong, where, and what to do. Printed without a traceback."""

from __future__ import annotations

import difflib
import enum
import os
import sysconfig
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

RAISED = (Exception, SystemExit)
"""What a user's code may raise for whoever calls it to say of it. An exit is one: it would pass for ours otherwise."""


class UserError(Exception):
    """A mistake in what the user gave (option, file, environment). The message names the culprit and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One failure of an environment: what happened, and what it takes to make it happen again. Plain values."""

    what: str
    """In words; names the environment and its step."""
    traceback: str
    """The environment's own; empty if it hung, died or only answered wrongly."""
    index: int
    """Which environment."""
    episode: int
    """Episodes that it had finished since it was seeded."""
    step: int
    """Steps of the episode, the failed one included; 0: it failed in the reset before."""
    seed: int | None
    """What it was seeded with; None: it went on from a checkpoint."""
    steps: int
    """Steps since then, the failed one included."""
    actions: tuple[Any, ...]
    """The last of these, as the policy chose them, oldest first; all of them if there are as many as `steps`.

    None from stages that step all environments as one.
    """
    restarted: tuple[int, ...]
    """The environments that were started anew in a step because of it.

    None if it stopped the run, or happened while all were being reset and so cost nothing.
    """

    @classmethod
    def of(cls, values: dict[str, Any]) -> Fault:
        """The inverse of `dataclasses.asdict`, also by way of JSON."""
        return cls(**values | {name: tuple(values[name]) for name in ("actions", "restarted")})


class EnvironmentFault(UserError):
    """A user's environment raised, hung, died or broke its contract. The message names the environment's index.

    Attributes:
        index: which environment, where one is to blame.
        own_traceback: the environment's, if it failed in another process; None: the exception's cause has it.
        fault: how it came about, where the stage can tell.
        mended: what failed before it and was mended, and nobody has heard of yet.
    """

    def __init__(self, message: str, *, index: int | None = None, fault: Fault | None = None) -> None:
        super().__init__(message)
        self.index, self.fault = index, fault
        self.own_traceback: str | None = None
        self.mended: tuple[Fault, ...] = ()


class DiskError(UserError):
    """The disk is full or refuses. What was there before is untouched; later it may well work."""


class ExitCode(enum.IntEnum):
    """What a command ends with. `EXIT_CODES` tells what each means."""

    DONE = 0
    BUG = 1
    ERROR = 2
    STOPPED = 3
    BUDGET = 4
    PREEMPTED = 5
    UNSAVED = 6
    UNHEALTHY = 7
    INTERRUPTED = 130


EXIT_CODES: dict[ExitCode, str] = {
    ExitCode.DONE: "done; of a training: all its steps are taken",
    ExitCode.BUG: "a fault of greenroom's own, with a traceback",
    ExitCode.ERROR: "a mistake in what was given, or an environment that failed; the message says what to do",
    ExitCode.STOPPED: "a training was stopped by Ctrl-C or `greenroom stop`; saved, `resume` continues it",
    ExitCode.BUDGET: "a training has used up its deadline or cost budget; saved, `resume` with more continues it",
    ExitCode.PREEMPTED: "a training was told to go by SIGTERM, SIGUSR1 or SIGUSR2; saved, `resume` continues it",
    ExitCode.UNSAVED: "a training ended, but the disk refused its last state or its last log lines",
    ExitCode.UNHEALTHY: "a training was stopped by a check of its health; saved, `resume` continues it",
    ExitCode.INTERRUPTED: "ended at once: Ctrl-C twice, or where there was nothing to save",
}
"""The one place where exit codes are said; `greenroom --help` shows it."""


def place_of(error: BaseException) -> str:
    """Where in a user's code an exception came from: `" (shop.py, line 12)"`, or nothing if that is not known."""
    installed = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    others = (os.path.dirname(__file__), "<", *installed)
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(others)]
    return f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""


def nearest(word: str, known: Iterable[str]) -> str:
    """`"; did you mean X?"` for the closest known word, else the list of what is known."""
    names = sorted(known)
    alike = [name for name in names if name.lower() == word.lower()]
    close = alike or difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"
