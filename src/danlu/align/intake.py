"""A file of judgements that were made elsewhere, into the preference store: all of it, or nothing.

In:  JSONL, gzipped or not, in any of the ``foreign`` forms.
Out: rows of the store; ``Intake`` says how many, and what was wrong with which line.
Left out: the forms themselves (``foreign``); how raters behave in the store as a whole (``conduct``).

The whole file is one transaction. Who votes meanwhile waits, on SQLite up to half a minute: take in a big file while
nobody is served.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from danlu.align.foreign import AUTO, FORMS, judgement
from danlu.align.preferences import PreferenceStore
from danlu.align.tables import Base, Thumb, ThumbRow, VoteRow, now, rows_of
from danlu.errors import UserError, beside, unknown
from danlu.files import hash_value
from danlu.records import Preference

_BATCH = 500  # judgements; fewer than the variables that a database's statement may have
_GZIP = b"\x1f\x8b"


@dataclass
class Intake:
    """What became of a file.

    Attributes:
        added: judgements that are in the store now and were not before.
        known: that were in the store before.
        repeated: that stand in the file more than once.
        contradictory: pairs of judgements in the file by which one rater judges the same answers differently; all are
            kept.
        bad: one sentence for every line that is no judgement.
    """

    added: int = 0
    known: int = 0
    repeated: int = 0
    contradictory: int = 0
    bad: list[str] = field(default_factory=list)


def take_in(store: PreferenceStore, path: Path, form: str = AUTO, source: str = "") -> Intake:
    """Store every judgement of a file that is not there yet.

    Args:
        path: JSONL; gzip is recognised by its first bytes.
        form: "auto" looks at each line's keys; or one of ``foreign.FORMS``.
        source: what they are called, ``import:SOURCE``; the form's name if empty.

    Raises:
        UserError: no such file or form, the file breaks off, or not one line of it is a judgement.
    """
    if form not in (AUTO, *FORMS):
        raise unknown("form", form, (AUTO, *FORMS), "--format")
    found, moment = Intake(), now()
    with _opened(path) as file, store.database.session(writing=True) as session:
        judged = _sifted(_judgements(file, path, form, source, found.bad), found)
        while batch := list(islice(judged, _BATCH)):
            _insert(session, batch, moment, found)
        if not found.added and not found.known:
            why = f"; the first problem: {found.bad[0]}" if found.bad else ""
            raise UserError(f"{path} holds no judgement in a form known here ({', '.join(FORMS)}){why}")
    return found


def _opened(path: Path) -> IO[bytes]:
    if not path.is_file():
        raise UserError(f"no file at {path}{beside(path)}")
    with open(path, "rb") as file:
        packed = file.read(len(_GZIP)) == _GZIP
    return cast(IO[bytes], gzip.open(path)) if packed else open(path, "rb")


def _lines(file: IO[bytes], path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path} breaks off after line {number} ({error}); nothing of it was stored") from None


def _judgements(
    file: IO[bytes], path: Path, form: str, source: str, bad: list[str]
) -> Iterator[Preference | Thumb]:  # fmt: skip
    for number, line in _lines(file, path):
        try:
            yield judgement(json.loads(line.decode("utf-8-sig")), form, source)
        except json.JSONDecodeError as error:
            bad.append(f"{path}:{number}: not JSON ({error})")
        except KeyError as error:
            bad.append(f"{path}:{number}: it has no {error}")
        except (ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            bad.append(f"{path}:{number}: {error}")


def _sifted(judged: Iterator[Preference | Thumb], found: Intake) -> Iterator[Preference | Thumb]:
    """Every judgement once; what repeats or contradicts one before it is counted."""
    seen: set[str] = set()
    verdicts: dict[str, str] = {}
    for one in judged:
        if one.id in seen:
            found.repeated += 1
            continue
        seen.add(one.id)
        about, verdict = _said(one)
        found.contradictory += verdicts.setdefault(about, verdict) != verdict
        yield one


def _said(judged: Preference | Thumb) -> tuple[str, str]:
    """What a judgement is about, and what it says, whatever the order of the answers."""
    prompt = [[turn.role, turn.content] for turn in judged.prompt]
    if isinstance(judged, Thumb):
        return hash_value([judged.rater, prompt, judged.answer.text]), str(judged.up)
    texts = [answer.text for answer in judged.answers]
    ranked = sorted(zip(texts, judged.ranks or [-1] * len(texts), strict=True))
    return hash_value([judged.rater, prompt, sorted(texts)]), hash_value(ranked)


def _insert(session: Session, batch: Sequence[Preference | Thumb], moment: str, found: Intake) -> None:
    ids = [one.id for one in batch]
    known = {id for table in (VoteRow, ThumbRow) for id in session.scalars(select(table.id).where(table.id.in_(ids)))}
    rows = [rows_of(one, moment) for one in batch if one.id not in known]
    shown, said = [row for row, _ in rows], [row for _, row in rows]
    for made in (shown, [answer for row in shown for answer in row.answers], said):
        for table in dict.fromkeys(map(type, made)):
            session.execute(insert(table), [_columns(row) for row in made if isinstance(row, table)])
    found.added += len(rows)
    found.known += len(known)


def _columns(row: Base) -> dict[str, Any]:
    """Values of a row that is in no session: many at once are inserted several times faster without one."""
    values = {column.key: getattr(row, column.key) for column in row.__table__.columns}
    return {key: value for key, value in values.items() if value is not None}
