"""Which environments have a C++ vector of their own, and how to start it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from greenroom.envs.ale import AleConfig, AleEnvironment
from greenroom.envs.base import Environment
from greenroom.envs.envpool import PREFIX, EnvPoolEnvironment
from greenroom.envs.faults import BY_DEFAULT, FaultConfig
from greenroom.errors import UserError, nearest


def native_for(env: str) -> str | None:
    """The name of the C++ vector that steps `env`: "ale", "envpool", or None where there is none."""
    if env.startswith("ALE/"):
        return "ale"
    if env.startswith(PREFIX):
        return "envpool"
    return None


def make_native(
    env: str, num_envs: int, num_threads: int, kwargs: Mapping[str, object], faults: FaultConfig = BY_DEFAULT
) -> Environment:
    """Start the native stage of `env`.

    Args:
        env: "ALE/Pong-v5", "ALE/Pong", "envpool:CartPole-v1", …
        num_envs: B.
        num_threads: C++ threads; 0 takes one for each core.
        kwargs: the environment's own options: fields of `AleConfig`, or EnvPool's configuration.
        faults: what to do about an EnvPool environment whose numbers are none; a game's pictures and scores always are.

    Raises:
        UserError: no native stage for `env`, an unknown game or option, a bad value, something not installed, or games
            that are to be started anew when they fail.
    """
    match native_for(env):
        case "ale":
            if faults.restarts:
                raise UserError(
                    "the Atari emulator has no failures of single games: where it crashes, it takes the process along, "
                    "and greenroom resume goes on; leave out --on-env-error restart"
                )
            return AleEnvironment(env, num_envs, ale_config(kwargs), num_threads=num_threads)
        case "envpool":
            return EnvPoolEnvironment(env, num_envs, kwargs, num_threads=num_threads, faults=faults)
        case _:
            raise UserError(f"{env!r} has no native stage; ids are ALE/NAME-v5 and {PREFIX}NAME. Use --stage auto")


def ale_config(kwargs: Mapping[str, object]) -> AleConfig:
    """Options by name to a checked `AleConfig`.

    Raises:
        UserError: unknown option, or a value of a wrong type or range.
    """
    known = [field.name for field in fields(AleConfig)]
    for name in kwargs:
        if name not in known:
            raise UserError(f"an Atari game has no option {name!r}" + nearest(name, known))
    return AleConfig(**kwargs)  # type: ignore[arg-type]  # AleConfig checks the types itself
