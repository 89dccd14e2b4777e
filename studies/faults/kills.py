"""Kill the trainer or a worker at a random instant, resume, and again; then see whether anything was lost."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from faults import runs
from faults.processes import COLLECTOR, WORKER, Failure, Place, Trainer, wait_until
from faults.scenarios import Scenario
from faults.zygote import NOTICED
from greenroom import checkpoint
from greenroom.config import dump
from greenroom.errors import ExitCode

NOTICE_SECONDS = 1.0
"""Within which a worker's death must be noticed while environments are being stepped."""

_ENDINGS = {
    signal.SIGINT: ExitCode.STOPPED,
    signal.SIGTERM: ExitCode.PREEMPTED,
    signal.SIGUSR1: ExitCode.PREEMPTED,
}
"""Signals that ask, and what the trainer ends with."""


class Start(Protocol):
    """Runs `greenroom …` in a process."""

    def __call__(self, words: Sequence[str], /) -> Trainer:
        """The process."""
        ...


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One harm done, and how it went."""

    scenario: str
    fault: str
    """What was sent to whom."""
    at: float
    """Seconds from the start of the sitting."""
    env_steps: int
    """As far as the log had come."""
    code: int
    """What the trainer ended with; negative: by that signal."""
    seconds: float
    """From the harm to the trainer's end: it died, saved and left, or noticed and left."""
    noticed: float | None
    """Of a killed worker of its own: seconds until the trainer noticed (not known of a command) …"""
    told: float | None
    """… and of any worker or the collector until its message, which waits for the others to be gone."""
    gone: float
    """Seconds from the trainer's end until no process of it was left."""
    repeated: int | None
    """Steps that the resumed run had to take again; None: there was no checkpoint yet, it began anew."""
    recovered: float | None = None
    """Seconds from the start of `resume` to its first new update, if it was let come so far."""


@dataclass(kw_only=True)
class Victim:
    """One run through all its sittings."""

    scenario: Scenario
    place: Place
    start: Start
    spare: tuple[int, ...]
    """Processes of the suite's own."""
    rng: random.Random
    notice_seconds: float = NOTICE_SECONDS
    folder: Path | None = None
    """For the runs; None: the place's own."""
    run: Path = Path()
    duration: float = 0.0
    """Seconds that the run takes from start to end …"""
    opening: float = 0.0
    """… and to its first update."""

    def in_peace(self) -> None:
        """Train the reference."""
        folder = self.folder or self.place.path
        self.reference, self.config = folder / "in-peace", folder / "config.yaml"
        self.config.write_text(dump(self.scenario.config))
        self.run = self.reference
        trainer = self.start(self.words)
        wait_until(lambda: runs.last_step(self.reference / "metrics.jsonl"), trainer)
        self.opening = time.monotonic() - trainer.started
        self._must_be(trainer, ExitCode.DONE)
        self.duration = time.monotonic() - trainer.started
        runs.check_whole(self.reference, self.scenario.config.total_steps)
        self.place.check_empty(self.spare)
        self.run = folder / "harmed"

    @property
    def words(self) -> list[str]:
        """The command that goes on with the run, or begins it."""
        if checkpoint.every(self.run / "checkpoints"):
            return ["resume", str(self.run)]
        return ["train", "--config", str(self.config), "--run-dir", str(self.run)]

    @property
    def complete(self) -> bool:
        """Whether even the report is made, which is the last thing that a run does."""
        return (self.run / "curve.png").exists()

    @property
    def logged(self) -> int:
        """Steps of the newest log line."""
        return runs.last_step(self.run / "metrics.jsonl")

    def harmed(self, fault: str) -> tuple[Kill | None, float | None]:
        """One sitting that meets a fault: what came of it, and when, from its start, the first new update was made.

        None: the run was complete before the fault came.
        """
        if self.complete:
            return None, None
        trainer, fresh = self._sit()
        whole = self.duration - self.opening
        left = whole * (1 - fresh.saved / self.scenario.config.total_steps)
        if fault == "SIGKILL to the trainer":
            instant = trainer.started + self.rng.uniform(0.0, self.opening + left)
        else:
            wait_until(fresh.look, trainer)
            instant = time.monotonic() + self.rng.uniform(0.0, 0.8 * left)
        wait_until(lambda: (fresh.look(), time.monotonic() >= instant)[1], trainer, nap=0.001)
        first = fresh.after(trainer)
        if not trainer.alive():
            self._must_be(trainer, ExitCode.DONE)
            return None, first
        return self._strike(fault, trainer, self.logged), first

    def _sit(self) -> tuple[Trainer, _Fresh]:
        begun = checkpoint.latest(self.run / "checkpoints")
        fresh = _Fresh(self.run / "metrics.jsonl", 0 if begun is None else checkpoint.env_steps_of(begun))
        return self.start(self.words), fresh

    def _strike(self, fault: str, trainer: Trainer, env_steps: int) -> Kill | None:
        how, _, who = fault.partition(" to ")
        number = signal.Signals[how]
        helping = who in (WORKER, COLLECTOR)
        noticed, told, helpers = None, None, trainer.helpers(who) if helping else {}
        if helping and not helpers:  # they have just ended, with the run
            self._must_be(trainer, ExitCode.DONE)
            return None
        began = time.monotonic()
        if helpers:
            pid = self.rng.choice(sorted(helpers))
            os.kill(pid, signal.SIGKILL)
            noticed, told = self._notice(trainer, helpers[pid], began)
        else:
            trainer.send(number)
        code = trainer.wait()
        ended = trainer.ended[1] if trainer.ended else began
        gone = self.place.check_empty(self.spare)
        if code == ExitCode.DONE:
            return None
        newest = runs.check_sound(self.run)
        steps = 0 if newest is None else checkpoint.env_steps_of(newest)
        done = steps >= self.scenario.config.total_steps
        expected = ExitCode.ERROR if helpers else _ENDINGS.get(number, -number)
        # A run that has saved all and only tidies up is ended by the signal, as any command is.
        if code != expected and not (done and code in (-number, ExitCode.INTERRUPTED)):
            raise Failure(f"{fault}: exit code {code} instead of {expected}: {trainer.said[-500:]}")
        if number in _ENDINGS and not done and steps < self.logged:
            raise Failure(f"{fault}: it ended with {steps} steps saved and {self.logged} taken")
        repeated = None if newest is None else max(0, self.logged - steps)
        if newest is None and self.run.exists():
            shutil.rmtree(self.run)  # as the message says: nothing was saved yet, start anew
        return Kill(
            scenario=self.scenario.name,
            fault=fault,
            at=round(began - trainer.started, 3),
            env_steps=env_steps,
            code=code,
            seconds=round(ended - began, 4),
            noticed=None if noticed is None else round(noticed, 4),
            told=None if told is None else round(told, 4),
            gone=round(gone, 3),
            repeated=repeated,
        )

    def _notice(self, trainer: Trainer, name: str, began: float) -> tuple[float | None, float | None]:
        """Seconds until the trainer notices that a helper is dead, and says so; None if it has no more need of it."""
        if not wait_until(lambda: "was killed by signal 9" in trainer.err.read_text(), trainer, nap=0.001):
            return None, None
        told = time.monotonic() - began
        if name not in trainer.said:
            raise Failure(f"the message does not say {name!r}: {trainer.said[-500:]}")
        lines = trainer.err.read_text().splitlines()
        moments = [float(line.removeprefix(NOTICED)) for line in lines if line.startswith(NOTICED)]
        noticed = moments[0] - began if moments else None
        if noticed is not None and noticed > self.notice_seconds:
            raise Failure(f"a dead process was noticed after {noticed:.2f} s")
        return noticed, told

    def finish(self) -> float | None:
        """Let it come to its end, and compare; returns when, from the start, the first new update was made."""
        first = None
        if not self.complete:
            trainer, fresh = self._sit()
            wait_until(fresh.look, trainer)
            first = fresh.after(trainer)
            self._must_be(trainer, ExitCode.DONE)
        self.place.check_empty(self.spare)
        runs.check_whole(self.run, self.scenario.config.total_steps)
        if self.scenario.exact:
            runs.check_same(self.run, self.reference)
        shutil.rmtree(self.run)
        return first

    def _must_be(self, trainer: Trainer, code: ExitCode) -> None:
        if (ended := trainer.wait()) != code:
            raise Failure(f"exit code {ended} instead of {code}: {trainer.said[-1000:]}")


