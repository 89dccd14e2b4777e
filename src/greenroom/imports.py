"""Modules that a user names, as in `package.module:attribute`."""

from __future__ import annotations

import importlib
from typing import Any

from greenroom.errors import UserError


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
    except Exception as error:
        raise UserError(f"{culprit}: importing {name!r} raised {type(error).__name__}: {error}") from error
