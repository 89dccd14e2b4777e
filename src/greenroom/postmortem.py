"""Failures of environments, on file: what happened, and how to make it happen again."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from greenroom.config import RunConfig
from greenroom.envs.board import Board
from greenroom.envs.factory import Factory
from greenroom.envs.faults import FaultConfig, Tolerance, traceback_of
from greenroom.envs.gym import Cast
from greenroom.errors import EnvironmentFault, Fault, UserError
from greenroom.folder import RunFolder, as_word, write_json

_FORMAT = 1


class Postmortems:
    """Keeps a file of every failure in the run's folder, and tells of it.

    Args:
        folder: the run's.
        config: of the run; its environment's name and arguments are in every file.
        say: hears of each failure that was mended.
    """

    def __init__(self, folder: RunFolder, config: RunConfig, say: Callable[[str], None]) -> None:
        self._folder, self._config, self._say = folder, config, say
        self._tolerance = Tolerance(config.faults.max_env_restarts)

    def note(self, faults: Sequence[Fault]) -> None:
        """These were mended.

        Raises:
            EnvironmentFault: of two groups of environments, each of which counts its own, it is one too many.
        """
        for number, fault in enumerate(faults, start=1):
            self._tolerance.count(fault, mended=faults[number:])
            anew = f"started anew, {self._tolerance.failures} of at most {self._config.faults.max_env_restarts} times"
            self._say(f"{fault.what}; {anew}{self._keep(fault)}")

    def conclude(self, error: EnvironmentFault) -> None:
        """This one ends the run: its message also tells where the file is. What was mended just before it is told."""
        for fault in error.mended:
            self._say(f"{fault.what}; started anew{self._keep(fault)}")
        if error.fault is not None:
            error.args = (f"{error}{self._keep(error.fault)}",)

    def _keep(self, fault: Fault) -> str:
        """Write the file; returns what to say of it."""
        folder = self._folder.faults
        try:
            folder.mkdir(exist_ok=True)
            number = 1 + max((int(path.stem) for path in folder.glob("[0-9]*.json")), default=0)
            path = folder / f"{number:04}.json"
            content = {
                "format": _FORMAT,
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "env": self._config.env,
                "env_kwargs": self._config.env_kwargs,
                "check_bounds": self._config.faults.check_bounds,
                **dataclasses.asdict(fault),
                "actions": _finite(fault.actions),
            }
            write_json(path, content)
        except (OSError, TypeError, ValueError) as problem:  # an argument of the environment may be a date, or infinite
            why = getattr(problem, "strerror", None) or problem
            return f"; its history could not be written to {folder}: {why}"
        seed = "restored from a checkpoint" if fault.seed is None else f"seed {fault.seed}"
        where = f"step {fault.step} of its episode {fault.episode + 1} since {seed}"
        if fault.steps and not fault.actions:
            return f" ({where}); on file as {path}"
        return f" ({where}); make it happen again with: greenroom reproduce {as_word(path)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """What came of trying to make a failure happen again."""

    recorded: str
    """What had happened."""
    exact: bool
    """Whether everything since the seed was done again; else only the last episode, without its random numbers."""
    steps: int
    """How many steps there were to take."""
    failure: EnvironmentFault | None
    """What happened now; None: nothing failed."""

    @property
    def same(self) -> bool:
        """Whether it is the same failure; which step it was counts only where everything was done again."""
        if self.failure is None:
            return False
        now, then = str(self.failure), self.recorded
        return now == then if self.exact else now.partition(": ")[2] == then.partition(": ")[2]

    @property
    def traceback(self) -> str:
        """The environment's own, if it raised."""
        return "" if self.failure is None else traceback_of(self.failure)


def reproduce(path: str | Path) -> Reproduction:
    """Do again, in this process, what an environment had been told before it failed.

    Args:
        path: a file from a run's `faults` folder.

    Raises:
        UserError: it is no such file, or the environment cannot be built.
    """
    told = _read(Path(path))
    actions, index, seed = told["actions"], told["index"], told["seed"]
    if told["steps"] and not actions:
        raise UserError(
            f"{path}: its stage stepped all environments as one and kept no actions, so this cannot be done again. "
            f"All that is known: {told['what']}"
        )
    exact = seed is not None and len(actions) == told["steps"]
    if not exact:
        actions = actions[-told["step"] :] if told["step"] else []
    faults = FaultConfig(check_bounds=told.get("check_bounds") is not False)  # files of version 0.1.0 may not tell
    cast, failure = None, None
    try:
        cast = Cast(Factory(env=told["env"], kwargs=told["env_kwargs"]), index, 1, faults)
        cast.enter(board := Board(cast.layout, num_envs=index + 1, num_workers=0))
        cast.reset([0 if seed is None else seed])
        for action in actions:
            board.action[index] = action
            for _ in cast.step():
                pass
    except EnvironmentFault as problem:
        failure = problem
    finally:
        if cast is not None:
            cast.close()
    return Reproduction(recorded=told["what"], exact=exact, steps=len(actions), failure=failure)


def _finite(value: Any) -> Any:
    """Numbers that JSON does not know (a diverged policy's) as words, which NumPy takes for the same numbers."""
    if isinstance(value, tuple | list):
        return [_finite(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _read(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_bytes())
    except OSError as problem:
        raise UserError(f"cannot read {path}: {problem.strerror}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not JSON; give a file from a run's folder `faults`") from None
    kinds = {"env": str, "env_kwargs": dict, "what": str, "index": int, "step": int, "steps": int, "actions": list}
    if not isinstance(told, dict) or told.get("format") != _FORMAT or list(_wrong(told, kinds)):
        raise UserError(f"{path} does not tell of a failure; give a file from a run's folder `faults`")
    return told


def _wrong(told: dict[str, Any], kinds: dict[str, type]) -> Iterator[str]:
    """Names of what is missing or of another type."""
    yield from (name for name, kind in kinds.items() if not isinstance(told.get(name), kind))
    if not isinstance(told.get("seed"), int | None):
        yield "seed"
