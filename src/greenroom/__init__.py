"""greenroom: hundreds of parallel actors, one learner, one machine; and the trained policy on its way to production.

The public names are loaded when they are first used: worker processes import this package and must not load torch.
"""

from __future__ import annotations

import os as _os
import sys as _sys
from typing import TYPE_CHECKING

_torch_came_first = False
"""Whether torch was imported before this package, so that its threads wait as they do by default."""

if "OMP_WAIT_POLICY" not in _os.environ and "GOMP_SPINCOUNT" not in _os.environ:
    # Threads of tensor operations look for their next task in a busy loop, by default for milliseconds: time that
    # simulators, or other programs, on the same cores lack. Long enough for one operation after another, too short to
    # be in the way: six times as long is no faster where nothing else runs, and where something does, a thread that
    # waits for another keeps the core that the other one needs. Read when torch is loaded.
    _os.environ["GOMP_SPINCOUNT"] = "5000"
    _torch_came_first = "torch" in _sys.modules

if TYPE_CHECKING:
    from greenroom.comparison import compare as compare
    from greenroom.config import RunConfig as RunConfig
    from greenroom.envs.check import check_environment as check_environment
    from greenroom.envs.choose import list_environments as list_environments
    from greenroom.envs.choose import make as make
    from greenroom.errors import EnvironmentFault as EnvironmentFault
    from greenroom.errors import UserError as UserError
    from greenroom.evaluation import evaluate as evaluate
    from greenroom.examination import examine as examine
    from greenroom.examination import load_policy as load_policy
    from greenroom.presets import preset as preset
    from greenroom.session import launch as launch
    from greenroom.session import resume as resume
    from greenroom.training import Run as Run
    from greenroom.training import train as train

__version__ = "0.1.0"

_HOMES = {
    "EnvironmentFault": "errors",
    "Run": "training",
    "RunConfig": "config",
    "UserError": "errors",
    "check_environment": "envs.check",
    "compare": "comparison",
    "evaluate": "evaluation",
    "examine": "examination",
    "launch": "session",
    "list_environments": "envs.choose",
    "load_policy": "examination",
    "make": "envs.choose",
    "preset": "presets",
    "resume": "session",
    "train": "training",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
