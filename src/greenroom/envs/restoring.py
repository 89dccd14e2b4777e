"""The way back from plain values to an environment's objects."""

from __future__ import annotations

import base64
import collections
import enum
import functools
import random
import sys
import types
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from greenroom.envs.anatomy import (
    SEQUENCES,
    NotSnapshotable,
    attributes_of,
    contents_of,
    has_own_state,
    is_foreign,
    is_kept,
    is_mujoco,
    is_plain,
    name_of,
)

_EMPTY: dict[str, Any] = {"dict": dict, "OrderedDict": collections.OrderedDict}  # a defaultdict needs its live factory
_BIT_GENERATORS = {
    kind.__name__: kind
    for kind in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
}


class Restore:
    """One walk, beside the live environment. Numbered objects are remembered so that references find them again.

    Args:
        env: the live environment.
    """

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
        """What `node` stands for.

        Args:
            node: what `Capture.value` made.
            live: what is in its place now, or None.
            path: where that is.

        Raises:
            NotSnapshotable: it does not fit.
        """
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
            if not is_mujoco(live, "MjData") or not self._claim(live):
                raise NotSnapshotable(f"{path} was MuJoCo's data when saved and is {name_of(live)} now")
            self._writes.append(_mujoco_data(node, live))
            return live
        if "own" in node:
            return self._own(node, live, path)
        return self._container(node, live, path) if "object" not in node else self._object(node, live, path)

    def _enum(self, node: dict[str, Any], live: Any, path: str) -> Any:
        kind = type(live)
        if not isinstance(live, enum.Enum) or name_of(kind) != node.get("class", name_of(kind)):
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
            cell.cell_contents = self.value(part, next(iter(contents_of(live)), None), f"{path}.<closure>")

    def _array(self, node: dict[str, Any], live: Any) -> Any:
        dtype, shape = np.dtype(node["dtype"]), tuple(node["shape"])
        data = np.frombuffer(base64.b64decode(node["array"]), dtype).reshape(shape)
        if (
            node.get("foreign", True)
            and type(live) is np.ndarray
            and is_foreign(live)
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
        if not has_own_state(live) or not self._claim(live):
            raise NotSnapshotable(f"{path} had a set_state() when saved and is {name_of(live)} now")

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
        before_parts = list(live) if isinstance(live, SEQUENCES) and kind not in ("set", "frozenset") else []
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
        constant, attributes = self._find(node.get("constant", ":")), node["attributes"]
        if constant is not None and name_of(constant) == node["object"] and attributes_of(constant) == attributes:
            return constant
        same = live is not None and name_of(live) == node["object"]
        kind: Any = type(live) if same else self._class(node["object"], path)
        kept = same and is_kept(live, self._env) and self._claim(live)
        made = self._made[node["id"]] = live if kept else object.__new__(kind)
        self._packages.add(kind.__module__.partition(".")[0])
        before = attributes_of(live) if same else {}
        present = before if kept else {}
        for name, part in attributes.items():
            value = self.value(part, before.get(name), f"{path}.{name}")
            if name not in present or value is not present[name]:
                write = functools.partial(object.__setattr__, made, name, value)
                if kept:
                    self._writes.append(write)
                else:
                    write()
        for name in present.keys() - attributes.keys():
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
        if live is None or name_of(live) != name:
            raise NotSnapshotable(f"{path} was {name} when saved and is {name_of(live)} now")
        return live


def _mujoco_data(node: dict[str, Any], live: Any) -> Callable[[], None]:
    import mujoco

    kind: Any = type(live)
    saved = kind.__new__(kind)
    saved.__setstate__(zlib.decompress(base64.b64decode(node["mujoco"])))
    return lambda: mujoco.mj_copyData(live, live.model, saved)
