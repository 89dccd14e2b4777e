"""The command `greenroom`, also as `python -m greenroom`.

Loading takes a second or two, in which Ctrl-C must neither show where in a library that was, nor be swallowed there.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"greenroom: interrupted\n")
    os._exit(130)


def main() -> int:
    """Load the command line, and run one command. Returns the exit code."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it is ignored, or somebody's own
    if ours:
        signal.signal(signal.SIGINT, _leave)
    from greenroom.cli import main as command

    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return command()


if __name__ == "__main__":
    sys.exit(main())
