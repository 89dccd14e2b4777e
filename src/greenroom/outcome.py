"""What a sitting came to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from greenroom import baselines
from greenroom.errors import ExitCode
from greenroom.evaluation import Evaluation
from greenroom.folder import RunFolder, write_json
from greenroom.training import Run


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
    comparison: baselines.BaselineReport | None
    """Beside the conventional methods, for environments that have some."""
    findings: tuple[Mapping[str, Any], ...] = ()
    """The lines of `findings.jsonl`: what was wrong with the run's health, in all its sittings."""

    @property
    def code(self) -> ExitCode:
        """What the command ends with."""
        if self.unsaved:
            return ExitCode.UNSAVED
        return ExitCode.DONE if self.ending is None else self.ending.code


def report(run: Run, folder: RunFolder, say: Callable[[str], None]) -> baselines.BaselineReport | None:
    """Write what a finished run came to into its folder: the curve, and the comparison with conventional methods."""
    from greenroom.plots import learning_curve  # here, for what draws takes a third of a second to import

    config = run.config
    comparison = baselines.report(
        run.algorithm.policy, config.env, config.env_kwargs, seed=config.seed, device=run.device
    )
    try:
        if comparison is not None:
            write_json(folder.path / "baselines.json", comparison.to_json())
        learning_curve(folder.path)
    except OSError as problem:
        say(f"warning: cannot write the report into {folder.path}: {problem}")
    return comparison
