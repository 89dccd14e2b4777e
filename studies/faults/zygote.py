"""A process that has imported everything, and forks a trainer for each command line that it reads.

A trainer then starts in a fraction of a second; everything else is as at the command line: `greenroom.cli.main` in a
process of its own, which dies when it is killed. One order at a time: a line of JSON `{"words", "out", "err"}` in, the
trainer's `{"pid"}` out, and when it has ended its `{"code", "at"}` (negative: the signal; monotonic seconds).
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import json
import os
import signal
import sys
import threading
import time
from typing import Any, NoReturn

NOTICED = "noticed at "
"""Begins the line, on a trainer's standard error, that says when it noticed that a worker is dead."""

_CAPABILITY_VERSION = 0x20080522
_MAY_WRITE_ANYWHERE = 1 << 1  # CAP_DAC_OVERRIDE


def main() -> None:
    """Take orders until there are no more."""
    _import()
    print(json.dumps({"ready": os.getpid()}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become_trainer(order)
            _tell_when_noticed()
            _end(sys.modules["greenroom.cli"].main(order["words"]))
        print(json.dumps({"pid": pid}), flush=True)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps({"code": code, "at": time.monotonic()}), flush=True)


def _import() -> None:
    """What a trainer would import, and nothing that starts a thread."""
    for name in (
        "gymnasium.envs.classic_control",
        "matplotlib.font_manager",
        "torch.utils.tensorboard",
        "greenroom.cli",
        "greenroom.envs.crew",
        "greenroom.plots",
        "greenroom.session",
    ):
        importlib.import_module(name)


def _end(code: int) -> NoReturn:
    """As an interpreter ends, but for taking its modules apart: in a fork that takes seconds, and tells nothing."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the interpreter does
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _become_trainer(order: dict[str, Any]) -> None:
    os.setpgid(0, 0)  # Ctrl-C in the terminal is for the suite
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for descriptor, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, order["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, order["err"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        opened = os.open(path, flags, 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)
    _obey_permissions()


def _tell_when_noticed() -> None:
    """The error of a dead worker waits until the others are gone; say, besides, when it was first noticed."""
    crew: Any = sys.modules["greenroom.envs.crew"]
    backstage: Any = sys.modules["greenroom.backstage"]
    plain = crew.manner_of

    def noted(code: int) -> Any:
        os.write(2, f"{NOTICED}{time.monotonic()}\n".encode())
        return plain(code)

    crew.manner_of = backstage.manner_of = noted


def _obey_permissions() -> None:
    """A read-only folder is one for root too, as it is for everybody else."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets) == 0:
        sets[0] &= ~_MAY_WRITE_ANYWHERE  # effective; the permitted set may stay
        libc.capset(header, sets)


if __name__ == "__main__":
    main()
