"""The table of suites, and running them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from greenroom.bench.busy import busy
from greenroom.bench.loops import atari, device
from greenroom.bench.peers import peers
from greenroom.bench.promises import promises
from greenroom.bench.report import Findings, Report, Settings
from greenroom.bench.scale import scale
from greenroom.bench.simulators import simulators
from greenroom.errors import UserError, nearest
from greenroom.machine import keep_freed_memory
from greenroom.training import require_cuda


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A set of measurements that belong together."""

    about: str
    measure: Callable[[Settings], Findings]
    seconds: float
    """By default, for each thing that is measured."""
    repeats: int
    """By default, slices of each."""
    learns: bool = True
    """Whether it learns, and so may do that on a GPU."""


SUITES: dict[str, Suite] = {
    "atari": Suite(
        about="Pong with PAAC: the loop beside what environments and learner allow",
        measure=atari,
        seconds=20,
        repeats=10,
    ),
    "simulators": Suite(
        about="Python simulators: greenroom's stages beside Gymnasium's and SB3's vectors",
        measure=simulators,
        seconds=4,
        repeats=5,
        learns=False,
    ),
    "device": Suite(
        about="tasks as tensors with PPO: the loop beside its bound and Stable-Baselines3",
        measure=device,
        seconds=12,
        repeats=6,
    ),
    "scale": Suite(
        about="16 to 4096 actors: time and memory of each; the start of a run", measure=scale, seconds=3, repeats=2
    ),
    "doctor": Suite(
        about="what greenroom doctor foretells beside what its suggestion reaches",
        measure=promises,
        seconds=10,
        repeats=2,
        learns=False,
    ),
    "busy": Suite(
        about="a run beside other programs that keep every core busy", measure=busy, seconds=5, repeats=1, learns=False
    ),
    "peers": Suite(
        about="A2C and PPO beside other frameworks, each at its best", measure=peers, seconds=8, repeats=2, learns=False
    ),
}
"""Name → suite, in the order in which all of them run."""


def find(name: str) -> Suite:
    """The suite of that name.

    Raises:
        UserError: there is none.
    """
    if name not in SUITES:
        raise UserError(f"no suite {name!r}{nearest(name, SUITES)}")
    return SUITES[name]


def settings_for(name: str, *, seconds: float | None, repeats: int | None, device: Literal["cpu", "cuda"]) -> Settings:
    """What a suite is measured with; None takes its own.

    Raises:
        UserError: no such suite, a number out of range, or no GPU where one is asked for.
    """
    suite = find(name)
    if device == "cuda":
        require_cuda()
    if device == "cuda" and not suite.learns:
        raise UserError(f"suite {name} is measured on the CPU only; leave out --device, or the suite")
    return Settings(
        seconds=suite.seconds if seconds is None else seconds,
        repeats=suite.repeats if repeats is None else repeats,
        device=device,
    )


def run(name: str, settings: Settings) -> Report:
    """Measure one suite. Nothing else should run on the machine meanwhile."""
    keep_freed_memory()
    begin = time.perf_counter()
    findings = find(name).measure(settings)
    return Report(suite=name, device=settings.device, findings=findings, seconds=time.perf_counter() - begin)
