"""The state of a Python environment as plain values, and back, without pickle.

`capture` walks an environment and its wrappers attribute by attribute into numbers, strings and lists that JSON can
hold. `restore` puts them into another environment of the same kind, built and reset in the ordinary way, so that
everything a capture leaves out (functions, modules, classes, render handles that are None) is the new one's own.

Lists, dicts, arrays and plain objects are built anew, because those of the live environment may be its class's, its
module's or another environment's too. What is the same object, or the same memory, in two places of the captured
environment is so again. Written in place are the environment and its wrappers, random generators, MuJoCo's data,
arrays in memory that is not NumPy's, and objects that say how they are set or how they end. Nothing is written before
everything is built: a state that does not fit leaves the environment as it was.

Whatever holds state that Python cannot see makes an environment *not snapshotable*. MuJoCo is understood: its data are
copied whole; its model is taken as constant. Out of sight are class attributes and the global random generators of
Python and NumPy; an environment should draw from its own `np_random`.

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
from collections.abc import Callable
from typing import Any

import gymnasium
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
    walk = _Capture(env)
    try:
        state = walk.value(env, "env")
    except RecursionError as error:
        raise NotSnapshotable("the environment's objects are nested too deeply to capture") from error
    walk.note_shared_memory()
    return state


def restore(env: Any, state: Any) -> None:
    """Make `env`, of the same kind as the captured one and already reset, continue from `state`.

    Raises:
        NotSnapshotable: `state` does not fit this environment, which may go on from a reset.
    """
    walk = _Restore(env)
    try:
        walk.value(state, env, "env")
        walk.write()
    except NotSnapshotable:
        raise
    except Exception as error:  # keys are hashed and states are set by a stranger's code, which may raise anything
        raise NotSnapshotable(
            f"the saved state does not fit this environment: {type(error).__name__}: {error}"
        ) from error


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

    def __init__(self, env: Any) -> None:
        self._env = env
        self._seen: dict[int, int] = {}
        self._keep: list[Any] = []  # temporary values must live as long as the walk: their ids may not be reused
        self._numbers = itertools.count()
        self._arrays: list[tuple[dict[str, Any], np.ndarray[Any, Any]]] = []
        self._constants: dict[int, str] | None = None

    def value(self, value: Any, path: str) -> Any:
        if type(value) in _ATOMS:
            return value
        if isinstance(value, enum.Enum):
            member = value.value if isinstance(value, enum.Flag) else value.name  # a union of flags may have no name
            return {"enum": member, "class": _name(type(value))}
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
            kind = _name(type(value)).strip(":").replace(":", ".")
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
            return {"function": _name(value), "cells": cells}
        if kind is types.CellType:
            return {"cell": [self.value(part, path) for part in _contents(value)]}
        if _is_bound(value):
            return self._method(value, path)
        if isinstance(value, (types.FunctionType, *_STATIC)) or _mujoco(value, "MjModel") or _is_env_spec(value):
            return {"static": _name(value)}
        if kind is np.ndarray and not value.dtype.hasobject and value.dtype.names is None:
            return self._array(value)
        if isinstance(value, np.random.Generator):
            return {"generator": self.value(value.bit_generator.state, path)}
        if isinstance(value, np.random.RandomState):
            return {"random_state": self.value(value.get_state(legacy=False), path)}
        if type(value) is random.Random:
            return {"random": self.value(value.getstate(), path)}
        if _mujoco(value, "MjData"):
            return {"mujoco": _bytes(zlib.compress(value.__getstate__(), 1))}  # most of it is the model
        return self._container(value, path) or self._object(value, path)

    def _array(self, value: np.ndarray[Any, Any]) -> dict[str, Any]:
        data = np.ascontiguousarray(value)
        node = {"array": _bytes(data.tobytes()), "dtype": value.dtype.str, "shape": list(value.shape)}
        node["foreign"] = _is_foreign(value)
        axes = sorted(range(value.ndim), key=lambda axis: -abs(value.strides[axis]))
        if axes != list(range(value.ndim)):
            node["axes"] = axes  # the order of memory is the order of sums, to the last bit
        if value.size:
            self._arrays.append((node, value))
        return node

    def _method(self, value: Any, path: str) -> dict[str, Any] | None:
        """By its name in the class of its owner, which is not its own for `self.__move`; else by its function."""
        owner, name = value.__self__, value.__name__
        node = {"method": _name(value), "self": self.value(owner, f"{path}.__self__")}
        if isinstance(value, types.MethodType) and not isinstance(owner, type):
            under = (n for base in type(owner).__mro__ for n, found in vars(base).items() if found is value.__func__)
            name = next(under, name)
            if name in getattr(owner, "__dict__", {}) or getattr(owner, name, None) != value:
                return node | {"of": self.value(value.__func__, f"{path}.__func__")}
        return node | {"name": name} if getattr(owner, name, None) == value else None

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
            own = {"state": _own_state(value, path), "random": getattr(value, "_np_random", None)}
            self._keep.append(own)
            return {"own": self.value(own, f"{path}.get_state()")}
        if not is_plain(type(value)):
            return None
        attributes = _attributes(value)
        node = {"object": _name(value), "attributes": {k: self.value(v, f"{path}.{k}") for k, v in attributes.items()}}
        if not _is_kept(value, self._env) and all(type(part) in _ATOMS for part in attributes.values()):
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


class _Restore:
    """One walk, beside the live environment. Numbered objects are remembered so that references find them again."""

    def __init__(self, env: Any) -> None:
        self._env = env
        self._made: dict[int, Any] = {}
        self._claimed: set[int] = set()
        self._packages: set[str] = set()
        self._memories: dict[int, np.ndarray[Any, Any]] = {}
        self._replaced: dict[int, tuple[Any, Any]] = {}  # old and new; the old ones live on, so that their ids do
        self._writes: list[Callable[[], object]] = []

    def write(self) -> None:
        """Change what is kept, now that all the rest is built."""
        for write in self._writes:
            write()

    def value(self, node: Any, live: Any, path: str) -> Any:
        if not isinstance(node, dict):
            return node
        if "ref" in node:
            return self._made[node["ref"]]
        if "enum" in node:
            return self._enum(node, live, path)
        if "scalar" in node:
            dtype = np.dtype(node["dtype"])
            return np.frombuffer(base64.b64decode(node["scalar"]), dtype)[0] if dtype.itemsize else dtype.type()
        if "bytes" in node:
            return base64.b64decode(node["bytes"])
        made = self._made[node["id"]] = self._node(node, live, path)
        if live is not None and made is not live:
            self._replaced.setdefault(id(live), (live, made))
        return made

    def _claim(self, live: Any) -> bool:
        """Whether it may be written: what is live in two places but was two objects when saved, only once."""
        if id(live) in self._claimed:
            return False
        self._claimed.add(id(live))
        return True

    def _node(self, node: dict[str, Any], live: Any, path: str) -> Any:
        if "static" in node:
            return self._same(live, node["static"], path)
        if "function" in node:
            return self._function(node, live, path)
        if "cell" in node:
            cell = self._made[node["id"]] = types.CellType()
            self._fill(cell, node["cell"], live, path)
            return cell
        if "method" in node:
            owner = self.value(node["self"], getattr(live, "__self__", None), f"{path}.__self__")
            if "of" in node:
                return types.MethodType(self.value(node["of"], getattr(live, "__func__", None), path), owner)
            return getattr(owner, node.get("name") or node["method"].rpartition(".")[2])
        if "partial" in node:
            parts = {n: self.value(part, getattr(live, n, None), f"{path}.{n}") for n, part in node["partial"].items()}
            return functools.partial(parts["func"], *parts["args"], **parts["keywords"])
        if "array" in node:
            return self._array(node, live)
        if "generator" in node:
            return self._generator(self.value(node["generator"], None, path), live)
        if "random_state" in node:
            source = live if isinstance(live, np.random.RandomState) and self._claim(live) else np.random.RandomState()
            drawn = self.value(node["random_state"], None, path)
            self._writes.append(lambda: source.set_state(drawn))
            return source
        if "random" in node:
            chance = live if type(live) is random.Random and self._claim(live) else random.Random()
            state = self.value(node["random"], None, path)
            self._writes.append(lambda: chance.setstate(state))
            return chance
        if "mujoco" in node:
            if not _mujoco(live, "MjData") or not self._claim(live):
                raise NotSnapshotable(f"{path} was MuJoCo's data when saved and is {_name(live)} now")
            self._writes.append(_mujoco_data(node, live))
            return live
        if "own" in node:
            return self._own(node, live, path)
        return self._container(node, live, path) if "object" not in node else self._object(node, live, path)

    def _enum(self, node: dict[str, Any], live: Any, path: str) -> Any:
        kind = type(live)
        if not isinstance(live, enum.Enum) or _name(kind) != node.get("class", _name(kind)):
            kind = self._find(node["class"])
            if not isinstance(kind, type) or not issubclass(kind, enum.Enum):
                raise NotSnapshotable(f"{path} was a {node['class']}, which this environment does not have")
        return kind[node["enum"]] if isinstance(node["enum"], str) else kind(node["enum"])

    def _function(self, node: dict[str, Any], live: Any, path: str) -> Any:
        """With cells of its own: those of the live one may be another environment's, too."""
        self._same(live, node["function"], path)
        cells: list[types.CellType] = []
        fill = []
        for part, before in zip(node["cells"], live.__closure__, strict=True):
            shared = self._made.get(part["ref"]) if isinstance(part, dict) and "ref" in part else None
            if not isinstance(shared, types.CellType):
                shared = types.CellType()
                if is_cell := isinstance(part, dict) and "cell" in part:
                    self._made[part["id"]] = shared
                fill.append((shared, part["cell"] if is_cell else [part], before))  # of old, a cell was its content
            cells.append(shared)
        made = types.FunctionType(live.__code__, live.__globals__, live.__name__, live.__defaults__, tuple(cells))
        functools.update_wrapper(made, live)
        made.__dict__ = dict(live.__dict__)
        made.__kwdefaults__ = live.__kwdefaults__
        self._made[node["id"]] = made  # before its cells are filled, because it may be in one of them
        for cell, parts, before in fill:
            self._fill(cell, parts, before, path)
        return made

    def _fill(self, cell: types.CellType, parts: list[Any], live: Any, path: str) -> None:
        for part in parts:  # one, or none in a cell that is empty yet
            cell.cell_contents = self.value(part, next(iter(_contents(live)), None), f"{path}.<closure>")

    def _array(self, node: dict[str, Any], live: Any) -> Any:
        dtype, shape = np.dtype(node["dtype"]), tuple(node["shape"])
        data = np.frombuffer(base64.b64decode(node["array"]), dtype).reshape(shape)
        if (
            node.get("foreign", True)
            and type(live) is np.ndarray
            and _is_foreign(live)
            and (live.shape, live.dtype, live.flags.writeable) == (shape, dtype, True)
        ):
            self._writes.append(lambda: np.copyto(live, data))
            return live
        if "memory" in node:
            number, size, begin, strides = node["memory"]
            memory = self._memories.setdefault(number, np.zeros(size, np.uint8))
            made = np.ndarray(shape, dtype, memory, begin, tuple(strides))
        else:
            axes = node.get("axes", range(len(shape)))
            made = np.empty([shape[axis] for axis in axes], dtype).transpose(np.argsort(axes).tolist())
        made[...] = data
        return made

    def _generator(self, state: dict[str, Any], live: Any) -> np.random.Generator:
        kind = state["bit_generator"]
        if isinstance(live, np.random.Generator) and type(live.bit_generator).__name__ == kind and self._claim(live):
            bits = live.bit_generator
            self._writes.append(lambda: setattr(bits, "state", state))
            return live
        made = np.random.Generator(_BIT_GENERATORS[kind]())
        made.bit_generator.state = state
        return made

    def _own(self, node: dict[str, Any], live: Any, path: str) -> Any:
        own = self.value(node["own"], None, path)
        if not _has_own_state(live) or not self._claim(live):
            raise NotSnapshotable(f"{path} had a set_state() when saved and is {_name(live)} now")

        def write() -> None:
            for name, part in list(getattr(live, "__dict__", {}).items()):  # what it has in common with the environment
                if id(part) in self._replaced:
                    object.__setattr__(live, name, self._replaced[id(part)][1])
            live.set_state(own["state"])
            if own["random"] is not None:
                live._np_random = own["random"]

        self._writes.append(write)
        return live

    def _container(self, node: dict[str, Any], live: Any, path: str) -> Any:
        if "mapping" in node:
            before = live if isinstance(live, dict) else {}
            if node["mapping"] == "defaultdict":
                mapping: Any = collections.defaultdict(live.default_factory)
            else:
                mapping = _EMPTY[node["mapping"]]()
            self._made[node["id"]] = mapping
            for key_node, part in node["pairs"]:
                key = self.value(key_node, None, path)
                mapping[key] = self.value(part, before.get(key), f"{path}[{key!r}]")
            return mapping
        kind, nodes = node["sequence"], node["parts"]
        before_parts = list(live) if isinstance(live, _SEQUENCES) and kind not in ("set", "frozenset") else []
        before_parts += [None] * (len(nodes) - len(before_parts))
        target: Any = None
        if kind in ("list", "deque", "set"):  # known before its parts are, because a part may refer back to it
            target = {"list": list, "set": set}[kind]() if kind != "deque" else collections.deque(maxlen=node["limit"])
            self._made[node["id"]] = target
        parts = [self.value(part, before_parts[i], f"{path}[{i}]") for i, part in enumerate(nodes)]
        if target is not None:
            (target.update if kind == "set" else target.extend)(parts)
            return target
        plain = {"tuple": tuple, "frozenset": frozenset}.get(kind)
        return plain(parts) if plain else self._class(node["class"], path)(*parts)

    def _object(self, node: dict[str, Any], live: Any, path: str) -> Any:
        constant = self._find(node.get("constant", ":"))
        if constant is not None and _name(constant) == node["object"] and _attributes(constant) == node["attributes"]:
            return constant
        same = live is not None and _name(live) == node["object"]
        kind: Any = type(live) if same else self._class(node["object"], path)
        kept = same and _is_kept(live, self._env) and self._claim(live)
        made = self._made[node["id"]] = live if kept else object.__new__(kind)
        self._packages.add(kind.__module__.partition(".")[0])
        before = _attributes(live) if same else {}
        present = before if kept else {}
        for name, part in node["attributes"].items():
            value = self.value(part, before.get(name), f"{path}.{name}")
            if name not in present or value is not present[name]:
                write = functools.partial(object.__setattr__, made, name, value)
                if kept:
                    self._writes.append(write)
                else:
                    write()
        for name in present.keys() - node["attributes"].keys():
            self._writes.append(functools.partial(object.__delattr__, made, name))
        return made

    def _find(self, name: str) -> Any:
        """What a module calls so, if it is of a package that the live environment is itself made of; or None."""
        module, _, qualified = name.partition(":")
        found: Any = sys.modules.get(module) if module.partition(".")[0] in self._packages else None
        for part in qualified.split("."):
            found = getattr(found, part, None)
        return found

    def _class(self, name: str, path: str) -> type:
        """A class by name: only a plain one."""
        found = self._find(name)
        if not isinstance(found, type) or not (is_plain(found) or issubclass(found, tuple)):
            raise NotSnapshotable(f"{path} was a {name}, which this environment does not have")
        return found

    def _same(self, live: Any, name: str, path: str) -> Any:
        if live is None or _name(live) != name:
            raise NotSnapshotable(f"{path} was {name} when saved and is {_name(live)} now")
        return live


