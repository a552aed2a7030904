"""The server's store: people, conversations, moderation, audit, in the database that also keeps the votes.

In:  a place, or the database that the preference store has open.
Out: ``ServeStore``: ``dialogues``, ``notes`` and ``people``, events of moderation, who did what.
Left out: comparisons and votes (``danlu.align.preferences``): the next model is made of those without any of this.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import or_, select, update

from danlu.align.storage import Database
from danlu.errors import UserError, unknown
from danlu.serve.dialogues import Dialogues
from danlu.serve.notes import Notes
from danlu.serve.people import People
from danlu.serve.reviews import ModerationEvent
from danlu.serve.tables import AuditRow, DialogueRow, ModerationRow, new_id, now

_MIGRATIONS = Path(__file__).with_name("migrations")
_STATUS = {"approve": "approved", "redact": "redacted", "label": "labelled"}

Decision = Literal["approve", "redact", "label"]


class ServeStore:
    """The store on disk.

    Args:
        place: a file path (SQLite), an SQLAlchemy URL, or a database that is open.

    Raises:
        UserError: the place cannot be opened; from methods, what was named is not there.
        StoreError: from every method, when the database fails.
    """

    def __init__(self, place: str | Path | Database) -> None:
        self.database = place if isinstance(place, Database) else Database(place)
        self.place = self.database.place
        self.database.upgrade(_MIGRATIONS, "serve_version")
        self._session = self.database.session
        self.dialogues, self.people = Dialogues(self.database), People(self.database)
        self.notes = Notes(self.database)

    def close(self) -> None:
        """Let go of the database."""
        self.database.close()

    def note_moderation(self, event: ModerationEvent) -> str:
        """Put an event into the queue of what people should look at; returns its id."""
        row = ModerationRow(id=new_id(), time=now(), status="open", label="", operator="", **asdict(event))
        with self._session(writing=True) as session:
            session.add(row)
            return row.id

    def moderation_queue(self, status: str = "open", limit: int = 100) -> list[dict[str, Any]]:
        """The oldest events of a status: "open", "approved", "redacted" or "labelled".

        Raises:
            UserError: there is no such status.
        """
        valid = ("open", *_STATUS.values())
        if status not in valid:
            raise unknown("status", status, valid)
        query = select(ModerationRow).where(ModerationRow.status == status).order_by(ModerationRow.time).limit(limit)
        with self._session() as session:
            return [_columns(row) for row in session.scalars(query)]

    def label_moderation(self, id: str, decision: Decision, label: str, operator: str) -> None:
        """Note what a person made of an event; "redact" also forgets its text.

        Raises:
            UserError: no such event or decision.
        """
        if decision not in _STATUS:
            raise unknown("decision", decision, _STATUS)
        with self._session(writing=True) as session:
            row = session.get(ModerationRow, id, with_for_update=True)
            if row is None:
                raise UserError(f"moderation event '{id[:64]}' does not exist")
            row.status, row.label, row.operator, row.decided = _STATUS[decision], label, operator, now()
            if decision == "redact":
                row.text = ""
            session.add(AuditRow(time=now(), actor=operator, action=f"moderation.{decision}", target=id))
        if decision == "redact":
            self.database.erase()

    def forget(self, owner: str, conversations: Collection[str] = ()) -> int:
        """Erase an owner's conversations, others that are named, and what moderation noted of the owner.

        The owner's account, if there is one, and the audit stay.

        Returns:
            How many conversations there were.
        """
        theirs = or_(DialogueRow.owner == owner, DialogueRow.id.in_(conversations))
        with self._session() as session:
            doomed = session.execute(select(DialogueRow.owner, DialogueRow.id).where(theirs)).all()
        for whose, conversation in doomed:
            self.dialogues.delete(whose, conversation)
        with self._session(writing=True) as session:
            session.execute(update(ModerationRow).where(ModerationRow.owner == owner).values(text="", owner=""))
        self.database.erase()
        return len(doomed)

    def audit(self, actor: str, action: str, target: str) -> None:
        """Note who did what to what."""
        with self._session(writing=True) as session:
            session.add(AuditRow(time=now(), actor=actor, action=action, target=target))

    def audited(self, limit: int = 100) -> list[dict[str, Any]]:
        """The last things that were done, newest first."""
        query = select(AuditRow).order_by(AuditRow.number.desc()).limit(limit)
        with self._session() as session:
            return [_columns(row) for row in session.scalars(query)]


def _columns(row: ModerationRow | AuditRow) -> dict[str, Any]:
    return {column.name: getattr(row, column.name) for column in row.__table__.columns}
