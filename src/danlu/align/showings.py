"""Comparisons that are worth showing once more: somebody else's, so that agreement can be measured; one's own, turned.

In:  a preference store, who is asking, what was asked.
Out: ``Earlier`` comparisons of the same prompt; what raters said the first time and when they saw it again.
Left out: whether to show one, and to whom that may be done (``danlu.serve.second_look``); noting that it was shown
    (``PreferenceStore.show_again``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Select, String, cast, or_, select
from sqlalchemy.orm import Session

from danlu.align.preferences import PreferenceStore
from danlu.align.tables import ComparisonRow, ConversationRow, ShowingRow, VoteRow, answer_of, preference_of
from danlu.records import Answer, Message, Preference

_MOST = 100  # as many as it takes to draw one


@dataclass(frozen=True)
class Earlier:
    """A comparison of before.

    Attributes:
        answers: in stored order.
        display_order: in which it stood when it was judged.
    """

    comparison: str
    answers: tuple[Answer, ...]
    display_order: tuple[int, ...]


def of_others(store: PreferenceStore, prompt: Sequence[Message], rater: str) -> list[Earlier]:
    """Comparisons of this very prompt that others have judged and ``rater`` has not seen, the newest first."""
    theirs = _votes().where(VoteRow.rater.not_in(("", rater))).exists()
    conversation = ConversationRow.id == ComparisonRow.conversation
    seen = or_(
        _votes().where(VoteRow.rater == rater).exists(),
        _showings(rater).exists(),
        select(ConversationRow.id).where(conversation, ConversationRow.rater == rater).exists(),
    )
    with store.reading() as session:
        found = session.scalars(_of_prompt(prompt).where(theirs, ~seen))
        return [_earlier(shown, shown.display_order) for shown in found]


def of_oneself(store: PreferenceStore, prompt: Sequence[Message], rater: str, before: str) -> list[Earlier]:
    """Comparisons of this very prompt that ``rater`` judged before a time (ISO 8601, UTC) and never once more."""
    judged = _votes().where(VoteRow.rater == rater, VoteRow.time < before).exists()
    again = _showings(rater).where(ShowingRow.own).exists()
    with store.reading() as session:
        found = session.scalars(_of_prompt(prompt).where(judged, ~again)).all()
        return [_earlier(shown, _order_then(session, shown, rater)) for shown in found]


def repeats(store: PreferenceStore) -> list[tuple[Preference, Preference]]:
    """What raters said of comparisons when they saw them first, and when they were shown them again."""
    query = (
        select(VoteRow, ComparisonRow, ShowingRow).join(ComparisonRow, VoteRow.comparison == ComparisonRow.id)
        .join(ShowingRow, VoteRow.showing == ShowingRow.id).where(ShowingRow.own, ~ComparisonRow.deleted)
        .order_by(VoteRow.time, VoteRow.id)
    )  # fmt: skip
    with store.reading() as session:
        last = {showing.id: (vote, shown, showing) for vote, shown, showing in session.execute(query)}
        pairs = []
        for vote, shown, showing in last.values():
            first = _first(session, vote)
            if first is not None:
                before = session.get(ShowingRow, first.showing) if first.showing else None
                pairs.append((preference_of(first, shown, before), preference_of(vote, shown, showing)))
        return pairs


def _first(session: Session, again: VoteRow) -> VoteRow | None:
    """The same rater's last word on the same comparison before it was shown again."""
    return session.scalars(
        select(VoteRow).where(VoteRow.comparison == again.comparison, VoteRow.rater == again.rater,
                              VoteRow.time < again.time, VoteRow.showing.is_distinct_from(again.showing))
        .order_by(VoteRow.time.desc(), VoteRow.id.desc()).limit(1)
    ).first()  # fmt: skip


def _of_prompt(prompt: Sequence[Message]) -> Select[ComparisonRow]:
    """Compared as text: PostgreSQL knows no equality of JSON. Both databases keep JSON as it was written."""
    turns = json.dumps([{"role": m.role, "content": m.content} for m in prompt])
    same = cast(ComparisonRow.prompt, String) == turns
    return select(ComparisonRow).where(same, ~ComparisonRow.deleted).order_by(ComparisonRow.time.desc()).limit(_MOST)


def _votes() -> Select[str]:
    return select(VoteRow.id).where(VoteRow.comparison == ComparisonRow.id)


def _showings(rater: str) -> Select[str]:
    return select(ShowingRow.id).where(ShowingRow.comparison == ComparisonRow.id, ShowingRow.rater == rater)


def _order_then(session: Session, shown: ComparisonRow, rater: str) -> Sequence[int]:
    """How a comparison stood when a rater saw it first: it may have been somebody else's."""
    earlier = select(ShowingRow).where(ShowingRow.comparison == shown.id, ShowingRow.rater == rater)
    return (session.scalars(earlier).first() or shown).display_order


def _earlier(shown: ComparisonRow, order: Sequence[int]) -> Earlier:
    return Earlier(shown.id, tuple(map(answer_of, shown.answers)), tuple(order))
