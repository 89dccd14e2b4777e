"""A run's folder, looked at from outside: is it sound, is it whole, is it the same as another?"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from faults.processes import Failure
from greenroom import checkpoint
from greenroom.control import SOCKET
from greenroom.errors import UserError
from greenroom.folder import RunFolder

logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it would tell of every resumed run that it is one

_CLOCK = ("seconds", "steps_per_second")
_EXTRA = ("interventions.jsonl",)
"""Files that only a run with a history has."""


def records(path: Path) -> list[dict[str, Any]]:
    """A log's complete lines; none if there is no file."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def last_step(path: Path) -> int:
    """The `env_steps` of a log's last complete line; 0 if there is none. Cheap: it is asked all the time."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 8192))
            lines = [line for line in file.read().split(b"\n")[:-1] if line.endswith(b"}")]
        return int(json.loads(lines[-1])["env_steps"]) if lines else 0
    except (FileNotFoundError, ValueError, KeyError):
        return 0


def check_sound(run: Path) -> Path | None:
    """Every checkpoint under a final name can be read; returns the newest.

    Raises:
        Failure: one cannot.
    """
    everything = checkpoint.every(run / "checkpoints")
    for path in everything:
        try:
            checkpoint.load(path)
        except UserError as problem:
            raise Failure(f"an unharmed checkpoint cannot be read: {problem}") from problem
    return everything[-1] if everything else None


def check_whole(run: Path, total_steps: int) -> None:
    """A finished run: every update logged once, in every log; nothing half-written.

    Raises:
        Failure: not so.
    """
    partial = [str(path.relative_to(run)) for path in run.rglob("*") if path.name.startswith(".")]
    if partial or (run / SOCKET).exists():
        raise Failure(f"left in the run's folder: {partial or SOCKET}")
    steps = [record["env_steps"] for record in records(run / "metrics.jsonl")]
    if not steps or steps[-1] < total_steps or set(np.diff([0, *steps]).tolist()) != {steps[0]}:
        raise Failure(f"metrics.jsonl has gaps, duplicates or no end: {steps}")
    for tag, points in _points(run).items():
        if any(later <= earlier for earlier, later in zip(points, list(points)[1:], strict=False)):
            raise Failure(f"TensorBoard's {tag} goes back: {list(points)}")
    if (shown := list(_points(run)["train/updates"])) != steps:
        raise Failure(f"TensorBoard shows {shown}, metrics.jsonl {steps}")


def check_same(run: Path, reference: Path, *, gaps: bool = False) -> None:
    """The run is, clocks aside, the one that was left in peace: every tensor, every line, every point, every file.

    Args:
        run: the run's folder.
        reference: of the one that was left in peace.
        gaps: some checkpoints could not be saved: compare the last one, and all log lines.

    Raises:
        Failure: the first difference.
    """
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        left, right = ([_timeless(record) for record in records(one / name)] for one in (run, reference))
        _require(left, right, name)
    for tag, points in _points(reference).items():
        if not _is_clock(tag.partition("/")[2]) and not tag.startswith("time/"):
            _require(_points(run).get(tag), points, f"TensorBoard's {tag}")
    if not gaps:
        _require(_names(run), _names(reference), "names of files")
        _require(_read(run / "checkpoints" / "best.json"), _read(reference / "checkpoints" / "best.json"), "best.json")
    for path in checkpoint.every(reference / "checkpoints")[-1 if gaps else 0 :]:
        left, right = (checkpoint.load(one / "checkpoints" / path.name) for one in (run, reference))
        for state in (left, right):
            state["run"].pop("seconds")
        for difference in differences(left, right, path.name):
            raise Failure(f"not the same bits: {difference}")


def differences(left: Any, right: Any, where: str) -> Iterator[str]:
    """Places where two states differ in type, shape or any bit."""
    if type(left) is not type(right):
        yield f"{where}: {type(left).__name__} and {type(right).__name__}"
    elif isinstance(left, dict):
        if left.keys() != right.keys():
            yield f"{where}: {sorted(map(str, left))} and {sorted(map(str, right))}"
            return
        for key in left:
            yield from differences(left[key], right[key], f"{where}/{key}")
    elif isinstance(left, list | tuple):
        if len(left) != len(right):
            yield f"{where}: {len(left)} and {len(right)} items"
            return
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            yield from differences(one, other, f"{where}/{index}")
    elif isinstance(left, torch.Tensor):
        same = left.dtype == right.dtype and left.shape == right.shape
        if not same or _bytes(left) != _bytes(right):
            yield f"{where}: {left.dtype} {tuple(left.shape)} differ"
    elif isinstance(left, np.ndarray):
        if left.dtype != right.dtype or left.shape != right.shape or left.tobytes() != right.tobytes():
            yield f"{where}: arrays differ"
    elif left != right and not (left != left and right != right):
        yield f"{where}: {left!r} and {right!r}"


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _require(left: object, right: object, what: str) -> None:
    for difference in differences(left, right, what):
        raise Failure(f"not as if left in peace: {difference}")


def _is_clock(name: str) -> bool:
    return name in _CLOCK or name.startswith("time/")


def _timeless(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if not _is_clock(name)}


def _names(run: Path) -> list[str]:
    """Relative names of all files; TensorBoard's, which have the time in them, as their folder."""
    tensorboard = RunFolder(path=run).tensorboard
    files = (path for path in run.rglob("*") if path.is_file() and path.name not in _EXTRA)
    return sorted({str((path.parent if path.parent == tensorboard else path).relative_to(run)) for path in files})


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _points(run: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows: tag → step → value, in its order."""
    events = EventAccumulator(str(RunFolder(path=run).tensorboard), size_guidance={"scalars": 0}).Reload()
    found: dict[str, dict[int, float]] = {}
    for tag in events.Tags()["scalars"]:
        shown = [(event.step, event.value) for event in events.Scalars(tag)]
        found[tag] = dict(shown)
        if len(found[tag]) != len(shown):
            raise Failure(f"TensorBoard shows {tag} twice at a step: {[step for step, _ in shown]}")
    return found
