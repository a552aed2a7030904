"""The stage ``corpus``: records in, documents out, in two passes that hold one batch of text at a time.

In:  ``CorpusSettings``.
Out: ``documents/``, ``split.json``, ``audit.json``, ``decisions.parquet``, ``quarantine.jsonl``.
Left out: resuming half-way. Fetching is what takes long, and the cache keeps that; the rest is done anew, to the same
    bytes.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from danlu.corpus.audit import Audit
from danlu.corpus.dedup import LONG, SHORT, Copies, Finder, Scheme
from danlu.corpus.minhash import ALGORITHM
from danlu.corpus.prepare import Preparation
from danlu.corpus.read import Quarantine, read_records
from danlu.corpus.settings import CorpusSettings
from danlu.corpus.sources import Source, fetch
from danlu.corpus.split import fitting_share, is_heldout, write_share
from danlu.errors import UserError
from danlu.files import atomic_write, free_space
from danlu.records import Document, read_documents, write_documents
from danlu.run import Stage

SET_ASIDE = "quarantine.jsonl"
KEPT, EXACT, NEAR = "kept", "exact_duplicate", "near_duplicate"
SHARD_ROWS = 10_000  # of 8,000 characters each that is a few hundred megabytes in memory
_LITTLE = 10_000  # characters; the made-up stories of recipe tiny have 137,000
_DISK_FACTOR = 4  # token hashes of Chinese text take 2.7 times its bytes; two compressed copies of the text the rest


def build(stage: Stage) -> dict[str, Any]:
    """Make a corpus.

    Returns:
        ``records`` read, ``documents`` kept, ``dropped`` (reason -> count), ``exact_duplicates``,
        ``near_duplicates``, ``quarantined``, ``characters`` kept, ``heldout`` documents among the kept; ``revision``,
        the commit of a dataset on the hub.

    Raises:
        UserError: the source cannot be had, holds nothing readable, lacks a field, or nothing of it survives.
    """
    settings = cast(CorpusSettings, stage.settings)
    audit = Audit()
    with audit.timed("fetch"):
        source = fetch(settings.source, settings.include, stage.console)
    free_space(stage.dir, _DISK_FACTOR * sum(file.stat().st_size for file in source.files))
    spool = stage.dir / ".spool"
    shutil.rmtree(spool, ignore_errors=True)
    spool.mkdir(parents=True)
    finder = Finder(spool / "tokens.u64", _thresholds(settings))
    preparation = Preparation(settings, source, audit, finder)
    quarantine = _first_pass(stage, settings, source, preparation, audit, spool)
    if quarantine.counts:  # before the check: what is in the file is why nothing may be left
        stage.console.say(f"{stage.name}: {quarantine.told()}; each with its place in {stage.dir.name}/{SET_ASIDE}")
    _check(source, preparation, audit, quarantine)
    with audit.timed("find copies"):
        copies = Copies.none(len(preparation.ids))
        if settings.dedup != "off":
            copies = finder.find(preparation.lengths, stage.console)
    second = _SecondPass(preparation.ids, copies, settings.heldout, audit)
    with audit.timed("write"):
        write_documents(stage.dir / "documents", second.survivors(read_documents(spool / "documents")), SHARD_ROWS)
    shutil.rmtree(spool)
    return _account(stage, source, preparation, second, audit, quarantine)


def _thresholds(settings: CorpusSettings) -> dict[Scheme, float]:
    if settings.dedup != "near":
        return {}
    return {SHORT: settings.short_threshold, LONG: settings.near_threshold}


def _first_pass(
    stage: Stage, settings: CorpusSettings, source: Source, preparation: Preparation, audit: Audit, spool: Path
) -> Quarantine:
    """Read, clean and fingerprint everything into the spool."""
    with atomic_write(stage.dir / SET_ASIDE) as handle, stage.console.task("read", unit="records") as task:
        quarantine = Quarantine(handle)
        records = read_records(source, settings.split, settings.piece_chars, quarantine)
        with audit.timed("write"):
            write_documents(spool / "documents", preparation.documents(records, quarantine, task), SHARD_ROWS)
    return quarantine


def _check(source: Source, preparation: Preparation, audit: Audit, quarantine: Quarantine) -> None:
    """Refuse to go on with nothing, saying what became of everything."""
    preparation.check_fields()
    if preparation.ids:
        return
    fates = Counter(audit.dropped()) + quarantine.counts
    told = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in fates.most_common()) or "no records"
    raise UserError(
        f"nothing of {source.name} survives ({len(source.files)} files: {told}); {_MEND[bool(audit.dropped())]}"
    )


# What to do when nothing is left, by whether anything could be read at all.
_MEND = {
    True: "loosen corpus.profile and its limits, or give other text",
    False: "give files of text, Markdown, JSON, JSONL, CSV or Parquet that can be read",
}


class _SecondPass:
    """Drops copies and counts what stays."""

    def __init__(self, ids: list[str], copies: Copies, heldout: float, audit: Audit) -> None:
        self._ids, self._copies, self._audit = ids, copies, audit
        self.share = fitting_share((ids[i] for i, of in enumerate(copies.of.tolist()) if of == i), heldout)
        self._stays_for = copies.cluster_sizes().tolist()
        self.documents: Counter[str] = Counter()  # by fate: KEPT, EXACT or NEAR
        self.characters: Counter[str] = Counter()
        self.heldout = 0

    def survivors(self, documents: Iterator[Document]) -> Iterator[Document]:
        """The documents that are nobody's copy, with the number of documents that each stands for."""
        copies = self._copies
        columns = (copies.of.tolist(), copies.exact.tolist(), copies.similarity.tolist(), copies.limit.tolist())
        for ordinal, (document, of, exact, value, limit) in enumerate(zip(documents, *columns, strict=True)):
            fate = KEPT if of == ordinal else EXACT if exact else NEAR
            self.documents[fate] += 1
            self.characters[fate] += len(document.text)
            if fate != KEPT:
                self._audit.drop(document.id, fate, round(value, 4), limit, document.text, self._ids[of])
                continue
            self.heldout += is_heldout(document.id, self.share)
            self._audit.keep(document.id)
            self._audit.languages[document.language] += 1
            yield replace(document, attributes={**document.attributes, "cluster_size": self._stays_for[ordinal]})

    def clusters(self) -> dict[str, int]:
        """Size -> how many groups of copies have it, singles left out."""
        sizes = Counter(size for size in self._stays_for if size > 1)
        return {str(size): count for size, count in sorted(sizes.items())}


