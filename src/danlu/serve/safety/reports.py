"""Findings in OpenAI's words: results of ``/v1/moderations`` and the field ``moderation`` of a chat completion.

In:  findings, the categories of the rules.
Out: plain data; their names stand beside our own.
Left out: who asks (``moderation``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from danlu.evals.hazards import Category
from danlu.serve.safety.scanners import Finding

MODEL = "danlu-safety"
# The names that clients of OpenAI's moderation read; each is answered for, even where no rule is about it.
_OPENAI = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm",
    "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip


def result(found: Sequence[Finding], categories: Mapping[str, Category]) -> dict[str, Any]:
    """What was found in one text."""
    scores: dict[str, float] = dict.fromkeys((*_OPENAI, *categories), 0.0)
    for finding in found:
        for name in (finding.category, *categories[finding.category].openai):
            scores[name] = max(scores.get(name, 0.0), finding.score)
    return {
        "flagged": bool(found),
        "categories": {name: score > 0 for name, score in scores.items()},
        "category_scores": scores,
        "category_applied_input_types": {name: ["text"] for name in scores},
    }


def field(found: Sequence[Finding], categories: Mapping[str, Category]) -> dict[str, Any]:
    """What a chat completion says of its prompt: what is blocked or warned of; nothing if nothing is."""
    loud = [finding for finding in found if finding.action in ("block", "warn")]
    if not loud:
        return {}
    said = {"type": "moderation_result", "model": MODEL, **result(loud, categories)}
    return {"moderation": {"input": {"type": "moderation_results", "model": MODEL, "results": [said]}}}
