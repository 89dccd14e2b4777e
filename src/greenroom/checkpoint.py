"""Checkpoints: a run's whole state on disk, complete or absent, checked on the way back. No pickle in either direction.

A checkpoint is a folder `step_000000123456/` (the number is `env_steps`) that holds an `Archive`. The state's transient
parts (a replay: gigabytes) are in a second archive of the folder; only the newest checkpoint has one.

The folder is written under a temporary name, flushed to the disk, and renamed; only after that, older ones go or lose
their transient parts, the manifest of these first. A folder with a final name is therefore complete, whenever the power
fails, and transient parts are whole or absent.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from greenroom.archive import NONSENSE, Archive
from greenroom.encoding import Encoded, State, decode, encode
from greenroom.errors import DiskError, UserError, nearest
from greenroom.folder import sync, write_json

_BEST = "best.json"
_NAME = re.compile(r"step_(\d{12,})(?:\.(\d+))?")
_UNFINISHED, _DISCARDED = ".saving-", ".deleting-"


def save(root: Path, state: Mapping[str, object], *, env_steps: int, updates: int, keep: int = 3) -> Path:
    """Write a checkpoint, then delete old ones, and of those that are kept the transient parts.

    Kept are the newest `keep` and the best. Those with more `env_steps` than this one are deleted: the run went back
    behind them. Saving the same `env_steps` again replaces the earlier one, with a name ending in `.1`, `.2`, …

    Args:
        root: the folder of all checkpoints of one run; made if missing.
        state: see `encoding.State`. No `Transient` inside another one.
        env_steps: agent steps so far, at least 0.
        updates: updates so far.
        keep: how many to keep beside the best, at least 1.

    Returns:
        The checkpoint's folder.

    Raises:
        DiskError: the disk is full or refuses; the earlier checkpoints are untouched.
        TypeError: the state holds something else than `State` allows; the message says where.
    """
    if env_steps < 0 or keep < 1:
        raise ValueError(f"env_steps must be at least 0 and keep at least 1, got {env_steps} and {keep}")
    main = encode(state)
    transient = _encode_transient(main)
    size = sum(tensor.nbytes for part in (main, transient) for tensor in part.tensors.values())
    with _told_of(f"cannot save checkpoint {env_steps}", root, size):
        root.mkdir(exist_ok=True)  # a run's folder that was moved away is not made anew
        _sweep(root)
        path = _free_name(root, env_steps)
        unfinished = root / f"{_UNFINISHED}{path.name}"
        try:
            unfinished.mkdir()
            if main.transient:
                _transient(unfinished).write({"state": transient.tree}, transient.tensors)
            content = {"env_steps": env_steps, "updates": updates, "state": main.tree}
            _main(unfinished).write(content, main.tensors)
            sync(unfinished)
            os.replace(unfinished, path)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        sync(root)
        _retire(root, path, keep)
    return path


def mark_best(root: Path, path: Path, score: float, *, keep: int = 3) -> None:
    """From now on `path` is the best checkpoint. The one before goes, unless it is among the newest `keep`.

    Args:
        root: the folder of all checkpoints of one run.
        path: one of them.
        score: how good it is, a finite number; the higher the better.
        keep: as for `save`.

    Raises:
        DiskError: the disk is full or refuses.
    """
    with _told_of(f"cannot mark {path.name} as the best", root, 0):
        write_json(root / _BEST, {"checkpoint": path.name, "score": score})
        _retire(root, every(root)[-1], keep)


def retreat(root: Path, path: Path) -> None:
    """The run goes back to the checkpoint `path`: delete all later ones, the latest first.

    Raises:
        DiskError: the disk refuses.
    """
    with _told_of(f"cannot go back to {path.name}", root, 0):
        for later in reversed([other for other in every(root) if _order(other) > _order(path)]):
            _discard(later)
        sync(root)


def load(path: Path, *, part: tuple[str, ...] = (), say: Callable[[str], None] = lambda line: None) -> State:
    """Read a checkpoint and verify every byte of what is returned. Transient parts that it no longer has are empty.

    Large tensors are the file's own pages: memory is used as they are touched, writing to one leaves the file alone,
    and deleting the checkpoint meanwhile does no harm.

    Args:
        path: the checkpoint's folder.
        part: keys that lead from the whole state to the part wanted; the large tensors of the rest are not read.
        say: hears of transient parts that are empty.

    Raises:
        UserError: it is not a checkpoint, is damaged, has another format version, or has no such part.
    """
    state, lost = _load(path, part, transient=True)
    if lost:
        say(f"{path}{_begins_empty(lost)}")
    return state


def _load(path: Path, part: tuple[str, ...], *, transient: bool) -> tuple[State, list[str]]:
    """As `load`, or leaving transient parts empty; also the names of those that are."""
    try:
        return _read(path, part, transient=transient)
    except NONSENSE as error:
        what = f"its manifest has a right checksum, but makes no sense ({type(error).__name__}: {error})"
        raise UserError(f"checkpoint {path} is damaged: {what}; use another checkpoint") from error


def _read(path: Path, part: tuple[str, ...], *, transient: bool) -> tuple[State, list[str]]:
    if not _main(path).exists:
        held = every(path) or every(path / "checkpoints")
        hint = f"it holds checkpoints: give one, such as {held[-1]}" if held else "give a step_… folder of a run"
        raise UserError(f"{path} is not a checkpoint (no {_main(path).manifest}); {hint}")
    manifest, tensor = _main(path).read()
    tree = manifest["state"]
    for key in part:
        if not isinstance(tree, dict) or key not in tree:
            raise UserError(f"checkpoint {path} has no {'/'.join(part)}; it was written by another greenroom")
        tree = tree[key]
    lost: list[str] = []

    def transient_part(name: str) -> object:
        if not transient or not _transient(path).exists:
            lost.append(str(name))
            return {}
        manifest, tensor = _transient(path).read()
        return decode(manifest["state"][name], tensor, transient_part)

    state = decode(tree, tensor, transient_part)
    if not isinstance(state, dict):
        raise TypeError(f"a state is a dict, not a {type(state).__name__}")
    return state, lost


def _begins_empty(lost: list[str]) -> str:
    return f"; lost, so it begins empty: {', '.join(lost)}"


def env_steps_of(path: Path) -> int:
    """The `env_steps` at which the checkpoint `path` was saved, from its name."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise UserError(f"{path} is not a checkpoint: its name is not step_ and a number")
    return int(match[1])


