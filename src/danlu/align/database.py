"""Where a preference store is: a file of ours or a database by URL, and how to connect to it.

In:  a place as a person writes it.
Out: an SQLAlchemy engine; the same place as it may be printed, and as it may be written to disk.
Left out: what is done with it once it is open (``storage``), tables (``preferences``).

A password in a URL is used and never repeated: what is printed hides it, what is written leaves it out, and one that
cannot be told from the rest of the URL is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from danlu.errors import UserError, unknown

BUSY_SECONDS = 30
_FORM = "postgresql://USER@HOST/DATABASE"


def is_url(place: str) -> bool:
    """Whether ``place`` is a database's URL and not a file's path."""
    return "://" in place


def shown(place: str) -> str:
    """The place as it may be printed: with ``***`` for a password.

    Raises:
        UserError: it is a URL that cannot be read.
    """
    return _read(place).render_as_string(hide_password=True) if is_url(place) else place


def written(place: str) -> str:
    """The place as it may be written to disk: without a password, so that ~/.pgpass or PGPASSWORD can give it later.

    Raises:
        UserError: it is a URL that cannot be read.
    """
    return _read(place)._replace(password=None).render_as_string(hide_password=False) if is_url(place) else place


def connect(place: str) -> Engine:
    """An engine for a file (SQLite) or a URL.

    Raises:
        UserError: the URL cannot be read, its database is not known, or the driver is not installed.
    """
    if not is_url(place):
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        return _sqlite(URL.create("sqlite", database=place))
    url = _read(place)
    if url.drivername.startswith("sqlite"):
        return _sqlite(url)
    if url.drivername == "postgresql":  # which driver that means changes with SQLAlchemy's version
        url = url.set(drivername="postgresql+psycopg")
    return _engine(url, pool_pre_ping=True)  # a database that was restarted is no reason to lose a vote


def _engine(url: URL, **options: Any) -> Engine:
    try:
        return create_engine(url, **options)
    except NoSuchModuleError:
        raise unknown("database", url.drivername, ("postgresql", "sqlite"), "the preference store's URL") from None
    except ArgumentError:
        raise _unreadable() from None
    except ImportError as error:
        if url.drivername == "postgresql+psycopg":
            raise UserError("PostgreSQL's driver is missing; pip install 'danlu[postgres]'") from None
        raise UserError(f"the driver of {url.drivername} is missing ({error}); install it or use {_FORM}") from None


def _read(place: str) -> URL:
    try:
        url = make_url(place)
    except (ArgumentError, ValueError):  # either may quote what it could not read
        raise _unreadable() from None
    unclear = url.password is not None and place.count("@") > 1  # where does it end?
    if unclear or any("password" in key.lower() for key in url.query):
        raise UserError(
            "the password in the preference store's URL cannot be told from the rest of it and would be printed; "
            "set PGPASSWORD or use ~/.pgpass instead, or write '@' as %40"
        )
    return url


def _unreadable() -> UserError:
    return UserError(f"the preference store's URL cannot be read; write it as {_FORM}")


def _sqlite(url: URL) -> Engine:
    """An engine with full sync, and write transactions that queue instead of failing."""
    engine = _engine(url, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # otherwise the driver would begin transactions of its own
        for pragma in ("synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        # A writer takes the lock at once: a transaction that reads first and writes later cannot wait, only fail.
        writing = connection.get_execution_options().get("writing", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    return engine
