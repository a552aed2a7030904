"""What the gates found, for people to judge; their judgements are what the next guard learns from.

In:  events of the gates, a store that keeps them, decisions of an operator.
Out: ``ModerationEvent``; the routes of the review queue; ``POST /v1/moderations``; ``labelled_examples``.
Left out: finding (``safety``), keeping (the store), learning (``align.guard``).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from anyio.to_thread import run_sync
from fastapi import FastAPI, Query, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.responses import Response

from danlu.serve.problems import Refusal

if TYPE_CHECKING:
    from danlu.serve.safety import Finding, Safety

SAFE = "safe"
_NAME = "danlu-safety"
_ALL = 1_000_000
_MAX_INPUTS, _MAX_CHARS = 32, 100_000
# The names that clients of OpenAI's moderation read; each is answered for, even where no rule is about it.
_OPENAI = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm",
    "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip

Status = Literal["open", "approved", "redacted", "labelled"]


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

    stage: str
    action: str
    category: str
    scanner: str
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


class _Decision(BaseModel):
    """POST /api/operator/moderation/{id}."""

    model_config = ConfigDict(strict=True, extra="ignore")
    decision: Literal["approve", "redact", "label"]
    label: Annotated[str, Field(max_length=64)] = ""

    @model_validator(mode="after")
    def _a_label_is_named(self) -> _Decision:
        if (self.decision == "label") != bool(self.label):
            raise ValueError("'label' names a category, and goes with the decision \"label\" and no other")
        if self.label == SAFE:
            raise ValueError('what is safe is approved: decide "approve"')
        return self


class _ModerationRequest(BaseModel):
    """POST /v1/moderations."""

    model_config = ConfigDict(extra="ignore")
    input: str | list[str]
    model: str | None = None

    def texts(self) -> list[str]:
        """What to look at.

        Raises:
            Refusal: nothing, or too much at once.
        """
        texts = [self.input] if isinstance(self.input, str) else self.input
        if not 1 <= len(texts) <= _MAX_INPUTS or sum(map(len, texts)) > _MAX_CHARS:
            message = f"input must be 1 to {_MAX_INPUTS} texts of at most {_MAX_CHARS:,} characters together"
            raise Refusal(400, message, "invalid_value", "input")
        return texts


def labelled_examples(store: ModerationStore) -> Iterator[dict[str, str]]:
    """What people decided, as rows of the JSONL that ``guard.data`` reads: what was redacted teaches nothing."""
    for row in store.moderation_queue("approved", _ALL):
        yield {"text": row["text"], "label": SAFE}
    for row in store.moderation_queue("labelled", _ALL):
        yield {"text": row["text"], "label": row["label"]}


def add_openai_route(app: FastAPI, safety: Safety) -> None:
    """``POST /v1/moderations``, in OpenAI's form; our own categories stand beside theirs."""

    @app.post("/v1/moderations")
    async def moderations(asked: _ModerationRequest) -> dict[str, Any]:
        if not safety.scanners:
            raise Refusal(404, "this server looks at nothing: it was started with --safety off", "not_found")
        results = [_result(safety, await run_sync(safety.look, text)) for text in asked.texts()]
        return {"id": f"modr-{uuid.uuid4().hex}", "model": _NAME, "results": results}


def add_queue_routes(app: FastAPI, store: ModerationStore, safety: Safety) -> None:
    """The review queue, for operators."""

    @app.get("/api/operator/moderation")
    async def queue(
        request: Request, status: Status = "open", limit: Annotated[int, Query(ge=1, le=1000)] = 100
    ) -> dict[str, Any]:
        _operator(request)
        events = await run_sync(store.moderation_queue, status, limit)
        return {"events": events, "categories": {id: kind.name for id, kind in safety.categories.items()}}

    @app.get("/api/operator/moderation/labels")
    async def labels(request: Request) -> Response:
        _operator(request)
        rows = await run_sync(lambda: list(labelled_examples(store)))
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return Response(lines, media_type="application/jsonl")

    @app.post("/api/operator/moderation/{id}", status_code=204)
    async def decide(id: str, said: _Decision, request: Request) -> None:
        await run_sync(store.label_moderation, id, said.decision, said.label, _operator(request))


def _operator(request: Request) -> str:
    """Who decides.

    Raises:
        Refusal: somebody who may only chat.
    """
    caller = request.state.caller  # set for every request by the middleware of accounts; without it nobody gets in
    if "operator" not in caller.scopes:
        raise Refusal(403, "this needs a key with the scope 'operator'", "forbidden")
    return str(caller.owner)


def _result(safety: Safety, found: list[Finding]) -> dict[str, Any]:
    scores: dict[str, float] = dict.fromkeys((*_OPENAI, *safety.categories), 0.0)
    for finding in found:
        names = safety.categories[finding.category].openai
        for name in (finding.category, *names):
            scores[name] = max(scores.get(name, 0.0), finding.score)
    return {
        "flagged": bool(found),
        "categories": {name: score > 0 for name, score in scores.items()},
        "category_scores": scores,
        "category_applied_input_types": {name: ["text"] for name in scores},
    }
