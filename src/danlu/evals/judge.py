"""Judges by name: what plays the hidden human, and what measures progress.

In:  a judge's name from a recipe.
Out: a ``Judge``: which prompts it can judge, how it scores an answer, and which components are rates.
Left out: models as judges (a win rate against another model).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from danlu.errors import unknown
from danlu.evals import poems, prose


@dataclass(frozen=True)
class Judge:
    """A way to score answers.

    Attributes:
        name: as written in recipes.
        rates: components of the score that are 0 or 1; their means are reported as rates with intervals.
        accepts: whether a prompt (the user's last words) is of the kind that it judges.
        score: (prompt, answer) -> components and ``total``, by which answers are ranked.
        across: (prompt, answer) pairs -> figures that only many answers together show.
    """

    name: str
    rates: tuple[str, ...]
    accepts: Callable[[str], bool]
    score: Callable[[str, str], dict[str, float]]
    across: Callable[[Sequence[tuple[str, str]]], dict[str, float]] = lambda _: {}


JUDGES = {
    "poems": Judge("poems", poems.RATES, poems.accepts, poems.score, poems.across),
    "prose": Judge("prose", prose.RATES, prose.accepts, prose.score),
}


def judge(name: str) -> Judge:
    """The judge of that name.

    Raises:
        UserError: there is none, naming the nearest.
    """
    if name not in JUDGES:
        raise unknown("judge", name, JUDGES)
    return JUDGES[name]
