"""The account of a build: how many came in, how many stayed, what for each of the others decided.

In:  counts and samples as the stage goes along.
Out: ``audit.json`` and ``decisions.parquet``.
Left out: pictures (``report``).
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from danlu.files import atomic_write, write_json

SAMPLES = 5
SAMPLE_CHARS = 80
_SECRETS = (
    (re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]+"), "<e-mail>"),
    (re.compile(r"\d(?:[ -]?\d){5,}"), "<number>"),
    (re.compile(r"(?<=://)[^\s/@]+:[^\s/@]+@"), "<login>@"),
)
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("kept", pa.bool_()),
        ("reason", pa.string()),
        ("value", pa.float64()),
        ("limit", pa.float64()),
        ("copy_of", pa.string()),
    ]
)


def redact(text: str) -> str:
    """The beginning of a text for people to look at, without addresses, long numbers and logins."""
    for pattern, name in _SECRETS:
        text = pattern.sub(name, text[: 4 * SAMPLE_CHARS])
    return text[:SAMPLE_CHARS]


class Audit:
    """Counts, samples and seconds of one build."""

    def __init__(self) -> None:
        self.languages: Counter[str] = Counter()
        self._funnel: list[dict[str, Any]] = []
        self._reasons: dict[str, dict[str, Any]] = {}
        self._seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._mark = time.monotonic()
        self._decisions: dict[str, list[Any]] = {name: [] for name in _SCHEMA.names}

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Count the seconds spent inside towards a step, those of steps within it excepted."""
        self._charge()
        self._running.append(step)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def _charge(self) -> None:
        """Count the time since the last call towards the innermost step that is running."""
        now = time.monotonic()
        if self._running:
            step = self._running[-1]
            self._seconds[step] = self._seconds.get(step, 0.0) + now - self._mark
        self._mark = now

    def step(self, name: str, documents: int, characters: int) -> None:
        """Record what was left after a step."""
        self._funnel.append({"step": name, "documents": documents, "characters": characters})

    def keep(self, document: str) -> None:
        """Record a document that stays."""
        self._decide(document, True, "", None, None, "")

    def drop(self, document: str, reason: str, value: float, limit: float, text: str, copy_of: str = "") -> None:
        """Record a document that goes, and why.

        Args:
            document: its id.
            reason: the rule.
            value: its value.
            limit: the limit that the value broke.
            text: its text, shown in part if it is among the first of its reason.
            copy_of: id of the document it is a copy of.
        """
        self._decide(document, False, reason, value, limit, copy_of)
        entry = self._reasons.setdefault(reason, {"count": 0, "samples": []})
        entry["count"] += 1
        if len(entry["samples"]) < SAMPLES:
            sample = {"id": document, "value": value, "limit": limit, "text": redact(text)}
            entry["samples"].append(sample | ({"copy_of": copy_of} if copy_of else {}))

    def dropped(self) -> dict[str, int]:
        """Reason -> number of documents, the most frequent first."""
        counts = {reason: entry["count"] for reason, entry in self._reasons.items()}
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def write(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Write ``audit.json``: what was counted here, and further facts."""
        counted = {
            "funnel": self._funnel,
            "reasons": {reason: self._reasons[reason] for reason in self.dropped()},
            "languages": dict(self.languages.most_common()),
            "seconds": {step: round(seconds, 2) for step, seconds in self._seconds.items()},
        }
        write_json(path, {**facts, **counted})

    def write_decisions(self, path: Path) -> None:
        """Write one row per document, dropped or kept: id, kept, reason, value, limit, copy_of."""
        with atomic_write(path, "wb") as handle:
            pq.write_table(pa.table(self._decisions, schema=_SCHEMA), handle, compression="zstd")

    def _decide(self, *row: Any) -> None:
        for column, value in zip(self._decisions.values(), row, strict=True):
            column.append(value)
