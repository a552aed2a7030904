"""Errors that are the user's to mend, and the one sentence that tells how.

In:  a name that was asked for and the names that exist.
Out: ``UserError`` (exit code 2) with a sentence saying what, where and what to do.
Left out: our own faults; those stay ordinary exceptions (exit code 1).
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """A mistake of the user's: one clear sentence, no traceback, exit code 2."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Name the valid thing closest to ``name``, as the tail of an error sentence.

    Args:
        name: what was asked for.
        valid: every name that exists.

    Returns:
        ``"; did you mean 'x'?"`` when something is close, else ``"; valid: a, b, c"``.
    """
    names = sorted(str(v) for v in valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; valid: {', '.join(names)}" if names else ""


def beside(path: Path) -> str:
    """What in the same folder a missing ``path`` may have meant: ``"; did you mean 'x'?"``, or nothing."""
    hint = nearest(path.name, os.listdir(path.parent) if path.parent.is_dir() else [])
    return hint if "mean" in hint else ""


def unknown(kind: str, name: str, valid: Iterable[str], where: str = "") -> UserError:
    """The error for a ``kind`` called ``name`` that does not exist (law 7 of the house)."""
    place = f" in {where}" if where else ""
    return UserError(f"unknown {kind} '{name}'{place}{nearest(name, valid)}")
