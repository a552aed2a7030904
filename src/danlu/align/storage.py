"""A database that is open: its tables brought up to date, transactions that are whole, words that are really gone.

In:  a place (``database``), a folder of Alembic migrations and the name of the table that counts them.
Out: ``Database``: sessions; ``StoreError`` when it cannot work; ``erase`` after a deletion.
Left out: which tables there are (``preferences``, ``danlu.serve.store``), going back to an older danlu.

SQLite writes ahead: readers never wait for a writer, and every commit is synced before it is acknowledged. The log is a
second file that remembers words, and ``secure_delete`` clears the first one only. So a deletion ends with ``erase``,
which moves the log into the database and cuts it to nothing; opening does the same, in case a deletion was killed
between the two. A log in use by a reader who does not end cannot be cut: the next deletion or opening does it then.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Dialect, String, TypeDecorator, inspect, text
from sqlalchemy import exc as sql
from sqlalchemy.orm import Session

from danlu.align import database
from danlu.errors import UserError

_LOG = logging.getLogger("danlu.align")
# What a database says when it cannot work: a full or read-only disk, a lock that nobody gives back, a lost connection.
_OUT_OF_ORDER = (sql.OperationalError, sql.InterfaceError, sql.InternalError, sql.TimeoutError)
_MIGRATING = 0x64616E6C75  # "danlu": PostgreSQL's advisory locks have numbers for names


class StoreError(UserError):
    """The database does not do what it is there for; what was to be written has left no trace."""


class Words(TypeDecorator[str]):
    """Text of people and models. PostgreSQL cannot keep the character NUL, which a byte-level model can write."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Where NUL cannot be kept, it becomes the sign for what cannot be shown; token ids still tell it."""
        return value.replace("\0", "\ufffd") if value and dialect.name == "postgresql" else value


class Database:
    """A connected database.

    Args:
        place: a file path (SQLite) or an SQLAlchemy URL.

    Attributes:
        place: as it may be printed.
        engine: SQLAlchemy's.

    Raises:
        UserError: the URL cannot be read or its driver is missing.
    """

    def __init__(self, place: str | Path) -> None:
        self.place = database.shown(str(place))
        self.engine = database.connect(str(place))
        self._sqlite = self.engine.dialect.name == "sqlite"

    def close(self) -> None:
        """Let go of the database."""
        self.engine.dispose()

    def upgrade(self, scripts: Path, versions: str, first: str = "", table: str = "") -> None:
        """Bring tables up to date, in one transaction that other processes wait for.

        Args:
            scripts: the folder of migrations.
            versions: name of the table that notes which of them were made.
            first: the migration that made ``table``, for databases that are older than ``versions``.
            table: a table of such a database.

        Raises:
            UserError: the place is no database, does not answer, or was made by a newer danlu.
        """
        try:
            if self._sqlite:
                self._write_ahead()
            with self.engine.execution_options(writing=True).begin() as connection:
                if not self._sqlite:
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATING})
                old = bool(table) and not _has(connection, versions) and _has(connection, table)
                _migrate(connection, scripts, versions, first if old else "", self.place)
            self.erase()
        except sql.DBAPIError as error:
            sentence = f"preference store {self.place} cannot be opened ({reason(error)}); check the path or URL"
            raise UserError(sentence) from None

    @contextmanager
    def session(self, *, writing: bool = False) -> Iterator[Session]:
        """A transaction; what it writes is on disk when the block ends, or has left no trace.

        Raises:
            StoreError: the database fails.
            UserError: it was given what it cannot hold, and so does not.
        """
        engine = self.engine.execution_options(writing=writing)
        try:
            with Session(engine, expire_on_commit=False) as session, session.begin():
                yield session
        except _OUT_OF_ORDER as error:
            what = "cannot be written" if writing else "cannot be read"
            sentence = f"the preference store {what} ({reason(error)}); see to {self.place}, then try again"
            raise StoreError(sentence) from error
        except sql.DataError as error:  # PostgreSQL, of an id with the character NUL in it
            raise UserError(f"there is no such thing in the preference store ({reason(error)})") from None

    def erase(self) -> None:
        """After a deletion: leave nothing of it in SQLite's log."""
        if not self._sqlite:
            return
        try:
            busy, *_ = self._pragma("wal_checkpoint(TRUNCATE)")
        except sql.OperationalError as error:  # the deletion itself is done: it is not to be asked for again
            _LOG.warning("the log of %s still holds what was deleted (%s)", self.place, reason(error))
            return
        if busy:
            _LOG.warning("the log of %s still holds what was deleted: somebody else reads it", self.place)

    def _write_ahead(self) -> None:
        """SQLite does not let the change of its journal wait for others, so we do."""
        until = time.monotonic() + database.BUSY_SECONDS
        while True:
            try:
                self._pragma("journal_mode=WAL")
                return
            except sql.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.05)

    def _pragma(self, pragma: str) -> tuple[Any, ...]:
        """Outside of any transaction: SQLite changes and cuts its journal nowhere else."""
        with self.engine.connect() as connection, closing(connection.connection.cursor()) as cursor:
            try:
                row: tuple[Any, ...] = cursor.execute(f"PRAGMA {pragma}").fetchone()
                return row
            except connection.dialect.dbapi.Error as error:  # type: ignore[union-attr]
                raise sql.OperationalError(pragma, None, error) from error


def reason(error: sql.SQLAlchemyError) -> str:
    """What the database itself said, on one line and without the statement, which holds people's words."""
    return " ".join(str(getattr(error, "orig", None) or error).split())


def _has(connection: Connection, table: str) -> bool:
    return inspect(connection).has_table(table)


def _migrate(connection: Connection, scripts: Path, versions: str, stamped: str, place: str) -> None:
    """Run what was not run yet; if ``stamped``, the tables of that migration are there and nobody noted it."""
    from alembic.config import Config  # it takes a while to load, and ``danlu --help`` must not wait for it
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    directory = ScriptDirectory(scripts, version_locations=[scripts])

    def steps(revision: Any, context: Any) -> Any:
        return directory._upgrade_revs("head", revision)

    with EnvironmentContext(Config(), directory, fn=steps, destination_rev="head") as environment:
        environment.configure(connection, version_table=versions, transactional_ddl=True)
        try:
            if stamped:
                environment.get_context().stamp(directory, stamped)
            environment.run_migrations()
        except CommandError as error:
            if "locate revision" not in str(error):
                raise
            raise UserError(f"preference store {place} was made by a newer danlu; update this one") from None
