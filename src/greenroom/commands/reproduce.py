"""`greenroom reproduce`: make an environment's failure happen again, where a debugger can see it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from greenroom.display import new_console
from greenroom.errors import ExitCode


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Make an environment's failure happen again, from a file in a run's folder `faults`."""

    fault: Annotated[Path, tyro.conf.Positional]
    """The file."""
    debug: bool = False
    """Show the traceback of errors that are explained without."""


def reproduce(words: list[str]) -> ExitCode:
    """The command."""
    options = tyro.cli(Reproduce, args=words, prog="greenroom reproduce")
    from greenroom import postmortem

    found = postmortem.reproduce(options.fault)
    console = new_console()

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    if found.traceback:
        say(found.traceback)
    say(f"recorded: {found.recorded}")
    say(f"now:      {found.failure or f'nothing failed in {found.steps} steps'}")
    if not found.exact:
        say(
            "only its last episode could be repeated, with other random numbers: the file does not reach back to a seed"
        )
    say("it is the same failure" if found.same else "it is not the same failure")
    return ExitCode.DONE if found.same else ExitCode.ERROR
