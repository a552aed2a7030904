"""Prose into conversations: go on with a text from where it was cut.

In:  documents of any kind, in Chinese or another language.
Out: conversations whose answers end where sentences do, as long as they are short enough for that.
Left out: questions and answers; those take people, or a stronger model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from danlu.records import Conversation, Document, Message
from danlu.streams import stream_seed

CONTINUE = {"zh": "续写：{start}", "en": "Continue: {start}"}

_SENTENCE_END = re.compile(r"[。！？…]+[”’」』）]*\s*|(?<!\bMr)(?<!\bMrs)(?<!\bDr)[.!?]+[\"'”’)]*\s+|\s*\n\s*")
_PAUSE = re.compile(r"[，、；,;\s]+")
_START_CHARS, _ANSWER_CHARS = 20, 300


def prose_tasks(
    document: Document, per_document: int, seed: int, size: Callable[[str], int] = len, room: int = 1000
) -> list[Conversation]:
    """Conversations that ask to go on with a text; the answer goes to the end of a sentence.

    Args:
        document: any text; one with fewer than two sentences gives none.
        per_document: at most so many, from different places.
        seed: of the choice of places, together with the document id.
        size: how much of ``room`` a text takes, such as its tokens.
        room: most that start and answer may take together; a sentence of more than half of it is cut at pauses.
    """
    bites = (bite for sentence in _sentences(document.text) for bite in _bites(sentence, size, room // 2))
    passages = list(_passages(bites, size, room))
    order = sorted(range(len(passages)), key=lambda i: stream_seed(seed, document.id, "prose", i))
    template = CONTINUE["zh" if document.language == "zh" else "en"]
    source = f"prose:continue:{document.id}"
    return [
        Conversation((Message("user", template.format(start=start)), Message("assistant", answer)), source)
        for start, answer in (passages[i] for i in sorted(order[:per_document]))
    ]


def _sentences(text: str) -> list[str]:
    """Cut a text after every sentence and every row; the pieces joined are the text."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True) if start < end]


def _bites(sentence: str, size: Callable[[str], int], most: int) -> Iterator[str]:
    """A sentence, halved until no piece takes more than ``most``; cut at pauses if there are any."""
    if size(sentence) <= most or len(sentence) < 2:
        yield sentence
        return
    middle = len(sentence) // 2
    pauses = [match.end() for match in _PAUSE.finditer(sentence) if match.end() < len(sentence)]
    cut = min(pauses, key=lambda end: abs(end - middle), default=middle)
    for half in (sentence[:cut], sentence[cut:]):
        yield from _bites(half, size, most)


def _passages(bites: Iterable[str], size: Callable[[str], int], room: int) -> Iterator[tuple[str, str]]:
    """Join pieces of text into (start, answer): about 20 characters to start with, at most 300 after.

    No piece takes more than half the room, and the start stops growing before it leaves less than that to the answer.
    """
    start = answer = ""
    used = 0
    for bite in bites:
        cost = size(bite)
        if not answer and (not start or (len(start.strip()) < _START_CHARS and used + cost <= room - room // 2)):
            start, used = start + bite, used + cost
        elif not answer or (used + cost <= room and len(answer) + len(bite) <= _ANSWER_CHARS):
            answer, used = answer + bite, used + cost
        else:
            yield start.strip(), answer.strip()
            start, answer, used = bite, "", cost
    if answer.strip():
        yield start.strip(), answer.strip()
