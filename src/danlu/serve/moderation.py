"""Moderation over HTTP: asking the gates about a text, and judging what they found.

In:  the gates, a store that keeps what they found, decisions of an operator.
Out: ``POST /v1/moderations`` in OpenAI's form; the routes of the review queue.
Left out: finding (``safety``), what is kept (``reviews``), learning from it (``align.guard``).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal

from anyio.to_thread import run_sync
from fastapi import FastAPI, Query, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.responses import Response

from danlu.align.labelled import SAFE
from danlu.serve.accounts import OPERATOR, caller_of, require
from danlu.serve.problems import Refusal
from danlu.serve.rates import Meter
from danlu.serve.reviews import ModerationStore, labelled_examples
from danlu.serve.safety import Safety, reports

_MAX_INPUTS, _MAX_CHARS = 32, 100_000

Status = Literal["open", "approved", "redacted", "labelled"]


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


def add_openai_route(app: FastAPI, safety: Safety, meter: Callable[[], Meter]) -> None:
    """``POST /v1/moderations``, in OpenAI's form; our own categories stand beside theirs.

    Args:
        app: gets the route.
        safety: the gates.
        meter: of whoever is asking now; every text is a request.
    """

    @app.post("/v1/moderations")
    async def moderations(asked: _ModerationRequest) -> dict[str, Any]:
        if not safety.scanners:
            raise Refusal(404, "this server looks at nothing: it was started with --safety off", "not_found")
        texts = asked.texts()
        meter().pay(len(texts))
        results = [reports.result(await run_sync(safety.look, text), safety.categories) for text in texts]
        return {"id": f"modr-{uuid.uuid4().hex}", "model": reports.MODEL, "results": results}


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
    caller = caller_of(request)
    require(caller, OPERATOR)
    return caller.owner
