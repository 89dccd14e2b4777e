"""The command line: parse, call the Python API, print. A user's mistake is one message and exit code 2 (`ExitCode`)."""

from __future__ import annotations

import io
import json
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from rich.table import Table
from tyro.conf import Positional

from greenroom.commands import live
from greenroom.commands.bench import Bench, bench
from greenroom.commands.doctor import Doctor, doctor
from greenroom.commands.options import CHOICES, Start, run_options
from greenroom.commands.reproduce import Reproduce, reproduce
from greenroom.config import SEAMS, Device, RunConfig
from greenroom.display import Display, new_console
from greenroom.envs.faults import traceback_of
from greenroom.errors import EXIT_CODES, EnvironmentFault, ExitCode, UserError, nearest
from greenroom.folder import as_word
from greenroom.health.finding import table as findings_table
from greenroom.presets import PRESETS

if TYPE_CHECKING:
    from greenroom.outcome import Outcome


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a policy, from scratch.

    The environment's own arguments are given as `--env.NAME VALUE` (see `greenroom list ENV`).
    """

    env: Positional[str]
    """A name of `greenroom list`, a Gymnasium id, or package.module:factory; by default --config's, or lost-sales."""
    start: Start = field(default_factory=Start)
    """What to start from."""
    run_dir: Path | None = None
    """The run's folder, new or empty; by default a new one under runs/."""
    profile: bool = False
    """Record a few updates into the run's profile.json, which https://ui.perfetto.dev opens."""
    quiet: bool = False
    """Print nothing while training."""
    debug: bool = False
    """Show the traceback of an error."""
    run: RunConfig
    """All further settings."""


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Continue a run from its newest checkpoint."""

    run_dir: Positional[Path]
    """The run's folder."""
    total_steps: int | None = None
    """A new end, in agent steps."""
    deadline: float | None = None
    """A new deadline, in wall-clock seconds of the whole run; 0: none."""
    cost_budget: float | None = None
    """A new limit to what the whole run may cost; 0: none."""
    device: Device | None = None
    """Where the learner computes from now on, if not where it did."""
    quiet: bool = False
    """Print nothing while training."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Play whole episodes with a trained policy and summarise their returns."""

    run_dir: Positional[Path]
    """The run's folder."""
    episodes: int = 100
    """How many episodes."""
    seed: int = 0
    """Of the episodes and the sampled actions."""
    greedy: bool = True
    """Take the most probable action. `--sample` is the same as `--no-greedy`."""
    checkpoint: str = "latest"
    """Which one to load: `latest`, `best` (by its evaluation), or its name."""
    video: bool = False
    """Record one episode into the run's folder."""
    device: Device | None = None
    """Where the policy computes, if not where it was trained."""
    json: bool = False
    """Print one JSON object and nothing else."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Put runs, or groups of runs that differ only in their seed, side by side."""

    runs: Positional[tuple[str, ...]]
    """Run folders, or NAME=FOLDER,FOLDER,… for a group."""
    reference: float | None = None
    """The return that counts as 100 %; by default the best final mean."""
    output: Path | None = None
    """Where the picture of the curves goes."""
    json: bool = False
    """Print one JSON object and nothing else."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True, kw_only=True)
class List:
    """Show environments, algorithms and presets, or one environment's own arguments."""

    env: Positional[str] = ""
    """An environment whose arguments to show."""
    debug: bool = False
    """Show the traceback of an error."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code, an `ExitCode`; 141 if nobody reads the output to its end.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    _heed_output()
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does: a user's own module may lie in the current directory
    errors = new_console(stderr=True)
    if not words or words[0] in ("-h", "--help"):
        _print_usage()
        return ExitCode.DONE
    try:
        name, rest = words[0], words[1:]
        if name not in _COMMANDS:
            raise UserError(f"no command {name!r}{nearest(name, _COMMANDS)}")
        code = _COMMANDS[name][1](rest) or ExitCode.DONE
        sys.stdout.flush()
        return code
    except (UserError, OSError) as problem:
        if isinstance(problem, BrokenPipeError) and _reader_has_left():
            # Python itself would complain of what is left to be written.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        if "--debug" in words:
            raise
        if isinstance(problem, EnvironmentFault) and (own := traceback_of(problem)):
            errors.print(own, markup=False, highlight=False, soft_wrap=True)
        errors.print(f"greenroom: {problem}", style="red", markup=False, highlight=False, soft_wrap=True)
        return ExitCode.ERROR
    except KeyboardInterrupt:
        if "--debug" in words:
            raise
        errors.print("greenroom: interrupted", style="red")
        return ExitCode.INTERRUPTED


def _heed_output() -> None:
    """Standard output may be closed, or know less letters than we use: that spoils no command."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # for as long as the process lives
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _reader_has_left() -> bool:
    """Whether standard output is a pipe that nobody reads any more, as after `head`; other pipes may break, too."""
    look = select.poll()
    look.register(sys.stdout.fileno(), 0)  # errors are told without being asked for
    return bool(look.poll(0))


