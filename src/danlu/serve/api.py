"""The application: every route in one place.

In:  models that are loaded, a preference store.
Out: a FastAPI application: OpenAI's chat API, our own ``/api``, the page.
Left out: metrics, moderation.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from danlu import __version__
from danlu.align.preferences import PreferenceStore
from danlu.serve import accounts, chat, conversations, keys, operator, page, problems
from danlu.serve.accounts import PUBLIC, Accounts, caller_of, current_caller
from danlu.serve.conversations import Conversations
from danlu.serve.engine import Engine
from danlu.serve.feedback import Feedback
from danlu.serve.limits import Door, Reach
from danlu.serve.models import Models
from danlu.serve.rates import Metered, Rates, Writes
from danlu.serve.runs import Runs
from danlu.serve.store import ServeStore
from danlu.serve.talk import Talk
from danlu.serve.votes import RankRequest, VoteRequest
from danlu.serve.wire import ChatRequest, CompareRequest
from danlu.serve.worker import Setup, load


def create_app(
    places: Mapping[str, Path], store: PreferenceStore, *, setup: Setup | None = None, waiting: int = 32,
    starters: Sequence[str] = (), own_process: bool = False, runs: Path | None = None, reach: Reach | None = None,
    rates: Rates | None = None,
) -> FastAPI:  # fmt: skip
    """The application that serves the models in ``places``.

    Args:
        places: model directories by the name clients use; the first is the page's default.
        store: where comparisons and votes go.
        setup: how answers are written.
        waiting: answers that may wait.
        starters: things to try, which the page offers.
        own_process: whether the models live in a process of their own, as they do behind ``danlu serve``.
        reach: from where it can be reached; from this machine only if not given.
        rates: how much a key may ask.
        runs: the folder of the runs that the page shows.

    Raises:
        UserError: a model cannot be served.
    """
    models = Models.load(places)
    setup = setup or Setup()
    if own_process:
        engine = Engine.in_process(places, setup, waiting)
    else:
        engine = Engine.in_thread({name: load(place) for name, place in places.items()}, setup, waiting)
    kept, reach, rates = ServeStore(store.database), reach or Reach(), rates or Rates()
    metered = Metered(engine, lambda: rates.of(current_caller()))
    feedback = Feedback(models, metered, store)
    talk, talks = Talk(models, metered, kept.dialogues), Conversations(kept, store)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        engine.close()
        await talk.settle()

    # No interactive documentation: its pages load scripts from elsewhere. The schema is at /openapi.json.
    app = FastAPI(title="danlu", lifespan=life, docs_url=None, redoc_url=None)
    app.state.engine = engine
    files = page.routes()
    public = PUBLIC | {route.path for route in files.routes if isinstance(route, APIRoute)}
    app.add_middleware(Accounts, store=kept, rates=rates, public=public, closed=reach.elsewhere)
    app.add_middleware(Door, reach=reach)
    problems.install(app)
    _add_openai(app, models, metered)
    _add_own(app, models, feedback, talks, starters)
    app.include_router(conversations.routes(talks, talk))
    app.include_router(accounts.routes(kept))
    app.include_router(keys.routes(kept))
    app.include_router(operator.routes(models, store, Runs(runs)))
    app.include_router(files)
    return app


def _add_openai(app: FastAPI, models: Models, engine: Writes) -> None:
    @app.post("/v1/chat/completions")
    async def chat_completions(asked: ChatRequest, request: Request) -> Response:
        return await chat.complete(models, engine, asked, request.receive)

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [served.listing() for served in models.all()]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        return models.get(name).listing()


def _add_own(app: FastAPI, models: Models, feedback: Feedback, talks: Conversations, starters: Sequence[str]) -> None:
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
    async def compare(asked: CompareRequest, request: Request) -> Response:
        return await talks.inside(caller_of(request).owner, asked, feedback.compare)

    @app.post("/api/rank")
    async def rank(asked: RankRequest, request: Request) -> Response:
        return await talks.inside(caller_of(request).owner, asked, feedback.rank)

    @app.post("/api/vote")
    async def vote(ballot: VoteRequest, request: Request) -> dict[str, Any]:
        return {"verdict": await feedback.vote(await talks.ballot(caller_of(request).owner, ballot))}
