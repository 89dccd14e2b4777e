"""Environments that fail from within: how soon it is noticed, and how soon all of them step again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from faults.leaky import Leaky
from faults.processes import Failure, Place
from greenroom.envs import make
from greenroom.envs.base import Environment, Stage
from greenroom.envs.choose import IN_PROCESSES
from greenroom.envs.device import DEVICE_ENVIRONMENTS
from greenroom.envs.faults import FaultConfig
from greenroom.errors import EnvironmentFault, Fault

DEVICE_ENVIRONMENTS["leaky"] = Leaky
LIMIT = 1.0
"""Seconds that a step may take, where one hangs."""
FAULTS = {
    "raise": "step raises",
    "reset": "reset raises",
    "nan": "an observation is NaN",
    "reward": "a reward is infinite",
    "outside": "an observation lies outside its space",
    "shape": "an observation has another shape",
    "exit": "its process ends",
    "hang": f"a step hangs, limit {LIMIT:g} s",
}
"""Of `flaky.Flaky`, and what people call them."""
_SURVIVABLE = tuple(name for name in FAULTS if name not in ("exit", "hang"))
POSSIBLE: dict[Stage, tuple[str, ...]] = {
    "inline": _SURVIVABLE,  # by this very process
    "workers": tuple(FAULTS),
    "joint": _SURVIVABLE,
    "device": ("nan", "reward"),  # all that can happen to a single row
}
"""Of which stage which of them can be told."""
_ENVS, _MOST = 4, 4000
_PATIENCE = {"hang": LIMIT}
_SOON = 10.0
"""Seconds, beyond what it may take anyway, after which noticing counts as a failure; a busy machine is slow."""


@dataclass(frozen=True, kw_only=True)
class Mishap:
    """One failure of an environment."""

    stage: Stage
    fault: str
    choice: Literal["stop", "restart"]
    seconds: float
    """From the failure to the error that stops the run, or to the step in which all environments are well again."""


def mishaps(
    place: Place, times: int, say: Callable[[str], None], stages: Sequence[Stage] = tuple(POSSIBLE)
) -> list[Mishap]:
    """Let every fault happen so many times on every stage, with either choice.

    Raises:
        Failure: something was not noticed, not named, or left behind.
    """
    found: list[Mishap] = []
    for stage in stages:
        for fault in FAULTS:
            if fault not in POSSIBLE[stage]:
                continue
            found += _stopped(place, stage, fault, times)
            found += _mended(place, stage, fault, times)
            say(f"{stage}: {FAULTS[fault]}")
    return found


def _stopped(place: Place, stage: Stage, fault: str, times: int) -> list[Mishap]:
    found: list[Mishap] = []
    for seed in range(times):
        environment, log = _made(place, stage, fault, "stop", seed)
        try:
            for _ in range(_MOST):
                _step(environment)
            raise Failure(f"{stage}, {fault}: never noticed")
        except EnvironmentFault as error:
            seconds = _since(log)
            _check(stage, error.fault, fault, seconds)
        finally:
            environment.close()
        place.check_empty(())
        found.append(Mishap(stage=stage, fault=fault, choice="stop", seconds=seconds))
    return found


def _mended(place: Place, stage: Stage, fault: str, times: int) -> list[Mishap]:
    found: list[Mishap] = []
    environment, log = _made(place, stage, fault, "restart", 0)
    try:
        for _ in range(_MOST):
            faults = _step(environment)
            for one in faults:
                seconds = _since(log)
                _check(stage, one, fault, seconds)
                found.append(Mishap(stage=stage, fault=fault, choice="restart", seconds=seconds))
            if len(found) >= times:
                break
        else:
            raise Failure(f"{stage}, {fault}: {len(found)} noticed in {_MOST} steps")
    finally:
        environment.close()
    place.check_empty(())
    return found


def _made(
    place: Place, stage: Stage, fault: str, choice: Literal["stop", "restart"], seed: int
) -> tuple[Environment, Path]:
    log = place.path / "failed-at"
    faults = FaultConfig(on_env_error=choice, max_env_restarts=10**6)
    if fault == "hang":
        faults = replace(faults, step_timeout=LIMIT)
    environment = make(
        "leaky" if stage == "device" else "faults.flaky:Flaky",
        num_envs=_ENVS,
        stage=stage,
        num_workers=2 if stage in IN_PROCESSES else None,
        kwargs={"fault": fault, "chance": 0.01, "log": str(log)},
        faults=faults,
        say=lambda line: None,
    )
    environment.reset(seed)
    return environment, log


def _step(environment: Environment) -> tuple[Fault, ...]:
    environment.send(torch.zeros(_ENVS, dtype=torch.int64))
    step = environment.recv()
    obs = step.obs
    if not (isinstance(obs, torch.Tensor) and bool((obs.abs() <= 1.0).all()) and bool(step.reward.isfinite().all())):
        raise Failure("a step that is not well was handed on")
    return step.faults


def _since(log: Path) -> float:
    return time.monotonic() - float(log.read_text())


def _check(stage: Stage, fault: Fault | None, kind: str, seconds: float) -> None:
    explained = fault is not None and (fault.actions or (stage == "device" and "in the state" in fault.what))
    if fault is None or f"environment {fault.index}" not in fault.what or not explained:
        raise Failure(f"{kind}: it was not told which environment failed and how: {fault}")
    if seconds > _PATIENCE.get(kind, 0.0) + _SOON:
        raise Failure(f"{kind}: noticed after {seconds:.1f} s")