def _train(words: list[str]) -> ExitCode:
    options = run_options(Train, words, "greenroom train")
    from greenroom.session import launch

    return _show(launch(options.run, run_dir=options.run_dir, quiet=options.quiet, profile=options.profile))


def _doctor(words: list[str]) -> None:
    doctor(words, lambda: run_options(Doctor, words, "greenroom doctor"))


def _show(outcome: Outcome) -> ExitCode:
    console = new_console()

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    if outcome.evaluation is not None:
        console.print(outcome.evaluation.table())
    if outcome.comparison is not None:
        console.print(outcome.comparison.table())
    if outcome.findings:
        console.print(findings_table(outcome.findings))
    say(f"run folder: {outcome.folder.path}")
    if outcome.finished:
        say(f"curve:      {outcome.folder.curve}")
    if outcome.ending is not None:
        say(f"stopped early: {outcome.ending.reason}")
        say(f"continue with: greenroom resume {as_word(outcome.folder.path)}")
    if outcome.unsaved:
        say(f"not saved, for the disk refuses: {outcome.unsaved}")
    return outcome.code


def _resume(words: list[str]) -> ExitCode:
    options = tyro.cli(Resume, args=words, prog="greenroom resume")
    from greenroom.session import resume

    return _show(
        resume(
            options.run_dir,
            total_steps=options.total_steps,
            deadline=options.deadline,
            cost_budget=options.cost_budget,
            device=options.device,
            quiet=options.quiet,
        )
    )


def _evaluate(words: list[str]) -> None:
    words = ["--no-greedy" if word == "--sample" else word for word in words]
    options = tyro.cli(Evaluate, args=words, prog="greenroom evaluate")
    from greenroom.examination import examine

    with Display(options.episodes, quiet=options.json) as display:
        report = examine(
            options.run_dir,
            episodes=options.episodes,
            seed=options.seed,
            greedy=options.greedy,
            which=options.checkpoint,
            video=options.video,
            device=options.device,
            on_progress=display.evaluating,
        )
    if options.json:
        print(json.dumps(report.to_json()))
        return
    console = new_console()
    console.print(report.evaluation.table())
    if report.comparison is not None:
        console.print(report.comparison.table())
    if report.video is not None:
        console.print(f"video: {report.video}", markup=False, highlight=False, soft_wrap=True)


def _compare(words: list[str]) -> None:
    options = tyro.cli(Compare, args=words, prog="greenroom compare")
    from greenroom.comparison import compare

    result = compare(options.runs, reference=options.reference, output=options.output)
    if options.json:
        print(json.dumps(result.to_json()))
    else:
        new_console().print(result.table())


def _list(words: list[str]) -> None:
    options = tyro.cli(List, args=words, prog="greenroom list")
    from greenroom.envs.choose import list_environments

    console = new_console()
    if options.env:
        console.print(_arguments_of(options.env))
        return
    for stage, names in list_environments().items():
        console.print(f"[bold]{stage}[/bold] environments: {', '.join(names)}", highlight=False)
    table = Table("preset", "algorithm", "for", box=None, title="presets", title_justify="left")
    for name, entry in PRESETS.items():
        table.add_row(name, entry.algo, entry.about)
    for option, seam in CHOICES.items():
        known = ", ".join(SEAMS[seam])
        console.print(f"[bold]{option}[/bold]: {known}, or your own: package.module:Class", highlight=False)
    console.print(table)


def _arguments_of(env: str) -> Table:
    """An environment's own arguments with defaults, and their meaning where the environment documents it."""
    from greenroom.envs.arguments import arguments_of

    table = Table("option", "default", "meaning", box=None)
    for argument in arguments_of(env):
        table.add_row(f"--env.{argument.name}", argument.default, argument.about)
    return table


_COMMANDS: dict[str, tuple[type, Callable[[list[str]], ExitCode | None]]] = {
    "train": (Train, _train),
    "resume": (Resume, _resume),
    "evaluate": (Evaluate, _evaluate),
    "compare": (Compare, _compare),
    "list": (List, _list),
    "doctor": (Doctor, _doctor),
    "bench": (Bench, bench),
    "reproduce": (Reproduce, reproduce),
    **live.COMMANDS,
}
"""Name → its options, and what it does with the words after its name: None, if it went well, is `ExitCode.DONE`."""


def _print_usage() -> None:
    console = new_console()
    console.print("greenroom COMMAND …   (greenroom COMMAND --help tells its options)\n", markup=False)
    table = Table(box=None, show_header=False)
    for name, (options, _) in _COMMANDS.items():
        table.add_row(name, (options.__doc__ or "").split("\n")[0])
    console.print(table)
    console.print("\nexit codes:")
    codes = Table(box=None, show_header=False)
    for code, meaning in EXIT_CODES.items():
        codes.add_row(str(int(code)), meaning)
    console.print(codes)
