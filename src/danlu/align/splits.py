"""What is learned from and what is kept for measuring: decided by hashes, so that it never moves.

In:  a prompt, a rater.
Out: ``"train"`` or ``"heldout"``.
Left out: where the answer is kept (``tables``: a row keeps the split that it was given).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from danlu.files import hash_value
from danlu.records import Message

HELDOUT_SHARE = 0.1
SOURCE = "import:"  # how the raters of foreign judgements are called


def split_of(prompt: Sequence[Message], heldout_share: float = HELDOUT_SHARE) -> str:
    """Whether comparisons of this prompt are "train" or "heldout"."""
    return _split([[m.role, m.content] for m in prompt], heldout_share)


def split_of_rater(rater: str, heldout_share: float) -> str:
    """Whether judgements of this rater are "train" or "heldout": all of them, or none.

    Only persons are held out: neither a rater without a name nor a source.
    """
    return _split(["rater", rater], heldout_share) if is_person(rater) else "train"


def is_person(rater: str) -> bool:
    """Whether a rater's name is one person's."""
    return bool(rater) and not is_source(rater)


def is_source(rater: str) -> bool:
    """Whether judgements by this name are no person's who votes here: "import:hh", many people's, or "judge:poems"."""
    return ":" in rater


def place(value: Any) -> float:
    """A number from 0 to 1 that belongs to a value: it never moves."""
    digest = hash_value(value)
    return int(digest, 16) / 16.0 ** len(digest)


def _split(value: Any, heldout_share: float) -> str:
    return "heldout" if place(value) < heldout_share else "train"
