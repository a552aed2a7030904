"""How raters behave: who judges how much, and which votes say the same twice or take each other back.

In:  judgements.
Out: ``conduct``: counts for whoever runs the place; nothing is left out of anything because of them.
Left out: whether raters agree with others and with themselves (``agreement``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from datetime import datetime

from danlu.records import Preference

FAST = 20  # votes within a minute: nobody reads two answers in three seconds
_MINUTE = 60.0
_SHOWN = 10


@dataclass(frozen=True)
class Rater:
    """One rater's part.

    Attributes:
        share: of all judgements.
        busiest: most judgements within a minute.
        flooding: whether that is more than anybody can read.
    """

    rater: str
    judgements: int
    share: float
    busiest: int
    flooding: bool


@dataclass(frozen=True)
class Conduct:
    """How all raters behave.

    Attributes:
        raters: how many there are.
        duplicates: judgements that repeat one of the same rater on the same prompt and answers, shown anew.
        contradictions: pairs of such judgements that prefer opposite answers.
        flooding: raters who do.
        most: those with most judgements.
    """

    raters: int
    duplicates: int
    contradictions: int
    flooding: int
    most: tuple[Rater, ...]


def conduct(preferences: Sequence[Preference]) -> Conduct:
    """Count it up, from every rater's last word on every comparison."""
    of: dict[str, list[Preference]] = defaultdict(list)
    for preference in preferences:
        of[preference.rater].append(preference)
    raters = [_rater(name, judged, len(preferences)) for name, judged in of.items()]
    raters.sort(key=lambda one: (-one.judgements, one.rater))
    twice = [_twice(judged) for judged in of.values()]
    return Conduct(
        raters=len(raters),
        duplicates=sum(duplicates for duplicates, _ in twice),
        contradictions=sum(contradictions for _, contradictions in twice),
        flooding=sum(one.flooding for one in raters),
        most=tuple(raters[:_SHOWN]),
    )


def _rater(name: str, judged: Sequence[Preference], of: int) -> Rater:
    busiest = _busiest([preference.time for preference in judged])
    return Rater(name, len(judged), round(len(judged) / of, 4), busiest, busiest > FAST)


def _busiest(times: Sequence[str]) -> int:
    """Most moments within a minute; what came in at one moment came out of a file."""
    moments = sorted({datetime.fromisoformat(time).timestamp() for time in times if time})
    most = first = 0
    for last, moment in enumerate(moments):
        while moment - moments[first] >= _MINUTE:
            first += 1
        most = max(most, last - first + 1)
    return most


def _twice(judged: Sequence[Preference]) -> tuple[int, int]:
    """(duplicates, contradictions) among one rater's judgements of two or more answers with the same words."""
    same: dict[Hashable, list[dict[str, int]]] = defaultdict(list)
    for preference in judged:
        texts = [answer.text for answer in preference.answers]
        if preference.ranks and len(set(texts)) == len(texts):
            same[preference.prompt, frozenset(texts)].append(dict(zip(texts, preference.ranks, strict=True)))
    duplicates = contradictions = 0
    for verdicts in same.values():
        for number, verdict in enumerate(verdicts):
            earlier = [_compare(verdict, other) for other in verdicts[:number]]
            duplicates += any(earlier)
            contradictions += earlier.count(False)
    return duplicates, contradictions


def _compare(one: dict[str, int], other: dict[str, int]) -> bool | None:
    """True if two rankings order every pair alike, False if they order one in opposite ways, None between."""
    texts = [*one]
    signs = [
        (_sign(one[a] - one[b]), _sign(other[a] - other[b])) for i, a in enumerate(texts) for b in texts[i + 1 :]
    ]  # fmt: skip
    if all(first == second for first, second in signs):
        return True
    return False if any(first * second < 0 for first, second in signs) else None


def _sign(difference: int) -> int:
    return (difference > 0) - (difference < 0)
