"""The options of commands that build a run: some of them say which others there are, and what their defaults are."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from greenroom.algorithms import AlgorithmConfig
from greenroom.config import KINDS, RunConfig, by_default, component, load_file, narrowed, parse_yaml, widened
from greenroom.errors import UserError, nearest
from greenroom.networks import NetworkConfig
from greenroom.optim import OptimizerConfig
from greenroom.presets import PRESETS, preset


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a run's settings start from."""

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


def run_options(command: type, words: list[str], prog: str) -> Any:
    """The options of a command with a `run` and an `env`, which is put into the run's configuration."""
    own, words = _environment_arguments(words)
    defaults = narrowed(_run_defaults(command, words, own))
    options = widened(
        tyro.cli(type(defaults), args=words, default=defaults, prog=prog, config=(tyro.conf.OmitArgPrefixes,))
    )
    return dataclasses.replace(options, run=dataclasses.replace(options.run, env=options.env))


def _run_defaults(command: type, words: list[str], own: dict[str, Any]) -> Any:
    """The options' defaults depend on some of the options: read those first, leave all errors to the real parser."""
    chosen, env = _first_reading(command, words)
    config = _start(env, chosen)
    if own:
        config = dataclasses.replace(config, env_kwargs=config.env_kwargs | own)
    if chosen.network:
        policy = dataclasses.replace(config.policy, network=by_default(component(NetworkConfig, chosen.network)))
        config = dataclasses.replace(config, policy=policy)
    if chosen.optimizer:
        optimizer = by_default(component(OptimizerConfig, chosen.optimizer))
        algorithm: Any = config.algorithm
        config = dataclasses.replace(config, algorithm=dataclasses.replace(algorithm, optimizer=optimizer))
    return command(env=config.env, run=config)


CHOICES = {"--algo": AlgorithmConfig, "--network": NetworkConfig, "--optimizer": OptimizerConfig}
"""The options that choose a component, and so which other options there are."""


def _components(words: list[str]) -> list[type]:
    """Components of the user's own that the words name."""
    found: list[type] = []
    for word, following in itertools.pairwise([*words, ""]):
        option, equals, value = word.partition("=")
        name = value if equals else following
        if option in CHOICES and ":" in name:
            found.append(component(CHOICES[option], name))
    return found


def _first_reading(command: type, words: list[str]) -> tuple[argparse.Namespace, str | None]:
    """The options' values as words, and the environment: the word that is neither an option nor an option's value."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    choices: dict[str, list[str]] = {}
    for kind in _with_parts(command, *KINDS.values(), *_components(words)):
        marked = typing.get_type_hints(kind, include_extras=True)
        for name, hint in typing.get_type_hints(kind).items():
            if name in choices or name == "env":
                continue
            choices[name] = _choices(hint)
            if hint is bool:
                first.add_argument(_option(name), action=argparse.BooleanOptionalAction)
            elif tyro.conf.UseAppendAction in getattr(marked[name], "__metadata__", ()):
                first.add_argument(_option(name), action="append")  # one word each time
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
