"""Measurements in processes of their own: a script trains, and the last line that it prints is one JSON object."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a script measured."""

    steps: int
    """Agent steps that were counted."""
    seconds: float
    """How long they took, learning included."""
    version: str
    """Of the package that was measured."""
    setting: str
    """In words, how it was run."""
    more: Mapping[str, float] = field(default_factory=dict)
    """What else it measured, by name."""

    @property
    def steps_per_second(self) -> float:
        """Agent steps a second."""
        return self.steps / self.seconds


def ask(
    command: Sequence[str], *, limit: float, text: str = "", environment: Mapping[str, str] | None = None
) -> Answer | str:
    """Run a script that measures: its answer, or why there is none. See `told`."""
    found = told(command, limit=limit, text=text, environment=environment)
    try:
        return found if isinstance(found, str) else Answer(**found)
    except TypeError:
        return f"its last line is no answer: {json.dumps(found)!r}"


def in_turn(
    asks: Mapping[Name, Callable[[], Answer | str]], repeats: int
) -> tuple[dict[Name, list[Answer]], dict[Name, str]]:
    """Ask everybody in turn, as often as `repeats`: all answers of each, and why others gave none or no more.

    Who has failed once is not asked again: a failure may take minutes.
    """
    answers: dict[Name, list[Answer]] = {name: [] for name in asks}
    reasons: dict[Name, str] = {}
    for _ in range(repeats):
        for name in [name for name in asks if name not in reasons]:
            answer = asks[name]()
            if isinstance(answer, str):
                reasons[name] = answer
            else:
                answers[name].append(answer)
    return answers, reasons


def told(
    command: Sequence[str], *, limit: float, text: str = "", environment: Mapping[str, str] | None = None
) -> dict[str, Any] | str:
    """Run a script to its end.

    Args:
        command: the script and its words.
        limit: seconds after which it is ended, and with it all processes that it started.
        text: its standard input.
        environment: variables to add to this process's own.

    Returns:
        The JSON object that its last line is, or why there is none.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=os.environ | dict(environment or {}),
            start_new_session=True,
        )
    except OSError as problem:
        return f"{command[0]} cannot be run: {problem.strerror}"
    try:
        out, err = process.communicate(text, timeout=limit)
    except subprocess.TimeoutExpired:
        return f"no answer within {limit:.0f} s"
    finally:
        _end(process)
    if process.returncode:
        return _last(err) or f"it ended with code {process.returncode} and said nothing"
    try:
        found = json.loads(_last(out))
    except ValueError:
        found = None
    return found if isinstance(found, dict) else f"its last line is no answer: {_last(out)!r}"


def _end(process: subprocess.Popen[str]) -> None:
    """End what is left of a script and of what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _last(text: str) -> str:
    """The last line that says something."""
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""
