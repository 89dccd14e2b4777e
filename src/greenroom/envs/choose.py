"""`make`: build the environments on the stage that suits them, and say which and why in one line."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import gymnasium
import numpy as np
import torch

from greenroom.envs.base import Environment, Stage
from greenroom.envs.board import Board
from greenroom.envs.factory import Factory, Source, unknown
from greenroom.envs.faults import BY_DEFAULT, FaultConfig
from greenroom.envs.gym import Cast
from greenroom.envs.spaces import ActionForm, Array
from greenroom.errors import EnvironmentFault, UserError, nearest
from greenroom.machine import FreeCores, available_cores

_STAGES: tuple[Stage, ...] = get_args(Stage)
IN_PROCESSES = ("workers", "joint")

_MEASURE_SECONDS = 0.4  # hard limit of the measurement; a step that takes longer is measured once
_ENOUGH = (0.1, 200)  # seconds and steps after which a cheap environment is known well enough
_CHEAP_SECONDS, _SEVERAL = 100e-6, 8  # a step below this is measured with so many environments
_SHORT_SECONDS = 2e-3  # a process's share of a batch below which being woken for each would cost too much
_EXCHANGE_SECONDS = {"workers": (60e-6, 20e-6), "joint": (40e-6, 10e-6)}  # once a batch, and what each process adds
_FREE = 0.5  # of each other core that `joint` would use, while the measurement had one
_WORTH_IT = 0.7  # several processes must be expected to need less than this share of the inline time


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A stage and the reason for it."""

    stage: Stage
    reason: str
    num_workers: int = 0

    @property
    def title(self) -> str:
        """What people call it."""
        return f"{self.stage} × {self.num_workers}" if self.stage in IN_PROCESSES else self.stage


def make(
    env: Source,
    *,
    num_envs: int,
    stage: Stage = "auto",
    num_workers: int | None = None,
    kwargs: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    faults: FaultConfig = BY_DEFAULT,
    say: Callable[[str], None] = print,
    alert: Callable[[str], None] | None = None,
    taken_cores: int = 0,
) -> Environment:
    """B environments of one kind, behind the `Environment` protocol.

    With `stage="auto"`, a batched environment runs on the device and an Atari game on its native stage. Any other is
    built once here and stepped with random actions for at most 0.4 s, and where a step takes under 100 µs, so are up to
    eight of it. Several processes are chosen if the batch is expected to take less than 70 % of its time in this one
    alone: `num_envs / num_workers` steps and the exchange, against `num_envs` steps. This process is one of them
    (`joint`, exchange 40 µs + 10 µs a process) if a share takes less than 2 ms, unless other programs had the cores
    meanwhile; longer ones are left to workers (60 µs + 20 µs a worker), which can be told to stop and leave this
    process free. Cores that are taken are not for `joint`, whose processes wait for each other at every step.

    Args:
        env: A name from `list_environments`, a Gymnasium id, `package.module:factory`, or a callable that returns a
            `gymnasium.Env`.
        num_envs: B.
        stage: `auto`, `native`, `workers`, `joint`, `inline` or `device`.
        num_workers: Worker processes (stage `workers`), processes with this one among them (stage `joint`) or threads
            (stage `native`); by default as many as there are cores and as divide `num_envs`. A number given with `auto`
            asks for workers where there is no faster stage.
        kwargs: The environment's own arguments.
        device: Where a device environment lives; other stages live on the CPU.
        faults: What to do about environments that fail. Time limits ask for workers.
        say: Gets one line: which stage, and why.
        alert: Hears at once of a worker that dies while nobody waits for it, as during a long update.
        taken_cores: Cores that something else keeps busy meanwhile, such as a learner.

    Raises:
        UserError: Unknown environment, stage or argument, a missing package, or numbers that do not divide.
    """
    given = dict(kwargs or {})
    if num_envs < 1:
        raise UserError(f"num_envs must be at least 1, not {num_envs}")
    if num_workers is not None and num_workers < 1:
        raise UserError(f"num_workers must be at least 1, not {num_workers}")
    if num_workers is None and faults.limited:  # only a worker can be told to stop
        num_workers = largest_divisor(num_envs, available_cores())
    choice = choose(env, num_envs, stage, num_workers, given, faults, taken_cores)
    _check_faults(faults, choice.stage)
    environment = _build(env, choice, num_envs, given, device, faults, alert, taken_cores)
    say(f"stage: {choice.title} ({choice.reason})")
    return environment


