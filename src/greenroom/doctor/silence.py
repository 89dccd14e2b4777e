"""Keep to ourselves what an environment prints, and count it."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, TextIO

_OUT, _ERR = 1, 2


@dataclass(frozen=True)
class Silence:
    """While nothing is heard."""

    _heard: BinaryIO
    _buffer: TextIO
    _stderr: TextIO
    _real: int

    def written(self) -> int:
        """Bytes so far, of this process and of those that it started."""
        self._buffer.flush()
        return os.fstat(self._heard.fileno()).st_size

    def say(self, line: str) -> None:
        """Write a line to the real standard error."""
        if _is_descriptor(self._stderr, _ERR):
            os.write(self._real, f"{line}\n".encode())
        else:  # a notebook's
            print(line, file=self._stderr, flush=True)


@contextlib.contextmanager
def silenced() -> Iterator[Silence]:
    """Catch standard output and standard error, C code and child processes included."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with contextlib.ExitStack() as stack:
        heard = stack.enter_context(tempfile.TemporaryFile())
        buffer = stack.enter_context(open(os.dup(heard.fileno()), "w", encoding="utf-8", errors="replace"))
        real = {descriptor: os.dup(descriptor) for descriptor in (_OUT, _ERR)}
        for descriptor, before in real.items():
            stack.callback(os.close, before)
            stack.callback(os.dup2, before, descriptor)
            os.dup2(heard.fileno(), descriptor)
        silence = Silence(heard, buffer, sys.stderr, real[_ERR])
        # Where these are not the descriptors (a notebook, a test), they are caught by themselves.
        stack.enter_context(contextlib.redirect_stdout(buffer))
        stack.enter_context(contextlib.redirect_stderr(buffer))
        yield silence


def _is_descriptor(stream: TextIO, number: int) -> bool:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return stream.fileno() == number
    return False
