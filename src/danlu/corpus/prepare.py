"""The first pass: records into plain, measured documents, batch by batch.

In:  records.
Out: documents that pass the rules, in order, fingerprinted on the way.
Left out: dropping copies, which needs all documents to be known (``stage``).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from danlu.console import Task
from danlu.corpus import clean, langid
from danlu.corpus.audit import Audit
from danlu.corpus.dedup import Finder
from danlu.corpus.minhash import I64
from danlu.corpus.read import Quarantine, Record
from danlu.corpus.settings import CorpusSettings
from danlu.corpus.sources import Source
from danlu.corpus.template import Template, as_text
from danlu.errors import unknown
from danlu.records import Document

BATCH_RECORDS = 4096
BATCH_CHARS = 500_000  # arrays of this size stay in a core's cache

Fields = dict[str, str]


class Preparation:
    """Turns records into documents and remembers what the second pass needs to know about them.

    Attributes:
        ids: id of every document that passed the rules, in order.
        n_records: records read, whatever became of them.
        n_chars: their characters.
    """

    def __init__(self, settings: CorpusSettings, source: Source, audit: Audit, finder: Finder) -> None:
        self._settings, self._source, self._audit, self._finder = settings, source, audit, finder
        self._text = Template(settings.text)
        self._compare = Template(settings.compare) if settings.compare else self._text
        self._needed = tuple(dict.fromkeys((*self._text.fields, *self._compare.fields)))
        self._remove = [re.compile(pattern) for pattern in settings.remove]
        self._limits = clean.limits(settings)
        self._seen: set[str] = set()
        self._lengths: list[int] = []
        self.ids: list[str] = []
        self.n_records = self.n_chars = 0

    @property
    def lengths(self) -> I64:
        """Characters of every document that passed the rules."""
        return np.array(self._lengths, np.int64)

    def documents(self, records: Iterable[Record], quarantine: Quarantine, task: Task) -> Iterator[Document]:
        """The documents that pass the rules, in order."""
        batches = _batches(self._gather(records, quarantine))
        while True:
            with self._audit.timed("read"):
                batch = next(batches, None)
            if batch is None:
                return
            self.n_records += len(batch)
            yield from self._kept(batch)
            task.advance(len(batch))

    def check_fields(self) -> None:
        """Refuse a field that not one record had.

        Raises:
            UserError: naming the nearest field that there is.
        """
        for name in (*self._needed, *self._settings.keep):
            if self._seen and name not in self._seen:
                raise unknown("field", name, self._seen, f"the records of {self._source.name}")

    def _gather(self, records: Iterable[Record], quarantine: Quarantine) -> Iterator[tuple[Record, Fields]]:
        """The fields that are wanted of each record, as text; a record that lacks one is set aside."""
        wanted = (*self._needed, *self._settings.keep)
        for record in records:
            self._seen.update(record.fields)
            missing = [name for name in self._needed if name not in record.fields]
            if missing:
                quarantine.add(record.file, record.place, "missing field", f"no '{missing[0]}'")
                continue
            try:
                yield record, {name: as_text(record.fields[name]) for name in wanted if name in record.fields}
            except ValueError as error:
                quarantine.add(record.file, record.place, "field is not text", f"it is {error}")

    def _kept(self, batch: Sequence[tuple[Record, Fields]]) -> list[Document]:
        """The documents of a batch that pass the rules, fingerprinted."""
        rows = self._plain([fields for _, fields in batch])
        with self._audit.timed("clean"):
            texts = [self._text.fill(row).strip() for row in rows]
            counts = langid.count(texts)
            measures = clean.measure(texts, counts)
        self.n_chars += sum(map(len, texts))
        documents, compared = [], []
        for (record, _), row, text, measured, counted in zip(batch, rows, texts, measures, counts, strict=True):
            name, compare = self._id(record), self._compare.fill(row)
            breach = clean.breach(measured, self._limits, compare)
            if breach is not None:
                self._audit.drop(name, breach.reason, breach.value, breach.limit, text)
                continue
            kept = {field: row[field] for field in self._settings.keep if field in row}
            language, attributes = langid.language(text, counted), {**measured, **kept}
            documents.append(Document(name, text, self._source.name, language, self._source.licence, attributes))
            compared.append(compare)
        with self._audit.timed("fingerprint"):
            self._finder.add(compared)
        self.ids += [document.id for document in documents]
        self._lengths += [len(document.text) for document in documents]
        return documents

    def _id(self, record: Record) -> str:
        """A document's identity: where it comes from, not what it says."""
        place = f"{self._source.name}\x1f{record.file}\x1f{record.place}"
        return hashlib.sha256(place.encode("utf-8", "replace")).hexdigest()[:32]

    def _plain(self, rows: Sequence[Fields]) -> list[Fields]:
        """Every field normalised, simplified if wanted, and without what ``remove`` matches."""
        with self._audit.timed("normalise"):
            texts = [clean.normalise(text) for row in rows for text in row.values()]
        if self._settings.simplify:
            with self._audit.timed("simplify"):
                texts = clean.simplify(texts)
        with self._audit.timed("normalise"):
            for pattern in self._remove:
                texts = [pattern.sub("", text) for text in texts]
        plain = iter(texts)
        return [{name: next(plain) for name in row} for row in rows]


def _batches(rows: Iterable[tuple[Record, Fields]]) -> Iterator[list[tuple[Record, Fields]]]:
    """Rows in batches that are limited in number and in characters."""
    batch: list[tuple[Record, Fields]] = []
    chars = 0
    for row in rows:
        batch.append(row)
        chars += sum(map(len, row[1].values()))
        if len(batch) == BATCH_RECORDS or chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch
