"""Checkpoints: a run's whole state on disk, complete or absent, checked on the way back. No pickle in either direction.

A checkpoint is a folder `step_000000123456/` (the number is `env_steps`) of these files:

- `tensors.safetensors`: the tensors and NumPy arrays of the state.
- `tensor_0.bin`, `tensor_1.bin`, …: the bytes of each large one. A replay may be most of the machine's memory, so these
  are written piece by piece, and read back by mapping the file: no copy is ever made of them.
- `manifest.json`: everything else, with references to the tensors, the other files' sizes and SHA-256, the format's
  version, and the SHA-256 of the manifest's own body.

The folder is written under a temporary name, flushed to the disk, and renamed; older ones go only after that. A folder
with a final name is therefore complete, whenever the power fails.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from greenroom.encoding import State, decode, encode
from greenroom.errors import UserError, nearest
from greenroom.folder import sync, write_json

FORMAT = 2
"""The version of the layout described above. Raise it when a reader of the old layout would go wrong. Version 1 had no
files for large tensors; it is still read."""

LARGE = 16 * 2**20
"""Bytes from which on a tensor gets a file of its own; also the size of the pieces in which it is written."""

_TENSORS, _MANIFEST, _BEST = "tensors.safetensors", "manifest.json", "best.json"
_NAME = re.compile(r"step_(\d{12,})(?:\.(\d+))?")
_ENVELOPE = re.compile(rb'\{"sha256": "([0-9a-f]{64})", "body":\n(.*)\n\}\n', re.DOTALL)
_UNFINISHED, _DISCARDED = ".saving-", ".deleting-"


def save(
    root: Path, state: Mapping[str, object], *, env_steps: int, updates: int, keep: int = 3, is_best: bool = False
) -> Path:
    """Write a checkpoint, then delete old ones.

    Kept are the newest `keep` and the best. Those with more `env_steps` than this one are deleted: the run went back
    behind them. Saving the same `env_steps` again replaces the earlier one, with a name ending in `.1`, `.2`, …

    Args:
        root: the folder of all checkpoints of one run; made if missing.
        state: see `encoding.State`.
        env_steps: agent steps so far, at least 0.
        updates: updates so far.
        keep: how many to keep beside the best, at least 1.
        is_best: this one is the best so far: `best` finds it.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: the disk is full or refuses; the earlier checkpoints are untouched.
        TypeError: the state holds something else than `State` allows; the message says where.
    """
    if env_steps < 0 or keep < 1:
        raise ValueError(f"env_steps must be at least 0 and keep at least 1, got {env_steps} and {keep}")
    tree, tensors = encode(state)
    try:
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        path = _free_name(root, env_steps)
        unfinished = root / f"{_UNFINISHED}{path.name}"
        try:
            unfinished.mkdir()
            _write(unfinished, tensors, {"env_steps": env_steps, "updates": updates, "state": tree})
            os.replace(unfinished, path)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        sync(root)
        if is_best:
            write_json(root / _BEST, {"checkpoint": path.name})
        _retire(root, path, keep)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(
            f"cannot save checkpoint {env_steps} in {root}: {reason} "
            f"(it needs {sum(tensor.nbytes for tensor in tensors.values()) / 1e6:.1f} MB, {_free_space(root)}); "
            "free some space or choose another --run-dir; earlier checkpoints are untouched"
        ) from error
    return path


def load(path: Path, *, part: tuple[str, ...] = ()) -> State:
    """Read a checkpoint and verify every byte of what is returned.

    Large tensors are the file's own pages: memory is used as they are touched, writing to one leaves the file alone,
    and deleting the checkpoint meanwhile does no harm.

    Args:
        path: the checkpoint's folder.
        part: keys that lead from the whole state to the part wanted; the large tensors of the rest are not read.

    Raises:
        UserError: it is not a checkpoint, is damaged, has another format version, or has no such part.
    """
    manifest = _manifest(path)
    _verify(path, _TENSORS, manifest["tensors"])
    tensors = safetensors.torch.load((path / _TENSORS).read_bytes())

    def tensor(name: str) -> Tensor:
        if name not in tensors:
            tensors[name] = _map(path, manifest["large"][name])
        return tensors[name]

    tree = manifest["state"]
    for key in part:
        if not isinstance(tree, dict) or key not in tree:
            raise UserError(f"checkpoint {path} has no {'/'.join(part)}; it was written by another greenroom")
        tree = tree[key]
    state = decode(tree, tensor)
    assert isinstance(state, dict)
    return state


def env_steps_of(path: Path) -> int:
    """The `env_steps` at which the checkpoint `path` was saved, from its name."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise UserError(f"{path} is not a checkpoint: its name is not step_ and a number")
    return int(match[1])


