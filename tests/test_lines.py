"""Logs of JSON lines, as they are found after whatever may have happened to their writer."""

from __future__ import annotations

from pathlib import Path

import pytest

from greenroom.errors import UserError
from greenroom.lines import read_lines, read_log


@pytest.mark.parametrize(
    ("content", "steps"),
    [
        (b"", []),
        (b'{"step": 1}\n', [1]),
        (b'{"step": 1}\n{"step": 2}\n', [1, 2]),
        (b'{"step": 1}\n{"st', [1]),  # cut short
        (b'{"step": 1}\n{"name": "caf\xc3', [1]),  # within a letter
        (b'{"step": 1}\n{"step": 2}', [1, 2]),  # whole, but for its end
        ('{"step": 1, "said": "two\u2028lines"}\n'.encode(), [1]),  # ends a line for Python, not for JSON
    ],
)
def test_what_is_whole_is_read(tmp_path: Path, content: bytes, steps: list[int]) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(content)
    assert [record["step"] for record in read_log(path)] == steps


def test_there_is_nothing_in_a_log_that_is_not_there(tmp_path: Path) -> None:
    assert read_log(tmp_path / "log.jsonl") == []


@pytest.mark.parametrize("bad", ['{"st', "[1]", "null", ""])
@pytest.mark.parametrize("after", ["", '{"step": 2}\n', '{"st'])
def test_a_line_that_has_an_end_must_be_an_object(tmp_path: Path, bad: str, after: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"step": 1}}\n{bad}\n{after}')
    with pytest.raises(UserError, match=r"log\.jsonl, line 2 is not a log line; mend or delete it"):
        read_log(path)


def test_a_line_must_be_what_its_reader_wants(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("1\n2\nthree")
    assert read_lines(path, int) == [1, 2]
    path.write_text("1\ntwo\n3")
    with pytest.raises(UserError, match="line 2 "):
        read_lines(path, int)
