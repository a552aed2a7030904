"""What a vocabulary does to text, in figures that a person can judge.

In:  a tokenizer and documents.
Out: bytes per token by language, tokens that nothing uses, the longest Han tokens, and a round-trip check.
Left out: quality; which vocabulary trains the better model is measured in bits per byte, by ``evals``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

from danlu.corpus.langid import HAN
from danlu.records import Document
from danlu.tokens.tokenizer import Tokenizer

_LISTED = 100
_HAN = re.compile(f"{HAN}{{2,}}")


def describe(tokenizer: Tokenizer, documents: Iterable[Document]) -> dict[str, Any]:
    """Encode documents and describe the result as JSON data.

    Raises:
        ValueError: a document does not come back as it was; such a vocabulary must not be used.
    """
    used = np.zeros(tokenizer.vocab_size, np.int64)
    languages: dict[str, dict[str, int]] = defaultdict(lambda: {"documents": 0, "bytes": 0, "tokens": 0})
    for batch, encoded in tokenizer.encode_documents(documents):
        for document, ids in zip(batch, encoded, strict=True):
            if tokenizer.decode(ids) != document.text:
                raise ValueError(f"document {document.id} does not survive encoding and decoding")
            used += np.bincount(ids, minlength=tokenizer.vocab_size)
            counts = languages[document.language or "unknown"]
            counts["documents"] += 1
            counts["bytes"] += len(document.text.encode())
            counts["tokens"] += len(ids)
    sizes = tokenizer.byte_lengths
    n_bytes, n_tokens = sum(row["bytes"] for row in languages.values()), int(used.sum())
    return {
        "vocab_size": tokenizer.vocab_size,
        "bytes_per_token": _ratio(n_bytes, n_tokens),
        "sample_bytes": n_bytes,
        "unused_tokens": int(((used == 0) & (sizes > 1)).sum()),
        "single_byte_share": _ratio(int(used[sizes == 1].sum()), n_tokens),
        "languages": {
            name: {**counts, "bytes_per_token": _ratio(counts["bytes"], counts["tokens"])}
            for name, counts in sorted(languages.items())
        },
        "longest_han_tokens": longest_han(tokenizer),
    }


def longest_han(tokenizer: Tokenizer) -> list[str]:
    """The longest tokens of two or more Han characters, longest first: slogans in the corpus show up here."""
    texts = (tokenizer.decode([id]) for id in range(tokenizer.vocab_size))
    found = [text for text in texts if _HAN.fullmatch(text)]
    return sorted(found, key=lambda text: (-len(text), text))[:_LISTED]


def _ratio(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0