def latest(root: Path) -> Path | None:
    """The newest complete checkpoint in `root`, or None. Cheap: sizes are checked, the tensors' checksum is not."""
    return next((path for path in reversed(_all(root)) if _is_complete(path)), None)


def best(root: Path) -> Path | None:
    """The checkpoint last saved with `is_best`, or None."""
    try:
        path = root / str(json.loads((root / _BEST).read_bytes())["checkpoint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return path if path in _all(root) else None


def find(root: Path, which: str) -> Path:
    """The checkpoint that `which` means: `latest`, `best`, or one's own name.

    Raises:
        UserError: there is none such; the message names those that there are.
    """
    named = {"latest": latest(root), "best": best(root)} | {path.name: path for path in _all(root)}
    path = named.get(which)
    if path is None:
        raise UserError(f"no {which} checkpoint in {root}{nearest(which, [path.name for path in _all(root)])}")
    return path


def load_latest(root: Path, say: Callable[[str], None], *, part: tuple[str, ...] = ()) -> tuple[Path, State]:
    """The newest checkpoint of which `part` can be read (see `load`), and where it is; those passed over go to `say`.

    Raises:
        UserError: there is none.
    """
    faults: list[UserError] = []
    for path in reversed(_all(root)):
        try:
            state = load(path, part=part)
        except UserError as error:
            faults.append(error)
            continue
        for fault in faults:
            say(str(fault))
        if faults:
            say(f"going back to {path}")
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


def _write(folder: Path, tensors: dict[str, Tensor], content: dict[str, object]) -> None:
    """All files of a checkpoint, on the disk when this returns."""
    large = {name: tensor for name, tensor in tensors.items() if tensor.nbytes >= LARGE}
    small = {name: tensor for name, tensor in tensors.items() if name not in large}
    safetensors.torch.save_file(_apart(small), folder / _TENSORS)
    with (folder / _TENSORS).open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    size = (folder / _TENSORS).stat().st_size
    sync(folder / _TENSORS)
    manifest = {
        "format": FORMAT,
        "tensors": {"bytes": size, "sha256": checksum},
        "large": {
            name: _write_large(folder / f"tensor_{number}.bin", tensor)
            for number, (name, tensor) in enumerate(large.items())
        },
    }
    body = json.dumps(manifest | content, allow_nan=False).encode()
    with (folder / _MANIFEST).open("wb") as file:
        file.write(b'{"sha256": "%s", "body":\n%s\n}\n' % (hashlib.sha256(body).hexdigest().encode(), body))
    sync(folder / _MANIFEST)
    sync(folder)


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors wants them: on the CPU, contiguous, and no two in the same memory."""
    storages: set[int] = set()
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = tensor.cpu().resolve_conj().resolve_neg().contiguous()
        storage = plain.untyped_storage().data_ptr()
        found[name] = plain.clone() if storage in storages else plain
        storages.add(storage)
    return found


def _write_large(file: Path, tensor: Tensor) -> dict[str, object]:
    """Write one tensor piece by piece (one that is not contiguous is copied first). Returns what reading it takes."""
    flat = tensor.resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8)
    checksum = hashlib.sha256()
    with file.open("wb") as stream:
        for piece in flat.split(LARGE):
            data = piece.cpu().numpy().data
            checksum.update(data)
            stream.write(data)
    sync(file)
    return {
        "file": file.name,
        "bytes": flat.nbytes,
        "sha256": checksum.hexdigest(),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
    }


def _map(path: Path, entry: dict[str, Any]) -> Tensor:
    """A large tensor, verified. It is not read into memory: there may be no room for it beside its owner's copy."""
    _verify(path, entry["file"], entry)
    flat = torch.from_file(str(path / entry["file"]), shared=False, size=entry["bytes"], dtype=torch.uint8)
    return flat.view(getattr(torch, entry["dtype"])).view(entry["shape"])


def _verify(path: Path, name: str, expected: dict[str, Any]) -> None:
    """Read one of a checkpoint's files, piece by piece, and compare its size and checksum."""
    try:
        with (path / name).open("rb") as file:
            size, checksum = os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise _damaged(path, f"{name} is missing") from None
    except OSError as error:
        raise UserError(f"cannot read {path / name}: {error.strerror}") from error
    if size != expected["bytes"]:
        raise _damaged(path, f"{name} has {size} bytes instead of {expected['bytes']}")
    if checksum != expected["sha256"]:
        raise _damaged(path, f"the checksum of {name} is wrong")


def _manifest(path: Path) -> dict[str, Any]:
    """The manifest's body, verified, in the form of the newest format."""
    try:
        content = (path / _MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        held = _all(path) or _all(path / "checkpoints")
        hint = f"it holds checkpoints: give one, such as {held[-1]}" if held else "give a step_… folder of a run"
        raise UserError(f"{path} is not a checkpoint (no {_MANIFEST}); {hint}") from None
    except OSError as error:
        raise UserError(f"cannot read {path / _MANIFEST}: {error.strerror}") from error
    envelope = _ENVELOPE.fullmatch(content)
    if envelope is None:
        raise _damaged(path, f"{_MANIFEST} is cut short or altered")
    if hashlib.sha256(envelope[2]).hexdigest().encode() != envelope[1]:
        raise _damaged(path, f"the checksum of {_MANIFEST} is wrong")
    body = json.loads(envelope[2])
    assert isinstance(body, dict)
    if not 1 <= body["format"] <= FORMAT:
        raise UserError(
            f"checkpoint {path} has format {body['format']}, this greenroom reads formats up to {FORMAT}; "
            "use the greenroom version in the run's environment.json"
        )
    return {"large": {}} | body


def _damaged(path: Path, how: str) -> UserError:
    return UserError(f"checkpoint {path} is damaged: {how}; use another checkpoint or a copy of this one")


def _is_complete(path: Path) -> bool:
    try:
        manifest = _manifest(path)
        sizes = {_TENSORS: manifest["tensors"]["bytes"]}
        sizes |= {entry["file"]: entry["bytes"] for entry in manifest["large"].values()}
        return all((path / name).stat().st_size == size for name, size in sizes.items())
    except (UserError, OSError):
        return False


def _order(path: Path) -> tuple[int, int]:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1]), int(match[2] or 0)


def _all(root: Path) -> list[Path]:
    """Every folder in `root` with a checkpoint's name, oldest first."""
    if not root.is_dir():
        return []
    return sorted((path for path in root.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()), key=_order)


def _free_name(root: Path, env_steps: int) -> Path:
    attempts = [attempt for steps, attempt in map(_order, _all(root)) if steps == env_steps]
    return root / (f"step_{env_steps:012d}" + (f".{max(attempts) + 1}" if attempts else ""))


def _sweep(root: Path) -> None:
    """Remove what a killed process left half-written or half-deleted."""
    for path in root.iterdir():
        if path.name.startswith((_UNFINISHED, _DISCARDED)):
            shutil.rmtree(path)


def _retire(root: Path, newest: Path, keep: int) -> None:
    """Delete what is neither among the newest `keep` up to `newest`, nor the best."""
    everything = _all(root)
    last = {_order(path)[0]: path for path in everything if _order(path) <= _order(newest)}  # one for each env_steps
    spared = {*list(last.values())[-keep:], best(root)}
    for path in everything:
        if path not in spared:
            # Renamed first: a deletion that is interrupted must not leave half a checkpoint under a final name.
            discarded = path.with_name(f"{_DISCARDED}{path.name}")
            os.replace(path, discarded)
            shutil.rmtree(discarded)


def _free_space(root: Path) -> str:
    try:
        return f"{shutil.disk_usage(root).free / 1e6:.1f} MB are free"
    except OSError:
        return "the folder cannot be read"
