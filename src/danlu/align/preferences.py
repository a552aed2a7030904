"""The preference store: what was shown to whom, and what they preferred. The place where the loop closes.

In:  prompts, the answers that were shown, votes; from the chat page, many writers at once.
Out: ``Preference`` records, a frozen JSONL snapshot for training, TRL's prompt / chosen / rejected form.
Left out: accounts and sessions (``serve``); the simulated human (``rankings``); transactions (``storage``).

SQLite by default (every vote synced before it is acknowledged), PostgreSQL by URL. Rows are only ever added, but for
one thing: a deleted conversation loses its words for good, because people have a right to that. The tables are made by
``migrations``: whoever changes a row here adds one.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from danlu.align.storage import Database, StoreError, Words
from danlu.errors import UserError
from danlu.files import atomic_write, hash_value
from danlu.records import Answer, Message, Preference, check_messages, write_preferences

HELDOUT_SHARE = 0.1
_MIGRATIONS = Path(__file__).with_name("migrations")

__all__ = ["HELDOUT_SHARE", "PreferenceStore", "StoreError", "split_of", "trl_rows"]


def split_of(prompt: Sequence[Message], heldout_share: float = HELDOUT_SHARE) -> str:
    """Whether comparisons of this prompt are "train" or "heldout": by the prompt's hash, so it never moves."""
    digest = hash_value([[m.role, m.content] for m in prompt])
    return "heldout" if int(digest, 16) / 16 ** len(digest) < heldout_share else "train"


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


class VoteRow(Base):
    """One judgement. A person who changes their mind adds a row; a double click does not."""

    __tablename__ = "votes"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    comparison: Mapped[str] = mapped_column(ForeignKey("comparisons.id"))
    ranks: Mapped[list[int]]
    rater: Mapped[str]
    time: Mapped[str]
    __table_args__ = (Index("votes_by_comparison", "comparison", "rater"),)


