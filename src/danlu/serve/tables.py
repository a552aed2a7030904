"""Rows of the server's store: people and keys, what was said and answered, what was moderated, who did what.

In:  nothing.
Out: SQLAlchemy's classes; the tables are made by ``migrations``: whoever changes a row here adds one.
Left out: every query (``store``, ``dialogues``, ``people``); comparisons and votes (``danlu.align.preferences``).

Times are ISO 8601 in UTC, with microseconds and a ``Z``: as text they sort as time does.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, Double, ForeignKey, Index, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from danlu.align.storage import Words


class Base(DeclarativeBase):
    """Tables of the server."""

    type_annotation_map = {dict[str, Any]: JSON, list[int]: JSON}  # noqa: RUF012


class UserRow(Base):
    """A person with a password (argon2). A name is never given twice: it owns what its first bearer said."""

    __tablename__ = "users"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    password: Mapped[str]
    scopes: Mapped[str]  # words with blanks between them
    created: Mapped[str]
    removed: Mapped[str | None]


class KeyRow(Base):
    """An API key: its SHA-256, never the key. ``requests`` and ``tokens`` a minute, the server's own if null."""

    __tablename__ = "api_keys"
    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    owner: Mapped[str] = mapped_column(String(64), index=True)
    label: Mapped[str]
    scopes: Mapped[str]
    requests: Mapped[int | None]
    tokens: Mapped[int | None]
    created: Mapped[str]
    revoked: Mapped[str | None]


class SessionRow(Base):
    """A browser that logged in, as a user or with a key: the SHA-256 of its cookie."""

    __tablename__ = "sessions"
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    user: Mapped[str | None] = mapped_column(ForeignKey("users.name"))
    key: Mapped[str | None] = mapped_column(ForeignKey("api_keys.id"))
    expires: Mapped[str]


class DialogueRow(Base):
    """A conversation; the preference store's ``conversations`` knows those that were compared in, by the same id."""

    __tablename__ = "dialogues"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    title: Mapped[str] = mapped_column(Words)
    system: Mapped[str] = mapped_column(Words)
    created: Mapped[str]
    updated: Mapped[str]
    __table_args__ = (Index("dialogues_by_owner", "owner", "updated"),)


class MessageRow(Base):
    """One message; two with the same parent are versions of one another.

    ``comparison`` is the preference store's, of this answer by itself: what thumbs are on, once somebody gave one.
    """

    __tablename__ = "messages"
    number: Mapped[int] = mapped_column(primary_key=True)  # in the order in which they came, whatever the clock says
    id: Mapped[str] = mapped_column(String(32), unique=True)
    dialogue: Mapped[str] = mapped_column(ForeignKey("dialogues.id"), index=True)
    parent: Mapped[str | None] = mapped_column(ForeignKey("messages.id"))
    role: Mapped[str]
    content: Mapped[str] = mapped_column(Words)
    created: Mapped[str]
    comparison: Mapped[str | None] = mapped_column(String(32))
    generation: Mapped[GenerationRow | None] = relationship()


class GenerationRow(Base):
    """How a message was written: all that is needed to write it again, and what it cost.

    The model read ``system`` (null: the conversation's own), the note that ends at the message ``note``, if there is
    one, and the messages that are neither told of there nor among the ``left_out`` oldest. ``tokens`` are null where
    nobody knows them.
    """

    __tablename__ = "generations"
    message: Mapped[str] = mapped_column(ForeignKey("messages.id"), primary_key=True)
    model: Mapped[str]
    model_hash: Mapped[str]
    sampling: Mapped[dict[str, Any]]
    seed: Mapped[str]  # 63 bits do not fit every database's integer
    finish_reason: Mapped[str]
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    seconds: Mapped[float] = mapped_column(Double)
    tokens: Mapped[list[int] | None]
    system: Mapped[str | None] = mapped_column(Words)
    left_out: Mapped[int]
    note: Mapped[str | None] = mapped_column(String(32))


class NoteRow(Base):
    """A model's own summary of a conversation up to a message, without the ``left_out`` oldest before it."""

    __tablename__ = "notes"
    message: Mapped[str] = mapped_column(ForeignKey("messages.id"), primary_key=True)
    model_hash: Mapped[str] = mapped_column(String(128), primary_key=True)
    words: Mapped[str] = mapped_column(Words)
    messages: Mapped[int]
    left_out: Mapped[int]
    created: Mapped[str]


class ModerationRow(Base):
    """Something that a scanner found, and what a person made of it."""

    __tablename__ = "moderation_events"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    time: Mapped[str]
    stage: Mapped[str]
    action: Mapped[str]
    category: Mapped[str]
    scanner: Mapped[str]
    score: Mapped[float] = mapped_column(Double)
    text: Mapped[str] = mapped_column(Words)
    owner: Mapped[str] = mapped_column(String(64))
    conversation: Mapped[str] = mapped_column(String(32), index=True)
    model: Mapped[str]
    status: Mapped[str]
    label: Mapped[str]
    operator: Mapped[str]
    decided: Mapped[str | None]
    __table_args__ = (Index("moderation_by_status", "status", "time"),)


class AuditRow(Base):
    """Who did what to what; rows are only ever added."""

    __tablename__ = "audit"
    number: Mapped[int] = mapped_column(primary_key=True)
    time: Mapped[str]
    actor: Mapped[str]
    action: Mapped[str]
    target: Mapped[str] = mapped_column(Words)


def new_id() -> str:
    """An id that nobody can guess."""
    return uuid.uuid4().hex


def now() -> str:
    """The time as it is stored."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
