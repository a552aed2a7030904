"""Conversations in the store: trees of messages, each read and written only for its owner.

In:  an open database; who is asking, with every call.
Out: conversations as the page shows them, the way from the first message to any other, new messages.
Left out: HTTP (``conversations``), comparisons and votes (``danlu.align.preferences``).

What belongs to somebody else does not exist: both are refused with the same sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.orm import Session, joinedload

from danlu.align.storage import Database
from danlu.errors import UserError
from danlu.records import Message
from danlu.serve.tables import DialogueRow, GenerationRow, MessageRow, ModerationRow, new_id, now

TITLE_CHARS = 60


@dataclass(frozen=True)
class Generation:
    """How an answer was written.

    Attributes:
        model: the name that the client asked for.
        model_hash: hash of its weights.
        sampling: every parameter of the drawing, as used.
        seconds: from the first token's being wanted to the last one.
    """

    model: str
    model_hash: str
    sampling: dict[str, Any]
    seed: int
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float


class Dialogues:
    """Everybody's conversations.

    Raises:
        UserError: from every method that names a conversation or a message: there is none for this owner.
        StoreError: from every method, when the database fails.
    """

    def __init__(self, database: Database) -> None:
        self._database, self._session = database, database.session

    def start(self, owner: str, title: str = "", system: str = "") -> str:
        """Open a conversation; returns its id."""
        moment = now()
        row = DialogueRow(id=new_id(), owner=owner, title=title, system=system, created=moment, updated=moment)
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
        query = (
            select(MessageRow).where(MessageRow.dialogue == conversation)
            .order_by(MessageRow.number).options(joinedload(MessageRow.generation))
        )  # fmt: skip
        with self._session() as session:
            row = _own(session, owner, conversation)
            messages = [_message(message) for message in session.scalars(query)]
        return {
            "id": row.id, "title": row.title, "system": row.system, "created": row.created, "updated": row.updated,
            "messages": messages,
        }  # fmt: skip

    def path(self, owner: str, conversation: str, message: str | None) -> tuple[str, list[Message]]:
        """The instructions and the turns from the first message to ``message``; no turns if it is None."""
        query = select(MessageRow).where(MessageRow.dialogue == conversation)
        with self._session() as session:
            system = _own(session, owner, conversation).system
            nodes = {node.id: node for node in session.scalars(query)} if message is not None else {}
        turns: list[Message] = []
        while message is not None:
            if message not in nodes:
                raise _missing("message", message)
            turns.append(Message(nodes[message].role, nodes[message].content))
            message = nodes[message].parent
        return system, turns[::-1]

    def append(
        self, owner: str, conversation: str, parent: str | None, message: Message,
        generation: Generation | None = None,
    ) -> str:  # fmt: skip
        """Put a message below ``parent``, the first place if None; returns its id."""
        row = MessageRow(
            id=new_id(), dialogue=conversation, parent=parent, role=message.role, content=message.content, created=now()
        )
        if generation is not None:
            row.generation = GenerationRow(**vars(generation) | {"seed": str(generation.seed)})
        with self._session(writing=True) as session:
            dialogue = _own(session, owner, conversation, locked=True)
            if parent is not None:
                _check_parent(session, conversation, parent)
            dialogue.updated = row.created
            session.add(row)
            return row.id

    def delete(self, owner: str, conversation: str) -> None:
        """Forget a conversation and every word of it, also what moderation noted of it."""
        messages = select(MessageRow.id).where(MessageRow.dialogue == conversation)
        with self._session(writing=True) as session:
            row = _own(session, owner, conversation, locked=True)
            session.execute(delete(GenerationRow).where(GenerationRow.message.in_(messages)))
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


def _check_parent(session: Session, conversation: str, parent: str) -> None:
    found = session.scalars(select(MessageRow).where(MessageRow.id == parent)).first()
    if found is None or found.dialogue != conversation:
        raise _missing("message", parent)


def _missing(kind: str, identity: str) -> UserError:
    return UserError(f"{kind} '{identity[:64]}' does not exist, or was deleted")


def _summary(row: DialogueRow, messages: int) -> dict[str, Any]:
    return {"id": row.id, "title": row.title, "created": row.created, "updated": row.updated, "messages": messages}


def _message(row: MessageRow) -> dict[str, Any]:
    told = {"id": row.id, "parent": row.parent, "role": row.role, "content": row.content, "created": row.created}
    return told | (_generation(row.generation) if row.generation is not None else {})


def _generation(row: GenerationRow) -> dict[str, Any]:
    return {
        "model": row.model, "model_hash": row.model_hash, "finish_reason": row.finish_reason,
        "sampling": row.sampling, "seed": int(row.seed), "seconds": row.seconds,
        "usage": {
            "prompt_tokens": row.prompt_tokens, "completion_tokens": row.completion_tokens,
            "total_tokens": row.prompt_tokens + row.completion_tokens,
        },
    }  # fmt: skip
