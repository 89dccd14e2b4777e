"""Checkpoints: a run's whole state on disk, complete or absent, checked on the way back. No pickle in either direction.

A checkpoint is a folder `step_000000123456/` (the number is `env_steps`) of two files:

- `tensors.safetensors`: every tensor and NumPy array of the state.
- `manifest.json`: everything else, with references into the tensor file, that file's size and SHA-256, the format's
  version, and the SHA-256 of the manifest's own body.

The folder is written under a temporary name, flushed to the disk, and renamed; older ones go only after that. A folder
with a final name is therefore complete, whenever the power fails.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from greenroom.errors import UserError, nearest
from greenroom.folder import sync, write_json

State = dict[str, Any]
"""Nested dicts (string or integer keys), lists and tuples of tensors, NumPy arrays and scalars, int, float, bool, None,
str and bytes. Read back, a subclass of these (`OrderedDict`, `Parameter`) is the plain type, and every tensor is
contiguous and on the CPU."""

FORMAT = 1
"""The version of the layout described above. Raise it when a reader of the old layout would go wrong."""

_TENSORS, _MANIFEST, _BEST = "tensors.safetensors", "manifest.json", "best.json"
_NAME = re.compile(r"step_(\d{12,})(?:\.(\d+))?")
_ENVELOPE = re.compile(rb'\{"sha256": "([0-9a-f]{64})", "body":\n(.*)\n\}\n', re.DOTALL)
_NO_FORMAT = (torch.complex32, torch.complex128)  # safetensors has no name for them
_UNFINISHED, _DISCARDED = ".saving-", ".deleting-"


def save(
    root: Path, state: Mapping[str, object], *, env_steps: int, updates: int, keep: int = 3, is_best: bool = False
) -> Path:
    """Write a checkpoint, then delete old ones.

    Kept are the newest `keep` and the best. Those with more `env_steps` than this one are deleted: the run went back
    behind them. Saving the same `env_steps` again replaces the earlier one, with a name ending in `.1`, `.2`, …

    Args:
        root: the folder of all checkpoints of one run; made if missing.
        state: see `State`.
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
    tensors: dict[str, Tensor] = {}
    tree = _Encoder(tensors).encode(dict(state), ())
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


def load(path: Path) -> State:
    """Read a checkpoint and verify every byte of it.

    Raises:
        UserError: it is not a checkpoint, is damaged, or has another format version.
    """
    manifest = _manifest(path)
    try:
        content = (path / _TENSORS).read_bytes()
    except FileNotFoundError:
        raise _damaged(path, f"{_TENSORS} is missing") from None
    except OSError as error:
        raise UserError(f"cannot read {path / _TENSORS}: {error.strerror}") from error
    expected = manifest["tensors"]
    assert isinstance(expected, dict)
    if len(content) != expected["bytes"]:
        raise _damaged(path, f"{_TENSORS} has {len(content)} bytes instead of {expected['bytes']}")
    if hashlib.sha256(content).hexdigest() != expected["sha256"]:
        raise _damaged(path, f"the checksum of {_TENSORS} is wrong")
    state = _decode(manifest["state"], safetensors.torch.load(content))
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


def load_latest(root: Path, say: Callable[[str], None]) -> tuple[Path, State]:
    """The newest checkpoint that can be read, and where it is. Each one that is passed over is reported to `say`.

    Raises:
        UserError: there is none.
    """
    faults: list[UserError] = []
    for path in reversed(_all(root)):
        try:
            state = load(path)
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
    """Both files of a checkpoint, on the disk when this returns."""
    safetensors.torch.save_file(tensors, folder / _TENSORS)
    with (folder / _TENSORS).open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    size = (folder / _TENSORS).stat().st_size
    sync(folder / _TENSORS)
    manifest = {"format": FORMAT, "tensors": {"bytes": size, "sha256": checksum}} | content
    body = json.dumps(manifest, allow_nan=False).encode()
    with (folder / _MANIFEST).open("wb") as file:
        file.write(b'{"sha256": "%s", "body":\n%s\n}\n' % (hashlib.sha256(body).hexdigest().encode(), body))
    sync(folder / _MANIFEST)
    sync(folder)


def _manifest(path: Path) -> dict[str, object]:
    """The manifest's body, verified."""
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
    if body["format"] != FORMAT:
        raise UserError(
            f"checkpoint {path} has format {body['format']}, this greenroom reads format {FORMAT}; "
            "use the greenroom version in the run's environment.json"
        )
    return body


def _damaged(path: Path, how: str) -> UserError:
    return UserError(f"checkpoint {path} is damaged: {how}; use another checkpoint or a copy of this one")


