"""One run, one folder: where its artefacts are. Never overwritten; a crash leaves the old content or the new one."""

from __future__ import annotations

import errno
import fcntl
import importlib.metadata
import json
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from greenroom import machine
from greenroom.errors import UserError, nearest
from greenroom.forks import undo_in_forks
from greenroom.lines import read_lines, record_of

_LOCK_SECONDS = 1.0
"""How long to wait for whoever holds a folder's lock: a run that is just ending, or someone who only looks."""

_PACKAGES = ("greenroom", "torch", "numpy", "gymnasium", "ale-py")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """The places in a run's folder. Make one with `create` (a new run) or `open` (an existing one)."""

    path: Path

    @classmethod
    def create(cls, path: Path | None, *, env: str, algo: str, seed: int, here: Path = Path()) -> RunFolder:
        """Make the folder of a new run.

        Args:
            path: where; it must not exist or be empty. None: `runs/<env>-<algo>-s<seed>-<date>-<time>`, made unique.
            here: the directory that a relative `path` begins at; by default the current one.
            env: the environment's name, for the default name.
            algo: the algorithm's name, for the default name.
            seed: the run's seed, for the default name.

        Raises:
            UserError: there is something at `path` already, or the folder cannot be made.
        """
        try:
            if path is None:
                return cls(path=_make_unique(here / "runs" / default_name(env, algo, seed, datetime.now())))
            path = here / path
            if path.is_dir() and any(path.iterdir()):
                what = "is an earlier run" if is_run(path) else "exists and is not empty"
                remedy = "continue it with `greenroom resume`, or give" if is_run(path) else "give"
                if (holder := trainer_of(path)) is not None:
                    what, remedy = f"is being trained in by process {holder}", "give"
                raise UserError(f"run folder {path} {what}; nothing was overwritten; {remedy} another --run-dir")
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            where = path or Path("runs")
            raise UserError(f"cannot make run folder {where}: {error.strerror}; give another --run-dir") from error
        return cls(path=path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The folder of an existing run.

        Raises:
            UserError: `path` is no run folder. The message names runs inside, around or beside it.
        """
        if is_run(path):
            return cls(path=path)
        fault = "is not a run folder (no config.yaml)" if path.is_dir() else "is not a folder"
        if not path.exists():
            fault = "does not exist"
        around = next((parent for parent in path.absolute().parents if is_run(parent)), None)
        if around is not None:
            hint = f"; it is inside the run {around}: give that"
        elif inside := _runs_in(path):
            hint = f"; it holds runs, give one of them{nearest(path.name, inside)}"
        elif beside := _runs_in(path.absolute().parent):
            hint = nearest(path.name, beside)
        else:
            hint = "; `greenroom train` makes one"
        raise UserError(f"{path} {fault}{hint}")

    @property
    def config(self) -> Path:
        """The complete configuration, as given. Its presence is what makes a folder a run."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object a log line."""
        return self.path / "metrics.jsonl"

    @property
    def evaluations(self) -> Path:
        """One JSON object an evaluation."""
        return self.path / "evaluations.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of `greenroom.checkpoint`."""
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def faults(self) -> Path:
        """The folder of failed environments' histories (`greenroom.postmortem`)."""
        return self.path / "faults"

    @property
    def curve(self) -> Path:
        """The learning curve."""
        return self.path / "curve.png"

    @property
    def profile(self) -> Path:
        """A trace of some updates, if it was asked for."""
        return self.path / "profile.json"

    @property
    def interventions(self) -> Path:
        """One JSON object for each time that someone intervened in the run. History: a resumed run keeps all."""
        return self.path / "interventions.jsonl"

    @property
    def findings(self) -> Path:
        """One JSON object for each trouble that a check of the run's health has found. History, as the above."""
        return self.path / "findings.jsonl"

    @property
    def spent(self) -> Path:
        """How much wall-clock time the run has taken."""
        return self.path / "spent.json"

    @property
    def lock(self) -> Path:
        """The file that the process locks that trains here, with its id inside."""
        return self.path / "train.lock"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the one process that trains here. Should it be killed, the kernel lets go of the lock.

        Raises:
            UserError: another process trains here; the message names it.
        """
        handle = os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o644)
        forget = undo_in_forks(lambda: os.close(handle))
        try:
            _lock(handle, self.path)
            with suppress(OSError):  # a full disk: the id is there for a message only
                os.ftruncate(handle, 0)
                os.pwrite(handle, str(os.getpid()).encode(), 0)
            yield
        finally:
            forget()
            os.close(handle)

    @property
    def environment(self) -> Path:
        """What the run ran on: `describe_environment`."""
        return self.path / "environment.json"

    def write_environment(self) -> None:
        """Write `environment.json` for this process."""
        write_json(self.environment, describe_environment())

    def note_environment(self, env_steps: int) -> str:
        """On the way back to a checkpoint: what is not as it was when that was made, so that bits may differ too.

        Where something is not, `environment-<env_steps>.json` says what the run is on from here.

        Args:
            env_steps: of the checkpoint.

        Returns:
            In words; empty if all is as it was, or nothing is known.
        """
        moves = {int(path.stem.partition("-")[2]): path for path in self.path.glob("environment-*[0-9].json")}
        for later in [steps for steps in moves if steps >= env_steps]:  # forgotten, as later log lines are
            moves.pop(later).unlink()
        before, now = read_environment(moves[max(moves)] if moves else self.environment), describe_environment()
        was, is_ = _bearing(before), _bearing(now)
        changes = [f"{name} {is_[name]} (was {was[name]})" for name in was if was[name] != is_[name]]
        if changes:
            write_json(self.path / f"environment-{env_steps}.json", now)
        return ", ".join(changes)

    def rewind(self, env_steps: int) -> str:
        """Before going on from a checkpoint: drop the log lines later than `env_steps`; none is left to come twice.

        A last line that was cut short goes too.

        Returns:
            What `note_environment` says.

        Raises:
            UserError: another line is not a log line.
        """
        changes = self.note_environment(env_steps)  # first: should the disk refuse it, no line is dropped yet
        for log in (self.metrics, self.evaluations):
            _keep_lines(log, lambda record: record["env_steps"] <= env_steps)
        for history in (self.findings, self.interventions):
            _keep_lines(history, lambda record: True)
        return changes


def read_environment(path: Path) -> dict[str, Any]:
    """What `describe_environment` once gave, or nothing: that file is there for people, and no command needs it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def as_word(path: Path) -> str:
    """A path as one word of a command line that a person may copy."""
    return shlex.quote(str(path))


def is_run(path: Path) -> bool:
    """Whether `path` is the folder of a run."""
    return (path / "config.yaml").is_file()


def trainer_of(path: Path) -> int | None:
    """The id of the process that trains in the folder `path` (0: there is one, of unknown id), or None."""
    try:
        handle = os.open(RunFolder(path=path).lock, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(handle)
    except OSError:
        return None
    finally:
        os.close(handle)
    return None


def _lock(handle: int, path: Path) -> None:
    """Lock an open file, or say who has. Where a file system has no locks, go without."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise UserError(
                    f"run folder {path} is being trained in by process {_holder(handle)}; see how it does with: "
                    f"greenroom status {as_word(path)}"
                ) from None
        except OSError as problem:
            if problem.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                return None
            raise
        time.sleep(0.02)


def _holder(handle: int) -> int:
    content = os.pread(handle, 20, 0)
    return int(content) if content.isdigit() else 0


def default_name(env: str, algo: str, seed: int, now: datetime) -> str:
    """A run's name that sorts by time and is safe in every file system: `ALE/Pong-v5` becomes `ALE-Pong-v5`."""
    name = re.sub(r"[^A-Za-z0-9._]+", "-", env).strip("-.")
    return f"{name}-{algo}-s{seed}-{now:%Y%m%d-%H%M%S}"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what then takes the place of `path`, all at once; after an exception `path` is as it was."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file so that a crash leaves either the old content or the new, never a mixture."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    sync(path.parent)


def write_json(path: Path, content: object) -> None:
    """Write strict JSON (no NaN), indented, as `write_text` does."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def describe_environment() -> dict[str, object]:
    """What this process runs on: versions, machine kind, threads, git commit, command. No host or user names."""
    git = machine.git_state(Path.cwd())
    return {
        "python": platform.python_version(),
        **{package: _version(package) for package in _PACKAGES},
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": machine.cpu_kind(),
        "cores": machine.available_cores(),
        "cpu_bf16": machine.cpu_bf16(),
        "gpus": machine.gpu_names(),
        "threads": {
            "torch": torch.get_num_threads(),
            "torch_interop": torch.get_num_interop_threads(),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        },
        "git": None if git is None else {"commit": git.commit, "dirty": git.dirty},
        "command": _command(sys.argv),
    }


def _bearing(environment: Mapping[str, Any]) -> dict[str, object]:
    """Of a description, what may bear on the bits that a run computes."""
    threads = environment.get("threads")
    told = {**environment, "threads": threads.get("torch") if isinstance(threads, dict) else threads}
    return {name: told[name] for name in ("python", *_PACKAGES, "cpu", "gpus", "threads") if name in environment}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _command(argv: list[str]) -> str:
    """The command line without the program's folder, and with `~` for the home folder, which has the user's name."""
    home = str(Path.home())
    words = [Path(argv[0]).name, *argv[1:]]
    return shlex.join(words if home == "/" else [word.replace(home, "~") for word in words])


def _make_unique(wanted: Path) -> Path:
    """Make the folder `wanted`, or `wanted-2`, `wanted-3`, … : the first that does not exist."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    path, attempt = wanted, 1
    while True:
        try:
            path.mkdir()
            return path
        except FileExistsError:
            attempt += 1
            path = wanted.with_name(f"{wanted.name}-{attempt}")


def _runs_in(folder: Path) -> list[str]:
    """The names of the newest runs in a folder, enough of them for a hint."""
    try:
        runs = [entry for entry in folder.iterdir() if is_run(entry)]
        return [run.name for run in sorted(runs, key=lambda run: run.stat().st_mtime)[-20:]]
    except OSError:
        return []


def _keep_lines(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrite a log, if there is one, with the lines that are `wanted`; what `read_lines` leaves out goes."""
    after = "".join(read_lines(path, lambda line: f"{line}\n" if wanted(record_of(line)) else ""))
    if path.exists() and after != path.read_bytes().decode(errors="replace"):
        write_text(path, after)
