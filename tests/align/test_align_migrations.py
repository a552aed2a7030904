"""Stores of every age: those from before migrations keep every vote, and those from a newer danlu are left alone."""

from __future__ import annotations

import multiprocessing
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from postgres import Place
from sqlalchemy import text

from danlu.align import tables
from danlu.align.database import connect
from danlu.align.migrations import v0001_votes
from danlu.align.preferences import PreferenceStore
from danlu.errors import UserError
from danlu.records import Answer, Message

PROMPT = (Message("user", "写一首题为《春》的五言绝句。"),)
FORK = multiprocessing.get_context("fork")  # a process that has not to import everything again


def old_store(place: Place) -> None:
    """A store as it was made before: the first tables, no note of it, a vote, and SQLite's journal of then."""
    engine = connect(str(place))
    with engine.execution_options(writing=True).begin() as connection:
        with Operations.context(MigrationContext.configure(connection)):
            v0001_votes.upgrade()
        connection.execute(text("INSERT INTO conversations VALUES ('c', 'r', '2026-01-01', false)"))
        connection.execute(
            text("INSERT INTO comparisons VALUES ('k', 'c', :prompt, '[0, 1]', 'train', '2026-01-01', false)"),
            {"prompt": '[{"role": "user", "content": "春"}]'},
        )
        for place_, words in enumerate(("春眠", "处处")):
            row = {"place": place_, "words": words}
            connection.execute(text("INSERT INTO answers VALUES ('k', :place, :words, '[]', 'm', '{}', '7')"), row)
        connection.execute(text("INSERT INTO votes VALUES ('v', 'k', '[1, 0]', 'r', '2026-01-01')"))
    engine.dispose()


def test_a_store_from_before_migrations_keeps_every_vote(place: Place) -> None:
    old_store(place)
    store = PreferenceStore(place)
    (kept,) = store.all()
    assert (kept.id, kept.ranks, [answer.text for answer in kept.answers]) == ("v", (1, 0), ["春眠", "处处"])
    store.vote(store.record(PROMPT, [Answer("a"), Answer("b")], "c"), (0, 1), "r", reason="shorter")
    store.thumb(store.record(PROMPT, [Answer("a")]), True, "r")
    again = PreferenceStore(place)
    assert (again.count(), len(again.thumbs())) == (2, 1)
    store.close()
    again.close()


def test_votes_that_came_out_of_a_file_are_told_from_those_that_were_cast(place: Place) -> None:
    """Of before there was a mark: shown and judged at one moment, in no conversation."""
    old_store(place)  # whose vote was cast at the moment of its comparison, but in a conversation
    engine = connect(str(place))
    with engine.execution_options(writing=True).begin() as connection:
        for name, judged in (("f", "2026-01-01"), ("g", "2026-01-02")):
            row = {"id": name, "vote": f"of {name}", "judged": judged, "prompt": '[{"role": "user", "content": "x"}]'}
            connection.execute(
                text("INSERT INTO comparisons VALUES (:id, NULL, :prompt, '[0, 1]', 'train', '2026-01-01', false)"), row
            )
            connection.execute(text("INSERT INTO votes VALUES (:vote, :id, '[0, 1]', 'r', :judged)"), row)
    engine.dispose()
    store = PreferenceStore(place)
    assert {vote.id for vote in store.all()} == {"v", "of f", "of g"}
    assert {vote.id for vote in store.all(first=True)} == {"v", "of g"}
    store.close()


def test_what_the_migrations_make_is_what_the_rows_say(place: Place) -> None:
    store = PreferenceStore(place)
    with store.database.engine.connect() as connection:
        known = tables.Base.metadata.tables
        names = {
            "version_table": "align_version",
            "include_name": lambda name, kind, _: kind != "table" or name in known,
        }
        context = MigrationContext.configure(connection, opts=names)
        assert compare_metadata(context, tables.Base.metadata) == []
    store.close()


def test_a_store_of_a_newer_danlu_is_refused_and_left_as_it_is(place: Place) -> None:
    store = PreferenceStore(place)
    with store.database.session(writing=True) as session:
        session.execute(text("UPDATE align_version SET version_num = 'align_999'"))
    store.close()
    with pytest.raises(UserError, match="made by a newer danlu; update this one"):
        PreferenceStore(place)
    engine = connect(str(place))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM align_version")).scalar() == "align_999"
    engine.dispose()


def test_sqlite_writes_ahead_and_syncs_every_commit(tmp_path: Path) -> None:
    store = PreferenceStore(tmp_path / "p.sqlite")
    with store.database.engine.connect() as connection:
        pragmas = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]
    assert pragmas == ["wal", 2]


def open_at_once(place: Place, start: Event, told: SimpleQueue[int]) -> None:
    start.wait()
    told.put(PreferenceStore(place).count())


def test_processes_that_open_an_old_store_at_once_upgrade_it_once(place: Place) -> None:
    old_store(place)
    start, told = FORK.Event(), FORK.SimpleQueue()
    openers = [FORK.Process(target=open_at_once, args=(place, start, told)) for _ in range(4)]
    for opener in openers:
        opener.start()
    start.set()
    for opener in openers:
        opener.join(60)
    assert [opener.exitcode for opener in openers] == [0] * 4
    assert [told.get() for _ in openers] == [1] * 4
    engine = connect(str(place))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM align_version")).fetchall() == [("align_4",)]
    engine.dispose()
