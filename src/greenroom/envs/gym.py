"""Everything that knows Gymnasium: where environments come from, and the actors that own and step them.

The only file that knows how Gymnasium resets. Loads no torch, so that worker processes do not.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

from greenroom.envs.board import Board
from greenroom.envs.snapshot import capture, restore
from greenroom.envs.spaces import Array, Layout, Mismatch, layout_of
from greenroom.errors import EnvironmentFault, UserError, nearest

Source = str | Callable[..., Any]
"""A Gymnasium id, `package.module:factory`, or a callable that returns a `gymnasium.Env`."""

_PLUGINS = {"ALE": ("ale_py", "ale-py")}  # namespace of ids → module that registers them, package that provides it
_MAKE_OPTIONS = frozenset({"max_episode_steps", "render_mode"})  # taken by gymnasium.make itself


@dataclass(frozen=True, kw_only=True)
class Factory:
    """Builds one kind of environment, as often as asked, in whichever process."""

    env: Source
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What people call it."""
        if isinstance(self.env, str):
            return self.env
        return getattr(self.env, "__qualname__", None) or type(self.env).__qualname__

    def build(self) -> gymnasium.Env[Any, Any]:
        """A new environment.

        Raises:
            UserError: Unknown id, module, factory or keyword; a package that is missing; or the factory raised
                (its own exception is the cause).
        """
        creator, signature_of, known = self._creator()
        self._check_keywords(signature_of, known)
        try:
            env = creator(**self.kwargs)
        except UserError:
            raise
        except gymnasium.error.DependencyNotInstalled as error:
            raise UserError(f"{self.name} needs a package that is not installed: {error}") from error
        except Exception as error:
            raise UserError(f"{self.name} could not be built: {type(error).__name__}: {error}") from error
        if not isinstance(env, gymnasium.Env):
            raise UserError(f"{self.name} returned {type(env).__name__}, not a gymnasium.Env")
        return env

    @property
    def signature(self) -> Callable[..., Any]:
        """The callable whose parameters the environment's own arguments are."""
        return self._creator()[1]

    def _creator(self) -> tuple[Callable[..., Any], Callable[..., Any], frozenset[str]]:
        """What to call, whose signature to believe, and keywords accepted besides that signature."""
        if not isinstance(self.env, str):
            return self.env, self.env, frozenset()
        module_name, colon, attribute = self.env.rpartition(":")
        if colon:
            found = getattr(_module(module_name, self.env), attribute, None)
            if callable(found):
                return found, found, frozenset()
            if attribute not in gymnasium.registry:
                public = vars(_module(module_name, self.env)).items()
                own = [n for n, value in public if callable(value) and getattr(value, "__module__", "") == module_name]
                raise UserError(f"module {module_name!r} has no factory {attribute!r}{nearest(attribute, own)}")
        return self._registered(attribute)

    def _registered(self, env_id: str) -> tuple[Callable[..., Any], Callable[..., Any], frozenset[str]]:
        module, package = _PLUGINS.get(env_id.partition("/")[0], ("", ""))
        if module:
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise UserError(f"{env_id} needs the package {package}: pip install {package}") from error
        if env_id not in gymnasium.registry:
            raise unknown(env_id, gymnasium.registry)

        def make(**kwargs: Any) -> Any:
            # Gymnasium's own checker would warn about what `Actor` checks at every step.
            return gymnasium.make(env_id, disable_env_checker=True, **kwargs)

        entry = gymnasium.registry[env_id].entry_point
        try:
            signature_of = pkgutil.resolve_name(entry) if isinstance(entry, str) else entry
        except (ImportError, gymnasium.error.DependencyNotInstalled):
            signature_of = None  # building it will name the missing package
        return make, signature_of or make, _MAKE_OPTIONS

    def _check_keywords(self, function: Callable[..., Any], known: frozenset[str]) -> None:
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):
            return
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            return
        allowed = known | parameters.keys()
        for keyword in self.kwargs:
            if keyword not in allowed:
                raise UserError(f"{self.name} takes no argument {keyword!r}{nearest(keyword, allowed)}")
        for name, parameter in parameters.items():
            optional = parameter.default is not parameter.empty or parameter.kind is parameter.VAR_POSITIONAL
            if not optional and name not in self.kwargs and isinstance(self.env, str) and ":" in self.env:
                raise UserError(f"{self.name} needs the argument {name!r}; give it with --env.{name} VALUE")


