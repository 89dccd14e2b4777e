"""The way from an environment's objects to plain values."""

from __future__ import annotations

import base64
import collections
import enum
import functools
import itertools
import logging
import random
import sys
import types
import zlib
from typing import Any

import gymnasium
import numpy as np

from greenroom.envs.anatomy import (
    ATOMS,
    SEQUENCES,
    NotSnapshotable,
    attributes_of,
    contents_of,
    has_own_state,
    is_env_spec,
    is_foreign,
    is_kept,
    is_mujoco,
    is_plain,
    name_of,
)

_STATIC = (types.ModuleType, types.BuiltinFunctionType, type, np.dtype, np.ufunc, logging.Logger, property)
_MAPPINGS = (dict, collections.OrderedDict, collections.defaultdict)


class Capture:
    """One walk. Every mutable object gets a number at its first visit; later visits refer to that number.

    Args:
        env: where it begins.
    """

    def __init__(self, env: Any) -> None:
        self._env = env
        self._seen: dict[int, int] = {}
        self._keep: list[Any] = []  # temporary values must live as long as the walk: their ids may not be reused
        self._numbers = itertools.count()
        self._arrays: list[tuple[dict[str, Any], np.ndarray[Any, Any]]] = []
        self._constants: dict[int, str] | None = None

    def value(self, value: Any, path: str) -> Any:
        """What stands for `value`, which was found at `path`.

        Raises:
            NotSnapshotable: nothing can.
        """
        if type(value) in ATOMS:
            return value
        if isinstance(value, enum.Enum):
            member = value.value if isinstance(value, enum.Flag) else value.name  # a union of flags may have no name
            return {"enum": member, "class": name_of(type(value))}
        if isinstance(value, np.generic) and value.dtype.names is None:
            return {"scalar": _bytes(value.tobytes()), "dtype": value.dtype.str}
        if isinstance(value, bytes):
            return {"bytes": _bytes(value)}
        if id(value) in self._seen:
            return {"ref": self._seen[id(value)]}
        number = self._seen[id(value)] = next(self._numbers)
        self._keep.append(value)
        node = self._node(value, path)
        if node is None:
            kind = name_of(type(value)).strip(":").replace(":", ".")
            raise NotSnapshotable(f"{path} ({kind}) cannot be captured")
        node["id"] = number
        return node

    def note_shared_memory(self) -> None:
        """Tell of arrays that lie in each other's memory (`row = grid[0]`) where in it they do."""
        memories: list[list[int]] = []
        placed = []
        for low, high, number in sorted((*_extent(array), i) for i, (_, array) in enumerate(self._arrays)):
            if not memories or low >= memories[-1][1]:
                memories.append([low, high, 0])
            memories[-1][1] = max(high, memories[-1][1])
            memories[-1][2] += 1
            placed.append((number, len(memories) - 1))
        for number, memory in placed:
            low, high, count = memories[memory]
            node, array = self._arrays[number]
            if count > 1:
                begin = array.__array_interface__["data"][0] - low
                node["memory"] = [memory, high - low, begin, list(array.strides)]

    def _node(self, value: Any, path: str) -> dict[str, Any] | None:
        kind = type(value)
        if isinstance(value, types.FunctionType) and value.__closure__:
            cells = [self.value(cell, f"{path}.<closure>") for cell in value.__closure__]
            return {"function": name_of(value), "cells": cells}
        if kind is types.CellType:
            return {"cell": [self.value(part, path) for part in contents_of(value)]}
        if _is_bound(value):
            return self._method(value, path)
        if isinstance(value, (types.FunctionType, *_STATIC)) or is_mujoco(value, "MjModel") or is_env_spec(value):
            return {"static": name_of(value)}
        if kind is np.ndarray and not value.dtype.hasobject and value.dtype.names is None:
            return self._array(value)
        if isinstance(value, np.random.Generator):
            return {"generator": self.value(value.bit_generator.state, path)}
        if isinstance(value, np.random.RandomState):
            return {"random_state": self.value(value.get_state(legacy=False), path)}
        if type(value) is random.Random:
            return {"random": self.value(value.getstate(), path)}
        if is_mujoco(value, "MjData"):
            return {"mujoco": _bytes(zlib.compress(value.__getstate__(), 1))}  # most of it is the model
        return self._container(value, path) or self._object(value, path)

    def _array(self, value: np.ndarray[Any, Any]) -> dict[str, Any]:
        data = np.ascontiguousarray(value)
        node = {"array": _bytes(data.tobytes()), "dtype": value.dtype.str, "shape": list(value.shape)}
        node["foreign"] = is_foreign(value)
        axes = sorted(range(value.ndim), key=lambda axis: -abs(value.strides[axis]))
        if axes != list(range(value.ndim)):
            node["axes"] = axes  # the order of memory is the order of sums, to the last bit
        if value.size:
            self._arrays.append((node, value))
        return node

    def _method(self, value: Any, path: str) -> dict[str, Any] | None:
        """By its name in the class of its owner, which is not its own for `self.__move`; else by its function."""
        owner, name = value.__self__, value.__name__
        node = {"method": name_of(value), "self": self.value(owner, f"{path}.__self__")}
        if isinstance(value, types.MethodType) and not isinstance(owner, type):
            under = (n for base in type(owner).__mro__ for n, found in vars(base).items() if found is value.__func__)
            name = next(under, name)
            if name in getattr(owner, "__dict__", {}) or getattr(owner, name, None) != value:
                return node | {"of": self.value(value.__func__, f"{path}.__func__")}
        return node | {"name": name} if getattr(owner, name, None) == value else None

    def _container(self, value: Any, path: str) -> dict[str, Any] | None:
        kind = type(value)
        if kind in SEQUENCES or (isinstance(value, tuple) and hasattr(value, "_fields")):
            parts = [self.value(part, f"{path}[{i}]") for i, part in enumerate(value)]
            limit = value.maxlen if kind is collections.deque else None
            return {"sequence": kind.__name__, "parts": parts, "class": name_of(value), "limit": limit}
        if kind in _MAPPINGS:
            pairs = [[self.value(k, f"{path}.keys()"), self.value(v, f"{path}[{k!r}]")] for k, v in value.items()]
            return {"mapping": kind.__name__, "pairs": pairs}
        if kind is functools.partial:
            inside = {"func": value.func, "args": value.args, "keywords": value.keywords}
            return {"partial": {name: self.value(part, f"{path}.{name}") for name, part in inside.items()}}
        return None

    def _object(self, value: Any, path: str) -> dict[str, Any] | None:
        if has_own_state(value):
            own = {"state": _own_state(value, path), "random": getattr(value, "_np_random", None)}
            self._keep.append(own)
            return {"own": self.value(own, f"{path}.get_state()")}
        if not is_plain(type(value)):
            return None
        attributes = attributes_of(value)
        parts = {name: self.value(part, f"{path}.{name}") for name, part in attributes.items()}
        node = {"object": name_of(value), "attributes": parts}
        if not is_kept(value, self._env) and all(type(part) in ATOMS for part in attributes.values()):
            node |= {"constant": name} if (name := self._constant(value)) else {}
        return node

    def _constant(self, value: Any) -> str | None:
        """The name of an object that a module or a class of the environment's has: `if self.mode is IDLE`."""
        if self._constants is None:
            self._constants = {}
            classes = {kind for env in _chain(self._env) for kind in type(env).__mro__ if kind is not object}
            for module in {kind.__module__ for kind in classes} & sys.modules.keys():
                self._constants |= {
                    id(part): f"{module}:{name}" for name, part in dict(vars(sys.modules[module])).items()
                }
            for kind in classes:
                self._constants |= _named_in(kind)
        return self._constants.get(id(value)) or _named_in(type(value)).get(id(value))


