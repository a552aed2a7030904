"""OpenAI's API: every route below /v1.

In:  what is served and what writes.
Out: a router.
Left out: what each route does (``chat``, ``completions``, ``reading``), our own API (``api``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from danlu.serve import chat, completions, reading
from danlu.serve.desk import Desk
from danlu.serve.models import Models
from danlu.serve.rates import Meter
from danlu.serve.replies import ChatCompletion, ModelCard, ModelList, TextCompletion
from danlu.serve.wire_chat import ChatRequest
from danlu.serve.wire_text import CompletionRequest, DetokenizeRequest, EmbeddingRequest, TokenizeRequest

_STREAM = {"text/event-stream": {"schema": {"type": "string"}}}


def routes(models: Models, desk: Desk, reader: reading.Reader, most: int, meter: Callable[[], Meter]) -> APIRouter:
    """Chat, completions, embeddings, models, token ids.

    Args:
        models: what is served.
        desk: takes what is to be written.
        reader: takes what is to be read.
        most: answers that can be asked for at once.
        meter: of whoever is asking now, for what costs a request and no tokens.
    """
    router = APIRouter(prefix="/v1")

    async def counted() -> None:
        meter().pay(1)

    @router.post("/chat/completions", responses={200: {"model": ChatCompletion, "content": _STREAM}})
    async def chat_completions(asked: ChatRequest, request: Request) -> Response:
        return await chat.complete(models, desk, asked, request.receive)

    @router.post("/completions", responses={200: {"model": TextCompletion, "content": _STREAM}})
    async def text_completions(asked: CompletionRequest, request: Request) -> Response:
        return await completions.complete(models, desk, reader, most, asked, request.receive)

    @router.post("/embeddings", responses={200: {"model": reading.EmbeddingList}})
    async def embeddings(asked: EmbeddingRequest, request: Request) -> dict[str, Any]:
        return await reading.embed(models, reader, asked, request.receive)

    @router.post("/tokenize", responses={200: {"model": reading.TokenList}}, dependencies=[Depends(counted)])
    async def tokenize(asked: TokenizeRequest) -> dict[str, Any]:
        return await reading.tokenize(models, asked)

    @router.post("/detokenize", responses={200: {"model": reading.PlainText}}, dependencies=[Depends(counted)])
    async def detokenize(asked: DetokenizeRequest) -> dict[str, Any]:
        return await reading.detokenize(models, asked)

    @router.get("/models", responses={200: {"model": ModelList}})
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [served.listing() for served in models.all()]}

    @router.get("/models/{name:path}", responses={200: {"model": ModelCard}})
    async def one_model(name: str) -> dict[str, Any]:
        return models.get(name).listing()

    return router
