"""The command line: parse, call the Python API, print. A user's mistake is one message and exit code 2 (`ExitCode`)."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from greenroom.algorithms import AlgorithmConfig
from greenroom.commands import live
from greenroom.commands.bench import Bench, bench
from greenroom.commands.doctor import Doctor, doctor
from greenroom.commands.reproduce import Reproduce, reproduce
from greenroom.config import KINDS, SEAMS, RunConfig, component, load_file, narrowed, parse_yaml, widened
from greenroom.envs.faults import traceback_of
from greenroom.errors import EXIT_CODES, EnvironmentFault, ExitCode, UserError, nearest
from greenroom.networks import NetworkConfig
from greenroom.optim import OptimizerConfig
from greenroom.presets import PRESETS, preset

if TYPE_CHECKING:
    from greenroom.outcome import Outcome

_MARKERS = (tyro.conf.OmitArgPrefixes,)


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a policy, from scratch.

    The environment's own arguments are given as `--env.NAME VALUE` (see `greenroom list ENV`).
    """

    env: Positional[str]
    """A name of `greenroom list`, a Gymnasium id, or package.module:factory; by default --config's, or lost-sales."""
    algo: str | None = None
    """The algorithm: a name of `greenroom list`, or your own package.module:Class; by default the preset's."""
    preset: Literal[tuple(PRESETS)] | None = None  # type: ignore[valid-type]  # the table is the one place of names
    """Settings to start from; by default those of the environment's family."""
    network: str | None = None
    """The network: a name of `greenroom list`, or your own package.module:Class; by default the preset's."""
    optimizer: str | None = None
    """The optimiser: a name of `greenroom list`, or your own package.module:Class; by default the preset's."""
    config: Path | None = None
    """A config.yaml to start from, instead of a preset."""
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
        The exit code, an `ExitCode`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does: a user's own module may lie in the current directory
    errors = Console(stderr=True)
    if not words or words[0] in ("-h", "--help"):
        _print_usage()
        return ExitCode.DONE
    try:
        name, rest = words[0], words[1:]
        if name not in _COMMANDS:
            raise UserError(f"no command {name!r}{nearest(name, _COMMANDS)}")
        return _COMMANDS[name][1](rest) or ExitCode.DONE
    except (UserError, OSError) as problem:
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


def _train(words: list[str]) -> ExitCode:
    options = _run_options(Train, words, "greenroom train")
    from greenroom.session import launch

    return _show(launch(options.run, run_dir=options.run_dir, quiet=options.quiet, profile=options.profile))


def _doctor(words: list[str]) -> None:
    doctor(words, lambda: _run_options(Doctor, words, "greenroom doctor"))


def _run_options(command: type, words: list[str], prog: str) -> Any:
    """The options of a command with a `run` and an `env`, which is put into the run's configuration."""
    own, words = _environment_arguments(words)
    defaults = narrowed(_run_defaults(command, words, own))
    options = widened(tyro.cli(type(defaults), args=words, default=defaults, prog=prog, config=_MARKERS))
    return dataclasses.replace(options, run=dataclasses.replace(options.run, env=options.env))


def _run_defaults(command: type, words: list[str], own: dict[str, Any]) -> Any:
    """The options' defaults depend on some of the options: read those first, leave all errors to the real parser."""
    chosen, env = _first_reading(command, words)
    config = _start(env, chosen)
    if own:
        config = dataclasses.replace(config, env_kwargs=config.env_kwargs | own)
    if chosen.network:
        policy = dataclasses.replace(config.policy, network=component(NetworkConfig, chosen.network)())
        config = dataclasses.replace(config, policy=policy)
    if chosen.optimizer:
        optimizer = component(OptimizerConfig, chosen.optimizer)()
        algorithm: Any = config.algorithm
        config = dataclasses.replace(config, algorithm=dataclasses.replace(algorithm, optimizer=optimizer))
    return command(env=config.env, run=config)


_CHOICES = {"--algo": AlgorithmConfig, "--network": NetworkConfig, "--optimizer": OptimizerConfig}
"""The options that choose a component, and so which other options there are."""


def _components(words: list[str]) -> list[type]:
    """Components of the user's own that the words name."""
    found: list[type] = []
    for word, following in itertools.pairwise([*words, ""]):
        option, equals, value = word.partition("=")
        name = value if equals else following
        if option in _CHOICES and ":" in name:
            found.append(component(_CHOICES[option], name))
    return found


