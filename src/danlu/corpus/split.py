"""Which documents are held out: decided by a document's id alone, the same in every room and every run.

In:  a document id and the share to hold out.
Out: yes or no.
Left out: which documents exist; near-duplicates are gone by then, so none straddles the split.
"""

from __future__ import annotations

import hashlib


def is_heldout(document_id: str, share: float) -> bool:
    """Whether a document is kept from training.

    A larger share holds out the same documents and more: nothing that was held out ever becomes training text.

    Args:
        document_id: ``Document.id``.
        share: expected share of documents, 0 to 1.
    """
    digest = hashlib.sha256(f"heldout {document_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2.0**64
