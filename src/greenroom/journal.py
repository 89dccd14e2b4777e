"""A sitting's log lines on their way to the sinks: what a full disk refuses waits in memory until it takes it."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from greenroom.folder import RunFolder
from greenroom.log import Appended, Kind, Record, make_sinks

_SILENCE = 600.0
"""Seconds between two complaints of the same trouble."""


class Complaint:
    """Tells of a trouble that lasts: at once, then rarely, and when it is over.

    Args:
        say: hears of it.
        clock: seconds, never falling.
    """

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._told = -math.inf
        self.trouble = ""
        """What is wrong; empty if nothing is."""
        self.noticed = -math.inf
        """When it was last found to be wrong."""

    def complain(self, trouble: str) -> None:
        """It is so, or still is."""
        self.trouble, self.noticed = trouble, self._clock()
        if self.noticed - self._told >= _SILENCE:
            self._told = self.noticed
            self._say(f"warning: {trouble}; training goes on")

    def relieve(self, good_news: str) -> None:
        """It is no longer so; says nothing if it never was."""
        if self.trouble:
            self.trouble, self._told = "", -math.inf
            self._say(good_news)

    def waited(self, seconds: float) -> bool:
        """Whether there is trouble, and so much time has passed that it is worth another try."""
        return bool(self.trouble) and self._clock() - self.noticed >= seconds


class Journal:
    """Takes records and interventions, and brings them to their places in order, each once."""

    def __init__(
        self,
        names: Sequence[str],
        folder: RunFolder,
        config: Mapping[str, object],
        say: Callable[[str], None],
        *,
        resumed_at: int | None,
    ) -> None:
        self._names, self._folder, self._config = names, folder, config
        self._sinks = make_sinks(names, folder, config, resumed_at=resumed_at)
        self._waiting: list[deque[tuple[Kind, Record]]] = [deque() for _ in self._sinks]
        self._interventions: deque[Record] = deque()
        self._say, self._disk = say, Complaint(say)

    def write(self, kind: Kind, record: Record) -> None:
        """Send a record, which has an `env_steps`, to every sink; behind those that still wait for it."""
        for waiting in self._waiting:
            waiting.append((kind, record))
        self._catch_up()

    def intervene(self, record: Record) -> None:
        """Note an intervention. These are history: no rewinding takes them back."""
        self._interventions.append(record)
        self._catch_up()

    @property
    def waiting(self) -> int:
        """Lines that the disk has refused so far."""
        return max(map(len, self._waiting), default=0) + len(self._interventions)

    def _catch_up(self) -> None:
        refusals: list[OSError] = []
        for sink, waiting in zip(self._sinks, self._waiting, strict=True):
            try:
                while waiting:
                    sink.write(*waiting[0])
                    waiting.popleft()
            except OSError as problem:
                refusals.append(problem)
        try:
            while self._interventions:
                self._note(self._interventions[0])
                self._interventions.popleft()
        except OSError as problem:
            refusals.append(problem)
        if refusals:
            reason = refusals[0].strerror or str(refusals[0])
            self._disk.complain(f"cannot write log lines into {self._folder.path}: {reason}; they wait in memory")
        else:
            self._disk.relieve("the log is whole again: all lines that waited are written")

    def _note(self, record: Record) -> None:
        file = Appended(self._folder.interventions)
        try:
            file.append_line(record)
        finally:
            file.close()

    def rewind(self, env_steps: int) -> None:
        """Drop all records later than `env_steps`, as a resumed run does; the sinks go on from there.

        Raises:
            OSError: the disk refuses; nothing was dropped.
        """
        self._close_sinks()
        try:
            self._folder.rewind(env_steps)
        finally:
            self._sinks = make_sinks(self._names, self._folder, self._config, resumed_at=env_steps)
        for waiting in self._waiting:
            # What was found is history, as interventions are.
            kept = [(kind, record) for kind, record in waiting if kind == "findings" or _steps(record) <= env_steps]
            waiting.clear()
            waiting.extend(kept)

    def _close_sinks(self) -> None:
        for sink in self._sinks:
            with suppress(OSError):
                sink.close()

    def close(self) -> None:
        """A last try for what still waits, then close the sinks; what waits now is lost."""
        self._catch_up()
        self._close_sinks()
        if self.waiting:
            self._say(f"warning: {self.waiting} log lines could not be written and are lost")


def _steps(record: Record) -> int:
    steps = record["env_steps"]
    assert isinstance(steps, int)
    return steps
