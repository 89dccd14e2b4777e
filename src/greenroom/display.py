"""What a person sees while a run goes on, and Ctrl-C: the first asks the run to stop, the second ends it."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from greenroom.forks import GROUP_SIGNALS, undo_in_forks

_PARTS = ("env", "act", "learn", "wait")
_LIVE_SECONDS = 0.1
"""Shortest time between two drawings of the bar."""
_PLAIN_SECONDS = 5.0
"""Shortest time between two lines where there is no terminal."""
_INSISTENT = (signal.SIGINT, signal.SIGTERM)
_STOPPING = "stopping after this update or evaluation; once more to exit at once"


class _StandardError:
    """`sys.stderr` as it is at the moment. That nobody reads it, or that a disk has no room for it, must not end a run.

    rich would leave the process where nobody reads (after `2>&1 | tee`, say, which Ctrl-C ends too).
    """

    @property
    def rich_proxied_file(self) -> _StandardError:
        """Itself, and not what rich puts in the place of `sys.stderr` while it draws."""
        return self

    @property
    def _now(self) -> Any:
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._now, name)

    def write(self, text: str) -> int:
        """All of it, or nothing."""
        if self._now is not None:  # as after `2>&-`
            with suppress(OSError):
                self._now.write(text)
        return len(text)

    def flush(self) -> None:
        """As far as possible."""
        if self._now is not None:
            with suppress(OSError):
                self._now.flush()


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command line; rich would end the process."""
        raise  # the error that is being handled


def new_console(*, stderr: bool = False, width: int | None = None) -> Console:
    """Where people read: standard output, or standard error; what they read is left as it is.

    rich knows a picture for some words between colons, and a factory of one's own is named with them.
    """
    if stderr:
        return Console(file=_StandardError(), width=width, emoji=False)  # type: ignore[arg-type]  # all that rich asks for
    return _Console(width=width, emoji=False)


class Display:
    """A context manager that shows progress: two live lines on a terminal, else a plain line every few seconds.

    Plain lines also serve notebooks, log files and `TERM=dumb`. Everything fits into 80 columns.

    Args:
        total_steps: `env_steps` at which the run ends. A resumed run may be past it.
        quiet: show nothing at all.
        console: where to; standard error by default, so that standard output stays clean for results.
        clock: seconds, never falling.
    """

    def __init__(
        self,
        total_steps: int,
        quiet: bool = False,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._clock = total_steps, clock
        self._console = console or new_console(stderr=True)
        self._quiet = quiet
        self._steps: int | None = None
        self._shown: int | None = None
        self._record: dict[str, object] = {}
        self._evaluation = ""
        self._due = -math.inf
        terminal = self._console.is_terminal and not (self._console.is_dumb_terminal or self._console.is_jupyter)
        # Drawn by `update` alone: a drawing thread would compete with acting for the interpreter.
        self._live = (
            Live(
                console=self._console,
                auto_refresh=False,
                get_renderable=self._draw,
                redirect_stdout=sys.stdout.isatty(),  # results that go to a file or a pipe must stay there
            )
            if terminal and not quiet
            else None
        )

    def __enter__(self) -> Display:
        """Start drawing."""
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Show where things ended and give the terminal back."""
        if self._steps is not None:
            self._evaluation = ""
        if self._live:
            self._live.stop()
        elif self._steps != self._shown:
            self._print_line()

    def update(self, env_steps: int, record: Mapping[str, object]) -> None:
        """Show where the run is.

        Args:
            env_steps: agent steps so far, earlier sittings included.
            record: the numbers that are new, of `return_mean`, `steps_per_second`, and `time/env`, `time/act`,
                `time/learn`, `time/wait` (seconds or shares: their proportions are shown). Others are ignored, missing
                ones stay as they were.
        """
        self._steps, self._evaluation = env_steps, ""
        self._record.update(record)
        if self._is_due():
            self._show()

    def evaluating(self, done: int, episodes: int) -> None:
        """Show how far an evaluation is, if it takes longer than what usually passes between two lines."""
        begins, self._evaluation = not self._evaluation, f"evaluation: {done} of {episodes} episodes"
        if begins:
            self._put_off()
        elif self._is_due():
            self._show()

    def _is_due(self) -> bool:
        return not self._quiet and self._clock() >= self._due

    def _put_off(self) -> None:
        self._due = self._clock() + (_LIVE_SECONDS if self._live else _PLAIN_SECONDS)

    def _show(self) -> None:
        self._put_off()
        if self._live:
            self._live.refresh()
        elif self._evaluation:
            self.say(self._evaluation)
        else:
            self._print_line()

    def say(self, line: str) -> None:
        """Print a line; the bar stays below it."""
        if not self._quiet:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _number(self, name: str) -> float | None:
        value = self._record.get(name)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

    def _percent(self) -> int:
        return 100 if self._total <= 0 else min(100, 100 * (self._steps or 0) // self._total)

    def _speed(self) -> str:
        rate = self._number("steps_per_second")
        return "" if rate is None else _short(rate)

    def _left(self) -> str:
        rate = self._number("steps_per_second")
        if not rate or rate < 0:
            return ""
        return f"{_clock_time(max(0, self._total - (self._steps or 0)) / rate)} left"

    def _return(self) -> str:
        value = self._number("return_mean")
        if value is None:
            return ""
        if abs(value) < 1e4:
            return f"return {value:.3f}" if abs(value) < 100 else f"return {value:.1f}"
        return f"return {_short(value)}"

    def _split(self) -> str:
        """`env 40 act 20 learn 38 wait 2%`."""
        parts = [max(0.0, self._number(f"time/{name}") or 0.0) for name in _PARTS]
        whole = sum(parts)
        if whole <= 0:
            return ""
        return " ".join(f"{name} {100 * part / whole:.0f}" for name, part in zip(_PARTS, parts, strict=True)) + "%"

    def _print_line(self) -> None:
        if self._quiet or self._steps is None:
            return
        self._shown = self._steps
        where = f"{_short(self._steps)} {self._percent()}%"
        speed = f"{self._speed()}/s" if self._speed() else ""
        line = "  ".join(part for part in (where, speed, self._return(), self._split(), self._left()) if part)
        self._console.print(line, markup=False, highlight=False, no_wrap=True, overflow="ellipsis")

    def _draw(self) -> RenderableType:
        """The live lines: how far and how long, then how well and where the time goes."""
        if self._steps is None:
            return Text(self._evaluation or "starting", no_wrap=True)
        first = Table.grid(padding=(0, 1), expand=True)
        first.add_column(ratio=1, min_width=4)
        for _ in range(3):
            first.add_column(no_wrap=True, justify="right")
        bar = ProgressBar(total=100, completed=self._percent())
        steps = f"{_short(self._steps)}/{_short(self._total)} steps"
        first.add_row(bar, f"{self._percent()}%", steps, self._left())
        speed = f"{self._speed()} steps/s" if self._speed() else ""
        parts = (self._evaluation, self._return()) if self._evaluation else (speed, self._return(), self._split())
        second = "  ".join(part for part in parts if part)
        return Group(first, Text(second, no_wrap=True, overflow="ellipsis"))


def _short(number: float) -> str:
    """Three significant digits, at most six characters up to 10^15: `950`, `1.2k`, `34.5M`."""
    for unit in ("", "k", "M", "G"):
        if abs(number) < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}T"


def _clock_time(seconds: float) -> str:
    """`0:42`, `12:05`, `3h07m`, `4 days`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} days"
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}:{rest:02d}"


