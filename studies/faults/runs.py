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
from greenroom.lines import read_log

logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it would tell of every resumed run that it is one

_CLOCK = ("seconds", "steps_per_second")
_HISTORY = ("interventions.jsonl", "faults")
"""A file and a folder that only a run with a history has."""


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
    steps = [record["env_steps"] for record in read_log(run / "metrics.jsonl")]
    if not steps or steps[-1] < total_steps or set(np.diff([0, *steps]).tolist()) != {steps[0]}:
        raise Failure(f"metrics.jsonl has gaps, duplicates or no end: {steps}")
    for tag, points in _points(run).items():
        if any(later <= earlier for earlier, later in zip(points, list(points)[1:], strict=False)):
            raise Failure(f"TensorBoard's {tag} goes back: {list(points)}")
    if (shown := list(_points(run)["train/updates"])) != steps:
        raise Failure(f"TensorBoard shows {shown}, metrics.jsonl {steps}")


def check_same(run: Path, reference: Path, *, gaps: bool = False) -> None:
    """The run is, clocks aside, the one that was left in peace: every tensor, every line, every point, every file.

    Only which checkpoints are still there may differ, for each time that it was told to stop it saved one more.

    Args:
        run: the run's folder.
        reference: of the one that was left in peace.
        gaps: some checkpoints could not be saved, so that the best one may be another.

    Raises:
        Failure: the first difference.
    """
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        left, right = ([_timeless(record) for record in read_log(one / name)] for one in (run, reference))
        _require(left, right, name)
    points = _points(run)
    for tag, expected in _points(reference).items():
        if not _is_clock(tag.partition("/")[2]) and not tag.startswith("time/"):
            _require(points.get(tag), expected, f"TensorBoard's {tag}")
    _require(_names(run), _names(reference), "names of files")
    there, wanted = _checkpoints(run), _checkpoints(reference)
    _require(max(there), max(wanted), "the last checkpoint")
    for steps in there.keys() & wanted.keys():
        found, whole = checkpoint.load(there[steps]), checkpoint.load(wanted[steps])
        for state in (found, whole):
            state["run"].pop("seconds")
        for difference in differences(found, whole, f"checkpoint {steps}"):
            raise Failure(f"not the same bits: {difference}")
    if not gaps:
        _require(_best(run), _best(reference), "the best checkpoint")


def _checkpoints(run: Path) -> dict[int, Path]:
    """The newest of each number of steps."""
    return {checkpoint.env_steps_of(path): path for path in checkpoint.every(run / "checkpoints")}


def _best(run: Path) -> tuple[int, float]:
    """Steps and score of the checkpoint that is marked as the best."""
    path = checkpoint.best(run / "checkpoints")
    if path is None:
        raise Failure(f"no checkpoint of {run} is marked as the best")
    return checkpoint.env_steps_of(path), checkpoint.best_score(
        run / "checkpoints", until=checkpoint.env_steps_of(path)
    )


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
    """Relative names of all files outside of checkpoints; TensorBoard's, with the time in them, as their folder."""
    tensorboard = RunFolder(path=run).tensorboard
    files = (path for path in run.rglob("*") if path.is_file() and path.relative_to(run).parts[0] not in _HISTORY)
    files = (path for path in files if path.parent.parent != RunFolder(path=run).checkpoints)
    return sorted({str((path.parent if path.parent == tensorboard else path).relative_to(run)) for path in files})


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
