"""The state of a Python environment as plain values, and back, without pickle.

`capture` walks an environment and its wrappers attribute by attribute into numbers, strings and lists that JSON can
hold. `restore` writes them into another environment of the same kind, built and reset in the ordinary way, in place
where it can, so that everything a capture leaves out (functions, modules, classes, render handles that are None) is
the new environment's own. Whatever holds state that Python cannot see makes an environment *not snapshotable*. MuJoCo
is understood: its data are copied whole; its model is taken as constant. Out of sight are class attributes and
the global random generators of Python and NumPy; an environment should draw from its own `np_random`.

An environment may instead offer `get_state()`, which gives numbers, strings, arrays, lists and dicts, and
`set_state(state)`. Its `np_random` is captured in any case.
"""

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

import numpy as np

from greenroom.errors import UserError

_ATOMS = (type(None), bool, int, float, str)
_STATIC = (types.ModuleType, types.BuiltinFunctionType, type, np.dtype, np.ufunc, logging.Logger, property)
_SEQUENCES = (list, tuple, set, frozenset, collections.deque)
_MAPPINGS = (dict, collections.OrderedDict, collections.defaultdict)
_EMPTY: dict[str, Any] = {"dict": dict, "OrderedDict": collections.OrderedDict}  # a defaultdict needs its live factory
_BIT_GENERATORS = {
    kind.__name__: kind
    for kind in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
}
_POINTER = tuple.__itemsize__


class NotSnapshotable(UserError):
    """An environment holds something that cannot be captured; the message gives the path of the attribute."""


def capture(env: Any) -> Any:
    """The state of `env` as values that JSON can hold.

    Raises:
        NotSnapshotable: Something in it cannot be captured.
    """
    try:
        return _Capture().value(env, "env")
    except RecursionError as error:
        raise NotSnapshotable("the environment's objects are nested too deeply to capture") from error


def restore(env: Any, state: Any) -> None:
    """Make `env`, of the same kind as the captured one and already reset, continue from `state`.

    Raises:
        NotSnapshotable: `state` does not fit this environment.
    """
    try:
        _Restore().value(state, env, "env")
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, zlib.error) as error:
        raise NotSnapshotable(f"the saved state does not fit this environment: {error}") from error


def is_plain(kind: type) -> bool:
    """Whether all state of an instance lies in its `__dict__` and `__slots__` (no memory that only C code sees)."""
    hidden = kind.__basicsize__ - object.__basicsize__ - _POINTER * len(_slots(kind))
    hidden -= _POINTER * (kind.__dictoffset__ > 0) + _POINTER * (kind.__weakrefoffset__ > 0)
    return hidden <= 0 and kind.__itemsize__ == 0 and not issubclass(kind, BaseException | types.GeneratorType)


def _slots(kind: type) -> list[str]:
    names = []
    for base in kind.__mro__:
        own = vars(base).get("__slots__", ())
        for name in (own,) if isinstance(own, str) else own:
            if name not in ("__dict__", "__weakref__"):
                hidden = name.startswith("__") and not name.endswith("__")
                names.append(f"_{base.__name__.lstrip('_')}{name}" if hidden else name)
    return names


def _attributes(value: Any) -> dict[str, Any]:
    found = dict(getattr(value, "__dict__", {}))
    found.update({name: getattr(value, name) for name in _slots(type(value)) if hasattr(value, name)})
    return found


def _is_bound(value: Any) -> bool:
    """A method of an object, written in Python or not (`np_random.normal`), rather than a function of a module."""
    if isinstance(value, types.MethodType):
        return True
    return isinstance(value, types.BuiltinFunctionType) and not isinstance(value.__self__, types.ModuleType | None)


def _has_own_state(value: Any) -> bool:
    return callable(getattr(type(value), "get_state", None)) and callable(getattr(type(value), "set_state", None))


def _mujoco(value: Any, kind: str) -> bool:
    return _module(value).startswith("mujoco.") and type(value).__name__ == kind


def _name(value: Any) -> str:
    named = value if hasattr(value, "__qualname__") or isinstance(value, types.ModuleType) else type(value)
    return f"{getattr(named, '__module__', '')}:{getattr(named, '__qualname__', getattr(named, '__name__', ''))}"


def _bytes(data: bytes) -> str:
    return base64.b64encode(data).decode()


