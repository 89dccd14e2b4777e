"""What a sitting came to."""

from __future__ import annotations

from dataclasses import dataclass

from greenroom.baselines import BaselineReport
from greenroom.errors import ExitCode
from greenroom.evaluation import Evaluation
from greenroom.folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Ending:
    """Why a sitting ended before all steps were taken."""

    code: ExitCode
    """What the command ends with."""
    reason: str
    """In words."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a sitting came to."""

    folder: RunFolder
    """Where everything is."""
    finished: bool
    """False if something ended it first; `resume` continues it."""
    ending: Ending | None
    """What ended an unfinished run."""
    unsaved: str
    """What the disk refused to the last: it is lost. Empty if nothing is."""
    evaluation: Evaluation | None
    """The final greedy evaluation of a finished run."""
    comparison: BaselineReport | None
    """Beside the conventional methods, for environments that have some."""

    @property
    def code(self) -> ExitCode:
        """What the command ends with."""
        if self.unsaved:
            return ExitCode.UNSAVED
        return ExitCode.DONE if self.ending is None else self.ending.code
