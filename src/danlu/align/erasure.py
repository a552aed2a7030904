"""What people have a right to: that a conversation, or all that they ever judged, is gone.

In:  an open database, a conversation or a rater.
Out: rows that are no longer there; ``Forgotten`` says how many.
Left out: what was learned from them before (``danlu.lineage``); conversations as the page shows them (``danlu.serve``).

A deleted row leaves nothing in SQLite's file (``storage``). On PostgreSQL it is gone for everybody, and from the disk
once the database has been vacuumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Delete, Select, delete, select, union
from sqlalchemy.orm import Session

from danlu.align.storage import Database
from danlu.align.tables import AnswerRow, ComparisonRow, ConversationRow, ReasonRow, ShowingRow, ThumbRow, VoteRow
from danlu.errors import unknown


@dataclass(frozen=True)
class Forgotten:
    """What was erased of a rater.

    Attributes:
        comparisons: of no conversation, which nobody else has judged: those of an imported file.
    """

    votes: int
    reasons: int
    thumbs: int
    comparisons: int


def forget_rater(database: Database, rater: str, words: bool = False) -> Forgotten:
    """Erase what somebody judged, and their pseudonym everywhere.

    Args:
        rater: the pseudonym.
        words: whether to erase their conversations too.

    Raises:
        UserError: nobody of that name is known here; names the nearest.
    """
    with database.session(writing=True) as session:
        _check_known(session, rater)
        votes = select(VoteRow.id).where(VoteRow.rater == rater)
        judged = _judged_alone(session, rater)
        reasons = _delete(session, delete(ReasonRow).where(ReasonRow.vote.in_(votes)))  # before the votes
        found = Forgotten(
            votes=_delete(session, delete(VoteRow).where(VoteRow.rater == rater)),
            reasons=reasons,
            thumbs=_delete(session, delete(ThumbRow).where(ThumbRow.rater == rater)),
            comparisons=len(judged),
        )
        session.execute(delete(ShowingRow).where(ShowingRow.rater == rater))
        for comparison in judged:
            for table in (ShowingRow, AnswerRow):
                session.execute(delete(table).where(table.comparison == comparison))
            session.execute(delete(ComparisonRow).where(ComparisonRow.id == comparison))
        for conversation in session.scalars(select(ConversationRow).where(ConversationRow.rater == rater)).all():
            conversation.rater = ""
            if words:
                wipe(session, conversation.id)
    database.erase()
    return found


def wipe(session: Session, conversation: str) -> None:
    """Erase a conversation's words, its thumbs and reasons, and what was judged in it when it was shown once more.

    Votes on its comparisons stay as rows that no query gives.
    """
    session.get_one(ConversationRow, conversation).deleted = True
    for shown in session.scalars(select(ComparisonRow).where(ComparisonRow.conversation == conversation)):
        shown.deleted = True
        shown.prompt, shown.answers = [], []
        votes = select(VoteRow.id).where(VoteRow.comparison == shown.id)
        session.execute(delete(ReasonRow).where(ReasonRow.vote.in_(votes)))
        session.execute(delete(ThumbRow).where(ThumbRow.comparison == shown.id))
    here = select(ShowingRow.id).where(ShowingRow.conversation == conversation)
    votes = select(VoteRow.id).where(VoteRow.showing.in_(here))
    session.execute(delete(ReasonRow).where(ReasonRow.vote.in_(votes)))
    session.execute(delete(VoteRow).where(VoteRow.showing.in_(here)))
    session.execute(delete(ShowingRow).where(ShowingRow.conversation == conversation))


def _check_known(session: Session, rater: str) -> None:
    names = {name for table in (VoteRow, ThumbRow, ConversationRow) for name in session.scalars(_names(table))}
    if not rater or rater not in names:
        raise unknown("rater", rater, names - {""}, "the preference store")


def _names(table: type[VoteRow | ThumbRow | ConversationRow]) -> Select[str]:
    return select(table.rater).distinct()


def _judged_alone(session: Session, rater: str) -> list[str]:
    """Comparisons of no conversation that this rater has judged and nobody else: without the judgement, just words."""

    def judged(*by: Any) -> Any:
        return union(*(select(table.comparison).where(*(test(table) for test in by)) for table in (VoteRow, ThumbRow)))

    own = judged(lambda table: table.rater == rater)
    others = judged(lambda table: table.rater != rater)
    query = select(ComparisonRow.id).where(
        ComparisonRow.conversation.is_(None), ComparisonRow.id.in_(own), ComparisonRow.id.not_in(others)
    )
    return [*session.scalars(query)]


def _delete(session: Session, statement: Delete) -> int:
    return int(session.execute(statement).rowcount)  # type: ignore[attr-defined]