def _first_reading(command: type, words: list[str]) -> tuple[argparse.Namespace, str | None]:
    """The options' values as words, and the environment: the word that is neither an option nor an option's value."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    choices: dict[str, list[str]] = {}
    for kind in _with_parts(command, *KINDS.values(), *_components(words)):
        for name, hint in typing.get_type_hints(kind).items():
            if name in choices or name == "env":
                continue
            choices[name] = _choices(hint)
            if hint is bool:
                first.add_argument(_option(name), action=argparse.BooleanOptionalAction)
            else:
                first.add_argument(_option(name), nargs="*" if typing.get_origin(hint) is tuple else None)
    try:
        chosen, rest = first.parse_known_args([_dashed(word) for word in words])
    except argparse.ArgumentError as problem:
        raise UserError(f"{problem}; see greenroom train --help") from problem
    for name, known in choices.items():
        given = getattr(chosen, name)
        for value in given if isinstance(given, list) else [given]:
            if known and value is not None and value not in known:
                raise UserError(f"{_option(name)}: {value!r} is not a valid value{nearest(value, known)}")
    return chosen, next((word for word in rest if not word.startswith("-")), None)


def _with_parts(*kinds: Any) -> list[type]:
    """The dataclasses, and those that their fields hold."""
    found: list[type] = []
    for kind in kinds:
        parts = [hint for hint in typing.get_type_hints(kind).values() if dataclasses.is_dataclass(hint)]
        found += [kind, *_with_parts(*parts)]
    return found


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _dashed(word: str) -> str:
    """`--total_steps=5` as `--total-steps=5`, which the real parser takes too."""
    name, equals, value = word.partition("=")
    return _option(name[2:]) + equals + value if name.startswith("--") else word


def _choices(hint: Any) -> list[str]:
    """The words that an option of type `hint` takes; empty if there are too many to list."""
    if typing.get_origin(hint) is Literal:
        return list(typing.get_args(hint))
    return [word for part in typing.get_args(hint) for word in _choices(part)]


def _start(env: str | None, chosen: argparse.Namespace) -> RunConfig:
    if chosen.config is None:
        return preset(chosen.preset, env or "lost-sales", algo=chosen.algo)
    if chosen.preset is not None or chosen.algo is not None:
        raise UserError("--config sets everything; leave out --preset and --algo")
    config = load_file(Path(chosen.config))
    return config if env is None else dataclasses.replace(config, env=env)


def _environment_arguments(words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Take `--env.NAME VALUE` and `--env.NAME=VALUE` out of the words; values are read as YAML."""
    own: dict[str, Any] = {}
    rest: list[str] = []
    queue = iter(words)
    for word in queue:
        if not word.startswith("--env."):
            rest.append(word)
            continue
        name, equals, text = word.removeprefix("--env.").partition("=")
        value = text if equals else next(queue, None)
        if value is None or not name:
            raise UserError(f"{word} needs a name and a value: --env.NAME VALUE")
        own[name.replace("-", "_")] = parse_yaml(value, f"--env.{name}")
    return own, rest


def _show(outcome: Outcome) -> ExitCode:
    console = Console()

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    if outcome.evaluation is not None:
        console.print(outcome.evaluation.table())
    if outcome.comparison is not None:
        console.print(outcome.comparison.table())
    say(f"run folder: {outcome.folder.path}")
    if outcome.finished:
        say(f"curve:      {outcome.folder.curve}")
    if outcome.ending is not None:
        say(f"stopped early: {outcome.ending.reason}")
        say(f"continue with: greenroom resume {outcome.folder.path}")
    if outcome.unsaved:
        say(f"not saved, for the disk refuses: {outcome.unsaved}")
    return outcome.code


def _resume(words: list[str]) -> ExitCode:
    options = tyro.cli(Resume, args=words, prog="greenroom resume")
    from greenroom.session import resume

    return _show(resume(**{name: value for name, value in vars(options).items() if name != "debug"}))


def _evaluate(words: list[str]) -> None:
    words = ["--no-greedy" if word == "--sample" else word for word in words]
    options = tyro.cli(Evaluate, args=words, prog="greenroom evaluate")
    from greenroom.examination import examine

    report = examine(
        options.run_dir,
        episodes=options.episodes,
        seed=options.seed,
        greedy=options.greedy,
        which=options.checkpoint,
        video=options.video,
    )
    if options.json:
        print(json.dumps(report.to_json()))
        return
    console = Console()
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
        Console().print(result.table())


def _list(words: list[str]) -> None:
    options = tyro.cli(List, args=words, prog="greenroom list")
    from greenroom.envs.choose import list_environments

    console = Console()
    if options.env:
        console.print(_arguments_of(options.env))
        return
    for stage, names in list_environments().items():
        console.print(f"[bold]{stage}[/bold] environments: {', '.join(names)}", highlight=False)
    table = Table("preset", "algorithm", "for", box=None, title="presets", title_justify="left")
    for name, entry in PRESETS.items():
        table.add_row(name, entry.algo, entry.about)
    for option, seam in _CHOICES.items():
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
    console = Console()
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
