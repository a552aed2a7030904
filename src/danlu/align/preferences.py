"""The preference store: what was shown to whom, and what they preferred. The place where the loop closes.

In:  prompts, the answers that were shown, votes; from the chat page, many writers at once.
Out: ``Preference`` records and thumbs, a frozen JSONL snapshot for training, TRL's forms (``forms``).
Left out: accounts and sessions (``serve``); the simulated human (``rankings``); transactions (``storage``); what the
    tables are (``tables``) and how they came to be (``migrations``).

SQLite by default (every vote synced before it is acknowledged), PostgreSQL by URL. Rows are only ever added, but for
one thing: people have a right to be forgotten (``erasure``).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session, selectinload

from danlu.align.erasure import Forgotten, forget_rater, wipe
from danlu.align.forms import kto_rows, trl_rows, write_rows
from danlu.align.lessons import decided
from danlu.align.splits import HELDOUT_SHARE, split_of, split_of_rater
from danlu.align.storage import Database, StoreError
from danlu.align.tables import (
    ComparisonRow,
    ConversationRow,
    ReasonRow,
    ShowingRow,
    Thumb,
    ThumbRow,
    VoteRow,
    answer_of,
    as_stored,
    comparison_row,
    new_id,
    now,
    preference_of,
    rows_of,
    thumb_of,
)
from danlu.errors import UserError
from danlu.records import Answer, Message, Preference, check_messages, write_preferences

_Judgement = TypeVar("_Judgement", VoteRow, ThumbRow)
_MIGRATIONS = Path(__file__).with_name("migrations")
_TEACHES = or_(VoteRow.showing.is_(None), ~ShowingRow.own)  # one's own comparison seen again measures its rater only

__all__ = ["HELDOUT_SHARE", "PreferenceStore", "StoreError", "split_of"]


class PreferenceStore:
    """The store on disk.

    Args:
        place: a file path (SQLite) or an SQLAlchemy URL.
        heldout_raters: share of raters whose judgements, from now on, are never learned from.

    Raises:
        UserError: the file is not a database, the URL cannot be read, its driver is missing, or nobody answers there.
        StoreError: from every method, when the database fails.
    """

    def __init__(self, place: str | Path, heldout_raters: float = 0.0) -> None:
        self.heldout_raters = heldout_raters
        self.database = Database(place)
        self.place = self.database.place
        self._session = self.database.session
        # Before there were migrations the first one's tables were made without a note of it.
        self.database.upgrade(_MIGRATIONS, "align_version", "align_1", ComparisonRow.__tablename__)

    def close(self) -> None:
        """Let go of the database."""
        self.database.close()

    def start_conversation(self, rater: str) -> str:
        """Open a conversation of ``rater`` (a pseudonym); returns its id."""
        row = ConversationRow(id=new_id(), rater=rater, time=now())
        with self._session(writing=True) as session:
            session.add(row)
            return row.id

    def ensure_conversation(self, conversation: str, rater: str) -> None:
        """Let comparisons be recorded under an id that was given out elsewhere.

        Raises:
            UserError: this conversation was deleted.
        """
        with self._session(writing=True) as session:
            row = session.get(ConversationRow, conversation)
            if row is None:
                session.add(ConversationRow(id=conversation, rater=rater, time=now()))
            elif row.deleted:
                raise _gone("conversation", conversation, True)

    def knows(self, conversation: str) -> bool:
        """Whether there is such a conversation, deleted or not."""
        with self._session() as session:
            return session.get(ConversationRow, conversation) is not None

    def record(
        self, prompt: Sequence[Message], answers: Sequence[Answer], conversation: str = "",
        display_order: Sequence[int] = (),
    ) -> str:  # fmt: skip
        """Note what is about to be shown; returns the comparison's id, which a vote names.

        Args:
            prompt: the turns before the answers, ending with the user's.
            answers: the answers, K >= 1; one by itself gets thumbs, several get votes.
            conversation: id from ``start_conversation``, or empty.
            display_order: which answer stands in which place; in the order given if empty.

        Raises:
            UserError: the conversation does not exist or was deleted.
            ValueError: the prompt is not one, or the display order is no permutation.
        """
        messages = check_messages(prompt, answered=False)
        order = list(display_order) or list(range(len(answers)))
        if not answers or sorted(order) != list(range(len(answers))):
            raise ValueError(f"display order {order} is not an order of {len(answers)} answers")
        with self._session(writing=True) as session:
            if conversation:
                owner = session.get(ConversationRow, conversation, with_for_update=True)
                if owner is None or owner.deleted:
                    raise _gone("conversation", conversation, owner is not None)
            comparison = comparison_row(new_id(), messages, answers, order, split_of(messages), now())
            comparison.conversation = conversation or None
            session.add(comparison)
            return comparison.id

    def show_again(
        self, comparison: str, rater: str, conversation: str, display_order: Sequence[int], own: bool
    ) -> str:  # fmt: skip
        """Note that a comparison was shown once more; returns an id that a vote may name in the comparison's place.

        Args:
            comparison: id from ``record``.
            rater: who was shown it.
            conversation: in which of theirs.
            display_order: as in ``record``; under the new id, answers and ranks are in this order.
            own: whether the rater had judged it before. Such a vote measures the rater, and teaches nothing.

        Raises:
            UserError: no such comparison, or a deleted one.
        """
        row = ShowingRow(
            id=new_id(), comparison=comparison, conversation=conversation or None, rater=rater,
            display_order=list(display_order), own=own, time=now(),
        )  # fmt: skip
        with self._session(writing=True) as session:
            _existing(session, comparison, locked=True)
            session.add(row)
            return row.id

    def vote(self, comparison: str, ranks: Sequence[int], rater: str, reason: str = "") -> str:
        """Store a judgement on a recorded comparison; the same judgement twice in a row is stored once.

        Args:
            comparison: id from ``record`` or ``show_again``.
            ranks: one per answer in that one's order, 0 the best, equal ranks tie; empty means "all bad".
            rater: pseudonym of who judged.
            reason: why, in the rater's words; may be added by voting the same once more.

        Returns:
            The vote's id, which becomes the ``Preference`` id.

        Raises:
            UserError: no such comparison, a deleted one, or ranks that do not fit its answers.
        """
        with self._session(writing=True) as session:
            showing, shown = _showing(session, comparison, locked=True)
            _check_ranks(ranks, len(shown.answers), comparison)
            stored = as_stored(ranks, showing.display_order) if showing else list(ranks)
            row = _last(session, VoteRow, shown.id, rater)
            if row is None or row.ranks != stored or row.showing != (showing and showing.id):
                row = VoteRow(id=new_id(), comparison=shown.id, ranks=stored, rater=rater, time=now(),
                              showing=showing and showing.id, split=self._split(shown, rater))  # fmt: skip
                session.add(row)
                session.flush()
            if reason:
                session.merge(ReasonRow(vote=row.id, words=reason))
            return row.id

    def thumb(self, comparison: str, up: bool, rater: str, reason: str = "") -> str:
        """Store a judgement on a recorded answer that stood alone; the same twice in a row is stored once.

        Args:
            comparison: id from ``record``, of one answer.
            up: whether it is a good one.
            rater: pseudonym of who judged.
            reason: why, in the rater's words.

        Returns:
            The thumb's id.

        Raises:
            UserError: no such comparison, a deleted one, or one of several answers.
        """
        with self._session(writing=True) as session:
            shown = _existing(session, comparison, locked=True)
            if len(shown.answers) != 1:
                raise UserError(f"comparison '{comparison}' showed {len(shown.answers)} answers; rank them instead")
            row = _last(session, ThumbRow, comparison, rater)
            if row is None or row.up != up:
                row = ThumbRow(id=new_id(), comparison=comparison, up=up, reason="", rater=rater, time=now(),
                               split=self._split(shown, rater))  # fmt: skip
                session.add(row)
            row.reason = reason or row.reason
            return row.id

    def shown(self, comparison: str) -> list[Answer]:
        """The answers of a comparison in the order of its id, for telling afterwards who wrote what.

        Raises:
            UserError: no such comparison, or a deleted one.
        """
        with self._session() as session:
            showing, shown = _showing(session, comparison)
            order = showing.display_order if showing else range(len(shown.answers))
            return [answer_of(shown.answers[i]) for i in order]

    def conversation_of(self, comparison: str) -> str:
        """The conversation that a comparison belongs to, empty if none: who may vote on it is its owner's matter.

        Raises:
            UserError: no such comparison, or a deleted one.
        """
        with self._session() as session:
            showing, shown = _showing(session, comparison)
            return (showing or shown).conversation or ""

    def add(self, preference: Preference) -> bool:
        """Store a whole preference made elsewhere, such as a line of a snapshot; returns False if its id is known."""
        _check_ranks(preference.ranks, len(preference.answers), preference.id)
        with self._session(writing=True) as session:
            if session.get(VoteRow, preference.id) is not None:
                return False
            shown, vote = rows_of(preference, now())
            session.add(shown)
            session.flush()
            session.add(vote)
            return True

    def all(self, first: bool = False) -> list[Preference]:
        """Every rater's last word on every comparison that still exists, ordered by time and id.

        With ``first`` it is the first word that they gave here: after it they were told who wrote what, and only that
        one was blind. Nobody can say it of what was imported. (A store that was moved as a whole was not.)
        What was said of one's own comparison when it was shown once more is left out (``showings.repeats`` has it).
        """
        asked = _TEACHES & ~VoteRow.imported if first else _TEACHES
        query = (
            select(VoteRow, ComparisonRow, ShowingRow).join(ComparisonRow, VoteRow.comparison == ComparisonRow.id)
            .outerjoin(ShowingRow, VoteRow.showing == ShowingRow.id)
            .where(~ComparisonRow.deleted, asked)
            .order_by(VoteRow.time, VoteRow.id).options(selectinload(ComparisonRow.answers))
        )  # fmt: skip
        with self._session() as session:
            words = session.execute(query).all()
            # Of two the one that is put in later stays.
            by = {
                (shown.id, vote.rater): (vote, shown, showing) for vote, shown, showing in words[:: -1 if first else 1]
            }
            kept = sorted(by.values(), key=lambda found: (found[0].time, found[0].id))
            return [preference_of(*found) for found in kept]

    def thumbs(self) -> list[Thumb]:
        """Every rater's last word on every answer that stood alone and still exists, ordered by time and id."""
        query = (
            select(ThumbRow, ComparisonRow).join(ComparisonRow, ThumbRow.comparison == ComparisonRow.id)
            .where(~ComparisonRow.deleted).order_by(ThumbRow.time, ThumbRow.id)
            .options(selectinload(ComparisonRow.answers))
        )  # fmt: skip
        with self._session() as session:
            last = {(shown.id, thumb.rater): thumb_of(thumb, shown) for thumb, shown in session.execute(query)}
            return sorted(last.values(), key=lambda thumb: (thumb.time, thumb.id))

    def count(self, since: str = "") -> int:
        """How many votes ``all`` would give, or of how many the word is later than ``since`` (ISO 8601)."""
        return self._voices(VoteRow, since)

    def count_thumbs(self, since: str = "") -> int:
        """How many ``thumbs`` would give, or of how many the word is later than ``since`` (ISO 8601)."""
        return self._voices(ThumbRow, since)

    def stamp(self) -> tuple[int, str]:
        """What changes whenever ``all`` does: how many votes were ever cast and still exist, and when the newest."""
        query = select(func.count(), func.max(VoteRow.time)).join_from(VoteRow, ComparisonRow)
        with self._session() as session:
            votes, newest = session.execute(query.where(~ComparisonRow.deleted)).one()
            return votes, newest or ""

    def _voices(self, table: type[VoteRow] | type[ThumbRow], since: str) -> int:
        query = select(table.comparison, table.rater).join(ComparisonRow, table.comparison == ComparisonRow.id)
        if table is VoteRow:
            query = query.outerjoin(ShowingRow, VoteRow.showing == ShowingRow.id).where(_TEACHES)
        voices = query.where(~ComparisonRow.deleted, table.time > since).distinct().subquery()
        with self._session() as session:
            return session.scalar(select(func.count()).select_from(voices)) or 0

    def delete_conversation(self, conversation: str) -> None:
        """Forget the words of a conversation and leave its votes out of everything from now on.

        Raises:
            UserError: there is no such conversation.
        """
        with self._session(writing=True) as session:
            row = session.get(ConversationRow, conversation, with_for_update=True)
            if row is None:
                raise _gone("conversation", conversation, False)
            wipe(session, conversation)
        self.database.erase()

    def conversations_of(self, rater: str) -> list[str]:
        """Ids of the conversations that somebody began, deleted ones too."""
        with self._session() as session:
            return [*session.scalars(select(ConversationRow.id).where(ConversationRow.rater == rater))]

    def forget(self, rater: str, words: bool = False) -> Forgotten:
        """Erase what somebody judged, and with ``words`` their conversations; snapshots are others from then on.

        Raises:
            UserError: nobody of that name is known here.
        """
        return forget_rater(self.database, rater, words)

    def snapshot(self, path: Path, ties: bool = False) -> int:
        """Freeze as JSONL what prefers something: the same votes give the same bytes; returns how many.

        Where ties teach nothing they are left out: one more would make a reward model and all after it again.

        Args:
            path: where to.
            ties: whether to keep votes that call all answers equally good; "all bad" never teaches by comparison.
        """
        return write_preferences(path, [preference for preference in self.all() if decided(preference, ties)])

    def export(self, path: Path) -> int:
        """Write every rater's last words whole, ties too, for ``intake`` elsewhere; returns how many."""
        return write_preferences(path, self.all())

    def export_trl(self, path: Path) -> int:
        """Write TRL's conversational preference form, one line per strict pair; returns how many."""
        return write_rows(path, (row for preference in self.all() for row in trl_rows(preference)))

    def export_kto(self, path: Path) -> int:
        """Write TRL's unpaired form, one line per answer that was called good or bad by itself; returns how many."""
        judged: list[Preference | Thumb] = [*self.thumbs(), *self.all()]
        return write_rows(path, (row for one in judged for row in kto_rows(one)))

    def reading(self) -> AbstractContextManager[Session]:
        """A transaction for queries that are somebody else's; nothing may be written in it."""
        return self._session()

    def _split(self, shown: ComparisonRow, rater: str) -> str:
        """A judgement's own: that of what was shown, or held out for its rater's sake."""
        return shown.split if shown.split == "heldout" else split_of_rater(rater, self.heldout_raters)


