"""Which arguments of its own an environment takes: what `--env.NAME` may name."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import docstring_parser

from greenroom.envs.ale import AleConfig, rom_of
from greenroom.envs.device import model_of
from greenroom.envs.envpool import options_of
from greenroom.envs.factory import Factory
from greenroom.envs.native import native_for


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """One argument of an environment."""

    name: str
    default: str
    """As text; empty where there is none."""
    about: str
    """What it means, where the environment documents it."""


def arguments_of(env: str) -> list[Argument]:
    """The arguments of the environment `env`.

    Raises:
        UserError: there is no such environment.
    """
    if (maker := model_of(env)) is not None:
        return _of(maker)
    native = native_for(env)
    if native == "ale":
        rom_of(env)  # whether there is such a game
        return _of(AleConfig)
    if native == "envpool":
        return [Argument(name=name, default=str(value), about="") for name, value in options_of(env).items()]
    return _of(Factory(env=env).signature)


def _of(maker: Callable[..., Any]) -> list[Argument]:
    documented = docstring_parser.parse_from_object(maker)
    about = {param.arg_name: " ".join((param.description or "").split()) for param in documented.params}
    defaults = {name: parameter.default for name, parameter in inspect.signature(maker).parameters.items()}
    if dataclasses.is_dataclass(maker):
        defaults = {field.name: field.default for field in dataclasses.fields(maker)}
    nothing = (inspect.Parameter.empty, dataclasses.MISSING)
    return [
        # By identity: an array may be a default, and compares with nothing as one value.
        Argument(
            name=name,
            default="" if any(value is none for none in nothing) else str(value),
            about=about.get(name, ""),
        )
        for name, value in defaults.items()
        if name not in ("args", "kwargs")
    ]
