"""Judgements in the forms of other trainers and data sets, read.

In:  rows of JSON: TRL's pairs and KTO's single answers, HH-RLHF's transcripts, UltraFeedback's scores, our own.
Out: ``Preference``s and ``Thumb``s. The id of a foreign one is a hash of what it says and who says it, so the same row
read twice is the same judgement.
Left out: files and the store (``intake``); writing these forms (``forms``).

Who judged is not told by foreign rows, so their source is the rater: "import:hh". A source is no person: it is never
held out whole, and says nothing of how people here judge.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from danlu.align.splits import SOURCE, split_of
from danlu.align.tables import Thumb
from danlu.errors import unknown
from danlu.files import hash_value
from danlu.records import Answer, Message, Preference, check_messages

AUTO = "auto"
_SPOKEN = re.compile(r"\n\n(Human|Assistant):")
_ROLE = {"Human": "user", "Assistant": "assistant"}

Row = Mapping[str, Any]


def judgement(row: Any, form: str = AUTO, source: str = "") -> Preference | Thumb:
    """One row as a record, without a time; our own form has one, and a split that stays.

    Args:
        row: what a line of JSON holds.
        form: "auto" or one of ``FORMS``.
        source: whose judgements they are, ``import:SOURCE``; the form's name if empty. Our own rows name their rater.

    Raises:
        ValueError, KeyError, TypeError: the row is not of that form, or says nothing.
        UserError: there is no such form.
    """
    if form not in (AUTO, *FORMS):
        raise unknown("form", form, (AUTO, *FORMS), "--format")
    if not isinstance(row, Mapping):
        raise ValueError("it is no JSON object")
    spoken = form_of(row) if form == AUTO else form
    return FORMS[spoken](row, f"{SOURCE}{source or spoken}")


def form_of(row: Row) -> str:
    """Which form a row has, by its keys.

    Raises:
        ValueError: none that is known.
    """
    if {"answers", "ranks"} <= row.keys():
        return "danlu"
    if {"instruction", "completions"} <= row.keys():
        return "ultrafeedback"
    if {"chosen", "rejected"} <= row.keys():
        return "hh" if "prompt" not in row and _is_transcript(row["chosen"]) else "trl"
    if {"completion", "label"} <= row.keys():
        return "trl"
    raise ValueError(
        "it has neither 'chosen' and 'rejected' nor 'completion' and 'label' (TRL, HH-RLHF), 'instruction' and "
        "'completions' (UltraFeedback), 'answers' and 'ranks' (danlu)"
    )


def _danlu(row: Row, _: str) -> Preference:
    preference = Preference.from_json(row)
    spoken = (turn.content for turn in preference.prompt)
    written = (text for answer in preference.answers for text in (answer.text, answer.model))
    for text in (preference.id, preference.rater, preference.time, *spoken, *written):
        _words(text)
    if preference.time:
        datetime.fromisoformat(preference.time)
    if not preference.id or preference.split not in ("train", "heldout") or min(preference.ranks, default=0) < 0:
        raise ValueError("it needs an 'id', a 'split' (train or heldout) and ranks from 0")
    if preference.display_order and sorted(preference.display_order) != [*range(len(preference.answers))]:
        raise ValueError("'display_order' is no order of the answers")
    return preference


def _trl(row: Row, rater: str) -> Preference | Thumb:
    """TRL's explicit and implicit prompts, plain and conversational; KTO's rows have a label."""
    if "label" in row and "completion" in row:
        return _single(_whole(row.get("prompt"), row["completion"]), row["label"], rater)
    return _pair(_whole(row.get("prompt"), row["chosen"]), _whole(row.get("prompt"), row["rejected"]), rater)


def _hh(row: Row, rater: str) -> Preference:
    return _pair(_transcript(row["chosen"]), _transcript(row["rejected"]), rater)


def _ultrafeedback(row: Row, rater: str) -> Preference:
    """A ranking of all completions that have a score; the system prompts that they were written under are left out."""
    scored = [(completion, _score(completion)) for completion in row["completions"]]
    judged = [(completion, score) for completion, score in scored if score is not None]
    if len(judged) < 2:
        raise ValueError("fewer than two completions have a score")
    place = {score: rank for rank, score in enumerate(sorted({score for _, score in judged}, reverse=True))}
    answers = [Answer(_words(c["response"]), model=str(c.get("model", ""))) for c, _ in judged]
    return _preference([Message("user", _words(row["instruction"]))], answers, [place[s] for _, s in judged], rater)


def _score(completion: Row) -> float | None:
    """The mean of the four aspects, else the overall score: of the latter some were written down ten times too high."""
    aspects = [_number(aspect.get("Rating")) for aspect in (completion.get("annotations") or {}).values()]
    rated = [rating for rating in aspects if rating is not None]
    mean = sum(rated) / len(rated) if rated else None
    candidates = (_number(completion.get("fine-grained_score")), mean, _number(completion.get("overall_score")))
    return next((score for score in candidates if score is not None), None)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):  # "N/A"
        return None
    return number if math.isfinite(number) else None


def _whole(prompt: Any, answer: Any) -> tuple[Message, ...]:
    """Prompt and answer as one conversation; a conversational answer may hold its prompt itself."""
    turns = _turns(answer, "assistant")
    if turns[0].role == "assistant":
        if prompt is None:
            raise ValueError("it has no 'prompt'")
        turns = (*_turns(prompt, "user"), *turns)
    return check_messages(turns, answered=True)


def _turns(content: Any, role: str) -> tuple[Message, ...]:
    if isinstance(content, str):
        return (Message(role, _words(content)),)
    if isinstance(content, list) and content:
        return tuple(Message(turn["role"], _words(turn["content"])) for turn in content)
    raise ValueError("a prompt or an answer is neither text nor a list of messages")


def _is_transcript(text: Any) -> bool:
    return isinstance(text, str) and _SPOKEN.match(text) is not None


def _transcript(text: Any) -> tuple[Message, ...]:
    """HH-RLHF's "\\n\\nHuman: ...\\n\\nAssistant: ..." as turns."""
    if not _is_transcript(text):
        raise ValueError('a transcript begins with "\\n\\nHuman:"')
    _, *parts = _SPOKEN.split(_words(text))
    turns = [Message(_ROLE[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True)]
    return check_messages(turns, answered=True)


def _words(content: Any) -> str:
    if not isinstance(content, str):
        raise ValueError("content must be text")
    content.encode()  # half a surrogate pair, which JSON can spell, is a UnicodeEncodeError: a ValueError
    return content


def _pair(better: Sequence[Message], worse: Sequence[Message], rater: str) -> Preference:
    if better[:-1] != worse[:-1]:
        raise ValueError("'chosen' and 'rejected' answer different prompts")
    return _preference(better[:-1], [Answer(better[-1].content), Answer(worse[-1].content)], (0, 1), rater)


def _preference(prompt: Sequence[Message], answers: Sequence[Answer], ranks: Sequence[int], rater: str) -> Preference:
    texts = [answer.text for answer in answers]
    if not all(text.strip() for text in texts):
        raise ValueError("an answer is empty")
    if len(set(texts)) == 1:
        raise ValueError("all answers are the same")
    turns = check_messages(prompt, answered=False)
    identity = hash_value([rater, _plain(turns), texts, list(ranks)])
    order = tuple(range(len(answers)))
    return Preference(
        identity, turns, tuple(answers), tuple(ranks), rater, display_order=order, split=split_of(turns)
    )  # fmt: skip


def _single(turns: Sequence[Message], label: Any, rater: str) -> Thumb:
    if not isinstance(label, bool):
        raise ValueError("'label' is neither true nor false")
    identity = hash_value([rater, _plain(turns), label])
    prompt = check_messages(turns[:-1], answered=False)
    answer = Answer(turns[-1].content)
    return Thumb(identity, prompt, answer, label, reason="", rater=rater, time="", split=split_of(prompt))


def _plain(turns: Sequence[Message]) -> list[list[str]]:
    return [[turn.role, turn.content] for turn in turns]


FORMS: dict[str, Callable[[Row, str], Preference | Thumb]] = {
    "trl": _trl, "hh": _hh, "ultrafeedback": _ultrafeedback, "danlu": _danlu,
}  # fmt: skip
