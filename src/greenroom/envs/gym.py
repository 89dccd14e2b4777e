"""The actors that own and step Gymnasium environments.

The only file that knows how Gymnasium resets. Loads no torch, so that worker processes do not.
"""

from __future__ import annotations

import contextlib
import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import wrappers

from greenroom.envs.board import Board
from greenroom.envs.bounds import Bounds, bounds_of, outside, within
from greenroom.envs.factory import Factory
from greenroom.envs.faults import BY_DEFAULT, FaultConfig, Report, next_seed, report_of
from greenroom.envs.snapshot import capture, restore
from greenroom.envs.spaces import MASK, Array, Layout, Leaf, Mismatch, is_mask, layout_of, leaves_a_choice
from greenroom.errors import RAISED, EnvironmentFault, UserError

_SEE_THROUGH = {wrappers.OrderEnforcing, wrappers.PassiveEnvChecker, wrappers.RecordEpisodeStatistics}
_SEE_THROUGH |= {wrappers.TimeLimit, wrappers.ClipAction, wrappers.RescaleAction, wrappers.TransformAction}
_SEE_THROUGH |= {wrappers.ClipReward, wrappers.NormalizeReward, wrappers.TransformReward}
"""Wrappers that hand on every observation as it is."""
_ATTEMPTS = 10
"""How often in a row one environment is started anew within a step."""
_LARGEST = float(np.finfo(np.float32).max)
"""Of rewards and signals: on the board, which is float32, anything larger would be infinity."""
_BOUNDS_REMEDY = "correct the environment or its observation_space, or let it pass with --no-check-bounds"


def layout_of_env(env: gymnasium.Env[Any, Any], index: int, seed: int = 0) -> Layout:
    """Describe environment number `index`; its signals are the names in `metadata["signals"]`.

    Where actions may be masked but no observation brings a mask, the environment is reset, with `seed`, to see whether
    its infos do: no space and no metadata would tell.
    """
    signals = tuple((env.metadata or {}).get("signals", ()))
    layout = layout_of(_space(env, "observation_space"), _space(env, "action_space"), signals, _frame_stack(env))
    if layout.action.kind == "bounded" or layout.mask is not None:
        return layout
    _, info = _reset(env, seed, index, f"environment {index}, step 0")
    return layout.with_info_mask(info[MASK]) if isinstance(info, Mapping) and MASK in info else layout


def _space(env: gymnasium.Env[Any, Any], name: str) -> Any:
    try:
        return getattr(env, name)
    except AttributeError as error:
        what = f"{type(env.unwrapped).__name__} has no {name}; give its class one, or set self.{name} in its __init__"
        raise UserError(what) from error


def _frame_stack(env: gymnasium.Env[Any, Any]) -> int:
    """How many frames an observation certainly consists of."""
    while type(env) in _SEE_THROUGH and isinstance(env, gymnasium.Wrapper):
        env = env.env
    return env.stack_size if type(env) is wrappers.FrameStackObservation else 1


def _reset(env: gymnasium.Env[Any, Any], seed: int | None, index: int, where: str) -> tuple[Any, Any]:
    """Observation and info of a reset; `where` begins the message of what is wrong with it."""
    try:
        answer: Any = env.reset(seed=seed)
    except RAISED as error:
        raise EnvironmentFault(f"{where}: reset raised {type(error).__name__}: {error}", index=index) from error
    if not (isinstance(answer, tuple) and len(answer) == 2):
        what = f"{where}: reset returned {_form(answer)}, not the pair (observation, info)"
        raise EnvironmentFault(what, index=index)
    return answer


