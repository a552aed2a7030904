"""The application: every route in one place.

In:  models that are loaded, a preference store.
Out: a FastAPI application: OpenAI's chat API, our own ``/api``, the page.
Left out: accounts, moderation.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.responses import PlainTextResponse, Response

from danlu import __version__
from danlu.align.preferences import PreferenceStore
from danlu.records import Message
from danlu.serve import page, problems, v1
from danlu.serve.engine import Engine
from danlu.serve.feedback import Feedback
from danlu.serve.limits import Door
from danlu.serve.metrics import Metrics
from danlu.serve.models import Models
from danlu.serve.problems import Refusal
from danlu.serve.shutdown import Leaving
from danlu.serve.trace import Trace
from danlu.serve.wire import CompareRequest, VoteRequest
from danlu.serve.worker import Setup, load


def create_app(
    places: Mapping[str, Path], store: PreferenceStore, *, setup: Setup | None = None, waiting: int = 32,
    starters: Sequence[str] = (), shots: Sequence[Message] = (), own_process: bool = False,
) -> FastAPI:  # fmt: skip
    """The application that serves the models in ``places``.

    Args:
        places: model directories by the name clients use; the first is the page's default.
        store: where comparisons and votes go.
        setup: how answers are written.
        waiting: answers that may wait.
        starters: things to try, which the page offers.
        shots: turns of examples that stand before every dialogue.
        own_process: whether the models live in a process of their own, as they do behind ``danlu serve``.

    Raises:
        UserError: a model cannot be served.
    """
    models = Models.load(places, shots)
    setup = setup or Setup()
    if own_process:
        engine = Engine.in_process(places, setup, waiting)
    else:
        engine = Engine.in_thread({name: load(place) for name, place in places.items()}, setup, waiting)
    feedback = Feedback(models, engine, store)
    metrics, leaving = Metrics(engine), Leaving(engine)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        engine.close()

    # No interactive documentation: its pages load scripts from elsewhere. The schema is at /openapi.json.
    app = FastAPI(title="danlu", version=__version__, lifespan=life, docs_url=None, redoc_url=None,
                  responses=problems.RESPONSES)  # fmt: skip
    app.state.engine, app.state.leaving, app.state.metrics = engine, leaving, metrics
    problems.install(app)
    app.add_middleware(Door)
    app.add_middleware(Trace, metrics=metrics)  # the last one is around all others
    app.include_router(v1.routes(models, engine, metrics))
    _add_own(app, models, feedback, starters)
    _add_operation(app, metrics, leaving)
    app.include_router(page.routes())
    return app


def _add_own(app: FastAPI, models: Models, feedback: Feedback, starters: Sequence[str]) -> None:
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
