"""Who is asking: no route is open unless it is on the list of those that are.

In:  every HTTP request: a key in ``Authorization``, or the cookie of a page that logged in.
Out: ``request.state.caller``; 401 for strangers, 403 for what the caller may not do; routes to log in and out.
Left out: keeping keys and passwords (``people``), whose a conversation is (``dialogues``), ``Host`` (``limits``).

As long as there are neither users nor keys, and only this machine can reach the server, whoever sits at it may do
everything. The first user or key ends that at once.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import zlib
from contextvars import ContextVar
from typing import Annotated, Any

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from pydantic import Field
from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from danlu.align.storage import StoreError
from danlu.serve.bodies import Body
from danlu.serve.people import MAX_PASSWORD, SESSION_DAYS, Caller, People
from danlu.serve.problems import Refusal, respond
from danlu.serve.rates import Bucket, Meter, Rates
from danlu.serve.store import ServeStore

_LOG = logging.getLogger("danlu.serve")

__all__ = ["PUBLIC", "Accounts", "Caller", "caller_of", "current_caller", "routes"]

PUBLIC = frozenset({"/healthz", "/readyz", "/api/login"})
"""Open to strangers, with the page's own files."""

_OPERATORS = ("/api/operator", "/api/runs", "/metrics")
_COOKIE = "danlu_session"
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_TRIES_A_MINUTE = 10
_NOBODY = Caller("", frozenset())
_CALLER: ContextVar[Caller] = ContextVar("caller", default=_NOBODY)


def caller_of(request: Request) -> Caller:
    """Who sent this request."""
    caller: Caller = request.state.caller
    return caller


def current_caller() -> Caller:
    """Who sent the request that is being answered, for code that does not see requests."""
    return _CALLER.get()


class Accounts:
    """ASGI middleware around the whole application.

    Args:
        store: who is known.
        rates: how much they may ask.
        public: paths that are open to strangers.
        closed: whether accounts are needed even while there are none: others than this machine reach the server.
    """

    def __init__(
        self, app: ASGIApp, store: ServeStore, rates: Rates, public: frozenset[str] = PUBLIC, closed: bool = False
    ) -> None:
        self.app, self._people, self._rates = app, store.people, rates
        self._public, self._closed = public, closed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it here."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        else:  # nothing else is served, and nothing else gets past here
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            caller = await self._caller(Request(scope))
        except (Refusal, StoreError) as error:
            await respond(error, scope)(scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = caller
        _CALLER.set(caller)
        await self.app(scope, receive, _telling(self._rates.of(caller), send))

    async def _caller(self, request: Request) -> Caller:
        """Who this is, if they may do what they ask.

        Raises:
            Refusal: they may not.
        """
        path = request.scope["path"]
        if path in self._public:
            return _NOBODY
        caller = await self._known(request)
        scope = "operator" if any(path == place or path.startswith(f"{place}/") for place in _OPERATORS) else "chat"
        if scope not in caller.scopes:
            raise Refusal(403, f"this needs the scope '{scope}', which your key does not have", "insufficient_scope")
        return caller

    async def _known(self, request: Request) -> Caller:
        if not self._closed and not await run_sync(self._people.any):
            return Caller()
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        cookie = request.cookies.get(_COOKIE)
        caller = None
        if kind.lower() == "bearer":
            caller = await run_sync(self._people.by_key, key.strip())
        elif cookie:
            caller = await run_sync(self._people.by_cookie, cookie)
            if caller is not None and request.method not in _SAFE:
                _check_header(request, cookie)
        if caller is None:
            said = "this key is not good here" if kind else "a key is needed: Authorization: Bearer KEY; or log in"
            raise Refusal(401, said, "invalid_api_key", headers={"www-authenticate": "Bearer"})
        return caller


def _telling(meter: Meter, send: Send) -> Send:
    """A ``send`` that adds what is left of the caller's minute, as it stands when the answer begins."""

    async def told(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(meter.headers())
        await send(message)

    return told


def _token(cookie: str) -> str:
    """What only a page that was logged in by us can know: a page from elsewhere cannot read the answer that has it."""
    return hashlib.sha256(f"csrf:{cookie}".encode()).hexdigest()


def _check_header(request: Request, cookie: str) -> None:
    sent = request.headers.get("x-csrf-token", "")
    if not hmac.compare_digest(sent.encode(), _token(cookie).encode()):
        raise Refusal(403, "the header x-csrf-token is missing or wrong; load the page again", "csrf")


class LoginRequest(Body):
    """POST /api/login: a user with a password, or a key."""

    user: Annotated[str, Field(max_length=64)] = ""
    password: Annotated[str, Field(max_length=MAX_PASSWORD)] = ""
    key: Annotated[str, Field(max_length=200)] = ""


def routes(store: ServeStore) -> APIRouter:
    """Log in, log out, ask who one is."""
    router, people, guard = APIRouter(), store.people, _Guard()

    @router.post("/api/login")
    async def log_in(asked: LoginRequest, request: Request) -> Response:
        cookie = await guard.log_in(people, asked)
        if cookie is None:
            _LOG.warning("a login as %r was refused", asked.user)
            raise Refusal(401, "the name or the password is wrong, or the key is not good here", "login_failed")
        caller = await run_sync(people.by_cookie, cookie)
        assert caller is not None  # it was made just now
        await run_sync(store.audit, caller.owner, "login", caller.key)
        answer = JSONResponse(_me(caller, cookie))
        answer.set_cookie(
            _COOKIE, cookie, max_age=SESSION_DAYS * 86_400, httponly=True, samesite="strict",
            secure=request.scope["scheme"] == "https",
        )  # fmt: skip
        return answer

    @router.post("/api/logout", status_code=204)
    async def log_out(request: Request) -> Response:
        await run_sync(people.log_out, request.cookies.get(_COOKIE, ""))
        answer = Response(status_code=204)
        answer.delete_cookie(_COOKIE)
        return answer

    @router.get("/api/me")
    async def me(request: Request) -> dict[str, Any]:
        return _me(caller_of(request), request.cookies.get(_COOKIE, ""))

    return router


def _me(caller: Caller, cookie: str) -> dict[str, Any]:
    return {"owner": caller.owner, "scopes": sorted(caller.scopes), "csrf": _token(cookie) if cookie else ""}


class _Guard:
    """Slows down guessing: few tries a minute for a name, few passwords checked at a time."""

    def __init__(self) -> None:
        self._tries: dict[int, Bucket] = {}
        self._hashing = CapacityLimiter(2)  # each takes 64 MB and a core for a moment

    async def log_in(self, people: People, asked: LoginRequest) -> str | None:
        if asked.key:
            return await run_sync(people.log_in_by_key, asked.key)
        # Names share 4096 buckets, those of nobody too: there is no end of names, and no telling which ones exist.
        number = zlib.crc32(asked.user.encode("utf-8", "replace")) % 4096
        tries = self._tries.setdefault(number, Bucket(_TRIES_A_MINUTE))
        if tries.wait(1):
            message = "too many tries for this name; wait a minute"
            raise Refusal(429, message, "too_many_tries", headers={"retry-after": "60"})
        tries.take(1)
        return await run_sync(people.log_in, asked.user, asked.password, limiter=self._hashing)