def _check_faults(faults: FaultConfig, stage: Stage) -> None:
    """Refuse what a stage cannot do for environments that fail."""
    if stage != "workers" and faults.limited:
        raise UserError(
            f"--step-timeout and --reset-timeout need --stage workers; on stage {stage} nothing could end a step"
        )


def list_environments() -> dict[str, list[str]]:
    """Names that `make` knows without further ado, by stage; any importable `package.module:factory` works besides."""
    from greenroom.envs.device import DEVICE_ENVIRONMENTS
    from greenroom.envs.native import native_for

    try:
        import ale_py

        gymnasium.register_envs(ale_py)
    except ImportError:
        pass
    ids = sorted(gymnasium.registry)
    return {
        "device": sorted(DEVICE_ENVIRONMENTS),
        "native": [name for name in ids if native_for(name)],
        # Less Gymnasium's 250 older names for the native games.
        "gymnasium": [i for i in ids if not str(gymnasium.registry[i].entry_point).startswith("ale_py")],
    }


def choose(
    env: Source,
    num_envs: int,
    stage: Stage,
    num_workers: int | None,
    kwargs: Mapping[str, Any],
    faults: FaultConfig = BY_DEFAULT,
    taken_cores: int = 0,
) -> Choice:
    """The stage that `make` would build for the same arguments."""
    if stage not in _STAGES:
        raise UserError(f"unknown stage {stage!r}{nearest(stage, _STAGES)}")
    best = _only_stage(env)
    if stage == "auto" and best:
        return Choice(stage=best.stage, reason=best.reason, num_workers=num_workers or 0)
    if best and best.stage == "device" and stage != "device":
        raise UserError(f"{env!r} is a device environment; use --stage device or auto, not {stage}")
    if stage in IN_PROCESSES or (stage == "auto" and num_workers is not None):
        asked = num_workers or largest_divisor(num_envs, available_cores())
        return Choice(stage="workers" if stage == "auto" else stage, reason="as asked", num_workers=asked)
    if stage != "auto":
        return Choice(stage=stage, reason="as asked", num_workers=num_workers or 0)
    return _by_measurement(Factory(env=env, kwargs=kwargs), num_envs, faults, taken_cores)


def _only_stage(env: Source) -> Choice | None:
    """The stage of an environment that needs no measurement."""
    from greenroom.envs.device import model_of
    from greenroom.envs.native import native_for

    if model_of(env):
        return Choice(stage="device", reason="written as batched tensor code")
    if not isinstance(env, str):
        return None
    if ":" not in env and not native_for(env) and env not in gymnasium.registry:
        raise unknown(env, (name for names in list_environments().values() for name in names))
    native = native_for(env)
    return Choice(stage="native", reason=f"{native} steps it in C++ threads") if native else None


def _by_measurement(factory: Factory, num_envs: int, faults: FaultConfig = BY_DEFAULT, taken_cores: int = 0) -> Choice:
    cores, free = available_cores(), FreeCores()
    try:
        seconds = measure_step(factory, num_envs, faults)
    except EnvironmentFault as error:
        hint = "it failed while a stage was chosen; with --stage inline a run would keep what makes it happen again"
        error.args = (f"{error} ({hint})",)
        raise
    unused = free.mean()
    inline = seconds * num_envs
    cost = f"one {factory.name} step takes {_time(seconds)}"
    usable = cores - taken_cores
    shared: Stage = "joint" if inline / largest_divisor(num_envs, usable) < _SHORT_SECONDS else "workers"
    if shared == "workers":  # who sleeps until woken can share a core
        usable = cores
    num_workers = largest_divisor(num_envs, usable)
    if num_workers == 1:
        few = f"there is one core{' to spare' if cores > 1 else ''}"
        why = few if usable <= 1 else f"no number of workers up to {usable} divides {num_envs} environments"
        return Choice(stage="inline", reason=f"{cost}; {why}")
    share = inline / num_workers
    once, each = _EXCHANGE_SECONDS[shared]
    together = share + once + each * num_workers
    where = f"{num_workers} {'processes' if shared == 'joint' else 'workers'}"
    expected = f"{cost}; {num_envs} take {_time(inline)} here, about {_time(together)} in {where}"
    stage = shared if together < _WORTH_IT * inline else "inline"
    # Who steps short batches with others waits for them at every step: for long, where programs share their cores.
    if stage == "joint" and unused is not None and unused < _FREE * (num_workers - 1):
        return Choice(stage="inline", reason=f"{expected}, but other programs have the cores")
    return Choice(stage=stage, reason=expected, num_workers=num_workers)


