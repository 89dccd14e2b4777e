"""What Python objects are made of, as far as a snapshot goes into them."""

from __future__ import annotations

import collections
import types
from typing import Any

import gymnasium
import numpy as np

from greenroom.errors import UserError

ATOMS = (type(None), bool, int, float, str)
"""Types that are plain values already."""
SEQUENCES = (list, tuple, set, frozenset, collections.deque)
"""Types that hold parts, and have no names for them."""
_POINTER = tuple.__itemsize__


class NotSnapshotable(UserError):
    """An environment holds something that cannot be captured; the message gives the path of the attribute."""


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


def attributes_of(value: Any) -> dict[str, Any]:
    """What a plain object holds, by name: in its `__dict__`, and in slots that are filled."""
    found = dict(getattr(value, "__dict__", {}))
    found.update({name: getattr(value, name) for name in _slots(type(value)) if hasattr(value, name)})
    return found


def has_own_state(value: Any) -> bool:
    """Whether it says itself what its state is, and how it is set."""
    return callable(getattr(type(value), "get_state", None)) and callable(getattr(type(value), "set_state", None))


def is_mujoco(value: Any, kind: str) -> bool:
    """Whether it is MuJoCo's `MjModel` or `MjData`, by the name of its class: nothing of MuJoCo is imported."""
    return _module(value).startswith("mujoco.") and type(value).__name__ == kind


def name_of(value: Any) -> str:
    """`module:name` of a class, a function or a module; of anything else, that of its class."""
    named = value if hasattr(value, "__qualname__") or isinstance(value, types.ModuleType) else type(value)
    return f"{getattr(named, '__module__', '')}:{getattr(named, '__qualname__', getattr(named, '__name__', ''))}"


def is_kept(value: Any, env: Any) -> bool:
    """An environment or wrapper, or an object that ends something when it goes: restored in place."""
    return value is env or isinstance(value, gymnasium.Env) or hasattr(type(value), "__del__")


def contents_of(cell: Any) -> list[Any]:
    """What a closure's cell holds: one value, or none yet."""
    try:
        return [cell.cell_contents]
    except (AttributeError, ValueError):
        return []


def is_foreign(value: np.ndarray[Any, Any]) -> bool:
    """Whether its memory is not NumPy's own. That of bytes, as in what was pickled, is nobody else's."""
    owner: Any = value
    while (base := getattr(owner, "base", None)) is not None:
        owner = base
    return not isinstance(owner, np.ndarray | bytes)


def is_env_spec(value: Any) -> bool:
    """Whether it is what Gymnasium knows of a registered environment: the same in every one."""
    return _module(value) == "gymnasium.envs.registration"


def _module(value: Any) -> str:
    return getattr(type(value), "__module__", "")  # types of SWIG's have none
