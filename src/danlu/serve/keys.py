"""Keys over HTTP, for operators: list, make, revoke.

In:  requests with the scope "operator" (``accounts`` sees to that).
Out: routes below ``/api/operator/keys``; every change is noted in the audit.
Left out: the same from the command line (``danlu keys``).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from pydantic import Field

from danlu.serve.accounts import caller_of
from danlu.serve.bodies import PlainBody
from danlu.serve.people import NAME
from danlu.serve.store import ServeStore

_Limit = Annotated[int, Field(ge=0, le=1_000_000_000)]


class NewKey(PlainBody):
    """POST /api/operator/keys; a limit of 0 is none, of null the server's own."""

    owner: Annotated[str, Field(pattern=f"^{NAME}$")]
    label: Annotated[str, Field(max_length=200)] = ""
    scopes: list[Literal["chat", "operator"]] = Field(default=["chat"], min_length=1)
    requests: _Limit | None = None
    tokens: _Limit | None = None


def routes(store: ServeStore) -> APIRouter:
    """The three routes."""
    router, people = APIRouter(), store.people

    @router.get("/api/operator/keys")
    async def listing() -> dict[str, Any]:
        return {"keys": await run_sync(people.list_keys)}

    @router.post("/api/operator/keys", status_code=201)
    async def add(asked: NewKey, request: Request) -> dict[str, str]:
        limits = (asked.requests, asked.tokens)
        identity, key = await run_sync(people.add_key, asked.owner, asked.label, asked.scopes, *limits)
        await run_sync(store.audit, caller_of(request).owner, "key.add", identity)
        return {"id": identity, "key": key}

    @router.delete("/api/operator/keys/{identity}", status_code=204)
    async def revoke(identity: str, request: Request) -> None:
        await run_sync(people.revoke_key, identity)
        await run_sync(store.audit, caller_of(request).owner, "key.revoke", identity)

    return router