def unknown(env: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not among `known`, with the nearest that is."""
    hint = nearest(env, known)
    if "did you mean" not in hint:  # hundreds of names help nobody
        hint = "; `greenroom list` shows those that are known, and package.module:factory names your own"
    return UserError(f"unknown environment {env!r}{hint}")


def _module(name: str, culprit: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and name.startswith(error.name):
            raise UserError(
                f"{culprit}: there is no module {error.name!r}; install its package or run from its folder"
            ) from error
        raise UserError(f"{culprit}: importing {name!r} needs {error.name!r}, which is not installed") from error
    except Exception as error:
        raise UserError(f"{culprit}: importing {name!r} raised {type(error).__name__}: {error}") from error


def layout_of_env(env: gymnasium.Env[Any, Any]) -> Layout:
    """Describe one environment; its signals are the names in `metadata["signals"]`."""
    return layout_of(env.observation_space, env.action_space, tuple((env.metadata or {}).get("signals", ())))


class Actor:
    """One environment and its row of the board. Resets in the same step in which an episode ends."""

    def __init__(self, env: gymnasium.Env[Any, Any], layout: Layout, index: int, board: Board) -> None:
        self.index, self.step_count = index, 0
        self._env, self._layout, self._board = env, layout, board
        self._obs = [(leaf, rows[index, ...]) for leaf, rows in zip(layout.leaves, board.obs, strict=True)]
        self._final = [(leaf, rows[index, ...]) for leaf, rows in zip(layout.leaves, board.final, strict=True)]
        self._action = board.action[index, ...]

    def reset(self, seed: int | None) -> None:
        """Start an episode; with a seed, also restart the environment's own random numbers."""
        if seed is not None:
            self.step_count = 0
        try:
            answer = self._env.reset(seed=seed)
        except Exception as error:
            raise self._fault(f"reset raised {type(error).__name__}: {error}") from error
        if not (isinstance(answer, tuple) and len(answer) == 2):
            raise self._fault(f"reset returned {_form(answer)}, not the pair (observation, info)")
        self._write(self._obs, answer[0])

    def step(self) -> None:
        """Take the action in this actor's row and write what came of it."""
        index, board = self.index, self._board
        self.step_count += 1
        action = self._layout.action.decode(self._action)
        try:
            answer = self._env.step(action)
        except Exception as error:
            raise self._fault(f"step raised {type(error).__name__}: {error}") from error
        if not (isinstance(answer, tuple) and len(answer) == 5):
            raise self._fault(
                f"step returned {_form(answer)}, not the five (observation, reward, terminated, truncated, info)"
            )
        obs, reward, terminated, truncated, info = answer
        board.reward[index] = self._number("the reward", reward)
        board.terminated[index], board.truncated[index] = bool(terminated), bool(truncated)
        for row, name in enumerate(self._layout.signals):
            if name not in info:
                raise self._fault(f"info has no {name!r}, which the environment's metadata declares as a signal")
            board.signals[row, index] = self._number(f"signal {name!r}", info[name])
        if terminated or truncated:
            self._write(self._final, obs)
            self.check_finite(self._final)
            self.reset(None)
        else:
            self._write(self._obs, obs)

    def check_finite(self, rows: list[tuple[Any, Array]] | None = None) -> None:
        """Raise if an observation (by default the present one) holds NaN or infinity."""
        for leaf, row in rows or self._obs:
            if not np.isfinite(row).all():
                part = f"observation {leaf.name!r}" if leaf.name else "the observation"
                fault = f"{part} holds NaN or infinity"
                if not np.isfinite(self._action).all():
                    fault += "; so did the action that it was given: training has diverged, lower the learning rate"
                raise self._fault(fault)

    def capture(self) -> dict[str, Any]:
        """The environment's state as plain values (see `snapshot.capture`)."""
        return {"env": capture(self._env), "steps": self.step_count}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `capture` gave, also in another environment of the same kind."""
        restore(self._env, state["env"])
        self.step_count = int(state["steps"])

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _write(self, rows: list[tuple[Any, Array]], obs: Any) -> None:
        try:
            for leaf, row in rows:
                leaf.write(row, obs)
        except Mismatch as error:
            raise self._fault(str(error)) from None

    def _number(self, what: str, value: Any) -> float:
        if not isinstance(value, float | int) and np.ndim(value) != 0:  # the usual case first: ndim is slow
            raise self._fault(f"{what} must be one number, not an array of shape {np.shape(value)}")
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise self._fault(f"{what} must be one number, not {value!r}") from None
        if not np.isfinite(number):
            raise self._fault(f"{what} is {number}")
        return number

    def _fault(self, what: str) -> EnvironmentFault:
        return EnvironmentFault(f"environment {self.index}, step {self.step_count}: {what}")


class Cast:
    """The actors of one process: environments `first … first + count - 1` of a stage, stepped in turn."""

    def __init__(self, factory: Factory, first: int, count: int) -> None:
        self._first, self._envs = first, []
        self._actors: list[Actor] = []
        try:
            for index in range(first, first + count):
                self._envs.append(factory.build())
                layout = layout_of_env(self._envs[-1])
                if index == first:
                    self.layout = layout
                elif layout != self.layout:
                    raise EnvironmentFault(f"environment {index} has other spaces or signals than environment {first}")
        except BaseException:
            self.close()
            raise

    def enter(self, board: Board) -> None:
        """Take the rows of `board`; call once, before `reset`."""
        self._rows = [rows[self._first : self._first + len(self._envs)] for rows in board.obs]
        self._actors = [Actor(env, self.layout, self._first + i, board) for i, env in enumerate(self._envs)]

    def reset(self, seeds: Sequence[int]) -> None:
        """Start every environment anew, each with its seed."""
        for actor, seed in zip(self._actors, seeds, strict=True):
            actor.reset(seed)
        self._check_finite()

    def step(self) -> Iterator[int]:
        """Step every environment once; yields the index of each before it is stepped."""
        for actor in self._actors:
            yield actor.index
            actor.step()
        self._check_finite()

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

    def _check_finite(self) -> None:
        if not all(np.isfinite(rows).all() for rows in self._rows):
            for actor in self._actors:
                actor.check_finite()


def _form(answer: Any) -> str:
    return f"{len(answer)} values" if isinstance(answer, tuple) else f"one {type(answer).__name__}"