def measure_step(factory: Factory, num_envs: int = 1, faults: FaultConfig = BY_DEFAULT) -> float:
    """Seconds that one step of one of `num_envs` takes, with random actions, checks and resets included.

    What costs the same for one as for many is not counted for each: where it matters, because a step is cheap, several
    are measured.
    """
    seconds = _measure(factory, 1, faults)
    several = min(num_envs, _SEVERAL)
    return _measure(factory, several, faults) if seconds < _CHEAP_SECONDS and several > 1 else seconds


def _measure(factory: Factory, num_envs: int, faults: FaultConfig) -> float:
    cast = Cast(factory, 0, num_envs, faults)
    try:
        board = Board(cast.layout, num_envs=num_envs, num_workers=0)
        cast.enter(board)
        cast.reset(range(num_envs))
        rng, steps = np.random.default_rng(0), 0
        mask = None if cast.layout.mask is None else board.obs[cast.layout.mask]
        spent, begin = 0.0, time.perf_counter()
        while True:
            for index in range(num_envs):
                row = None if mask is None else mask[index]
                board.action[index] = _random_action(cast.layout.action, row, rng)
            drawn = time.perf_counter()  # not the environment's time: a policy draws for all at once
            for _ in cast.step():
                pass
            now = time.perf_counter()
            spent, steps, elapsed = spent + now - drawn, steps + num_envs, now - begin
            if elapsed > _MEASURE_SECONDS or (elapsed > _ENOUGH[0] and steps > _ENOUGH[1]):
                return spent / steps
    finally:
        cast.close()


def _random_action(form: ActionForm, mask: Array | None, rng: np.random.Generator) -> Array:
    """One action for a row of the board; `mask` is `[sum(count)]`."""
    if form.low:
        return rng.uniform(form.low, form.high).reshape(form.shape)
    if mask is None:
        return rng.integers(form.count).reshape(form.shape)
    allowed = [np.flatnonzero(part) for part in np.split(mask, np.cumsum(form.count)[:-1])]
    return np.array([which[rng.integers(len(which))] for which in allowed]).reshape(form.shape)


def largest_divisor(num_envs: int, limit: int) -> int:
    """The largest number of workers up to `limit` that share `num_envs` environments evenly."""
    return max(count for count in range(1, min(num_envs, max(limit, 1)) + 1) if num_envs % count == 0)


def _build(
    env: Source,
    choice: Choice,
    num_envs: int,
    kwargs: dict[str, Any],
    device: torch.device | str,
    faults: FaultConfig,
    alert: Callable[[str], None] | None,
    taken_cores: int,
) -> Environment:
    if choice.stage == "inline":
        from greenroom.envs.inline import InlineEnvironment

        return InlineEnvironment(env, num_envs=num_envs, kwargs=kwargs, faults=faults)
    if choice.stage in IN_PROCESSES:
        from greenroom.envs.workers import WorkersEnvironment

        return WorkersEnvironment(
            env,
            num_envs=num_envs,
            num_workers=choice.num_workers,
            joint=choice.stage == "joint",
            kwargs=kwargs,
            faults=faults,
            alert=alert,
            taken_cores=taken_cores,
        )
    if choice.stage == "device":
        from greenroom.envs.device import make_device

        return make_device(env, num_envs, kwargs, device, faults)
    if not isinstance(env, str):
        raise UserError("a callable cannot run on stage native; use --stage inline, workers or auto")
    from greenroom.envs.native import make_native

    return make_native(env, num_envs, choice.num_workers, kwargs, faults)


def _time(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
