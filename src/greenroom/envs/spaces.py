"""Gymnasium spaces in plain words: the arrays of an observation, and the form of an action.

Nothing here, or in the modules that a worker process loads, imports torch: a worker then starts in a fraction of the
time and memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from greenroom.errors import UserError

Array = NDArray[Any]

MASK = "action_mask"  # spec.MASK, without torch


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
    stack: int = 1
    """Frames that the first axis holds (`spec.ArraySpec.stack`)."""
    in_info: bool = False
    """Whether the value comes in the info that belongs to the observation, and not in the observation."""

    def write(self, row: Array, observation: Any, info: Any) -> None:
        """Encode this leaf's part of `observation`, or of the `info` that came with it, into `row`.

        Raises:
            Mismatch: The value is missing, has another shape or type, or lies outside its categories.
        """
        value = info if self.in_info else observation
        for key in self.path:
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError) as error:
                raise Mismatch(f"{self.title} is missing{self._remedy}") from error
        try:
            array = _flat(value) if self.name == MASK else np.asarray(value)
        except ValueError as error:  # lists of unequal lengths
            raise Mismatch(f"{self.title} is no array: {error}") from error
        if array.shape != self.given:
            known = "the first one had" if self.in_info else "its space says"
            raise Mismatch(f"{self.title} has shape {array.shape}, but {known} {self.given}")
        if array.dtype.kind not in "fiub" or (self.dtype == "uint8" and array.dtype != np.uint8):
            raise Mismatch(f"{self.title} has type {array.dtype}, but its space asks for {self.dtype}")
        if not self.count:
            row[...] = array
            return
        row[...] = 0
        offset = 0
        for chosen, start, count in zip(array.reshape(-1).tolist(), self.start, self.count, strict=True):
            if chosen != int(chosen) or not start <= chosen < start + count:
                raise Mismatch(f"{self.title} holds {chosen}, outside {start} … {start + count - 1}")
            row[offset + int(chosen) - start] = 1
            offset += count

    @property
    def title(self) -> str:
        """What people call it."""
        if self.in_info:
            return f"info[{self.name!r}]"
        return f"observation {self.name!r}" if self.name else "the observation"

    @property
    def _remedy(self) -> str:
        return "; the first reset gave one, so every reset and every step must" if self.in_info else ""


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

    def decoder(self) -> Callable[[Array], Sequence[Any]]:
        """What turns rows into the environments' own form of an action: fresh values of the type their space has."""
        given, dtype = self.given, np.dtype(self.given_dtype)
        if self.kind == "discrete":
            first = self.start[0]
            return lambda rows: list((rows + first).astype(dtype))  # numpy's numbers, not Python's
        if self.kind == "multi_discrete":
            start = np.asarray(self.start)
            return lambda rows: [(row + start).reshape(given).astype(dtype) for row in rows]
        if dtype == np.float32:
            return lambda rows: [row.reshape(given).astype(dtype) for row in rows]
        # A policy clips in float32, and float32(0.1), for one, is more than 0.1.
        low, high = (np.asarray(side).astype(dtype).reshape(given) for side in (self.low, self.high))
        return lambda rows: [np.array(row).reshape(given) for row in rows.astype(dtype).clip(low, high)]


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

    @property
    def mask(self) -> int | None:
        """Which leaf is the mask of allowed actions, if there is one."""
        return next((number for number, leaf in enumerate(self.leaves) if leaf.name == MASK), None)

    def with_info_mask(self, mask: Any) -> Layout:
        """The same, with a mask that comes in every info; `mask` is one of them.

        Raises:
            UserError: It does not fit the actions.
        """
        try:
            leaf = _mask_leaf(_flat(mask).size, self.action, in_info=True)
        except ValueError as error:
            raise UserError(f"info[{MASK!r}] is no array: {error}") from error
        # An observation that was a single array needs a name beside the mask.
        return replace(self, leaves=(*(part if part.name else replace(part, name="obs") for part in self.leaves), leaf))


def layout_of(observation: Any, action: Any, signals: tuple[str, ...], stack: int = 1) -> Layout:
    """Describe an environment by its two Gymnasium spaces and the names of its signals.

    A part of the observation called `action_mask` is the mask of allowed actions.

    Args:
        observation: The observation space.
        action: The action space.
        signals: Names of numbers in the info of every step.
        stack: How many frames the first axis of every array of the observation holds.

    Raises:
        UserError: A space that greenroom cannot turn into arrays; the message says what to do.
    """
    leaves, form = tuple(_leaves(observation, ())), action_form(action)
    names = [leaf.name for leaf in leaves]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UserError(f"two parts of the observation space are both called {min(twice)!r} once flattened; rename one")
    seen = tuple(
        replace(leaf, stack=stack) if leaf.shape and leaf.shape[0] % stack == 0 else leaf
        for leaf in leaves
        if leaf.path[:1] != (MASK,)
    )
    if not seen:
        raise UserError("the observation space shows nothing; give it at least one part besides any 'action_mask'")
    if len(seen) < len(leaves):
        seen = (*seen, _mask_leaf(_mask_size(observation[MASK]), form, in_info=False))
    return Layout(leaves=seen, action=form, signals=signals)


def is_mask(mask: Array) -> bool:
    """Whether all numbers are 0 or 1."""
    return bool(((mask == 0) | (mask == 1)).all())


def leaves_a_choice(mask: Array, count: tuple[int, ...]) -> bool:
    """Whether every row of `mask`, `[..., sum(count)]`, allows an action for each of the choices."""
    return bool(np.maximum.reduceat(mask, np.cumsum((0, *count[:-1])), axis=-1).all())


def _flat(mask: Any) -> Array:
    """A mask as one row. For several choices Gymnasium's own form is a tuple with one array for each."""
    if isinstance(mask, tuple | list):
        return np.concatenate([np.ravel(part) for part in mask]) if mask else np.zeros(0)
    return np.ravel(mask)


def _mask_leaf(size: int, form: ActionForm, *, in_info: bool) -> Leaf:
    leaf = Leaf(
        name=MASK,
        shape=(size,),
        dtype="float32",
        low=0.0,
        high=1.0,
        path=(MASK,),
        given=(size,),
        in_info=in_info,
    )
    if size != sum(form.count):
        needed = f"of {sum(form.count)} numbers, one for each action" if form.count else "only of discrete actions"
        raise UserError(
            f"{leaf.title} has {size} numbers. It is taken for the mask of allowed actions, which there can be "
            f"{needed}; correct it, or, if it is something else, call it something else"
        )
    return leaf


def _mask_size(space: Any) -> int:
    """How many numbers a space holds that is fit for a mask."""
    if isinstance(space, spaces.Tuple):
        return sum(_mask_size(part) for part in space.spaces)
    binary = isinstance(space, spaces.MultiBinary)
    binary |= isinstance(space, spaces.Box) and bool((space.low >= 0).all() and (space.high <= 1).all())
    binary |= isinstance(space, spaces.MultiDiscrete) and bool((space.nvec == 2).all() and (space.start == 0).all())
    if not binary:
        raise UserError(
            f"the observation's 'action_mask' is taken for the mask of allowed actions, but its space is {space}; make "
            "it MultiBinary(number of actions), or, if it is something else, call it something else"
        )
    return math.prod(space.shape)


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
            "or wrap it in gymnasium.wrappers.TransformAction with a bounded Box"
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
