"""Modules that a user names, as in `package.module:attribute`."""

from __future__ import annotations

import importlib
from typing import Any

from greenroom.errors import RAISED, UserError, nearest, place_of


def module_of(name: str, culprit: str) -> Any:
    """The module `name`, which was asked for as part of `culprit`.

    Raises:
        UserError: it is not there, needs something that is not, or raises.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and name.startswith(error.name):
            raise UserError(
                f"{culprit}: there is no module {error.name!r}; install its package or run from its folder"
            ) from error
        raise UserError(f"{culprit}: importing {name!r} needs {error.name!r}, which is not installed") from error
    except RAISED as error:
        what = f"{type(error).__name__}: {error}{place_of(error)}"
        raise UserError(f"{culprit}: importing {name!r} raised {what}") from error


def missing(module: Any, attribute: str, what: str) -> UserError:
    """The error for an attribute that a module does not have, with the nearest of its own.

    Args:
        module: where it should be.
        attribute: its name.
        what: what it should be, as people call it: `factory`, `class`.
    """
    public = vars(module).items()
    own = [name for name, value in public if callable(value) and getattr(value, "__module__", "") == module.__name__]
    return UserError(f"module {module.__name__!r} has no {what} {attribute!r}{nearest(attribute, own)}")
