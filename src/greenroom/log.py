"""Where a run's numbers go: JSON lines, TensorBoard, and (optional extras) Weights & Biases and MLflow.

A record is a mapping of numbers, strings, None, lists of numbers, or mappings of these, and `env_steps` is in it.
A name with a slash is in a group: `time/env`, `loss/policy`.
"""

from __future__ import annotations

import importlib
import io
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Protocol

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]
from torch.utils.tensorboard import summary

from greenroom.errors import UserError, nearest
from greenroom.folder import RunFolder, write_json

Record = Mapping[str, object]
Kind = Literal["metrics", "evaluations", "findings"]
"""What a record tells of: the training, an evaluation, or a trouble with the run's health."""

_GROUP: dict[Kind, str] = {"metrics": "train", "evaluations": "evaluation", "findings": "findings"}
"""The group, for tools that show groups, of names that have none."""


class Sink(Protocol):
    """Somewhere that records go."""

    def write(self, kind: Kind, record: Record) -> None:
        """Take one record, which has an `env_steps`."""
        ...

    def close(self) -> None:
        """Flush and let go. May be called twice."""
        ...


class Appended:
    """A file that grows by whole blocks: what the disk does not take at once is not there at all.

    It is made at once if the disk lets us, else with the first block.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: int | None = None
        with suppress(OSError):
            self._open()

    def _open(self) -> int:
        if self._handle is None:
            self._handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        return self._handle

    def append(self, block: bytes) -> None:
        """Add `block` at the end.

        Raises:
            OSError: the disk is full or refuses; the file is as it was.
        """
        handle, rest = self._open(), block
        size = os.fstat(handle).st_size
        try:
            while rest:
                rest = rest[os.write(handle, rest) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(handle, size)
            raise

    def append_line(self, content: Mapping[str, object]) -> None:
        """Add one line of strict JSON, which has no NaN and no infinity: they are written as null."""
        self.append((json.dumps(_finite(content), allow_nan=False) + "\n").encode())

    def close(self) -> None:
        """Let go of the file. May be called twice."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


class JsonlSink:
    """One file of strict JSON objects, one a line, for each kind of record; with the system as soon as written."""

    def __init__(self, folder: RunFolder) -> None:
        paths: dict[Kind, Path] = {
            "metrics": folder.metrics,
            "evaluations": folder.evaluations,
            "findings": folder.findings,
        }
        self._files = {kind: Appended(path) for kind, path in paths.items()}

    def write(self, kind: Kind, record: Record) -> None:
        """Append one line."""
        self._files[kind].append_line(record)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()


class TensorBoardSink:
    """A TensorBoard event file, with `env_steps` as the step.

    TensorBoard's own writer works in a thread, which the first refusal of the disk ends: what it held is lost, and
    nobody can say what that was. Here a record's points are in the file when `write` returns, or none of them is.

    Args:
        folder: the run's.
        resumed_at: the `env_steps` of the checkpoint that the run continues from; later points of the earlier sitting
            are hidden. None: a new run.
    """

    def __init__(self, folder: RunFolder, *, resumed_at: int | None = None) -> None:
        folder.tensorboard.mkdir(exist_ok=True)
        # TensorBoard reads the files in the order of their names, and clocks have been known to be put back.
        earlier = [path.name.split(".")[3:5] for path in folder.tensorboard.glob("events.out.tfevents.*.*.*")]
        latest = max((float(f"{seconds}.{rest}") for seconds, rest in earlier), default=0.0)
        now = max(time.time(), latest + 1e-5)
        self._file = Appended(folder.tensorboard / f"events.out.tfevents.{now:017.6f}.{os.getpid()}")
        self._unwritten = [Event(wall_time=time.time(), file_version="brain.Event:2")]  # goes with the first record
        if resumed_at is not None:
            start = SessionLog(status=SessionLog.START)
            self._unwritten.append(Event(wall_time=time.time(), step=resumed_at + 1, session_log=start))

    def write(self, kind: Kind, record: Record) -> None:
        """Numbers become scalars (`ci95/0`, `ci95/1` for a list's), strings become text."""
        shown = [summary.scalar(name, number) for name, number in _numbers(kind, record).items()]
        shown += [summary.text(_grouped(kind, name), value) for name, value in record.items() if isinstance(value, str)]
        step, now = _env_steps(record), time.time()
        block = io.BytesIO()
        writer = RecordWriter(block)
        for event in (*self._unwritten, *(Event(wall_time=now, step=step, summary=one) for one in shown)):
            writer.write(event.SerializeToString())
        self._file.append(block.getvalue())
        self._unwritten = []

    def close(self) -> None:
        """Close the event file."""
        self._file.close()


class WandbSink:
    """Weights & Biases, in the project `greenroom` (or the one that `WANDB_PROJECT` names).

    The run's identifier is kept in the run folder, so that a resumed run continues its own page.

    Raises:
        UserError: wandb is not installed or cannot start (no login, no network).
    """

    def __init__(self, folder: RunFolder, config: Mapping[str, object]) -> None:
        wandb = _extra("wandb")
        identity = _identity(folder, "wandb")
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "greenroom"),
                name=folder.path.name,
                dir=str(folder.path),
                config=dict(config),
                id=identity,
                resume="allow",
            )
        except wandb.Error as error:
            raise UserError(f"wandb cannot start: {error}; mend that, or leave wandb out of --sinks") from error
        if identity is None:
            _remember(folder, "wandb", self._run.id)
        # Its own step must never fall, which a resumed run's does; env_steps as the axis has no such rule.
        self._run.define_metric("*", step_metric="env_steps")

    def write(self, kind: Kind, record: Record) -> None:
        """Log the record's numbers."""
        with _refusing("wandb"):
            self._run.log({"env_steps": _env_steps(record), **_numbers(kind, record)})

    def close(self) -> None:
        """Finish the page."""
        with _refusing("wandb"):
            self._run.finish()


