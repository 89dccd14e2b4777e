"""The state of a Python environment as plain values, and back, without pickle.

`capture` walks an environment and its wrappers attribute by attribute into numbers, strings and lists that JSON can
hold. `restore` puts them into another environment of the same kind, built and reset in the ordinary way, so that
everything a capture leaves out (functions, modules, classes, render handles that are None) is the new one's own.

Lists, dicts, arrays and plain objects are built anew, because those of the live environment may be its class's, its
module's or another environment's too. What is the same object, or the same memory, in two places of the captured
environment is so again. Written in place are the environment and its wrappers, random generators, MuJoCo's data,
arrays in memory that is not NumPy's, and objects that say how they are set or how they end. Nothing is written before
everything is built: a state that does not fit leaves the environment as it was.

Whatever holds state that Python cannot see makes an environment *not snapshotable*. MuJoCo is understood: its data are
copied whole; its model is taken as constant. Out of sight are class attributes and the global random generators of
Python and NumPy; an environment should draw from its own `np_random`.

An environment may instead offer `get_state()`, which gives numbers, strings, arrays, lists and dicts, and
`set_state(state)`. Its `np_random` is captured in any case.
"""

from __future__ import annotations

from typing import Any

from greenroom.envs.anatomy import NotSnapshotable as NotSnapshotable
from greenroom.envs.capturing import Capture
from greenroom.envs.restoring import Restore


def capture(env: Any) -> Any:
    """The state of `env` as values that JSON can hold.

    Raises:
        NotSnapshotable: Something in it cannot be captured.
    """
    walk = Capture(env)
    try:
        state = walk.value(env, "env")
    except RecursionError as error:
        raise NotSnapshotable("the environment's objects are nested too deeply to capture") from error
    walk.note_shared_memory()
    return state


def restore(env: Any, state: Any) -> None:
    """Make `env`, of the same kind as the captured one and already reset, continue from `state`.

    Raises:
        NotSnapshotable: `state` does not fit this environment, which may go on from a reset.
    """
    walk = Restore(env)
    try:
        walk.value(state, env, "env")
        walk.write()
    except NotSnapshotable:
        raise
    except Exception as error:  # keys are hashed and states are set by a stranger's code, which may raise anything
        raise NotSnapshotable(
            f"the saved state does not fit this environment: {type(error).__name__}: {error}"
        ) from error
