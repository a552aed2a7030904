"""The application: every route in one place.

In:  models that are loaded, a preference store.
Out: a FastAPI application: OpenAI's chat API, our own ``/api``, the page.
Left out: accounts, metrics.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response

from danlu import __version__
from danlu.align.preferences import PreferenceStore
from danlu.serve import chat, moderation, page, problems
from danlu.serve.engine import Engine
from danlu.serve.feedback import Feedback
from danlu.serve.limits import Door
from danlu.serve.models import Models
from danlu.serve.reviews import ModerationStore
from danlu.serve.safety import Safety
from danlu.serve.wire import ChatRequest, CompareRequest, VoteRequest


def create_app(
    places: Mapping[str, Path], store: PreferenceStore, *, running: int = 4, waiting: int = 16,
    starters: Sequence[str] = (), safety: Safety | None = None, reviews: ModerationStore | None = None,
) -> FastAPI:  # fmt: skip
    """The application that serves the models in ``places``.

    Args:
        places: model directories by the name clients use; the first is the page's default.
        store: where comparisons and votes go.
        running: answers written at the same time.
        waiting: answers that may wait.
        starters: things to try, which the page offers.
        safety: the gates before and after the models; none if not given.
        reviews: where what the gates find is kept for people to judge.

    Raises:
        UserError: a model cannot be served.
    """
    models = Models.load(places)
    engine = Engine(running, waiting)
    gates = (safety or Safety(mode="off")).telling(reviews.note_moderation if reviews else None)
    feedback = Feedback(models, engine, store, gates)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        engine.close()

    # No interactive documentation: its pages load scripts from elsewhere. The schema is at /openapi.json.
    app = FastAPI(title="danlu", lifespan=life, docs_url=None, redoc_url=None)
    app.state.engine, app.state.safety = engine, gates
    app.add_middleware(Door)
    problems.install(app)
    _add_openai(app, models, engine, gates)
    moderation.add_openai_route(app, gates)
    if reviews is not None:
        moderation.add_queue_routes(app, reviews, gates)
    _add_own(app, models, feedback, starters)
    app.include_router(page.routes())
    return app


def _add_openai(app: FastAPI, models: Models, engine: Engine, safety: Safety) -> None:
    @app.post("/v1/chat/completions")
    async def chat_completions(asked: ChatRequest, request: Request) -> Response:
        return await chat.complete(models, engine, safety, asked, request)

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [served.listing() for served in models.all()]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        return models.get(name).listing()


def _add_own(app: FastAPI, models: Models, feedback: Feedback, starters: Sequence[str]) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/api/info")
    async def info() -> dict[str, Any]:
        return {
            "version": __version__,
            "models": [served.facts() for served in models.all()],
            "starters": list(starters),
        }

    @app.post("/api/compare")
    async def compare(asked: CompareRequest) -> Response:
        return await feedback.compare(asked)

    @app.post("/api/vote")
    async def vote(ballot: VoteRequest) -> dict[str, Any]:
        return {"verdict": await feedback.vote(ballot)}

    @app.delete("/api/conversations/{conversation}", status_code=204)
    async def forget(conversation: str) -> None:
        await feedback.forget(conversation)
