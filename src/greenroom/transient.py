"""What a checkpoint may lose when it is no longer the newest one."""

from __future__ import annotations

from typing import Any


class Transient(dict[str, Any]):
    """Part of a state that is too big to keep in every checkpoint, and that a run can do without.

    Whoever puts it into its `state_dict` also continues from an empty one in its place, as if nothing had been there.
    """
