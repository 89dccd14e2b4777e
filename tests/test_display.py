"""Progress fits the terminal, keeps quiet elsewhere, and Ctrl-C asks first and then obeys."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import threading
from types import ModuleType

import pytest
from rich.cells import cell_len
from rich.console import Console

from greenroom.display import Display, _clock_time, _short, interrupts

RECORD: dict[str, object] = {
    "return_mean": -9999.9,
    "steps_per_second": 12345.0,
    "time/env": 2.5,
    "time/act": 2.5,
    "time/learn": 2.5,
    "time/wait": 2.5,
    "loss/policy": 0.1,
}
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def plain_display(total: int, quiet: bool = False) -> tuple[Display, io.StringIO, Clock]:
    out, clock = io.StringIO(), Clock()
    return Display(total, quiet, Console(file=out, width=80, force_terminal=False), clock), out, clock


def live_display(total: int, width: int = 80) -> tuple[Display, io.StringIO, Clock]:
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, width=width, force_terminal=True, color_system=None, _environ={"TERM": "xterm"})
    return Display(total, False, console, clock), out, clock


def last_frame(out: io.StringIO, height: int = 2) -> list[str]:
    """The last `height` lines that were drawn, without the escape sequences."""
    text = ESCAPES.sub("", out.getvalue()).replace("\r", "\n")
    return [line.rstrip() for line in text.split("\n") if line.strip()][-height:]


def test_plain_lines_say_everything_in_80_columns() -> None:
    display, out, _ = plain_display(987_654_321)
    with display:
        display.update(123_456_789, RECORD)
    line = "123M 12%  12.3k/s  return -9999.9  env 25 act 25 learn 25 wait 25%  19h26m left"
    assert out.getvalue() == line + "\n" and len(line) <= 80


def test_plain_lines_come_at_start_every_few_seconds_and_at_the_end() -> None:
    display, out, clock = plain_display(100)
    with display:
        for step in range(1, 101):
            display.update(step, {})
            clock.now += 0.25  # 25 s in all
    assert [line.split()[0] for line in out.getvalue().splitlines()] == ["1", "21", "41", "61", "81", "100"]


def test_a_long_evaluation_says_how_far_it_is_and_a_short_one_nothing() -> None:
    display, out, clock = plain_display(100)
    with display:
        display.update(50, {})
        for done in range(1, 5):
            display.evaluating(done, 4)
            clock.now += 1.0
        display.update(51, {})
        assert [line.split()[0] for line in out.getvalue().splitlines()] == ["50"]
        for done in range(1, 9):
            display.evaluating(done, 8)
            clock.now += 2.0
        display.update(100, {})
    told = out.getvalue().splitlines()
    assert told[-3:] == ["evaluation: 4 of 8 episodes", "evaluation: 7 of 8 episodes", "100 100%"]


def test_the_live_bar_shows_an_evaluation_in_its_second_line() -> None:
    display, out, clock = live_display(1000)
    with display:
        display.evaluating(1, 8)
        clock.now += 1.0
        display.evaluating(2, 8)
        assert last_frame(out, 1) == ["evaluation: 2 of 8 episodes"], "before there is any training"
        clock.now += 1.0
        display.update(500, RECORD)
        display.evaluating(3, 8)
        clock.now += 1.0
        display.evaluating(4, 8)
        assert last_frame(out)[1] == "evaluation: 4 of 8 episodes  return -9999.9"
        clock.now += 1.0
        display.update(501, RECORD)
        assert "evaluation" not in last_frame(out)[1]
        display.evaluating(8, 8)
    assert "env 25 act 25" in last_frame(out)[1], "what stays on the screen is how the training went"


def test_the_last_plain_line_is_not_printed_twice() -> None:
    display, out, clock = plain_display(100)
    with display:
        display.update(50, {})
        clock.now += 60
        display.update(100, {})
    assert out.getvalue() == "50 50%\n100 100%\n"


def test_numbers_stay_until_new_ones_come_and_strange_ones_are_left_out() -> None:
    display, out, clock = plain_display(100)
    with display:
        display.update(10, {"return_mean": 1.0, "steps_per_second": 10, "time/env": 3, "time/act": 1})
        clock.now += 60
        display.update(20, {"return_mean": 20.5})
        clock.now += 60
        display.update(30, {"return_mean": float("nan"), "steps_per_second": None, "time/env": None, "time/act": 0.0})
    assert out.getvalue().splitlines() == [
        "10 10%  10/s  return 1.000  env 75 act 25 learn 0 wait 0%  0:09 left",
        "20 20%  10/s  return 20.500  env 75 act 25 learn 0 wait 0%  0:08 left",
        "30 30%",
    ]


@pytest.mark.parametrize(("total", "expected"), [(100, "150 100%  10/s  0:00 left"), (0, "150 100%  10/s  0:00 left")])
def test_being_past_the_end_after_a_resume(total: int, expected: str) -> None:
    display, out, _ = plain_display(total)
    with display:
        display.update(150, {"steps_per_second": 10.0})
    assert out.getvalue() == expected + "\n"
    live, drawn, _ = live_display(total)
    with live:
        live.update(150, {"steps_per_second": 10.0})
    assert "100%" in last_frame(drawn)[0] and "0:00 left" in last_frame(drawn)[0]


def test_quiet_means_silent() -> None:
    display, out, _ = plain_display(100, quiet=True)
    with display:
        display.update(50, RECORD)
        display.say("hello")
    assert out.getvalue() == ""


def test_a_run_that_ends_before_its_first_update_prints_nothing() -> None:
    display, out, _ = plain_display(100)
    with pytest.raises(ValueError, match="inside"), display:
        raise ValueError("inside")
    assert out.getvalue() == ""


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_live_bar_fits_and_loses_nothing(width: int) -> None:
    display, out, _ = live_display(987_654_321, width)
    with display:
        display.update(123_456_789, RECORD)
    first, second = last_frame(out)
    assert "12% 123M/988M steps 19h26m left" in first and first.startswith("━")
    assert second.startswith("12.3k steps/s  return -9999.9  env 25 act 25 learn 25 wait")
    if width >= 80:
        assert second.endswith("wait 25%")
    assert max(cell_len(first), cell_len(second)) <= width
    assert out.getvalue().count("\x1b[?25l") == out.getvalue().count("\x1b[?25h") == 1  # the cursor is back


def test_the_live_bar_is_drawn_at_a_bounded_rate_and_ends_on_the_truth() -> None:
    display, out, clock = live_display(1000)
    with display:
        before = len(out.getvalue())
        for step in range(1, 1001):
            display.update(step, {})
            clock.now += 0.001  # one second in all
        frames = out.getvalue()[before:].count("steps")
    assert 8 <= frames <= 12
    assert "1k/1k steps" in last_frame(out, 1)[0]


def test_lines_are_said_above_the_bar_and_never_as_markup() -> None:
    display, out, _ = live_display(100)
    with display:
        display.update(10, {})
        display.say("[red]a[/red] long line " + "x" * 100)
    assert "[red]a[/red] long line " + "x" * 100 in ESCAPES.sub("", out.getvalue())
    assert "10/100 steps" in last_frame(out, 1)[0]


def test_a_notebook_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    fake = ModuleType("IPython.display")
    fake.display = lambda part: shown.append(part.text)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", fake)
    monkeypatch.setenv("FORCE_COLOR", "1")  # which makes everything look like a terminal
    with Display(100, console=Console(width=80, force_jupyter=True)) as display:
        display.update(50, {})
        display.say("hello")
    assert shown == ["50 50%\n", "hello\n"]


def test_a_dumb_terminal_gets_plain_lines() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, _environ={"TERM": "dumb"})
    with Display(100, console=console) as display:
        display.update(50, {})
    assert out.getvalue() == "50 50%\n"


def test_progress_goes_to_standard_error_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(100) as display:
        display.update(50, {})
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == "50 50%\n"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (999.6, "1k"), (1234, "1.23k"), (999_499, "999k"), (999_600, "1M"), (-2.5e9, "-2.5G")],
)
def test_short_numbers(number: float, text: str) -> None:
    assert _short(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00"), (59.6, "1:00"), (725, "12:05"), (3600, "1h00m"), (11232, "3h07m"), (4 * 86400 + 1, "4 days")],
)
def test_clock_times(seconds: float, text: str) -> None:
    assert _clock_time(seconds) == text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_old_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    lines: list[str] = []
    with interrupts(lines.append) as watch:
        history = [watch.signal is not None]
        os.kill(os.getpid(), number)
        history.append(watch.signal is not None)
    assert history == [False, True]
    assert lines == ["stopping after this update or evaluation; once more to exit at once"]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    with pytest.raises(KeyError), interrupts():
        raise KeyError
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_signal_in_the_middle_of_printing_is_still_heard(capfd: pytest.CaptureFixture[str]) -> None:
    def busy(line: str) -> None:
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")

    with interrupts(busy) as watch:
        os.kill(os.getpid(), signal.SIGINT)
    assert watch.signal is not None
    assert capfd.readouterr().err == "\nstopping after this update or evaluation; once more to exit at once\n"


SECOND = """
import os, signal
from greenroom.display import Display, interrupts
try:
    with Display(10) as display, interrupts(display.say) as watch:
        os.kill(os.getpid(), signal.SIGINT)
        print("asked", watch.signal is not None, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        print("not reached", flush=True)
finally:
    print("not reached either", flush=True)
"""


def test_the_second_signal_exits_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", SECOND], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130
    assert done.stdout == "asked True\n"
    assert done.stderr == "stopping after this update or evaluation; once more to exit at once\n"


def test_on_a_terminal_the_second_signal_gives_the_cursor_back() -> None:
    ours, theirs = os.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", SECOND],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(theirs)
    out, _ = child.communicate(timeout=60)
    drawn = b""
    try:
        while part := os.read(ours, 4096):
            drawn += part
    except OSError:  # how a pseudo-terminal says that the other end is gone
        pass
    finally:
        os.close(ours)
    assert child.returncode == 130 and out == b"asked True\n"
    assert b"\x1b[?25l" in drawn
    assert drawn.rindex(b"\x1b[?25h") > drawn.rindex(b"\x1b[?25l")
    assert b"once more to exit at once" in drawn


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def body() -> None:
        with interrupts() as watch:
            seen.extend([watch.signal is not None, signal.getsignal(signal.SIGINT)])

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [False, before]
