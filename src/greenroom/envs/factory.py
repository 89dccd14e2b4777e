"""Where Gymnasium environments come from. Loads no torch, so that worker processes do not."""

from __future__ import annotations

import copy
import importlib
import inspect
import pkgutil
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

from greenroom.errors import RAISED, UserError, nearest, place_of
from greenroom.imports import missing, module_of

Source = str | Callable[..., Any]
"""A Gymnasium id, `package.module:factory`, or a callable that returns a `gymnasium.Env`."""

Registration = EnvSpec
"""What Gymnasium knows of an id."""

_PLUGINS = {"ALE": ("ale_py", "ale-py")}  # namespace of ids → module that registers them, package that provides it
_MAKE_OPTIONS = frozenset({"max_episode_steps", "render_mode"})  # taken by gymnasium.make itself
_EXTRAS = ("box2d", "mujoco")  # of greenroom, called as Gymnasium calls its own


def registration_of(env: Source) -> Registration | None:
    """What Gymnasium knows of the id in this process, to be sent to another one; None where nothing is registered."""
    return gymnasium.registry.get(env) if isinstance(env, str) else None


def register(registration: Registration | None) -> None:
    """Make known here what `registration_of` another process was; what is known already stays."""
    if registration is None or registration.id in gymnasium.registry:
        return
    if isinstance(entry := registration.entry_point, str):
        # Loading an environment often registers it, and Gymnasium warns of a second time. Building it names what fails.
        with suppress(Exception):
            importlib.import_module(entry.partition(":")[0])
    gymnasium.registry.setdefault(registration.id, registration)


@dataclass(frozen=True, kw_only=True)
class Factory:
    """Builds one kind of environment, as often as asked, in whichever process.

    Into another process it takes along what Gymnasium knows of the id: nobody may have registered it there.
    """

    env: Source
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        """Its fields, and the registration."""
        return vars(self) | {"registered": registration_of(self.env)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The fields; what is registered here already stays."""
        register(state.pop("registered"))
        vars(self).update(state)

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
        self._check_keywords(signature_of, known, complete=creator is not signature_of)
        try:
            env = creator(**{name: _own(value) for name, value in self.kwargs.items()})
        except UserError:
            raise
        except gymnasium.error.DependencyNotInstalled as error:
            raise self._lacking(error) from error
        except RAISED as error:
            what = f"{type(error).__name__}: {error}{place_of(error)}"
            raise UserError(f"{self.name} could not be built: {what}") from error
        if not isinstance(env, gymnasium.Env):
            raise UserError(f"{self.name} returned {type(env).__name__}, not a gymnasium.Env")
        return env

    @property
    def signature(self) -> Callable[..., Any]:
        """The callable whose parameters the environment's own arguments are."""
        return self._creator()[1]

    def _lacking(self, error: Exception) -> UserError:
        """The error for a package that Gymnasium misses."""
        asked = re.search(r"gymnasium\[([\w-]+)\]", str(error))
        if asked and asked[1] in _EXTRAS:
            extra = asked[1]
            return UserError(f'{self.name} needs the extra "{extra}": pip install "greenroom[{extra}]" ({error})')
        return UserError(f"{self.name} needs a package that is not installed: {error}")

    def _creator(self) -> tuple[Callable[..., Any], Callable[..., Any], frozenset[str]]:
        """What to call, whose signature to believe, and keywords accepted besides that signature."""
        if not isinstance(self.env, str):
            return self.env, self.env, frozenset()
        module_name, colon, attribute = self.env.rpartition(":")
        if colon:
            module = module_of(module_name, self.env)
            found = getattr(module, attribute, None)
            if callable(found):
                return found, found, frozenset()
            if attribute not in gymnasium.registry:
                raise missing(module, attribute, "factory")
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
            with warnings.catch_warnings():
                # Box2D's import warns from C code, which crashes where warnings are errors.
                warnings.filterwarnings("ignore", "builtin type .* has no __module__ attribute", DeprecationWarning)
                signature_of = pkgutil.resolve_name(entry) if isinstance(entry, str) else entry
        except Exception:  # a missing package, a misspelt entry point, a module that raises
            signature_of = None  # building it will name the cause
        return make, signature_of or make, _MAKE_OPTIONS

    def _check_keywords(self, function: Callable[..., Any], known: frozenset[str], *, complete: bool) -> None:
        """Refuse arguments that `function` does not take, and unless it is `complete` without, ask for those it needs.

        A registration may bring an environment's arguments.
        """
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
            if not (optional or complete or name in self.kwargs) and isinstance(self.env, str):
                raise UserError(f"{self.name} needs the argument {name!r}; give it with --env.{name} VALUE")


def _own(value: Any) -> Any:
    """A copy for one environment, so that what it changes is not another's; the value itself if it allows none."""
    try:
        return copy.deepcopy(value)
    except Exception:
        return value


def unknown(env: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not among `known`, with the nearest that is."""
    hint = nearest(env, known)
    if "did you mean" not in hint:  # hundreds of names help nobody
        hint = "; `greenroom list` shows those that are known, and package.module:factory names your own"
    return UserError(f"unknown environment {env!r}{hint}")
