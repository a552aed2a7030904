"""Who is asking.

In:  every HTTP request.
Out: ``Caller``, noted on the request.
Left out: who owns what (``dialogues``).
"""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from danlu.serve.store import ServeStore

SCOPES = frozenset({"chat", "operator"})


@dataclass(frozen=True)
class Caller:
    """Whoever sent a request.

    Attributes:
        owner: whose conversations these are; empty for whoever sits at this machine while no keys are needed.
        scopes: what may be done: "chat", "operator".
        key: id of the API key, or empty.
    """

    owner: str = ""
    scopes: frozenset[str] = SCOPES
    key: str = ""


class Accounts:
    """ASGI middleware: notes who is asking."""

    def __init__(self, app: ASGIApp, store: ServeStore) -> None:
        self.app, self.store = app, store

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it here."""
        if scope["type"] == "http":
            scope.setdefault("state", {})["caller"] = Caller()
        await self.app(scope, receive, send)


def caller_of(request: Request) -> Caller:
    """Who sent this request."""
    caller: Caller = request.state.caller
    return caller
