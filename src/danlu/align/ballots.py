"""The judgements as a list to look through: votes and thumbs, newest first, a page at a time, and as CSV.

In:  a preference store.
Out: ``Ballot``s; lines of CSV, one for every answer that was judged.
Left out: learning from them (``rankings``, ``forms``), counting them up (``ratings``).

Every judgement is here, also one that its rater took back later by another: this is a log.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from danlu.align.preferences import PreferenceStore
from danlu.align.tables import ComparisonRow, ReasonRow, ShowingRow, ThumbRow, VoteRow, answer_of, prompt_of
from danlu.errors import UserError
from danlu.records import Answer, Message

_PAGE = 500
_COLUMNS = (
    "id", "time", "kind", "rater", "split", "prompt", "place", "rank", "thumb", "model", "seed", "text", "reason",
)  # fmt: skip
# What a spreadsheet takes for the beginning of a formula; a tab or a line break before it is passed over.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


@dataclass(frozen=True)
class Ballot:
    """One judgement.

    Attributes:
        id: of the vote or thumb.
        kind: "vote" or "thumb".
        prompt: the turns before the answers.
        answers: in the order in which they stood.
        ranks: one per answer, 0 the best; empty for "all bad" and for thumbs.
        up: what a thumb says; None for votes.
    """

    id: str
    time: str
    kind: str
    rater: str
    split: str
    prompt: tuple[Message, ...]
    answers: tuple[Answer, ...]
    ranks: tuple[int, ...]
    up: bool | None
    reason: str

    @property
    def cursor(self) -> str:
        """What ``page`` takes to go on after this one."""
        return f"{self.time} {self.id}"


def page(store: PreferenceStore, limit: int, before: str = "") -> list[Ballot]:
    """The newest judgements, or the newest of those older than a ballot's ``cursor``.

    Raises:
        UserError: ``before`` is no cursor.
    """
    time, _, identity = before.partition(" ")
    if before and not identity:
        raise UserError(f"'{before}' is no place in the list of votes; take 'next' of the page before")
    with store.reading() as session:
        found = [*_votes(session, limit, time, identity), *_thumbs(session, limit, time, identity)]
    return sorted(found, key=lambda ballot: (ballot.time, ballot.id), reverse=True)[:limit]


def count(store: PreferenceStore) -> int:
    """How many judgements there are."""
    with store.reading() as session:
        totals = [
            session.scalar(select(func.count()).select_from(table).join(ComparisonRow).where(~ComparisonRow.deleted))
            for table in (VoteRow, ThumbRow)
        ]
    return sum(total or 0 for total in totals)


def thumbs_on(store: PreferenceStore, comparisons: Sequence[str]) -> dict[str, Ballot]:
    """The last thumb on each of some answers, by comparison; those without one are not there."""
    query = (
        select(ThumbRow, ComparisonRow).join(ComparisonRow, ThumbRow.comparison == ComparisonRow.id)
        .where(ThumbRow.comparison.in_(comparisons), ~ComparisonRow.deleted).order_by(ThumbRow.time, ThumbRow.id)
    )  # fmt: skip
    with store.reading() as session:
        return {shown.id: _thumb(thumb, shown) for thumb, shown in session.execute(query)}


def csv_lines(store: PreferenceStore) -> Iterator[str]:
    """Every judgement, newest first: a line with the names of the columns, then one for each answer."""
    yield _line(_COLUMNS)
    before = ""
    while ballots := page(store, _PAGE, before):
        for ballot in ballots:
            yield from map(_line, _rows(ballot))
        before = ballots[-1].cursor


def inert(cell: str) -> str:
    """A cell that no spreadsheet runs as a formula: an apostrophe before what would be one."""
    return f"'{cell}" if cell.startswith(_FORMULA) else cell


def _votes(session: Session, limit: int, time: str, identity: str) -> Iterator[Ballot]:
    query = (
        select(VoteRow, ComparisonRow, ShowingRow, ReasonRow.words)
        .join(ComparisonRow, VoteRow.comparison == ComparisonRow.id)
        .outerjoin(ShowingRow, ShowingRow.id == VoteRow.showing)
        .outerjoin(ReasonRow, ReasonRow.vote == VoteRow.id).where(~ComparisonRow.deleted)
        .order_by(VoteRow.time.desc(), VoteRow.id.desc()).limit(limit)
    )  # fmt: skip
    if time:
        query = query.where(or_(VoteRow.time < time, (VoteRow.time == time) & (VoteRow.id < identity)))
    for vote, shown, showing, words in session.execute(query):
        answers, ranks = _as_shown(shown, (showing or shown).display_order, vote.ranks)
        yield Ballot(vote.id, vote.time, "vote", vote.rater, vote.split or shown.split, prompt_of(shown), answers,
                     ranks, None, words or "")  # fmt: skip


def _thumbs(session: Session, limit: int, time: str, identity: str) -> Iterator[Ballot]:
    query = (
        select(ThumbRow, ComparisonRow).join(ComparisonRow, ThumbRow.comparison == ComparisonRow.id)
        .where(~ComparisonRow.deleted).order_by(ThumbRow.time.desc(), ThumbRow.id.desc()).limit(limit)
    )  # fmt: skip
    if time:
        query = query.where(or_(ThumbRow.time < time, (ThumbRow.time == time) & (ThumbRow.id < identity)))
    for thumb, shown in session.execute(query):
        yield _thumb(thumb, shown)


def _thumb(thumb: ThumbRow, shown: ComparisonRow) -> Ballot:
    answers, ranks = _as_shown(shown, shown.display_order, [])
    return Ballot(thumb.id, thumb.time, "thumb", thumb.rater, thumb.split or shown.split, prompt_of(shown), answers,
                  ranks, thumb.up, thumb.reason)  # fmt: skip


def _as_shown(
    shown: ComparisonRow, order: list[int], ranks: list[int]
) -> tuple[tuple[Answer, ...], tuple[int, ...]]:  # fmt: skip
    """Answers and ranks by the place on the screen."""
    return tuple(answer_of(shown.answers[i]) for i in order), tuple(ranks[i] for i in order) if ranks else ()


def _rows(ballot: Ballot) -> Iterator[tuple[str, ...]]:
    prompt = "\n".join(message.content for message in ballot.prompt)
    thumb = {None: "", True: "up", False: "down"}[ballot.up]
    ranks = [*map(str, ballot.ranks)] or [""] * len(ballot.answers)
    for place, (answer, rank) in enumerate(zip(ballot.answers, ranks, strict=True)):
        yield (ballot.id, ballot.time, ballot.kind, ballot.rater, ballot.split, prompt, str(place), rank, thumb,
               answer.model, str(answer.seed), answer.text, ballot.reason)  # fmt: skip


def _line(cells: tuple[str, ...]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerow(map(inert, cells))
    return buffer.getvalue()
