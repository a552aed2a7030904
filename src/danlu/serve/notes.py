"""Notes: what a model made of the messages that it can no longer read, kept with the conversation.

In:  an open database; messages of a conversation whose owner was asked for before (``dialogues``).
Out: ``Note``; the newest one on a way through the conversation.
Left out: writing them (``condense``), forgetting them, which a conversation's deletion does (``dialogues``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from danlu.align.storage import Database
from danlu.serve.tables import NoteRow, now


@dataclass(frozen=True)
class Note:
    """A summary that stands for the beginning of a conversation.

    Attributes:
        message: id of the last message that it tells of.
        words: what it says.
        messages: how many messages it tells of.
        left_out: how many, before those, were never read for it: they did not fit.
    """

    message: str
    words: str
    messages: int
    left_out: int

    def told(self) -> dict[str, Any]:
        """As clients learn of it."""
        return {"text": self.words, "messages": self.messages}


class Notes:
    """The notes of all conversations; each is one model's, since another would have put it otherwise.

    Raises:
        StoreError: from every method, when the database fails.
    """

    def __init__(self, database: Database) -> None:
        self._session = database.session

    def newest(self, way: Sequence[str], model_hash: str) -> Note | None:
        """The note that tells of most of a way (ids from the first message on), if there is any."""
        query = select(NoteRow).where(NoteRow.message.in_(way), NoteRow.model_hash == model_hash)
        with self._session() as session:
            rows = session.scalars(query).all()
        return max(map(note_of, rows), key=lambda note: way.index(note.message), default=None)

    def keep(self, note: Note, model_hash: str) -> None:
        """Store a note; where somebody was faster with the same, the last one stays."""
        row = NoteRow(**vars(note), model_hash=model_hash, created=now())
        with self._session(writing=True) as session:
            session.merge(row)


def note_of(row: NoteRow) -> Note:
    """A row as a record."""
    return Note(row.message, row.words, row.messages, row.left_out)