class _Fresh:
    """Tells when a resumed run has made its first new update: a log line later than the checkpoint it began from."""

    def __init__(self, log: Path, saved: int) -> None:
        self._log, self.saved = log, saved
        self._stale = self._identity() if runs.last_step(log) > saved else None
        self.seen: float | None = None
        """When it was, monotonic seconds."""

    def look(self) -> bool:
        if self.seen is None and self._identity() not in (None, self._stale) and runs.last_step(self._log) > self.saved:
            self.seen = time.monotonic()
        return self.seen is not None

    def after(self, trainer: Trainer) -> float | None:
        """Seconds from the trainer's start; None: it did not come so far."""
        return None if self.seen is None else self.seen - trainer.started

    def _identity(self) -> int | None:
        """The file's; a resumed run that drops lines makes a new file."""
        return self._log.stat().st_ino if self._log.exists() else None


def torment(victim: Victim, faults: Sequence[str], say: Callable[[str], None]) -> list[Kill]:
    """Do all of `faults` to runs of one scenario, resuming after each, as many runs as it takes.

    Raises:
        Failure: something was lost, left behind, or not as it would have been.
    """
    victim.in_peace()
    done: list[Kill] = []
    waiting, complete, resumed = list(faults), 0, True

    def first_update(after: float | None) -> None:
        """The sitting that follows a kill, and no later one, tells how long it took to recover."""
        nonlocal resumed
        if not resumed and done[-1].repeated is not None:
            done[-1] = dataclasses.replace(done[-1], recovered=None if after is None else round(after, 3))
        resumed = True

    while waiting:
        whole = victim.complete
        kill, first = victim.harmed(waiting[0])
        if not whole:
            first_update(first)
        if kill is not None:
            done.append(kill)
            waiting.pop(0)
            resumed = False
            continue
        resumed = True
        victim.finish()
        complete += 1
        if complete > 3 * len(faults):
            raise Failure("the run is over before anything can be done to it")
    first_update(victim.finish())
    say(f"{victim.scenario.name}: {len(done)} kills, {complete + 1} runs, all as if left in peace")
    return done