def _existing(session: Session, comparison: str, locked: bool = False) -> ComparisonRow:
    """A comparison; locked for a vote, because on PostgreSQL a double click is two transactions side by side."""
    row = session.get(ComparisonRow, comparison, with_for_update=locked)
    if row is None or row.deleted:
        raise _gone("comparison", comparison, row is not None)
    return row


def _showing(session: Session, identity: str, locked: bool = False) -> tuple[ShowingRow | None, ComparisonRow]:
    """What an id from ``show_again`` or ``record`` means."""
    showing = session.get(ShowingRow, identity)
    return showing, _existing(session, showing.comparison if showing else identity, locked)


def _last(session: Session, table: type[_Judgement], comparison: str, rater: str) -> _Judgement | None:
    """A rater's last word on a comparison."""
    return session.scalars(
        select(table).where(table.comparison == comparison, table.rater == rater)
        .order_by(table.time.desc(), table.id.desc()).limit(1)
    ).first()  # fmt: skip


def _check_ranks(ranks: Sequence[int], n_answers: int, where: str) -> None:
    if n_answers < 2:
        raise UserError(f"comparison '{where}' showed {n_answers} answer(s); a vote needs at least two")
    if ranks and (len(ranks) != n_answers or min(ranks) < 0):
        raise UserError(
            f"vote {list(ranks)} on '{where}' must give each of its {n_answers} answers a rank from 0, or none at all"
        )


def _gone(kind: str, identity: str, existed: bool) -> UserError:
    what = "was deleted" if existed else "does not exist"
    return UserError(f"{kind} '{identity}' {what}; show new answers and vote on those")
