"""Which documents are held out: decided by a document's id alone, the same in every room and every run.

In:  a document id and the share to hold out, which a corpus carries with it.
Out: yes or no.
Left out: which documents exist; near-duplicates are gone by then, so none straddles the split.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path

from danlu.files import read_json, write_json

SPLIT = "split.json"


def is_heldout(document_id: str, share: float) -> bool:
    """Whether a document is kept from training.

    A larger share holds out the same documents and more: nothing that was held out ever becomes training text.

    Args:
        document_id: ``Document.id``.
        share: expected share of documents, 0 to 1.
    """
    return _place(document_id) < share * 2.0**64


def fitting_share(document_ids: Iterable[str], share: float) -> float:
    """``share``, or the nearest one that holds out at least one of these documents and leaves at least one.

    By luck of the hashes a tenth of ten documents is none of them as often as one time in three.

    Args:
        document_ids: all that there are; fewer than two cannot be divided, and leave ``share`` as it is.
        share: the share that is wanted.
    """
    places = [_place(document_id) for document_id in document_ids]
    if len(places) < 2:
        return share
    holds_one, leaves_one = math.nextafter(min(places) / 2.0**64, 1), math.nextafter(max(places) / 2.0**64, 0)
    return min(max(share, holds_one), leaves_one)


def _place(document_id: str) -> int:
    """Where in 0 .. 2**64 a document falls."""
    return int.from_bytes(hashlib.sha256(f"heldout {document_id}".encode()).digest()[:8], "big")


def write_share(corpus: Path, share: float) -> None:
    """Note in a corpus directory how much of it is held out, so that every later stage asks the same question."""
    write_json(corpus / SPLIT, {"heldout_share": share})


def read_share(corpus: Path) -> float:
    """The share that ``write_share`` noted.

    Raises:
        UserError: the corpus stage has not finished there.
    """
    return float(read_json(corpus / SPLIT)["heldout_share"])
