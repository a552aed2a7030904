"""Thumbs on answers of stored conversations: good or bad by themselves, and why.

In:  an answer, and what its reader says of it.
Out: a comparison of that one answer in the preference store, with the thumb on it; all thumbs of a conversation.
Left out: comparisons of several answers (``feedback``), what is learnt of thumbs (``align``).

The comparison is recorded when the first thumb is given: most answers never get one. It holds what the model read,
which may be less than was said, and how it wrote: model, sampling, seed, and the very tokens where they are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from danlu.align import ballots
from danlu.align.preferences import PreferenceStore
from danlu.records import Answer, Message
from danlu.serve.bodies import PlainBody
from danlu.serve.condense import with_note
from danlu.serve.dialogues import Dialogues, Written
from danlu.serve.problems import Refusal
from danlu.serve.votes import MAX_REASON_CHARS
from danlu.serve.wire import Rater


class NewThumb(PlainBody):
    """PUT /api/conversations/{id}/messages/{id}/thumb."""

    thumb: Literal["up", "down"]
    reason: Annotated[str, Field(max_length=MAX_REASON_CHARS)] = ""
    rater: Rater = ""


class Thumbs:
    """Gives them and tells of them.

    Raises:
        UserError: there is no such answer for this owner.
        StoreError: from every method, when the database fails.
    """

    def __init__(self, dialogues: Dialogues, preferences: PreferenceStore) -> None:
        self._dialogues, self._preferences = dialogues, preferences

    def give(self, owner: str, conversation: str, message: str, asked: NewThumb) -> dict[str, Any]:
        """Store a thumb by the name of the owner, where there is one, and tell what is said of the answer now."""
        answer = self._dialogues.answer(owner, conversation, message)
        rater = owner or asked.rater
        comparison = answer.comparison or self._record(owner, conversation, message, answer, rater)
        self._preferences.thumb(comparison, asked.thumb == "up", rater, asked.reason)
        return self.on([{"comparison": comparison}])[0]

    def on(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Messages of ``dialogues``, with the last thumb instead of the comparison that it is on."""
        comparisons = [one["comparison"] for one in messages if "comparison" in one]
        said = ballots.thumbs_on(self._preferences, comparisons) if comparisons else {}
        told = []
        for message in messages:
            thumb = said.get(message.get("comparison", ""))
            plain = {name: value for name, value in message.items() if name != "comparison"}
            told.append(plain | ({"thumb": "up" if thumb.up else "down", "reason": thumb.reason} if thumb else {}))
        return told

    def _record(self, owner: str, conversation: str, message: str, answer: Written, rater: str) -> str:
        self._preferences.ensure_conversation(conversation, rater)
        try:
            comparison = self._preferences.record(_read(answer), [_shown(answer)], conversation)
        except ValueError as error:  # an imported conversation may be in any order
            raise Refusal(400, f"nobody can learn from this answer: {error}", "invalid_value") from None
        return self._dialogues.link(owner, conversation, message, comparison)


def _read(answer: Written) -> Sequence[Message]:
    """What the model read before it answered."""
    way, how = answer.way, answer.generation
    system = way.system if how is None or how.system is None else how.system
    left_out = how.left_out if how else 0
    if answer.note is not None:
        instructions, *turns = with_note(system, way.turns, way, answer.note)
        return [instructions, *turns[left_out - answer.note.left_out :]]
    return [*[Message("system", system)] * bool(system.strip()), *way.turns[left_out:]]


def _shown(answer: Written) -> Answer:
    how = answer.generation
    if how is None:
        return Answer(answer.text, (), "", {}, 0)
    return Answer(answer.text, tuple(how.tokens or ()), how.model_hash, how.sampling, how.seed)