class PreferenceStore:
    """The store on disk.

    Args:
        place: a file path (SQLite) or an SQLAlchemy URL.

    Raises:
        UserError: the file is not a database, the URL cannot be read, its driver is missing, or nobody answers there.
        StoreError: from every method, when the database fails.
    """

    def __init__(self, place: str | Path) -> None:
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
        row = ConversationRow(id=_new_id(), rater=rater, time=_now())
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
                session.add(ConversationRow(id=conversation, rater=rater, time=_now()))
            elif row.deleted:
                raise _gone("conversation", conversation, True)

    def record(
        self, prompt: Sequence[Message], answers: Sequence[Answer], conversation: str = "",
        display_order: Sequence[int] = (),
    ) -> str:  # fmt: skip
        """Note what is about to be shown; returns the comparison's id, which a vote names.

        Args:
            prompt: the turns before the answers, ending with the user's.
            answers: the answers, K >= 1 (one answer can be deleted with its conversation, but not voted on).
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
            comparison = _comparison_row(_new_id(), messages, answers, order, split_of(messages), _now())
            comparison.conversation = conversation or None
            session.add(comparison)
            return comparison.id

    def vote(self, comparison: str, ranks: Sequence[int], rater: str) -> str:
        """Store a judgement on a recorded comparison; the same judgement twice in a row is stored once.

        Args:
            comparison: id from ``record``.
            ranks: one per answer in stored order, 0 the best, equal ranks tie; empty means "all bad".
            rater: pseudonym of who judged.

        Returns:
            The vote's id, which becomes the ``Preference`` id.

        Raises:
            UserError: no such comparison, a deleted one, or ranks that do not fit its answers.
        """
        with self._session(writing=True) as session:
            # Locked: on PostgreSQL a double click would be two transactions side by side.
            shown = session.get(ComparisonRow, comparison, with_for_update=True)
            if shown is None or shown.deleted:
                raise _gone("comparison", comparison, shown is not None)
            _check_ranks(ranks, len(shown.answers), comparison)
            last = session.scalars(
                select(VoteRow).where(VoteRow.comparison == comparison, VoteRow.rater == rater)
                .order_by(VoteRow.time.desc(), VoteRow.id.desc()).limit(1)
            ).first()  # fmt: skip
            if last is not None and last.ranks == list(ranks):
                return last.id
            row = VoteRow(id=_new_id(), comparison=comparison, ranks=list(ranks), rater=rater, time=_now())
            session.add(row)
            return row.id

    def shown(self, comparison: str) -> list[Answer]:
        """The answers of a comparison in stored order, for telling afterwards who wrote what.

        Raises:
            UserError: no such comparison, or a deleted one.
        """
        with self._session() as session:
            row = session.get(ComparisonRow, comparison)
            if row is None or row.deleted:
                raise _gone("comparison", comparison, row is not None)
            return [*map(_answer, row.answers)]

    def conversation_of(self, comparison: str) -> str:
        """The conversation that a comparison belongs to, empty if none: who may vote on it is its owner's matter.

        Raises:
            UserError: no such comparison, or a deleted one.
        """
        with self._session() as session:
            row = session.get(ComparisonRow, comparison)
            if row is None or row.deleted:
                raise _gone("comparison", comparison, row is not None)
            return row.conversation or ""

    def add(self, preference: Preference) -> bool:
        """Store a whole preference made elsewhere, such as a line of a snapshot; returns False if its id is known."""
        _check_ranks(preference.ranks, len(preference.answers), preference.id)
        order = list(preference.display_order) or list(range(len(preference.answers)))
        made = preference.time or _now()
        with self._session(writing=True) as session:
            if session.get(VoteRow, preference.id) is not None:
                return False
            shown = _comparison_row(_new_id(), preference.prompt, preference.answers, order, preference.split, made)
            session.add(shown)
            session.flush()
            session.add(VoteRow(id=preference.id, comparison=shown.id, ranks=list(preference.ranks),
                                rater=preference.rater, time=made))  # fmt: skip
            return True

    def all(self) -> list[Preference]:
        """Every rater's last word on every comparison that still exists, ordered by time and id."""
        query = (
            select(VoteRow, ComparisonRow).join(ComparisonRow, VoteRow.comparison == ComparisonRow.id)
            .where(~ComparisonRow.deleted).order_by(VoteRow.time, VoteRow.id)
        )  # fmt: skip
        with self._session() as session:
            last = {(shown.id, vote.rater): (vote, shown) for vote, shown in session.execute(query)}
            kept = sorted(last.values(), key=lambda pair: (pair[0].time, pair[0].id))
            return [_preference(vote, shown) for vote, shown in kept]

    def count(self) -> int:
        """How many votes ``all`` would give."""
        voices = (
            select(VoteRow.comparison, VoteRow.rater).join(ComparisonRow).where(~ComparisonRow.deleted).distinct()
        ).subquery()
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
            row.deleted = True
            for shown in session.scalars(select(ComparisonRow).where(ComparisonRow.conversation == conversation)):
                shown.deleted = True
                shown.prompt, shown.answers = [], []
        self.database.erase()

    def snapshot(self, path: Path) -> int:
        """Freeze as JSONL what prefers something: the same votes give the same bytes; returns how many.

        Ties teach nothing and are left out, or one more of them would make a reward model and all after it again.
        """
        return write_preferences(path, [preference for preference in self.all() if preference.pairs()])

    def export_trl(self, path: Path) -> int:
        """Write TRL's conversational preference form, one line per strict pair; returns how many."""
        rows = [row for preference in self.all() for row in trl_rows(preference)]
        with atomic_write(path) as handle:
            handle.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return len(rows)


def trl_rows(preference: Preference) -> list[dict[str, Any]]:
    """TRL's ``prompt`` / ``chosen`` / ``rejected`` rows of a preference, one per strict pair."""
    prompt = [{"role": m.role, "content": m.content} for m in preference.prompt]
    texts = [[{"role": "assistant", "content": answer.text}] for answer in preference.answers]
    return [{"prompt": prompt, "chosen": texts[i], "rejected": texts[j]} for i, j in preference.pairs()]


def _comparison_row(
    identity: str, prompt: Sequence[Message], answers: Sequence[Answer], order: list[int], split: str, made: str
) -> ComparisonRow:
    rows = [
        AnswerRow(place=place, text=a.text, token_ids=list(a.token_ids), model=a.model, sampling=dict(a.sampling),
                  seed=str(a.seed))
        for place, a in enumerate(answers)
    ]  # fmt: skip
    turns = [{"role": m.role, "content": m.content} for m in prompt]
    return ComparisonRow(id=identity, prompt=turns, display_order=order, split=split, time=made, answers=rows)


def _preference(vote: VoteRow, shown: ComparisonRow) -> Preference:
    return Preference(
        id=vote.id, prompt=tuple(Message(**turn) for turn in shown.prompt), answers=tuple(map(_answer, shown.answers)),
        ranks=tuple(vote.ranks), rater=vote.rater, time=vote.time, display_order=tuple(shown.display_order),
        split=shown.split,
    )  # fmt: skip


def _answer(row: AnswerRow) -> Answer:
    return Answer(row.text, tuple(row.token_ids), row.model, row.sampling, int(row.seed))


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


def _new_id() -> str:
    return uuid.uuid4().hex


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