class _Capture:
    """One walk. Every mutable object gets a number at its first visit; later visits refer to that number."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}
        self._keep: list[Any] = []  # temporary values must live as long as the walk: their ids may not be reused
        self._numbers = itertools.count()

    def value(self, value: Any, path: str) -> Any:
        if type(value) in _ATOMS:
            return value
        if isinstance(value, enum.Enum):
            return {"enum": value.name}
        if isinstance(value, np.generic):
            return {"scalar": _bytes(value.tobytes()), "dtype": value.dtype.str}
        if isinstance(value, bytes):
            return {"bytes": _bytes(value)}
        if id(value) in self._seen:
            return {"ref": self._seen[id(value)]}
        number = self._seen[id(value)] = next(self._numbers)
        self._keep.append(value)
        node = self._node(value, path)
        if node is None:
            kind = _name(type(value)).strip(":").replace(":", ".")
            raise NotSnapshotable(f"{path} ({kind}) cannot be captured")
        return {"id": number, **node}

    def _node(self, value: Any, path: str) -> dict[str, Any] | None:
        kind = type(value)
        if isinstance(value, types.FunctionType) and value.__closure__:
            cells = [self.value(cell.cell_contents, f"{path}.<closure>") for cell in value.__closure__]
            return {"function": _name(value), "cells": cells}
        if _is_bound(value):
            return {"method": _name(value), "self": self.value(value.__self__, f"{path}.__self__")}
        if isinstance(value, (types.FunctionType, *_STATIC)) or _mujoco(value, "MjModel") or _is_env_spec(value):
            return {"static": _name(value)}
        if kind is np.ndarray and not value.dtype.hasobject:
            data = np.ascontiguousarray(value)
            return {"array": _bytes(data.tobytes()), "dtype": value.dtype.str, "shape": list(value.shape)}
        if isinstance(value, np.random.Generator):
            return {"generator": self.value(value.bit_generator.state, path)}
        if isinstance(value, np.random.RandomState):
            return {"random_state": self.value(value.get_state(legacy=False), path)}
        if type(value) is random.Random:
            return {"random": self.value(value.getstate(), path)}
        if _mujoco(value, "MjData"):
            return {"mujoco": _bytes(zlib.compress(value.__getstate__(), 1))}  # most of it is the model
        return self._container(value, path) or self._object(value, path)

    def _container(self, value: Any, path: str) -> dict[str, Any] | None:
        kind = type(value)
        if kind in _SEQUENCES or (isinstance(value, tuple) and hasattr(value, "_fields")):
            parts = [self.value(part, f"{path}[{i}]") for i, part in enumerate(value)]
            limit = value.maxlen if kind is collections.deque else None
            return {"sequence": kind.__name__, "parts": parts, "class": _name(value), "limit": limit}
        if kind in _MAPPINGS:
            pairs = [[self.value(k, f"{path}.keys()"), self.value(v, f"{path}[{k!r}]")] for k, v in value.items()]
            return {"mapping": kind.__name__, "pairs": pairs}
        if kind is functools.partial:
            inside = {"func": value.func, "args": value.args, "keywords": value.keywords}
            return {"partial": {name: self.value(part, f"{path}.{name}") for name, part in inside.items()}}
        return None

    def _object(self, value: Any, path: str) -> dict[str, Any] | None:
        if _has_own_state(value):
            own = {"state": value.get_state(), "random": getattr(value, "_np_random", None)}
            self._keep.append(own)
            return {"own": self.value(own, f"{path}.get_state()")}
        if not is_plain(type(value)):
            return None
        attributes = _attributes(value).items()
        return {"object": _name(value), "attributes": {k: self.value(v, f"{path}.{k}") for k, v in attributes}}


class _Restore:
    """One walk, beside the live environment. Numbered objects are remembered so that references find them again."""

    def __init__(self) -> None:
        self._made: dict[int, Any] = {}
        self._claimed: set[int] = set()
        self._packages: set[str] = set()

    def value(self, node: Any, live: Any, path: str) -> Any:
        if not isinstance(node, dict):
            return node
        if "ref" in node:
            return self._made[node["ref"]]
        if "enum" in node:
            return type(live)[node["enum"]]
        if "scalar" in node:
            return np.frombuffer(base64.b64decode(node["scalar"]), np.dtype(node["dtype"]))[0]
        if "bytes" in node:
            return base64.b64decode(node["bytes"])
        # An object that is live in two places but was two objects when saved must not be written twice.
        if id(live) in self._claimed:
            live = None
        elif live is not None:
            self._claimed.add(id(live))
        made = self._made[node["id"]] = self._node(node, live, path)
        return made

    def _node(self, node: dict[str, Any], live: Any, path: str) -> Any:
        if "static" in node:
            return self._same(live, node["static"], path)
        if "function" in node:
            self._same(live, node["function"], path)
            for cell, part in zip(live.__closure__, node["cells"], strict=True):
                cell.cell_contents = self.value(part, cell.cell_contents, f"{path}.<closure>")
            return live
        if "method" in node:
            owner = self.value(node["self"], getattr(live, "__self__", None), f"{path}.__self__")
            return getattr(owner, node["method"].rpartition(".")[2])
        if "partial" in node:
            parts = {n: self.value(part, getattr(live, n, None), f"{path}.{n}") for n, part in node["partial"].items()}
            return functools.partial(parts["func"], *parts["args"], **parts["keywords"])
        if "array" in node:
            return _array(node, live)
        if "generator" in node:
            return self._generator(self.value(node["generator"], None, path), live)
        if "random_state" in node:
            source = live if isinstance(live, np.random.RandomState) else np.random.RandomState()
            source.set_state(self.value(node["random_state"], None, path))
            return source
        if "random" in node:
            chance = live if type(live) is random.Random else random.Random()
            chance.setstate(self.value(node["random"], None, path))
            return chance
        if "mujoco" in node:
            return _mujoco_data(node, live)
        if "own" in node:
            own = self.value(node["own"], None, path)
            live.set_state(own["state"])
            if own["random"] is not None:
                live._np_random = own["random"]
            return live
        return self._container(node, live, path) if "object" not in node else self._object(node, live, path)

    def _generator(self, state: dict[str, Any], live: Any) -> np.random.Generator:
        if (
            isinstance(live, np.random.Generator)
            and live.bit_generator.state["bit_generator"] == state["bit_generator"]
        ):
            live.bit_generator.state = state
            return live
        made = np.random.Generator(_BIT_GENERATORS[state["bit_generator"]]())
        made.bit_generator.state = state
        return made

    def _container(self, node: dict[str, Any], live: Any, path: str) -> Any:
        if "mapping" in node:
            mapping = live if type(live).__name__ == node["mapping"] else _EMPTY[node["mapping"]]()
            self._made[node["id"]] = mapping
            before = dict(mapping)
            mapping.clear()
            for key_node, part in node["pairs"]:
                key = self.value(key_node, None, path)
                mapping[key] = self.value(part, before.get(key), f"{path}[{key!r}]")
            return mapping
        kind, nodes = node["sequence"], node["parts"]
        before_parts = list(live) if isinstance(live, _SEQUENCES) and kind not in ("set", "frozenset") else []
        before_parts += [None] * (len(nodes) - len(before_parts))
        target: Any = None
        if kind == "list":
            target = live if type(live) is list else []
        elif kind == "deque":
            same = type(live) is collections.deque and live.maxlen == node["limit"]
            target = live if same else collections.deque(maxlen=node["limit"])
        if target is not None:  # known before its parts are, because a part may refer back to it
            self._made[node["id"]] = target
        parts = [self.value(part, before_parts[i], f"{path}[{i}]") for i, part in enumerate(nodes)]
        if target is not None:
            target.clear()
            target.extend(parts)
            return target
        plain = {"tuple": tuple, "set": set, "frozenset": frozenset}.get(kind)
        return plain(parts) if plain else self._class(node["class"], path)(*parts)

    def _object(self, node: dict[str, Any], live: Any, path: str) -> Any:
        if live is None or _name(live) != node["object"]:
            kind: Any = self._class(node["object"], path)
            live = object.__new__(kind)
        self._made[node["id"]] = live
        self._packages.add(type(live).__module__.partition(".")[0])
        present = _attributes(live)
        for name, part in node["attributes"].items():
            made = self.value(part, present.get(name), f"{path}.{name}")
            if name not in present or made is not present[name]:
                object.__setattr__(live, name, made)
        for name in present.keys() - node["attributes"].keys():
            object.__delattr__(live, name)
        return live

    def _class(self, name: str, path: str) -> type:
        """A class by name: only a plain one, from a package that the live environment is itself made of."""
        module, _, qualified = name.partition(":")
        found: Any = sys.modules.get(module) if module.partition(".")[0] in self._packages else None
        for part in qualified.split("."):
            found = getattr(found, part, None)
        if not isinstance(found, type) or not (is_plain(found) or issubclass(found, tuple)):
            raise NotSnapshotable(f"{path} was a {name}, which this environment does not have")
        return found

    def _same(self, live: Any, name: str, path: str) -> Any:
        if live is None or _name(live) != name:
            raise NotSnapshotable(f"{path} was {name} when saved and is {_name(live)} now")
        return live


def _array(node: dict[str, Any], live: Any) -> Any:
    data = np.frombuffer(base64.b64decode(node["array"]), np.dtype(node["dtype"])).reshape(node["shape"])
    if type(live) is np.ndarray and live.shape == data.shape and live.dtype == data.dtype and live.flags.writeable:
        live[...] = data
        return live
    return data.copy()


def _mujoco_data(node: dict[str, Any], live: Any) -> Any:
    import mujoco

    kind: Any = type(live)
    saved = kind.__new__(kind)
    saved.__setstate__(zlib.decompress(base64.b64decode(node["mujoco"])))
    mujoco.mj_copyData(live, live.model, saved)
    return live


def _is_env_spec(value: Any) -> bool:
    return _module(value) == "gymnasium.envs.registration"


def _module(value: Any) -> str:
    return getattr(type(value), "__module__", "")  # types of SWIG's have none