def _is_complete(path: Path) -> bool:
    try:
        expected = _manifest(path)["tensors"]
        assert isinstance(expected, dict)
        return bool((path / _TENSORS).stat().st_size == expected["bytes"])
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


class _Encoder:
    """Turns a state into JSON, putting its tensors aside. What JSON cannot say is an object with one key, `"$kind"`."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors
        self._seen: dict[tuple[object, ...], str] = {}
        self._storages: set[int] = set()

    def encode(self, value: object, path: tuple[str, ...]) -> object:
        """The JSON form of `value`, which is at `path` in the state."""
        if isinstance(value, Tensor):
            return {"$tensor": self._put(value, path)}
        if isinstance(value, np.ndarray | np.generic):
            return self._array(value, path)
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, int):
            # Decimal up to 64 bits, which every JSON reader takes; hexadecimal beyond.
            return int(value) if -(2**63) <= value < 2**63 else {"$int": hex(value)}
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"$float": str(float(value))}
        if isinstance(value, bytes):
            return {"$bytes": value.hex()}
        if isinstance(value, list | tuple):
            items = [self.encode(item, (*path, str(index))) for index, item in enumerate(value)]
            return {"$tuple": items} if isinstance(value, tuple) else items
        if isinstance(value, dict):
            return self._dict(value, path)
        raise TypeError(f"a checkpoint cannot hold a {type(value).__qualname__} (at {'/'.join(path)})")

    def _dict(self, value: dict[object, object], path: tuple[str, ...]) -> object:
        items: list[tuple[str | int, object]] = []
        for key, item in value.items():
            if isinstance(key, bool) or not isinstance(key, str | int):
                raise TypeError(f"a checkpoint's dicts have string or integer keys, not {key!r} (at {'/'.join(path)})")
            items.append((key, self.encode(item, (*path, str(key)))))
        if all(isinstance(key, str) and not key.startswith("$") for key, _ in items):
            return dict(items)
        return {"$dict": [[key, item] for key, item in items]}

    def _array(self, value: np.ndarray | np.generic, path: tuple[str, ...]) -> object:
        """NumPy arrays travel as bytes, with their type beside them: torch does not know every NumPy type."""
        array = np.asarray(value)
        raw = torch.from_numpy(np.frombuffer(array.tobytes(), np.uint8).copy())
        if array.dtype.hasobject or array.dtype.names:
            raise TypeError(f"a checkpoint cannot hold a NumPy array of {array.dtype} (at {'/'.join(path)})")
        kind = "$array" if isinstance(value, np.ndarray) else "$scalar"
        return {kind: [self._put(raw, path), array.dtype.str, list(array.shape)]}

    def _put(self, value: Tensor, path: tuple[str, ...]) -> str:
        """Put a tensor aside and return its name. The same memory seen the same way twice is kept once."""
        if value.layout is not torch.strided or value.is_quantized or value.is_meta or value.dtype in _NO_FORMAT:
            form = f"{value.layout} tensor of {value.dtype} on {value.device}"
            raise TypeError(f"a checkpoint cannot hold a {form} (at {'/'.join(path)})")
        identity = (value.data_ptr(), value.dtype, value.device, value.shape, value.stride(), value.is_conj())
        if value.numel() and identity in self._seen:
            return self._seen[identity]
        name = base = "/".join(path).encode("utf-8", "backslashreplace").decode() or "state"
        attempt = 1
        while name in self._tensors or name == "__metadata__":
            attempt += 1
            name = f"{base}#{attempt}"
        plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        storage = plain.untyped_storage().data_ptr()
        # safetensors refuses tensors that share memory; the first of several views may keep it.
        self._tensors[name] = plain.clone() if storage in self._storages else plain
        self._storages.add(storage)
        self._seen[identity] = name
        return name


def _decode(value: object, tensors: dict[str, Tensor]) -> object:
    """The inverse of `_Encoder.encode`."""
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1 or not (kind := next(iter(value))).startswith("$"):
        return {key: _decode(item, tensors) for key, item in value.items()}
    content = value[kind]
    match kind:
        case "$tensor":
            return tensors[content]
        case "$array" | "$scalar":
            name, dtype, shape = content
            array = np.ndarray(shape, dtype, buffer=tensors[name].numpy().tobytes()).copy()
            return array if kind == "$array" else array[()]
        case "$int":
            return int(content, 16)
        case "$float":
            return float(content)
        case "$bytes":
            return bytes.fromhex(content)
        case "$tuple":
            return tuple(_decode(item, tensors) for item in content)
        case "$dict":
            return {key: _decode(item, tensors) for key, item in content}
    raise UserError(f"a checkpoint holds the unknown kind {kind!r}; it was written by a newer greenroom")
