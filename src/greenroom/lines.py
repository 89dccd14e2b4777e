"""Logs: files of JSON objects, one a line, that a run appends to and may be killed while it does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from greenroom.errors import UserError

T = TypeVar("T")


def read_lines(path: Path, read: Callable[[str], T]) -> list[T]:
    """What `read` makes of each line; nothing if there is no such file.

    A last line that has no end yet and cannot be read is left out: it is being written, or its writer was killed.

    Args:
        path: of the log.
        read: makes something of a line's text, or raises ValueError, KeyError or TypeError.

    Raises:
        UserError: another line cannot be read.
    """
    content = path.read_bytes().decode(errors="replace") if path.exists() else ""
    *whole, last = content.split("\n")
    found: list[T] = []
    for number, line in enumerate([*whole, last] if last else whole, start=1):
        try:
            found.append(read(line))
        except (ValueError, KeyError, TypeError) as error:
            if number <= len(whole):
                raise UserError(f"{path}, line {number} is not a log line; mend or delete it") from error
    return found


def read_log(path: Path) -> list[dict[str, Any]]:
    """The objects of a log, as `read_lines` finds them."""
    return read_lines(path, record_of)


def record_of(line: str) -> dict[str, Any]:
    """The JSON object of a line.

    Raises:
        ValueError: it is not one.
    """
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError(f"a JSON object belongs here, not {line}")
    return record