class Actor:
    """One environment and its row of the board. Resets in the same step in which an episode ends."""

    def __init__(
        self, env: gymnasium.Env[Any, Any], layout: Layout, index: int, board: Board, bounds: list[Bounds | None]
    ) -> None:
        self.index, self.step_count, self.seed = index, 0, index
        self._env, self._layout, self._board, self._bounds = env, layout, board, bounds
        self._obs = [(leaf, rows[index, ...]) for leaf, rows in zip(layout.leaves, board.obs, strict=True)]
        self._final = [(leaf, rows[index, ...]) for leaf, rows in zip(layout.leaves, board.final, strict=True)]
        # Where an observation is one array as it stands, its form is compared and nothing more.
        leaf, row = self._obs[0]
        plain = len(self._obs) == 1 and not (leaf.path or leaf.count or leaf.in_info)
        self._whole, self._form = row if plain else None, (leaf.given, row.dtype)
        self._action, self._signals = board.action[index, ...], tuple(enumerate(layout.signals))

    def reset(self, seed: int | None) -> None:
        """Start an episode; with a seed, also restart the environment's own random numbers."""
        if seed is not None:
            self.step_count, self.seed = 0, seed
        self._board.resetting[self.index] = True  # another time limit holds
        self._write(self._obs, *_reset(self._env, seed, self.index, self._where))
        self._board.resetting[self.index] = False

    def step(self, action: Any) -> None:
        """Take the action of this actor's row, in the environment's own form, and write what came of it.

        Whether the episode ended is written only if it did.
        """
        index, board = self.index, self._board
        self.step_count += 1
        try:
            answer = self._env.step(action)
        except RAISED as error:
            raise self._fault(f"step raised {type(error).__name__}: {error}") from error
        if not (isinstance(answer, tuple) and len(answer) == 5):
            raise self._fault(
                f"step returned {_form(answer)}, not the five (observation, reward, terminated, truncated, info)"
            )
        obs, reward, terminated, truncated, info = answer
        usual = type(reward) is float and -_LARGEST <= reward <= _LARGEST
        board.reward[index] = reward if usual else self._number("the reward", reward)
        try:
            if ended := bool(terminated or truncated):
                board.terminated[index], board.truncated[index] = bool(terminated), bool(truncated)
        except Exception as error:
            what = f"{_shown(terminated)} and {_shown(truncated)}"
            raise self._fault(f"terminated and truncated must be true or false, not {what}") from error
        for row, name in self._signals:
            if not isinstance(info, Mapping) or name not in info:
                raise self._fault(f"info has no {name!r}, which the environment's metadata declares as a signal")
            board.signals[row, index] = self._number(f"signal {name!r}", info[name])
        if ended:
            self._write(self._final, obs, info)
            self._check(self._final)
            self.reset(None)
        elif self._whole is not None and type(obs) is np.ndarray and (obs.shape, obs.dtype) == self._form:
            self._whole[...] = obs
        else:
            self._write(self._obs, obs, info)

    def check(self) -> None:
        """Raise if the present observation holds NaN or infinity, or its mask is none to act with."""
        self._check(self._obs)
        for leaf, row in self._obs:
            if leaf.name == MASK and not leaves_a_choice(row, self._layout.action.count):
                raise self._fault(f"{leaf.title} allows no action; end the episode where there is nothing left to do")

    def _check(self, rows: list[tuple[Leaf, Array]]) -> None:
        for (leaf, row), bounds in zip(rows, self._bounds, strict=True):
            if within(row, bounds):
                if leaf.name == MASK and not is_mask(row):
                    raise self._fault(f"{leaf.title} holds other numbers than 0 (forbidden) and 1 (allowed)")
            elif bounds is not None and np.isfinite(row).all():
                raise self._fault(f"{leaf.title} {outside(row, bounds)}; {_BOUNDS_REMEDY}")
            else:
                fault = f"{leaf.title} holds NaN or infinity"
                if not np.isfinite(self._action).all():
                    fault += "; so did the action that it was given: training has diverged, lower the learning rate"
                raise self._fault(fault)

    def capture(self) -> dict[str, Any]:
        """The environment's state as plain values (see `snapshot.capture`)."""
        return {"env": capture(self._env), "steps": self.step_count, "seed": self.seed}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `capture` gave, also in another environment of the same kind."""
        restore(self._env, state["env"])
        self.step_count, self.seed = int(state["steps"]), int(state.get("seed", self.index))

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _write(self, rows: list[tuple[Leaf, Array]], obs: Any, info: Any) -> None:
        try:
            for leaf, row in rows:
                leaf.write(row, obs, info)
        except Mismatch as error:
            raise self._fault(str(error)) from None
        except Exception as error:
            raise self._fault(f"{leaf.title} cannot be read: {type(error).__name__}: {error}") from error

    def _number(self, what: str, value: Any) -> float:
        try:
            shape = () if isinstance(value, float | int) else np.shape(value)  # the usual case first: shape is slow
            number = float(value) if shape == () else 0.0
        except Exception as error:  # a value may be anything, and answer with anything
            raise self._fault(f"{what} must be one number, not {_shown(value)}") from error
        if shape != ():
            raise self._fault(f"{what} must be one number, not an array of shape {shape}")
        if not math.isfinite(number):
            raise self._fault(f"{what} is {number}")
        if abs(number) > _LARGEST:
            raise self._fault(f"{what} is {number}, and infinite as float32; scale it down")
        return number

    @property
    def _where(self) -> str:
        return f"environment {self.index}, step {self.step_count}"

    def _fault(self, what: str) -> EnvironmentFault:
        return EnvironmentFault(f"{self._where}: {what}", index=self.index)


class Cast:
    """The actors of one process: environments `first … first + count - 1` of a stage, stepped in turn.

    Args:
        factory: builds them.
        first: number of the first one.
        count: how many.
        faults: whether one that fails is started anew.
    """

    def __init__(self, factory: Factory, first: int, count: int, faults: FaultConfig = BY_DEFAULT) -> None:
        self._factory, self._first, self._faults = factory, first, faults
        self._envs: list[gymnasium.Env[Any, Any]] = []
        self._actors: list[Actor] = []
        self._reports: list[Report] = []
        try:
            for index in range(first, first + count):
                layout = self._open(index)
                if index == first:
                    self.layout = layout
                self._compare(layout, index)
            space = self._envs[0].observation_space
            self._bounds = [bounds_of(space, leaf) if faults.check_bounds else None for leaf in self.layout.leaves]
        except BaseException:
            self.close()
            raise

    def enter(self, board: Board) -> None:
        """Take the rows of `board`; call once, before `reset`."""
        self._board, self._decode = board, self.layout.action.decoder()
        self._mine = slice(self._first, self._first + len(self._envs))
        mine = [rows[self._mine] for rows in board.obs]
        self._watched = [
            (rows, bounds)
            for rows, bounds in zip(mine, self._bounds, strict=True)
            if bounds is not None or rows.dtype != np.uint8
        ]
        self._mask = None if self.layout.mask is None else mine[self.layout.mask]
        self._actors = [self._actor(env, self._first + number) for number, env in enumerate(self._envs)]

    def reset(self, seeds: Sequence[int]) -> None:
        """Start every environment anew, each with its seed. Failures of before are forgotten."""
        self._reports = []
        for actor, seed in zip(tuple(self._actors), seeds, strict=True):
            try:
                actor.reset(seed)
            except EnvironmentFault as error:
                self._start_anew(actor, error)
        self._check()

    def step(self) -> Iterator[int]:
        """Step every environment once; yields the index of each before it is stepped."""
        self._board.terminated[self._mine], self._board.truncated[self._mine] = False, False
        for actor, action in zip(self._actors, self._decode(self._board.action[self._mine]), strict=True):
            yield actor.index
            try:
                actor.step(action)
            except EnvironmentFault as error:
                self._start_anew(actor, error)
        self._check()

    def reports(self) -> list[Report]:
        """The failures that were mended since the last time."""
        told, self._reports = self._reports, []
        return told

    def capture(self) -> list[dict[str, Any]]:
        """The state of every environment; raises `snapshot.NotSnapshotable` where there is no way."""
        return [actor.capture() for actor in self._actors]

    def restore(self, states: Sequence[dict[str, Any]]) -> None:
        """Continue from the states that `capture` gave."""
        for actor, state in zip(self._actors, states, strict=True):
            actor.restore(state)

    def close(self) -> None:
        """Close every environment. An environment that cannot even close keeps no other from doing so."""
        for env in self._envs:
            with contextlib.suppress(Exception):
                env.close()
        self._envs, self._actors = [], []

    def _open(self, index: int) -> Layout:
        """Build the next environment. One whose first reset fails is replaced, where that is wanted, by another.

        Of these failures nobody is told: it has no seed yet and has begun nothing.
        """
        seed = 0
        while True:
            env = self._factory.build()
            self._envs.append(env)
            try:
                return layout_of_env(env, index, seed)
            except EnvironmentFault:
                seed += 1
                if not self._faults.restarts or seed == _ATTEMPTS:
                    raise
                with contextlib.suppress(Exception):
                    self._envs.pop().close()

    def _check(self) -> None:
        """Look at all present observations at once, and only where something is wrong at each."""
        fine = all(within(rows, bounds) for rows, bounds in self._watched)
        if fine and self._mask is not None:
            fine = is_mask(self._mask) and leaves_a_choice(self._mask, self.layout.action.count)
        if not fine:
            for actor in tuple(self._actors):
                try:
                    actor.check()
                except EnvironmentFault as error:
                    self._start_anew(actor, error)

    def _start_anew(self, actor: Actor, error: EnvironmentFault) -> None:
        """Put a new environment in the place of one that failed, or raise the error again if that is not wanted."""
        if not self._faults.restarts:
            raise error
        index, seed = actor.index, actor.seed
        number = index - self._first
        for _ in range(_ATTEMPTS):
            self._board.resetting[index] = True  # the limit for a reset holds for building too
            with contextlib.suppress(Exception):
                self._envs[number].close()
            seed = next_seed(seed)
            self._reports.append(report_of(error, index, seed))
            try:
                env = self._envs[number] = self._factory.build()
                self._compare(layout_of_env(env, index, seed), index)
                actor = self._actors[number] = self._actor(env, index)
                actor.reset(seed)
                actor.check()
            except EnvironmentFault as again:
                error = again
            except UserError as again:  # it could not even be built
                error = EnvironmentFault(f"environment {index}: {again}", index=index)
                error.__cause__ = again.__cause__
            else:
                self._board.lose(index)
                return
        self._board.resetting[index] = False
        raise error

    def _actor(self, env: gymnasium.Env[Any, Any], index: int) -> Actor:
        return Actor(env, self.layout, index, self._board, self._bounds)

    def _compare(self, layout: Layout, index: int) -> None:
        if layout != self.layout:
            what = f"environment {index} has other spaces or signals than environment {self._first}"
            raise EnvironmentFault(what, index=index)


def _shown(value: Any) -> str:
    """What a value looks like, if it lets us look."""
    try:
        return reprlib.repr(value)
    except Exception:
        return f"a {type(value).__name__}"


def _form(answer: Any) -> str:
    return f"{len(answer)} values" if isinstance(answer, tuple) else f"one {type(answer).__name__}"