def _is_bound(value: Any) -> bool:
    """A method of an object, written in Python or not (`np_random.normal`), rather than a function of a module."""
    if isinstance(value, types.MethodType):
        return True
    return isinstance(value, types.BuiltinFunctionType) and not isinstance(value.__self__, types.ModuleType | None)


def _bytes(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _chain(env: Any) -> list[Any]:
    """An environment and what it wraps."""
    chain = [env]
    while isinstance(inner := getattr(chain[-1], "__dict__", {}).get("env"), gymnasium.Env):
        chain.append(inner)
    return chain


def _named_in(kind: type) -> dict[int, str]:
    return {id(part): f"{kind.__module__}:{kind.__qualname__}.{name}" for name, part in vars(kind).items()}


def _own_state(value: Any, path: str) -> Any:
    try:
        return value.get_state()
    except Exception as error:
        raise NotSnapshotable(f"{path}.get_state() raised {type(error).__name__}: {error}") from error


def _extent(value: np.ndarray[Any, Any]) -> tuple[int, int]:
    """The addresses of its first byte, and of the byte after its last."""
    low = high = int(value.__array_interface__["data"][0])
    for length, stride in zip(value.shape, value.strides, strict=True):
        low, high = low + min(0, (length - 1) * stride), high + max(0, (length - 1) * stride)
    return low, high + value.itemsize
