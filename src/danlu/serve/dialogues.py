"""Conversations in the store: trees of messages, each read and written only for its owner.

In:  an open database; who is asking, with every call.
Out: conversations as the page shows them, the way from the first message to any other, new messages.
Left out: HTTP (``conversations``), comparisons and votes (``danlu.align.preferences``).

What belongs to somebody else does not exist: both are refused with the same sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Select, delete, func, or_, select, update
from sqlalchemy.orm import Session, joinedload

from danlu.align.storage import Database
from danlu.errors import UserError
from danlu.records import Message
from danlu.serve.notes import Note, note_of
from danlu.serve.tables import DialogueRow, GenerationRow, MessageRow, ModerationRow, NoteRow, new_id, now

TITLE_CHARS = 60


@dataclass(frozen=True)
class Generation:
    """How an answer was written.

    Attributes:
        model: the name that the client asked for.
        model_hash: hash of its weights.
        sampling: every parameter of the drawing, as used.
        seconds: from the first token's being wanted to the last one.
        tokens: ids of what was written, if they are known.
        system: the instructions that it followed; None for those of the conversation.
        left_out: messages, the oldest, that the model neither read nor had a note on.
        note: the last message of those that it had a note on instead.
    """

    model: str
    model_hash: str
    sampling: dict[str, Any]
    seed: int
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    tokens: tuple[int, ...] | None = None
    system: str | None = None
    left_out: int = 0
    note: str | None = None


@dataclass(frozen=True)
class Way:
    """The way from a conversation's first message to another: its instructions, then ids and turns side by side."""

    system: str
    ids: tuple[str, ...] = ()
    turns: tuple[Message, ...] = ()


@dataclass(frozen=True)
class Written:
    """An answer, and all that is known of how it came about.

    Attributes:
        way: the messages that it follows.
        text: what it says.
        comparison: where thumbs on it are, "" if there are none.
        generation: how it was written, if that is known.
        note: what its model read in place of the first messages, if it did.
    """

    way: Way
    text: str
    comparison: str
    generation: Generation | None
    note: Note | None


