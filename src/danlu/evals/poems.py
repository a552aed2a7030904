"""The poem metric: form, rhyme, repetition, title. It plays the hidden human, and it alone judges progress on poems.

In:  what was asked (a prompt that ``train.instructions`` can read) and what was answered.
Out: every component of the score, and one total to rank by.
Left out: tone pattern, parallelism and sense; a poem can pass here and still be a bad poem.

Of the 14,569 quatrains of the Complete Tang Poems 99.8 % pass the form and 79 % the rhyme (the others rhymed a thousand
years ago, or repeat the rhyming character), 2.3 % repeat a character too often, and 56 % use one of their title.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from danlu.corpus.langid import HAN
from danlu.evals.rhyme import rhymes
from danlu.train.instructions import PoemRequest, parse_request

RATES = ("form", "rhyme")
REPETITION_WEIGHT = 5.0
TITLE_WEIGHT = 0.1
MOST_OCCURRENCES = 2
_DEALS = 20

_BREAKS = re.compile(r"[，。！？；：、,.!?;:\s]+")
_HAN = re.compile(HAN)
_REDUPLICATED = re.compile(r"(.)\1")


def accepts(prompt: str) -> bool:
    """Whether the prompt asks for a poem."""
    return parse_request(prompt) is not None


def score(prompt: str, answer: str) -> dict[str, float]:
    """Judge one answer.

    Args:
        prompt: the user's words, such as ``写一首题为《春晓》的五言绝句。``.
        answer: the text that came back.

    Returns:
        ``form``: 1 if the answer has exactly the lines asked for, each of the right number of Han characters.
        ``lines_right``: share of the expected lines that are there and right; 1 exactly when form is 1.
        ``rhyme``: 1 if form is right and the even lines of the whole poem (given lines included) end on *different*
        characters of one rhyme group.
        ``repetition``: share of the poem's characters that are too many (``repetition``).
        ``title``: 1 if a title was given and the poem uses a character of it.
        ``total``: what a ranking goes by: lines_right + rhyme - 5 x repetition + 0.1 x title.

    Raises:
        ValueError: the prompt does not ask for a poem (see ``accepts``).
    """
    request = parse_request(prompt)
    if request is None:
        raise ValueError(f"not a poem request: {prompt!r}")
    lines = split_lines(answer)
    poem = [*request.given, *lines]
    right = _lines_right(request, lines)
    form = right == 1.0
    rhyme = form and rhymes([line[-1] for line in poem[1::2]])
    repeated = repetition(poem)
    title = float(bool(set(_han(request.title)) & set("".join(poem))))
    return {
        "form": float(form),
        "lines_right": right,
        "rhyme": float(rhyme),
        "repetition": repeated,
        "title": title,
        "total": right + rhyme - REPETITION_WEIGHT * repeated + TITLE_WEIGHT * title,
    }


def across(answered: Sequence[tuple[str, str]]) -> dict[str, float]:
    """What only many answers together show.

    Args:
        answered: (prompt, answer), in an order that has nothing to do with rhyme.

    Returns:
        ``rhyme_by_chance``: the rhyme rate if last lines were dealt out anew among the answers of right form. A model
        that fits line 4 to line 2 rhymes more often than that; one that always ends on the same few sounds does not.
    """
    ends = [found for prompt, answer in answered if (found := _ends(prompt, answer))]
    deals = min(_DEALS, len(ends) - 1)
    hits = sum(
        rhymes([*one[:-1], ends[(place + deal) % len(ends)][-1]])
        for place, one in enumerate(ends)
        for deal in range(1, deals + 1)
    )
    return {"rhyme_by_chance": hits / deals / len(answered) if deals > 0 else 0.0}


def split_lines(text: str) -> list[str]:
    """Cut a poem at punctuation and white space; a line still holds whatever else was written in it."""
    return [part for part in _BREAKS.split(text) if part]


def repetition(lines: Sequence[str]) -> float:
    """Share of a poem's Han characters that are too many.

    A character may occur twice; a reduplicated word (处处) counts as one occurrence. A line that repeats an earlier
    one counts whole.
    """
    new = list(dict.fromkeys(lines))
    occurrences = Counter("".join(_REDUPLICATED.sub(r"\1", _han(line)) for line in new))
    excess = sum(count - MOST_OCCURRENCES for count in occurrences.values() if count > MOST_OCCURRENCES)
    whole = len(_han("".join(lines)))
    excess += whole - len(_han("".join(new)))
    return excess / whole if whole else 0.0


def _lines_right(request: PoemRequest, lines: Sequence[str]) -> float:
    """Share of lines that are right, over the number asked for or written, whichever is more."""
    wanted = request.lines - len(request.given)
    right = sum(len(line) == request.line_length == len(_han(line)) for line in lines)
    return min(right, wanted) / max(wanted, len(lines))


def _ends(prompt: str, answer: str) -> list[str] | None:
    """The characters that should rhyme; None if the form is not right."""
    request, lines = parse_request(prompt), split_lines(answer)
    if request is None or _lines_right(request, lines) < 1:
        return None
    return [line[-1] for line in (*request.given, *lines)[1::2]]


def _han(text: str | None) -> str:
    return "".join(_HAN.findall(text or ""))
