"""The tables of the preference store, and what a row means.

In:  records.
Out: SQLAlchemy's rows of them, and records of rows.
Left out: every query (``preferences``, ``ballots``).

The tables are made by ``migrations``: whoever changes a row here adds a step there, and a test compares the two.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String, false
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from danlu.align.storage import Words
from danlu.records import Answer, Message, Preference


class Base(DeclarativeBase):
    """Tables of the preference store."""

    type_annotation_map = {dict[str, Any]: JSON, list[int]: JSON, list[dict[str, str]]: JSON}  # noqa: RUF012


class ConversationRow(Base):
    """A conversation that comparisons belong to; ``deleted`` once its words are gone."""

    __tablename__ = "conversations"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    rater: Mapped[str]
    time: Mapped[str]
    deleted: Mapped[bool] = mapped_column(default=False)


class ComparisonRow(Base):
    """Answers shown side by side; ``display_order[i]`` is the index of the answer that stood in place i."""

    __tablename__ = "comparisons"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    conversation: Mapped[str | None] = mapped_column(ForeignKey("conversations.id"), index=True)
    prompt: Mapped[list[dict[str, str]]]
    display_order: Mapped[list[int]]
    split: Mapped[str]
    time: Mapped[str]
    deleted: Mapped[bool] = mapped_column(default=False)
    answers: Mapped[list[AnswerRow]] = relationship(order_by="AnswerRow.place", cascade="all, delete-orphan")


class AnswerRow(Base):
    """One answer of a comparison, with everything that is needed to sample it again."""

    __tablename__ = "answers"
    comparison: Mapped[str] = mapped_column(ForeignKey("comparisons.id"), primary_key=True)
    place: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(Words)
    token_ids: Mapped[list[int]]
    model: Mapped[str]
    sampling: Mapped[dict[str, Any]]
    seed: Mapped[str]  # 63 bits do not fit every database's integer, and nobody computes with it


class ShowingRow(Base):
    """A comparison shown once more, ``own`` to whoever judged it before; ``display_order`` as in ``ComparisonRow``."""

    __tablename__ = "showings"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    comparison: Mapped[str] = mapped_column(ForeignKey("comparisons.id"))
    conversation: Mapped[str | None] = mapped_column(ForeignKey("conversations.id"), index=True)
    rater: Mapped[str]
    display_order: Mapped[list[int]]
    own: Mapped[bool]
    time: Mapped[str]
    __table_args__ = (Index("showings_by_comparison", "comparison", "rater"),)


class VoteRow(Base):
    """One judgement. A person who changes their mind adds a row; a double click does not.

    ``showing`` names the one that was judged, if it was not the first; ``split`` is the comparison's own if null;
    ``imported`` says that it was cast elsewhere, so that nobody can say how blind.
    """

    __tablename__ = "votes"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    comparison: Mapped[str] = mapped_column(ForeignKey("comparisons.id"))
    ranks: Mapped[list[int]]
    rater: Mapped[str]
    time: Mapped[str]
    showing: Mapped[str | None] = mapped_column(String(32))
    split: Mapped[str | None]
    imported: Mapped[bool] = mapped_column(default=False, server_default=false())
    __table_args__ = (Index("votes_by_comparison", "comparison", "rater"),)


class ReasonRow(Base):
    """Why a vote was given, in its rater's words."""

    __tablename__ = "reasons"
    vote: Mapped[str] = mapped_column(ForeignKey("votes.id"), primary_key=True)
    words: Mapped[str] = mapped_column(Words)


class ThumbRow(Base):
    """A judgement on a comparison of one answer: there is nothing to rank it against, only good or bad."""

    __tablename__ = "thumbs"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    comparison: Mapped[str] = mapped_column(ForeignKey("comparisons.id"))
    up: Mapped[bool]
    reason: Mapped[str] = mapped_column(Words)
    rater: Mapped[str]
    time: Mapped[str]
    split: Mapped[str | None]
    __table_args__ = (Index("thumbs_by_comparison", "comparison", "rater"),)


@dataclass(frozen=True, slots=True)
class Thumb:
    """A judgement on one answer to a prompt: up or down, and why if the rater said so."""

    id: str
    prompt: tuple[Message, ...]
    answer: Answer
    up: bool
    reason: str
    rater: str
    time: str
    split: str


def comparison_row(
    identity: str, prompt: Sequence[Message], answers: Sequence[Answer], order: list[int], split: str, made: str
) -> ComparisonRow:
    """What was shown, as rows."""
    rows = [
        AnswerRow(comparison=identity, place=place, text=a.text, token_ids=list(a.token_ids), model=a.model,
                  sampling=dict(a.sampling), seed=str(a.seed))
        for place, a in enumerate(answers)
    ]  # fmt: skip
    turns = [{"role": m.role, "content": m.content} for m in prompt]
    return ComparisonRow(id=identity, prompt=turns, display_order=order, split=split, time=made, answers=rows)


def preference_of(vote: VoteRow, shown: ComparisonRow, showing: ShowingRow | None = None) -> Preference:
    """A vote, what it was on, and which showing of it if it was not the first, as a record."""
    return Preference(
        id=vote.id, prompt=prompt_of(shown), answers=tuple(map(answer_of, shown.answers)),
        ranks=tuple(vote.ranks), rater=vote.rater, time=vote.time,
        display_order=tuple((showing or shown).display_order), split=vote.split or shown.split,
    )  # fmt: skip


def rows_of(judged: Preference | Thumb, made: str) -> tuple[ComparisonRow, VoteRow | ThumbRow]:
    """A judgement that was made elsewhere, as rows: what was shown, and the judgement; ``made`` if it has no time."""
    answers = judged.answers if isinstance(judged, Preference) else (judged.answer,)
    order = list(judged.display_order) if isinstance(judged, Preference) else []
    moment = judged.time or made
    shown = comparison_row(
        new_id(), judged.prompt, answers, order or list(range(len(answers))), judged.split, moment
    )  # fmt: skip
    if isinstance(judged, Preference):
        return shown, VoteRow(
            id=judged.id, comparison=shown.id, ranks=list(judged.ranks), rater=judged.rater, time=moment, imported=True
        )  # fmt: skip
    return shown, ThumbRow(
        id=judged.id, comparison=shown.id, up=judged.up, reason=judged.reason, rater=judged.rater, time=moment
    )  # fmt: skip


def as_stored(ranks: Sequence[int], order: Sequence[int]) -> list[int]:
    """Ranks by place as ranks by stored answer; none at all stay none."""
    return [rank for _, rank in sorted(zip(order, ranks, strict=True))] if ranks else []


def thumb_of(thumb: ThumbRow, shown: ComparisonRow) -> Thumb:
    """A thumb and what it was on, as a record."""
    return Thumb(
        id=thumb.id, prompt=prompt_of(shown), answer=answer_of(shown.answers[0]), up=thumb.up, reason=thumb.reason,
        rater=thumb.rater, time=thumb.time, split=thumb.split or shown.split,
    )  # fmt: skip


def prompt_of(shown: ComparisonRow) -> tuple[Message, ...]:
    """The turns before the answers."""
    return tuple(Message(**turn) for turn in shown.prompt)


def answer_of(row: AnswerRow) -> Answer:
    """An answer as a record."""
    return Answer(row.text, tuple(row.token_ids), row.model, row.sampling, int(row.seed))


def new_id() -> str:
    """An id that nobody else has."""
    return uuid.uuid4().hex


def now() -> str:
    """The time, ISO 8601 in UTC; as text it sorts as time does."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