class Interrupts:
    """Whether someone asked the run to stop."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.signal: signal.Signals | None = None
        """The first that came."""
        self._impatient = False
        self._say = say

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._impatient and number in _INSISTENT:
            # The bar hides the cursor. Written past Python's buffers, in the middle of which this may be happening.
            if os.isatty(2):
                with suppress(OSError):
                    os.write(2, b"\x1b[?25h\n")
            os._exit(130)
        self._impatient |= number in _INSISTENT
        if self.signal is not None:
            return
        self.signal = signal.Signals(number)
        try:
            self._say(_STOPPING)
        except RuntimeError:  # Python's buffers refuse to be re-entered
            _say_raw(_STOPPING)


def _say_raw(line: str) -> None:
    with suppress(OSError):
        os.write(2, f"\n{line}\n".encode())


@contextmanager
def interrupts(say: Callable[[str], None] = _say_raw) -> Iterator[Interrupts]:
    """Take note of the first SIGINT, SIGTERM, SIGUSR1 or SIGUSR2 (`Interrupts.signal`).

    The second SIGINT or SIGTERM exits at once with code 130. The other two are a cluster's notice that SIGTERM may
    follow: they never end anything at once.

    Works in the main thread only, where Python handles signals; in others none is ever noted. The handlers that were
    there come back at the end, and in processes that are forked meanwhile.

    Args:
        say: tells the person what happens now; `Display.say` keeps the bar intact.
    """
    watch = Interrupts(say)
    if threading.current_thread() is not threading.main_thread():
        yield watch
        return
    before = {number: signal.getsignal(number) for number in GROUP_SIGNALS}

    def put_back() -> None:
        for number, handler in before.items():
            # None: set by other than Python code, which Python cannot put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    forget = undo_in_forks(put_back)
    try:
        for number in before:
            signal.signal(number, watch._handle)
        yield watch
    finally:
        forget()
        put_back()
