"""Gymnasium spaces in plain words: the arrays of an observation, and the form of an action.

Nothing here, or in the modules that a worker process loads, imports torch: a worker then starts in a fraction of the
time and memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from greenroom.errors import UserError

Array = NDArray[Any]


class Mismatch(Exception):
    """A value that does not fit the space that its environment declared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """One array of an observation, and how a value of its space is written into a row of a batch."""

    name: str
    """Dotted path through nested Dict and Tuple spaces; empty for an observation that is one array."""
    shape: tuple[int, ...]
    dtype: str
    """`float32` or `uint8`."""
    low: float
    high: float
    path: tuple[str | int, ...]
    """Keys that lead from the whole observation to this value."""
    given: tuple[int, ...]
    """Shape of the value as the environment gives it."""
    start: tuple[int, ...] = ()
    """For categories: the lowest value of each …"""
    count: tuple[int, ...] = ()
    """… and how many values each may take. They are written as concatenated one-hot vectors."""

    def write(self, row: Array, observation: Any) -> None:
        """Encode this leaf's part of `observation` into `row`.

        Raises:
            Mismatch: The value is missing, has another shape or type, or lies outside its categories.
        """
        value = observation
        for key in self.path:
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError) as error:
                raise Mismatch(f"{self._title} is missing") from error
        array = np.asarray(value)
        if array.shape != self.given:
            raise Mismatch(f"{self._title} has shape {array.shape}, but its space says {self.given}")
        if array.dtype.kind not in "fiub" or (self.dtype == "uint8" and array.dtype != np.uint8):
            raise Mismatch(f"{self._title} has type {array.dtype}, but its space asks for {self.dtype}")
        if not self.count:
            row[...] = array
            return
        row[...] = 0
        offset = 0
        for chosen, start, count in zip(array.reshape(-1).tolist(), self.start, self.count, strict=True):
            if chosen != int(chosen) or not start <= chosen < start + count:
                raise Mismatch(f"{self._title} holds {chosen}, outside {start} … {start + count - 1}")
            row[offset + int(chosen) - start] = 1
            offset += count

    @property
    def _title(self) -> str:
        return f"observation {self.name!r}" if self.name else "the observation"


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionForm:
    """How one row of an action batch becomes what the environment's `step` takes."""

    kind: str
    """`discrete`, `multi_discrete` or `bounded`."""
    shape: tuple[int, ...]
    """Shape of one row of the batch."""
    dtype: str
    """Type of the batch: `int64` or `float32`."""
    given: tuple[int, ...]
    """Shape that the environment takes."""
    given_dtype: str
    """Type that the environment takes."""
    start: tuple[int, ...] = ()
    """Lowest value of each choice, in the environment's own numbering."""
    count: tuple[int, ...] = ()
    """Number of values of each choice."""
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    def decode(self, row: Array) -> Any:
        """The environment's own form of one action: a fresh value of the type that its space samples."""
        if self.kind == "discrete":
            return np.dtype(self.given_dtype).type(int(row) + self.start[0])
        if self.kind == "multi_discrete":
            return (row + np.asarray(self.start)).reshape(self.given).astype(self.given_dtype)
        return row.reshape(self.given).astype(self.given_dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What crosses the boundary of one environment: plain values only, so that processes can compare and send it."""

    leaves: tuple[Leaf, ...]
    action: ActionForm
    signals: tuple[str, ...] = field(default=())

    @property
    def is_dict(self) -> bool:
        """Whether the observation is a dict of arrays rather than one."""
        return bool(self.leaves[0].name)


def layout_of(observation: Any, action: Any, signals: tuple[str, ...]) -> Layout:
    """Describe an environment by its two Gymnasium spaces and the names of its signals.

    Raises:
        UserError: A space that greenroom cannot turn into arrays; the message says what to do.
    """
    leaves = tuple(_leaves(observation, ()))
    if not leaves:
        raise UserError("the observation space is an empty Dict or Tuple; give it at least one part")
    names = [leaf.name for leaf in leaves]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UserError(f"two parts of the observation space are both called {min(twice)!r} once flattened; rename one")
    return Layout(leaves=leaves, action=action_form(action), signals=signals)


def _leaves(space: Any, path: tuple[str | int, ...]) -> Iterator[Leaf]:
    name = ".".join(str(key) for key in path)
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from _leaves(part, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for index, part in enumerate(space.spaces):
            yield from _leaves(part, (*path, index))
    elif isinstance(space, spaces.Box):
        if math.prod(space.shape) == 0:
            raise UserError(f"the observation space{_at(name)} has no elements (shape {space.shape}); leave it out")
        image = space.dtype == np.uint8 and len(space.shape) == 3
        yield Leaf(
            name=name,
            shape=space.shape,
            dtype="uint8" if image else "float32",
            low=float(space.low.min()),
            high=float(space.high.max()),
            path=path,
            given=space.shape,
        )
    elif isinstance(space, spaces.MultiBinary):
        yield Leaf(name=name, shape=space.shape, dtype="float32", low=0.0, high=1.0, path=path, given=space.shape)
    elif isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        start, count = _choices(space)
        yield Leaf(
            name=name,
            shape=(sum(count),),
            dtype="float32",
            low=0.0,
            high=1.0,
            path=path,
            given=space.shape or (),
            start=start,
            count=count,
        )
    else:
        raise UserError(
            f"greenroom cannot turn the observation space{_at(name)} into arrays: {space}. Supported are Box, "
            "Discrete, MultiDiscrete, MultiBinary and Dict or Tuple of these; wrap the environment in "
            "gymnasium.wrappers.TransformObservation to give one of them"
        )


def action_form(space: Any) -> ActionForm:
    """Describe an action space.

    Raises:
        UserError: Not Discrete, MultiDiscrete or a Box of floats with finite bounds.
    """
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        start, count = _choices(space)
        single = isinstance(space, spaces.Discrete)
        return ActionForm(
            kind="discrete" if single else "multi_discrete",
            shape=() if single else (len(count),),
            dtype="int64",
            given=space.shape or (),
            given_dtype=str(space.dtype),
            start=start,
            count=count,
        )
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        raise UserError(
            f"greenroom cannot act in the action space {space}. Supported are Discrete, MultiDiscrete and Box of "
            "floats; wrap the environment in gymnasium.wrappers.TransformAction to give one of them"
        )
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise UserError(
            f"the action space {space} needs finite bounds with low < high; give the environment's Box finite bounds, "
            "or wrap it in gymnasium.wrappers.TransformAction with a bounded Box (RescaleAction, ClipAction)"
        )
    return ActionForm(
        kind="bounded",
        shape=space.shape,
        dtype="float32",
        given=space.shape,
        given_dtype=str(space.dtype),
        low=tuple(low.reshape(-1).tolist()),
        high=tuple(high.reshape(-1).tolist()),
    )


def _choices(space: spaces.Discrete | spaces.MultiDiscrete) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if isinstance(space, spaces.Discrete):
        return (int(space.start),), (int(space.n),)
    return tuple(space.start.reshape(-1).tolist()), tuple(space.nvec.reshape(-1).tolist())


def _at(name: str) -> str:
    return f" at {name!r}" if name else ""
