"""Turns that no longer fit, in the model's own words: it writes a note on them, which stands in its instructions.

In:  the way through a stored conversation, and what is asked now.
Out: ``Reading``: the turns that the model reads, how many it does not, and the note that stands for others.
Left out: keeping notes (``notes``); dialogues that are not stored here: a note would be written anew for every answer.

A note is made once: it tells of everything but the newest turns, which take at most half of the room there is, so the
next turns fit without another one; that one is written of the first and of what was said since. A summary of summaries
(Wu et al. 2021, arXiv 2109.10862) forgets: how much, is a matter of the model. If it has nothing to say, or is not
allowed to, the oldest turns are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from anyio.to_thread import run_sync

from danlu.infer import Completion, Sampling, fit, left_out, reserve
from danlu.records import Message
from danlu.serve.desk import Desk
from danlu.serve.dialogues import Way
from danlu.serve.jobs import Finished, Job
from danlu.serve.models import Served
from danlu.serve.notes import Note, Notes
from danlu.serve.safety import FILTERED
from danlu.serve.wire import Asking
from danlu.tokens.chat import encode_prompt

NOTE_SHARE = 8  # an eighth of the context ...
MOST_TOKENS = 400  # ... and no more than this
TEMPERATURE = 0.3  # at 0 small models go round in circles

_ASK = {
    True: "请用几句话概括我们到目前为止的对话，让你只看概括就能继续：人名、事实、愿望、做过的决定。只写概括。",
    False: "Summarise our conversation so far in a few sentences, so that you can go on from the summary alone: names, "
    "facts, wishes, what was decided. Write nothing but the summary.",
}
_HEAD = {
    True: "更早的对话已经不在这里了，这是你自己写的概括：",
    False: "What was said before is no longer here; this is your own summary of it:",
}
_HAN = re.compile(r"[\u4e00-\u9fff]")
_LATIN_WORD = re.compile(r"[A-Za-z]+")


@dataclass(frozen=True)
class Reading:
    """What a model reads of a dialogue.

    Attributes:
        turns: all that it reads, its instructions first.
        left_out: messages that it neither reads nor has a note on; None where it reads all or the client is refused.
        note: what it reads in place of the messages before.
    """

    turns: Sequence[Message]
    left_out: int | None
    note: Note | None = None

    def told(self) -> dict[str, Any]:
        """As clients learn of it."""
        counted = {} if self.left_out is None else {"left_out": self.left_out}
        return {**counted, **({"note": self.note.told()} if self.note else {})}


class Condenser:
    """Makes dialogues fit.

    Args:
        desk: takes what is to be written.
        notes: where notes are kept.
    """

    def __init__(self, desk: Desk, notes: Notes) -> None:
        self._desk, self._notes = desk, notes

    async def read(
        self,
        served: Served,
        asked: Asking,
        way: Way,
        turns: Sequence[Message],
        summarise: bool,
        conversation: str = "",
    ) -> Reading:
        """What ``served`` reads of ``turns``: all, or the newest, with a note on the others if ``summarise``.

        Args:
            served: the model.
            asked: how long an answer may get, and whether anything may be left out.
            way: the part of the dialogue that is stored.
            turns: the whole dialogue, with instructions and what is said now.
            summarise: whether a note is written.
            conversation: its id, for the gates.

        Raises:
            Refusal: a note is needed, and the queue is full or its owner's minute used up.
        """
        if not asked.may_leave_out():
            return Reading(turns, None)
        whole = await self._fitting(served, asked, turns)
        if not whole.left_out or not summarise or not way.ids:
            return whole
        note = await run_sync(self._notes.newest, way.ids, served.hash)
        noted = await self._fitting(served, asked, turns, way, note)
        if note is None or noted.left_out != note.left_out:
            note = await self._write(served, asked, way, turns, note, conversation) or note
            noted = await self._fitting(served, asked, turns, way, note)
        return noted

    async def _fitting(
        self, served: Served, asked: Asking, turns: Sequence[Message], way: Way | None = None, note: Note | None = None
    ) -> Reading:
        """``turns``, with a note on their ``way`` if there is one, without the oldest that do not fit beside it."""
        read = with_note(served.instructions(turns), said(turns), way, note) if way and note else turns
        kept = await served.fit(asked, read)
        return Reading(kept, left_out(read, kept) + (note.left_out if note else 0), note)

    async def _write(
        self, served: Served, asked: Asking, way: Way, turns: Sequence[Message], old: Note | None, conversation: str
    ) -> Note | None:
        """A note on everything before the newest turns; None if nothing comes of it."""
        budget = min(MOST_TOKENS, served.context // NOTE_SHARE)
        half = (served.context - reserve(served.context, asked.limit()) - budget) // 2
        begin = way.ids.index(old.message) + 1 if old else 0
        end = len(said(turns)) - len(said(await run_sync(fit, served.tokenizer, turns, half)))
        old_words = [Message("system", with_words("", old.words))] if old else []
        told = [*old_words, *said(turns)[begin:end]]
        asking = [*told, Message("user", _ASK[_is_chinese(told)])]
        read = await run_sync(fit, served.tokenizer, asking, served.context - budget)
        unread = left_out(asking, read)
        if end - begin - unread <= 0:  # nothing new to tell, or one message alone is more than can be read
            return None
        words = await self._words(served, read, budget, conversation)
        if not words:
            return None
        messages, lost = (old.messages, old.left_out) if old else (0, 0)
        note = Note(way.ids[end - 1], words, messages + end - begin - unread, lost + unread)
        await run_sync(self._notes.keep, note, served.hash)
        return note

    async def _words(self, served: Served, read: Sequence[Message], budget: int, conversation: str) -> str:
        """What the model answers; nothing if a gate stops it."""
        prompt = await run_sync(encode_prompt, served.tokenizer, read)
        sampling = Sampling(temperature=TEMPERATURE, max_new_tokens=budget)
        job = Job(served.name, tuple(prompt), sampling, 0, weights=served.weights)
        answers, events, _ = await self._desk.write([job], read, conversation, repair=True)
        written: Completion | None = None
        try:
            async for event in events:
                written = event.completion if isinstance(event, Finished) else written
        finally:
            answers.cancel()
        return written.text.strip() if written and written.finish_reason != FILTERED else ""


def said(turns: Sequence[Message]) -> Sequence[Message]:
    """A dialogue without its instructions."""
    return turns[int(bool(turns) and turns[0].role == "system") :]


def with_note(system: str, turns: Sequence[Message], way: Way, note: Note) -> list[Message]:
    """A dialogue whose instructions end with a note, without the turns that it tells of.

    Args:
        system: instructions; "" for none.
        turns: all turns but those.
        way: the stored ones among them, which come first.
        note: on the first of them.
    """
    rest = turns[way.ids.index(note.message) + 1 :]
    return [Message("system", with_words(system, note.words)), *rest]


def with_words(system: str, words: str) -> str:
    """Instructions with the words of a note."""
    return f"{system}\n\n{_HEAD[_is_chinese([Message('system', words)])]}\n{words}".strip()


def _is_chinese(turns: Iterable[Message]) -> bool:
    """Whether there are more Chinese characters than words of Latin letters."""
    text = "".join(turn.content for turn in turns)
    return len(_HAN.findall(text)) > len(_LATIN_WORD.findall(text))