class Dialogues:
    """Everybody's conversations.

    Raises:
        UserError: from every method that names a conversation or a message: there is none for this owner.
        StoreError: from every method, when the database fails.
    """

    def __init__(self, database: Database) -> None:
        self._database, self._session = database, database.session

    def start(self, owner: str, title: str = "", system: str = "", identity: str = "") -> str:
        """Open a conversation, by an id of the caller's if there is one; returns its id."""
        moment = now()
        row = DialogueRow(
            id=identity or new_id(), owner=owner, title=title, system=system, created=moment, updated=moment
        )
        with self._session(writing=True) as session:
            session.add(row)
            return row.id

    def change(self, owner: str, conversation: str, title: str | None = None, system: str | None = None) -> None:
        """Give a conversation another title or other instructions; what is None stays."""
        with self._session(writing=True) as session:
            row = _own(session, owner, conversation, locked=True)
            row.title = row.title if title is None else title
            row.system = row.system if system is None else system

    def owns(self, owner: str, conversation: str) -> bool:
        """Whether there is such a conversation for this owner."""
        with self._session() as session:
            row = session.get(DialogueRow, conversation)
            return row is not None and row.owner == owner

    def exists(self, conversation: str) -> bool:
        """Whether there is such a conversation at all: a question for the server itself, never for a client."""
        with self._session() as session:
            return session.get(DialogueRow, conversation) is not None

    def listing(
        self, owner: str, search: str = "", limit: int = 50, before: str = ""
    ) -> tuple[list[dict[str, Any]], bool]:
        """An owner's conversations, the last changed first, and whether there are more.

        Args:
            search: what the title or a message must contain; all if empty.
            limit: how many at most.
            before: only those that were changed before this time, the ``updated`` of the last one shown.
        """
        said = select(MessageRow.number).where(MessageRow.dialogue == DialogueRow.id)
        size = select(func.count()).where(MessageRow.dialogue == DialogueRow.id).scalar_subquery()
        query = select(DialogueRow, size).where(DialogueRow.owner == owner).order_by(DialogueRow.updated.desc())
        if search:
            found = said.where(MessageRow.content.icontains(search, autoescape=True)).exists()
            query = query.where(or_(DialogueRow.title.icontains(search, autoescape=True), found))
        if before:
            query = query.where(DialogueRow.updated < before)
        with self._session() as session:
            rows = session.execute(query.limit(limit + 1)).all()
        return [_summary(row, messages) for row, messages in rows[:limit]], len(rows) > limit

    def read(self, owner: str, conversation: str) -> dict[str, Any]:
        """A conversation with every message of its tree, oldest first."""
        query = select(MessageRow).where(MessageRow.dialogue == conversation).order_by(MessageRow.number)
        with self._session() as session:
            row = _own(session, owner, conversation)
            messages = _told(session, query)
        return {
            "id": row.id, "title": row.title, "system": row.system, "created": row.created, "updated": row.updated,
            "messages": messages,
        }  # fmt: skip

    def message(self, owner: str, message: str) -> tuple[str, dict[str, Any]]:
        """The conversation of a message, and the message as ``read`` tells it."""
        with self._session() as session:
            row = session.scalars(select(MessageRow).where(MessageRow.id == message)).first()
            if row is None or session.get_one(DialogueRow, row.dialogue).owner != owner:
                raise _missing("message", message)
            return row.dialogue, _told(session, select(MessageRow).where(MessageRow.id == message))[0]

    def path(self, owner: str, conversation: str, message: str | None) -> Way:
        """The way to ``message``; without any turns if it is None."""
        query = select(MessageRow).where(MessageRow.dialogue == conversation)
        with self._session() as session:
            system = _own(session, owner, conversation).system
            nodes = {node.id: node for node in session.scalars(query)} if message is not None else {}
        way: list[MessageRow] = []
        while message is not None:
            if message not in nodes:
                raise _missing("message", message)
            way.insert(0, nodes[message])
            message = nodes[message].parent
        return Way(system, tuple(node.id for node in way), tuple(Message(node.role, node.content) for node in way))

    def answer(self, owner: str, conversation: str, message: str) -> Written:
        """An answer of a conversation, for judging it."""
        with self._session() as session:
            _own(session, owner, conversation)
            row = _message_of(session, conversation, message)
            how = row.generation
            note = _note(session, how) if how else None
        if row.role != "assistant" or row.parent is None:
            raise UserError(f"message '{message[:64]}' is no answer; a thumb is for what a model said")
        way = self.path(owner, conversation, row.parent)
        return Written(way, row.content, row.comparison or "", _generation(how) if how else None, note)

    def append(
        self, owner: str, conversation: str, parent: str | None, message: Message,
        generation: Generation | None = None, identity: str = "",
    ) -> str:  # fmt: skip
        """Put a message below ``parent``, the first place if None; returns its id: ``identity``, or a new one."""
        row = MessageRow(
            id=identity or new_id(), dialogue=conversation, parent=parent, role=message.role, content=message.content,
            created=now(),
        )  # fmt: skip
        if generation is not None:
            row.generation = GenerationRow(**vars(generation) | {"seed": str(generation.seed)})
        with self._session(writing=True) as session:
            dialogue = _own(session, owner, conversation, locked=True)
            if parent is not None:
                _message_of(session, conversation, parent)
            dialogue.updated = row.created
            session.add(row)
            return row.id

    def link(self, owner: str, conversation: str, message: str, comparison: str) -> str:
        """Note where the thumbs on an answer are; returns where: the first who links it decides."""
        with self._session(writing=True) as session:
            _own(session, owner, conversation, locked=True)
            row = _message_of(session, conversation, message)
            row.comparison = row.comparison or comparison
            return row.comparison

    def delete(self, owner: str, conversation: str) -> None:
        """Forget a conversation and every word of it, also what moderation noted of it."""
        messages = select(MessageRow.id).where(MessageRow.dialogue == conversation)
        with self._session(writing=True) as session:
            row = _own(session, owner, conversation, locked=True)
            for table in (GenerationRow, NoteRow):
                session.execute(delete(table).where(table.message.in_(messages)))
            session.execute(delete(MessageRow).where(MessageRow.dialogue == conversation))
            noted = ModerationRow.conversation == conversation
            session.execute(update(ModerationRow).where(noted).values(text=""))
            session.delete(row)
        self._database.erase()

    def adopt(self, owner: str) -> int:
        """Give what was said before there were accounts, by whoever sat at this machine, to ``owner``."""
        query = select(DialogueRow).where(DialogueRow.owner == "")
        with self._session(writing=True) as session:
            rows: Sequence[DialogueRow] = session.scalars(query).all()
            for row in rows:
                row.owner = owner
            return len(rows)