def every(root: Path) -> list[Path]:
    """Every folder in `root` with a checkpoint's name, oldest first, sound or not."""
    if not root.is_dir():
        return []
    return sorted((path for path in root.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()), key=_order)


def latest(root: Path) -> Path | None:
    """The newest complete checkpoint in `root`, or None. Cheap: sizes are checked, the tensors' checksum is not."""
    return next((path for path in reversed(every(root)) if _main(path).is_complete), None)


def best(root: Path) -> Path | None:
    """The checkpoint last marked with `mark_best`, or None."""
    marked = _marked(root)
    return marked[0] if marked else None


def best_score(root: Path, *, until: int) -> float:
    """The score of the best checkpoint if it has at most `until` steps, else -inf."""
    marked = _marked(root)
    return marked[1] if marked and env_steps_of(marked[0]) <= until else -math.inf


def _marked(root: Path) -> tuple[Path, float] | None:
    try:
        content = json.loads((root / _BEST).read_bytes())
        path, score = root / str(content["checkpoint"]), float(content["score"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (path, score) if path in every(root) else None


def find(root: Path, which: str) -> Path:
    """The checkpoint that `which` means: `latest`, `best`, or one's own name.

    Raises:
        UserError: there is none such; the message names those that there are.
    """
    named = {"latest": latest(root), "best": best(root)} | {path.name: path for path in every(root)}
    path = named.get(which)
    if path is None:
        raise UserError(f"no {which} checkpoint in {root}{nearest(which, [path.name for path in every(root)])}")
    return path


def load_latest(root: Path, say: Callable[[str], None], *, part: tuple[str, ...] = ()) -> tuple[Path, State]:
    """The newest checkpoint of which `part` can be read (see `load`), and where it is.

    Damaged transient parts are no reason to go back to an older one, which has none: they are left empty.

    Args:
        root: the folder of all checkpoints of one run.
        say: hears of what was damaged, and of transient parts that are empty.
        part: as for `load`.

    Raises:
        UserError: there is none.
    """
    faults: list[UserError] = []
    for path, transient in itertools.product(reversed(every(root)), (True, False)):
        try:
            state, lost = _load(path, part, transient=transient)
        except UserError as error:
            if transient:
                faults.append(error)
            continue
        for fault in faults:
            say(str(fault))
        if faults or lost:
            say(f"going back to {path}" + (_begins_empty(lost) if lost else ""))
        return path, state
    if faults:
        raise UserError(f"no checkpoint in {root} can be read; the newest: {faults[0]}") from faults[0]
    raise UserError(f"there is no checkpoint in {root}; the run ended before its first one: start it anew")


def describe_mismatch(expected: Mapping[str, Tensor], found: Mapping[str, object], where: Path | str) -> None:
    """Check that saved tensors fit a module, before `load_state_dict` would fail with a page of names.

    Args:
        expected: the module's `state_dict()`.
        found: what was saved under the same name.
        where: the checkpoint, for the message.

    Raises:
        UserError: they do not fit; the message lists the first differences and the probable cause.
    """
    saved = {name: tuple(value.shape) for name, value in found.items() if isinstance(value, Tensor)}
    wanted = {name: tuple(value.shape) for name, value in expected.items()}
    missing = [name for name in wanted if name not in saved]
    extra = [name for name in saved if name not in wanted]
    reshaped = [name for name in wanted if name in saved and wanted[name] != saved[name]]
    if not (missing or extra or reshaped):
        return
    differences = [f"{name} is {saved[name]} there and {wanted[name]} here" for name in reshaped]
    differences += [f"{name} {wanted[name]} is missing there" for name in missing]
    differences += [f"{name} {saved[name]} is only there" for name in extra]
    more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
    if missing or extra:
        cause = "it was probably saved with another network or algorithm; use the options of that run's config.yaml"
    else:
        cause = "it was probably saved for other observations or actions, or with other layer sizes; use its options"
    raise UserError(f"checkpoint {where} is from another network: {'; '.join(differences[:3])}{more}; {cause}")


def _main(path: Path) -> Archive:
    return Archive(folder=path, manifest="manifest.json", small="tensors.safetensors", large="tensor")


def _transient(path: Path) -> Archive:
    return Archive(folder=path, manifest="transient.json", small="transient.safetensors", large="transient")


def _encode_transient(encoded: Encoded) -> Encoded:
    """The transient parts of a state by their names."""
    within = encode({name: dict(part) for name, part in encoded.transient.items()})
    if within.transient:
        raise TypeError(f"a transient part cannot hold another one (at {next(iter(within.transient))})")
    return within


@contextmanager
def _told_of(failure: str, root: Path, size: int) -> Iterator[None]:
    """Make a disk's refusal a `DiskError`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DiskError(
            f"{failure} in {root}: {reason} (it needs {size / 1e6:.1f} MB, {_free_space(root)}); "
            "free some space or choose another --run-dir; earlier checkpoints are untouched"
        ) from error


def _order(path: Path) -> tuple[int, int]:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1]), int(match[2] or 0)


def _free_name(root: Path, env_steps: int) -> Path:
    attempts = [attempt for steps, attempt in map(_order, every(root)) if steps == env_steps]
    return root / (f"step_{env_steps:012d}" + (f".{max(attempts) + 1}" if attempts else ""))


def _sweep(root: Path) -> None:
    """Remove what a killed process left half-written or half-deleted."""
    for path in root.iterdir():
        if path.name.startswith((_UNFINISHED, _DISCARDED)):
            shutil.rmtree(path)
    for path in every(root):
        if not _transient(path).exists:
            _strip(path)


def _retire(root: Path, newest: Path, keep: int) -> None:
    """Delete what is neither among the newest `keep` up to `newest`, nor the best; strip what is kept but `newest`."""
    everything = every(root)
    past = [path for path in everything if _order(path) <= _order(newest)]
    last = {_order(path)[0]: path for path in past}  # one for each env_steps
    spared = {*list(last.values())[-keep:], *(path for path in past if path == best(root))}
    for path in everything:
        if path not in spared:
            _discard(path)
        elif path != newest:
            _strip(path)


def _discard(path: Path) -> None:
    """Delete a checkpoint. Renamed first: interrupted, it must not leave half of one under a final name."""
    discarded = path.with_name(f"{_DISCARDED}{path.name}")
    os.replace(path, discarded)
    shutil.rmtree(discarded)


def _strip(path: Path) -> None:
    """Remove a checkpoint's transient parts. Interrupted, this leaves files without a manifest: see `_sweep`."""
    for file in _transient(path).files:
        file.unlink()
        if file.name == _transient(path).manifest:
            sync(path)


def _free_space(root: Path) -> str:
    try:
        return f"{shutil.disk_usage(root).free / 1e6:.1f} MB are free"
    except OSError:
        return "the folder cannot be read"
