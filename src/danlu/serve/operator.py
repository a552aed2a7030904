"""The routes of whoever runs the place: runs, votes, and what the votes say.

In:  the runs' folder, the preference store, the models that are served.
Out: ``/api/runs`` and ``/api/operator``.
Left out: keys and the review queue, which have routes beside what they are about; the page.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import StreamingResponse

from danlu.align import ballots
from danlu.align.ballots import Ballot
from danlu.align.preferences import PreferenceStore
from danlu.align.tally import tally
from danlu.serve import succession
from danlu.serve.accounts import OPERATOR, caller_of, require
from danlu.serve.models import Models
from danlu.serve.runs import Runs

_UTF8 = "\ufeff"  # a spreadsheet takes text without this mark for whatever its system spoke thirty years ago

_Limit = Annotated[int, Query(ge=1, le=200)]
_Cursor = Annotated[str, Query(max_length=100)]
_After = Annotated[str, Query(pattern=r"^([0-9]{1,20}-[0-9]{1,18})?$")]


def routes(models: Models, store: PreferenceStore, runs: Runs, followed: Path | None = None) -> APIRouter:
    """GET for runs, votes and ratings; all read files or a database, so all run beside the event loop."""
    router = APIRouter(dependencies=[Depends(_operators_only)])

    @router.get("/api/runs")
    def list_runs() -> dict[str, Any]:
        return {"runs": runs.listing()}

    @router.get("/api/runs/{name}")
    def one_run(name: str) -> dict[str, Any]:
        return runs.show(name)

    @router.get("/api/runs/{name}/metrics")
    def metrics(name: str, stage: str, after: _After = "") -> dict[str, Any]:
        return runs.metrics(name, stage, after)

    @router.get("/api/operator/votes")
    def votes(limit: _Limit = 50, before: _Cursor = "") -> dict[str, Any]:
        found = ballots.page(store, limit + 1, before)
        shown, more = found[:limit], len(found) > limit
        return {
            "votes": [_vote(ballot, models) for ballot in shown],
            "total": ballots.count(store),
            "next": shown[-1].cursor if more else None,
        }

    @router.get("/api/operator/votes.csv")
    def votes_csv() -> StreamingResponse:
        return StreamingResponse(
            itertools.chain([_UTF8], ballots.csv_lines(store)), media_type="text/csv; charset=utf-8",
            headers={"content-disposition": 'attachment; filename="votes.csv"', "cache-control": "no-store"},
        )  # fmt: skip

    @router.get("/api/operator/ratings")
    def ratings() -> dict[str, Any]:
        # Against the model that is youngest in its life of those served, which is the last.
        return tally(store, models.name_of, anchor=models.all()[-1].hash)

    @router.get("/api/operator/champion")
    def champion() -> dict[str, Any]:
        return succession.show(followed)

    return router


def _operators_only(request: Request) -> None:
    require(caller_of(request), OPERATOR)


def _vote(ballot: Ballot, models: Models) -> dict[str, Any]:
    ranks: Sequence[int | None] = ballot.ranks or [None] * len(ballot.answers)
    return {
        "id": ballot.id, "time": ballot.time, "kind": ballot.kind, "rater": ballot.rater, "split": ballot.split,
        "prompt": [asdict(message) for message in ballot.prompt],
        "answers": [
            {"text": a.text, "model": models.name_of(a.model), "model_hash": a.model, "seed": a.seed, "rank": rank}
            for a, rank in zip(ballot.answers, ranks, strict=True)
        ],
        "thumb": {None: None, True: "up", False: "down"}[ballot.up],
        "reason": ballot.reason,
    }  # fmt: skip