class MlflowSink:
    """MLflow, at its configured tracking address and experiment.

    The run's identifier is kept in the run folder, so that a resumed run continues its own page.

    Raises:
        UserError: MLflow is not installed or cannot start (no server).
    """

    def __init__(self, folder: RunFolder, config: Mapping[str, object]) -> None:
        self._mlflow = _extra("mlflow")
        try:
            self._start(folder, config)
        except Exception as error:  # its own kinds, and those of what it asks the server with
            raise UserError(f"mlflow cannot start: {error}; mend that, or leave mlflow out of --sinks") from error

    def _start(self, folder: RunFolder, config: Mapping[str, object]) -> None:
        identity = _identity(folder, "mlflow")
        if identity is not None:
            self._mlflow.start_run(run_id=identity)
            return
        run = self._mlflow.start_run(run_name=folder.path.name)
        _remember(folder, "mlflow", run.info.run_id)
        parameters = list(_flat(config).items())
        for first in range(0, len(parameters), 100):  # the server takes 100 at a time
            self._mlflow.log_params(dict(parameters[first : first + 100]))

    def write(self, kind: Kind, record: Record) -> None:
        """Log the record's numbers."""
        with _refusing("mlflow"):
            self._mlflow.log_metrics(_numbers(kind, record), step=_env_steps(record))

    def close(self) -> None:
        """Finish the page."""
        with _refusing("mlflow"):
            self._mlflow.end_run()


@contextmanager
def _refusing(tool: str) -> Iterator[None]:
    """What a tool raises is a refusal, as a full disk's: the record waits."""
    try:
        yield
    except Exception as error:
        raise OSError(f"{tool}: {type(error).__name__}: {error}") from error


SINKS = ("jsonl", "tensorboard", "wandb", "mlflow")
"""The names that `make_sinks` knows."""


def require(names: Sequence[str]) -> None:
    """Check that what the sinks called `names` need is installed, before anything is built for them.

    Raises:
        UserError: an extra is not installed.
    """
    for name in names:
        if name in ("wandb", "mlflow"):
            _extra(name)


def make_sinks(
    names: Sequence[str], folder: RunFolder, config: Mapping[str, object], *, resumed_at: int | None = None
) -> tuple[Sink, ...]:
    """Open the sinks called `names`.

    Args:
        names: from `SINKS`.
        folder: the run's.
        config: the run's configuration as nested plain values, for the tools that show it.
        resumed_at: the `env_steps` of the checkpoint that the run continues from; None for a new run.

    Raises:
        UserError: an unknown name, or an extra that is not installed. No sink stays open.
    """
    for name in names:
        if name not in SINKS:
            raise UserError(f"unknown logger {name!r}{nearest(name, SINKS)}")
    sinks: list[Sink] = []
    try:
        for name in dict.fromkeys(names):
            match name:
                case "jsonl":
                    sinks.append(JsonlSink(folder))
                case "tensorboard":
                    sinks.append(TensorBoardSink(folder, resumed_at=resumed_at))
                case "wandb":
                    sinks.append(WandbSink(folder, config))
                case "mlflow":
                    sinks.append(MlflowSink(folder, config))
    except BaseException:
        for sink in sinks:
            sink.close()
        raise
    return tuple(sinks)


def _env_steps(record: Record) -> int:
    steps = record["env_steps"]
    assert isinstance(steps, int)
    return steps


def _grouped(kind: Kind, name: str) -> str:
    return name if "/" in name and kind == "metrics" else f"{_GROUP[kind]}/{name}"


def _numbers(kind: Kind, record: Record) -> dict[str, float]:
    """The record's numbers, apart from `env_steps`, under names with a group; inner names come after a slash."""
    numbers: dict[str, float] = {}

    def add(name: str, value: object) -> None:
        if isinstance(value, int | float):
            numbers[name] = value
        elif isinstance(value, Mapping):
            for inner, item in value.items():
                add(f"{name}/{inner}", item)
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                add(f"{name}/{index}", item)

    for name, value in record.items():
        if name != "env_steps":
            add(_grouped(kind, name), value)
    return numbers


def _finite(value: object) -> object:
    """`value` with None for every number that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _flat(config: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """`{"a": {"b": 1}}` becomes `{"a.b": 1}`."""
    flat: dict[str, object] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _extra(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"logging to {name} needs a package that is not installed; pip install 'greenroom[{name}]'"
        ) from error


def _identity(folder: RunFolder, tool: str) -> str | None:
    """The identifier that `tool` gave this run in an earlier sitting."""
    with suppress(OSError, ValueError, KeyError):
        return str(json.loads((folder.path / f"{tool}.json").read_bytes())["id"])
    return None


def _remember(folder: RunFolder, tool: str, identity: str) -> None:
    write_json(folder.path / f"{tool}.json", {"id": identity})
