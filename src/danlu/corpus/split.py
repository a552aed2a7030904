"""Which documents are held out: decided by a document's id alone, the same in every room and every run.

In:  a document id and the share to hold out, which a corpus carries with it.
Out: yes or no.
Left out: which documents exist; near-duplicates are gone by then, so none straddles the split.
"""

from __future__ import annotations

import hashlib
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
    digest = hashlib.sha256(f"heldout {document_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2.0**64


def write_share(corpus: Path, share: float) -> None:
    """Note in a corpus directory how much of it is held out, so that every later stage asks the same question."""
    write_json(corpus / SPLIT, {"heldout_share": share})


def read_share(corpus: Path) -> float:
    """The share that ``write_share`` noted.

    Raises:
        UserError: the corpus stage has not finished there.
    """
    return float(read_json(corpus / SPLIT)["heldout_share"])
