"""What the gates found, kept for people to judge; their judgements are what the next guard learns from.

In:  events of the gates, a store.
Out: ``ModerationEvent``; ``ModerationStore``, what the queue needs of a store; ``labelled_examples``.
Left out: finding (``safety``), keeping (the store), the routes (``moderation``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from danlu.align.labelled import SAFE
from danlu.evals.hazards import Action, Stage

_ALL = 1_000_000


@dataclass(frozen=True)
class ModerationEvent:
    """Something that was found.

    Attributes:
        stage: ``"prompt"`` or ``"answer"``.
        action: ``"block"``, ``"warn"`` or ``"review"``.
        category: id in the rules file.
        scanner: ``"rules"`` or ``"guard"``.
        score: how sure, 0 to 1.
        text: the message, or the answer as far as it was written.
        owner, conversation, model: whose, where, by which model.
    """

    stage: Stage
    action: Action
    category: str
    scanner: Literal["rules", "guard"]
    score: float
    text: str
    owner: str = ""
    conversation: str = ""
    model: str = ""


class ModerationStore(Protocol):
    """What the queue needs of a store; a row is a dict with the event's fields, ``id``, ``status`` and ``label``."""

    def note_moderation(self, event: ModerationEvent) -> str:
        """Keep an event; returns its id."""

    def moderation_queue(self, status: str = "open", limit: int = 100) -> list[dict[str, Any]]:
        """Events of a status."""

    def label_moderation(
        self, id: str, decision: Literal["approve", "redact", "label"], label: str, operator: str
    ) -> None:
        """Keep a decision."""


def labelled_examples(store: ModerationStore) -> Iterator[dict[str, str]]:
    """What people decided, as rows of the JSONL that ``guard.data`` reads: what was redacted teaches nothing."""
    for row in store.moderation_queue("approved", _ALL):
        yield {"text": row["text"], "label": SAFE}
    for row in store.moderation_queue("labelled", _ALL):
        yield {"text": row["text"], "label": row["label"]}