def title_of(text: str) -> str:
    """The first words of a text, short enough for a list."""
    line = " ".join(text.split())
    return line if len(line) <= TITLE_CHARS else line[: TITLE_CHARS - 1].rstrip() + "…"


def _own(session: Session, owner: str, conversation: str, locked: bool = False) -> DialogueRow:
    """The one place where it is asked whose a conversation is; locked, so that nothing is added to a deleted one."""
    row = session.get(DialogueRow, conversation, with_for_update=locked)
    if row is None or row.owner != owner:
        raise _missing("conversation", conversation)
    return row


def _message_of(session: Session, conversation: str, message: str) -> MessageRow:
    row = session.scalars(select(MessageRow).where(MessageRow.id == message)).first()
    if row is None or row.dialogue != conversation:
        raise _missing("message", message)
    return row


def _missing(kind: str, identity: str) -> UserError:
    return UserError(f"{kind} '{identity[:64]}' does not exist, or was deleted")


def _summary(row: DialogueRow, messages: int) -> dict[str, Any]:
    return {"id": row.id, "title": row.title, "created": row.created, "updated": row.updated, "messages": messages}


def _told(session: Session, query: Select[MessageRow]) -> list[dict[str, Any]]:
    """Messages as clients learn of them, each with how it was written and the note that its model read."""
    rows = session.scalars(query.options(joinedload(MessageRow.generation))).all()
    return [_message(row) | (_how(session, row.generation) if row.generation else {}) for row in rows]


def _message(row: MessageRow) -> dict[str, Any]:
    told = {"id": row.id, "parent": row.parent, "role": row.role, "content": row.content, "created": row.created}
    return told | ({"comparison": row.comparison} if row.comparison else {})


def _how(session: Session, row: GenerationRow) -> dict[str, Any]:
    note = _note(session, row)
    return facts(row) | ({"note": note.told()} if note else {})


def _note(session: Session, row: GenerationRow) -> Note | None:
    kept = session.get(NoteRow, (row.note, row.model_hash)) if row.note else None
    return note_of(kept) if kept else None


def _generation(row: GenerationRow) -> Generation:
    values = {field.name: getattr(row, field.name) for field in fields(Generation)}
    tokens = None if row.tokens is None else tuple(row.tokens)
    return Generation(**values | {"seed": int(row.seed), "tokens": tokens})


def facts(written: Generation | GenerationRow) -> dict[str, Any]:
    """How an answer was written, as clients learn of it."""
    read, wrote = written.prompt_tokens, written.completion_tokens
    return {
        "model": written.model, "model_hash": written.model_hash, "finish_reason": written.finish_reason,
        "sampling": written.sampling, "seed": int(written.seed), "seconds": written.seconds,
        "left_out": written.left_out,
        "usage": {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote},
    }  # fmt: skip