def _account(
    stage: Stage, source: Source, preparation: Preparation, second: _SecondPass, audit: Audit, quarantine: Quarantine
) -> dict[str, Any]:
    """Write the audit and return the figures for the manifest."""
    audit.step("read", preparation.n_records, preparation.n_chars)
    for step, fates in (
        ("clean", (KEPT, NEAR, EXACT)),
        ("exact copies out", (KEPT, NEAR)),
        ("near copies out", (KEPT,)),
    ):
        audit.step(step, sum(second.documents[f] for f in fates), sum(second.characters[f] for f in fates))
    facts = {
        "source": source.name,
        "revision": source.revision,
        "files": len(source.files),
        "licences": {source.name: source.licence},
        "heldout": second.heldout,
        "clusters": second.clusters(),
        "fingerprint": ALGORITHM,
        "quarantined": dict(quarantine.counts.most_common()),
        "notes": quarantine.notes,
    }
    audit.write(stage.dir / "audit.json", facts)
    write_share(stage.dir, second.share)
    audit.write_decisions(stage.dir / "decisions.parquet")
    if second.characters[KEPT] < _LITTLE:
        stage.console.say(
            f"{stage.name}: {second.characters[KEPT]:,} characters are enough to see that everything runs and too few "
            "to learn from; figures will say little", style="yellow",
        )  # fmt: skip
    return {
        "records": preparation.n_records,
        "documents": second.documents[KEPT],
        "dropped": audit.dropped(),
        "exact_duplicates": second.documents[EXACT],
        "near_duplicates": second.documents[NEAR],
        "quarantined": quarantine.counts.total(),
        "characters": second.characters[KEPT],
        "heldout": second.heldout,
        **({"revision": source.revision} if source.revision else {}),
    }
