"""The world: four kinds of stage behind `base.Environment`, and `make`, which picks one.

Imports nothing heavy by itself: worker processes pass through here and must not load torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from greenroom.envs.check import check_environment
    from greenroom.envs.choose import list_environments, make

__all__ = ["check_environment", "list_environments", "make"]

_HOMES = {"check_environment": "check", "list_environments": "choose", "make": "choose"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
