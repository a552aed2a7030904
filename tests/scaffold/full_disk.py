"""A disk without room, for one preference store."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from sqlalchemy import event

from danlu.align.preferences import PreferenceStore


@contextlib.contextmanager
def full_disk(store: PreferenceStore) -> Iterator[None]:
    """While the block runs, SQLite may not make the file any larger; it says what it says on a full disk."""

    def cap(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA max_page_count = 1")  # never below what the file has already

    engine = store.database.engine
    event.listen(engine, "connect", cap)
    engine.dispose()  # of connections from before
    try:
        yield
    finally:
        event.remove(engine, "connect", cap)
        engine.dispose()
