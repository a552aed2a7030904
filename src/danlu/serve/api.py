"""The application: every route in one place.

In:  model directories, a store, options.
Out: a FastAPI application: OpenAI's API, our own ``/api``, the page.
Left out: what each route does (its own module), OpenAI's routes (``v1``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from starlette.responses import PlainTextResponse, Response

from danlu import __version__
from danlu.align.champion import CHAMPION
from danlu.align.preferences import PreferenceStore
from danlu.serve import accounts, conversations, keys, moderation, operator, page, problems, v1
from danlu.serve.accounts import PUBLIC, Accounts, caller_of, current_caller
from danlu.serve.condense import Condenser
from danlu.serve.conversations import Conversations
from danlu.serve.desk import Desk
from danlu.serve.engine import Engine
from danlu.serve.feedback import Feedback
from danlu.serve.limits import Door
from danlu.serve.metrics import Metrics
from danlu.serve.models import Models
from danlu.serve.options import Options
from danlu.serve.problems import Refusal
from danlu.serve.rates import Meter, Metered
from danlu.serve.reading import Reader
from danlu.serve.runs import Runs
from danlu.serve.second_look import SecondLooks
from danlu.serve.shutdown import Leaving
from danlu.serve.store import ServeStore
from danlu.serve.succession import Succession, with_champion
from danlu.serve.talk import Talk
from danlu.serve.trace import Trace
from danlu.serve.votes import RankRequest, VoteRequest
from danlu.serve.wire import CompareRequest
from danlu.serve.worker import load


def create_app(places: Mapping[str, Path], store: PreferenceStore, options: Options | None = None) -> FastAPI:
    """The application that serves the models in ``places``.

    Args:
        places: model directories by the name clients use; the first is the page's default.
        store: where comparisons and votes go; conversations, keys and the like go into the same database.
        options: how.

    Raises:
        UserError: a model cannot be served.
    """
    options = options or Options()
    places = with_champion(places, options.follow)
    models, engine = Models.load(places, options.shots), _engine(places, options)
    kept, metrics, leaving = ServeStore(store.database), Metrics(engine), Leaving(engine)

    def meter() -> Meter:
        return options.rates.of(current_caller())

    safety = options.safety.telling(kept.note_moderation)
    safety.heard = metrics.note_finding
    desk = Desk(Metered(engine, meter), metrics, safety)
    looks = SecondLooks(store, options.second_look, options.repeats, options.starters)
    feedback, talks = Feedback(models, desk, store, looks), Conversations(kept, store)
    talk = Talk(models, desk, kept.dialogues, Condenser(desk, kept.notes), options.linger)
    following = Succession(options.follow, models, engine, options.shots) if options.follow else None

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        async with _following(following):
            yield
        engine.close()
        await talk.settle()

    # No interactive documentation: its pages load scripts from elsewhere. The schema is at /openapi.json.
    app = FastAPI(title="danlu", version=__version__, lifespan=life, docs_url=None, redoc_url=None,
                  responses=problems.RESPONSES)  # fmt: skip
    app.state.engine, app.state.leaving, app.state.metrics = engine, leaving, metrics
    problems.install(app)
    files = page.routes()
    public = PUBLIC | {route.path for route in files.routes if isinstance(route, APIRoute)}
    app.add_middleware(Accounts, store=kept, rates=options.rates, public=public, closed=options.reach.elsewhere)
    app.add_middleware(Door, reach=options.reach)
    app.add_middleware(Trace, metrics=metrics)  # the last one is around all others
    app.include_router(v1.routes(models, desk, Reader(engine, meter), engine.running + engine.waiting, meter))
    moderation.add_openai_route(app, safety, meter)
    moderation.add_queue_routes(app, kept, safety)
    _add_own(app, models, feedback, talks, options)
    _add_operation(app, metrics, leaving)
    app.include_router(conversations.routes(talks, talk))
    app.include_router(accounts.routes(kept))
    app.include_router(keys.routes(kept))
    app.include_router(operator.routes(models, store, Runs(options.runs), following))
    app.include_router(files)
    return app


@asynccontextmanager
async def _following(succession: Succession | None) -> AsyncIterator[None]:
    """Follow a run's champion, if there is a run."""
    if succession is None:
        yield
        return
    following = asyncio.create_task(succession.follow())
    try:
        yield
    finally:
        following.cancel()


def _engine(places: Mapping[str, Path], options: Options) -> Engine:
    setup = replace(options.setup, spare=int(CHAMPION in places))  # its successor comes before it leaves
    if options.own_process:
        return Engine.in_process(places, setup, options.waiting)
    writers = {name: load(place, setup, len(places)) for name, place in places.items()}
    return Engine.in_thread(writers, setup, options.waiting)


def _add_own(app: FastAPI, models: Models, feedback: Feedback, talks: Conversations, options: Options) -> None:
    @app.get("/api/info")
    async def info() -> dict[str, Any]:
        return {
            "version": __version__,
            "models": [served.facts() for served in models.all()],
            "starters": list(options.starters),
            "summarise": options.summarise,
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


def _add_operation(app: FastAPI, metrics: Metrics, leaving: Leaving) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process lives."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        """New requests are welcome."""
        if leaving.begun:
            raise Refusal(503, "the server is stopping; ask another one", "stopping")
        return {"status": "ready"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def numbers() -> Response:
        """For Prometheus."""
        return metrics.response()
