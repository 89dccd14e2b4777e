"""A nested state as JSON with its tensors and its transient parts put aside, and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from greenroom.errors import UserError
from greenroom.transient import Transient

State = dict[str, Any]
"""Nested dicts (string or integer keys), lists and tuples of tensors, NumPy arrays and scalars, int, float, bool, None,
str and bytes. Read back, a subclass of these (`OrderedDict`, `Parameter`, `Transient`) is the plain type, and every
tensor is contiguous and on the CPU."""

_NO_FORMAT = (torch.complex32, torch.complex128)  # safetensors has no name for them


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A state taken apart."""

    tree: object
    """JSON that names the rest."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """As they are: not copied, on whichever device."""
    transient: dict[str, Transient] = field(default_factory=dict)
    """As they are: not encoded."""


def encode(state: Mapping[str, object]) -> Encoded:
    """Take a state apart.

    Raises:
        TypeError: the state holds something else than `State` allows; the message says where.
    """
    encoder = _Encoder()
    return Encoded(tree=encoder.encode(dict(state), ()), tensors=encoder.tensors, transient=encoder.transient)


def decode(value: object, tensor: Callable[[str], Tensor], transient: Callable[[str], object]) -> object:
    """The inverse of `encode`; `tensor` and `transient` are asked for what `value` names."""
    if isinstance(value, list):
        return [decode(item, tensor, transient) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1 or not (kind := next(iter(value))).startswith("$"):
        return {key: decode(item, tensor, transient) for key, item in value.items()}
    content = value[kind]
    match kind:
        case "$tensor":
            return tensor(content)
        case "$transient":
            return transient(content)
        case "$array" | "$scalar":
            name, dtype, shape = content
            array = np.ndarray(shape, dtype, buffer=tensor(name).numpy().tobytes()).copy()
            return array if kind == "$array" else array[()]
        case "$int":
            return int(content, 16)
        case "$float":
            return float(content)
        case "$bytes":
            return bytes.fromhex(content)
        case "$tuple":
            return tuple(decode(item, tensor, transient) for item in content)
        case "$dict":
            return {key: decode(item, tensor, transient) for key, item in content}
    raise UserError(f"a checkpoint holds the unknown kind {kind!r}; it was written by a newer greenroom")


class _Encoder:
    """Turns a state into JSON, putting some of it aside. What JSON cannot say is an object with one key, `"$kind"`."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.transient: dict[str, Transient] = {}
        self._seen: dict[tuple[object, ...], str] = {}

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
        if isinstance(value, Transient):
            name = _name(path, self.transient)
            self.transient[name] = value
            return {"$transient": name}
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
        name = _name(path, self.tensors)
        self.tensors[name] = value.detach()
        self._seen[identity] = name
        return name


def _name(path: tuple[str, ...], taken: Container[str]) -> str:
    """A name for what is at `path` in the state."""
    name = base = "/".join(path).encode("utf-8", "backslashreplace").decode() or "state"
    attempt = 1
    while name in taken or name == "__metadata__":
        attempt += 1
        name = f"{base}#{attempt}"
    return name
