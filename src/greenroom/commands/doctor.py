"""`greenroom doctor`: an environment and this machine before a run, or the log of a run that there is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rich.console import RenderableType
from tyro.conf import Positional

from greenroom.commands.options import Start
from greenroom.config import RunConfig
from greenroom.display import new_console
from greenroom.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Measure where time goes and find faster options; for a run's folder, explain the run.

    All settings of a run that `greenroom train` takes say what to measure. A run's folder takes only `--json`.
    """

    env: Positional[str]
    """An environment, as for `greenroom train`, or a run's folder."""
    start: Start = field(default_factory=Start)
    """What to start from."""
    budget: float = 40.0
    """About how many seconds to measure for; starting environments, and compiling, comes on top."""
    json: bool = False
    """Print one JSON object and nothing else."""
    debug: bool = False
    """Show the traceback of an error."""
    run: RunConfig
    """All further settings."""

    def __post_init__(self) -> None:
        if not self.budget > 0:
            raise UserError(f"--budget must be greater than 0, not {self.budget}")


def doctor(words: list[str], options: Callable[[], Doctor]) -> None:
    """Run the command.

    Args:
        words: what stands behind `greenroom doctor`; a folder's name comes first.
        options: reads them as those of a run to measure.
    """
    given_words = [word for word in words if word not in ("--json", "--debug")]
    if given_words and Path(given_words[0]).is_dir():
        folder, *more = given_words
        if more:
            raise UserError(f"a run's folder takes only --json, not {' '.join(more)}")
        from greenroom.doctor.history import explain

        _show(explain(folder), as_json="--json" in words)
        return
    chosen = options()
    from greenroom.doctor.diagnosis import diagnose
    from greenroom.doctor.silence import silenced
    from greenroom.measure import say_nothing

    with silenced() as silence:
        say = say_nothing if chosen.json else silence.say
        found = diagnose(chosen.run, seconds=chosen.budget, say=say)
    _show(found, as_json=chosen.json)


class _Findings(Protocol):
    """What either kind of examination comes to."""

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        ...

    def report(self) -> RenderableType:
        """For the terminal."""
        ...


def _show(findings: _Findings, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(findings.to_json()))
    else:
        new_console().print(findings.report())