def _is_kept(value: Any, env: Any) -> bool:
    """An environment or wrapper, or an object that ends something when it goes: restored in place."""
    return value is env or isinstance(value, gymnasium.Env) or hasattr(type(value), "__del__")


def _chain(env: Any) -> list[Any]:
    """An environment and what it wraps."""
    chain = [env]
    while isinstance(inner := getattr(chain[-1], "__dict__", {}).get("env"), gymnasium.Env):
        chain.append(inner)
    return chain


def _named_in(kind: type) -> dict[int, str]:
    return {id(part): f"{kind.__module__}:{kind.__qualname__}.{name}" for name, part in vars(kind).items()}


def _contents(cell: Any) -> list[Any]:
    """What a closure's cell holds: one value, or none yet."""
    try:
        return [cell.cell_contents]
    except (AttributeError, ValueError):
        return []


def _own_state(value: Any, path: str) -> Any:
    try:
        return value.get_state()
    except Exception as error:
        raise NotSnapshotable(f"{path}.get_state() raised {type(error).__name__}: {error}") from error


def _is_foreign(value: np.ndarray[Any, Any]) -> bool:
    """Whether its memory is not NumPy's own. That of bytes, as in what was pickled, is nobody else's."""
    owner: Any = value
    while (base := getattr(owner, "base", None)) is not None:
        owner = base
    return not isinstance(owner, np.ndarray | bytes)


def _extent(value: np.ndarray[Any, Any]) -> tuple[int, int]:
    """The addresses of its first byte, and of the byte after its last."""
    low = high = int(value.__array_interface__["data"][0])
    for length, stride in zip(value.shape, value.strides, strict=True):
        low, high = low + min(0, (length - 1) * stride), high + max(0, (length - 1) * stride)
    return low, high + value.itemsize


def _mujoco_data(node: dict[str, Any], live: Any) -> Callable[[], None]:
    import mujoco

    kind: Any = type(live)
    saved = kind.__new__(kind)
    saved.__setstate__(zlib.decompress(base64.b64decode(node["mujoco"])))
    return lambda: mujoco.mj_copyData(live, live.model, saved)


def _is_env_spec(value: Any) -> bool:
    return _module(value) == "gymnasium.envs.registration"


def _module(value: Any) -> str:
    return getattr(type(value), "__module__", "")  # types of SWIG's have none
