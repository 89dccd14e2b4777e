"""Errors that are a person's to mend: what was wrong, where, and what to do. Printed without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user gave (option, file, environment). The message names the culprit and the remedy."""


class EnvironmentFault(UserError):
    """A user's environment raised, hung, died or broke its contract. The message names the environment's index."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`"; did you mean X?"` for the closest known word, else the list of what is known."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"
