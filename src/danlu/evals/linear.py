"""Regular expressions whose time and length are bounded by their form.

In:  an expression's source.
Out: ``check``, which refuses what may take long; ``ways``, which counts how long; ``width``, the longest match.
Left out: running it.

Python's engine tries alternatives one after another, so an expression can take exponential time on a text made for it.
One without unlimited repeats, without a repeat inside a repeat and without references to groups cannot: at each place
of the text it takes at most the product of its repeats' ranges.
"""

from __future__ import annotations

import re
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

_MAX_REPEAT = 128
_MAX_WAYS = 100_000
_REPEATS = (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT)
_REFERENCES = (op.GROUPREF, op.GROUPREF_EXISTS, op.GROUPREF_IGNORE)


def check(pattern: str) -> None:
    """Refuse an expression that may take long.

    Raises:
        ValueError: it is not an expression, or has something whose time is not bounded; says what.
    """
    if ways(pattern) > _MAX_WAYS:
        raise ValueError(f"pattern {pattern!r} has too many repeats that could share a text; narrow their ranges")


def ways(pattern: str) -> int:
    """In how many ways an expression may be tried at one place, at most.

    Raises:
        ValueError: it is not an expression, or there is no limit.
    """
    try:
        return _ways(parser.parse(pattern), inside=False)
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is not a regular expression ({error})") from None


def width(pattern: str) -> int:
    """Characters of the longest match."""
    return int(parser.parse(pattern).getwidth()[1])


def _ways(tree: Any, inside: bool) -> int:
    """In how many ways a sequence can be matched at one place, at most."""
    ways = 1
    for kind, argument in tree:
        if kind in _REFERENCES:
            raise ValueError("a reference to a group may take long; write the alternatives out")
        if kind in _REPEATS:
            low, high, body = argument
            if high == op.MAXREPEAT or high > _MAX_REPEAT:
                raise ValueError(f"repeats need an upper limit of at most {_MAX_REPEAT}: {{0,20}} instead of * or +")
            if inside and high > 1:
                raise ValueError("a repeat inside a repeat may take long; write the alternatives out")
            ways *= (high - low + 1) * _ways(body, inside or high > 1) ** (1 if high > 1 else high)
        elif kind is op.BRANCH:
            ways *= sum(_ways(branch, inside) for branch in argument[1])
        elif kind is op.SUBPATTERN:
            ways *= _ways(argument[3], inside)
        elif kind in (op.ASSERT, op.ASSERT_NOT):
            ways *= _ways(argument[1], inside)
        elif kind is op.ATOMIC_GROUP:
            ways *= _ways(argument, inside)
    return ways
