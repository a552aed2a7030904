"""What goes wrong on the wire, in OpenAI's envelope: ``{"error": {message, type, param, code}}``.

In:  refusals raised by handlers, FastAPI's own validation errors, faults of ours.
Out: responses that the OpenAI client turns into its exceptions; sentences a person can act on.
Left out: which requests are refused (``wire``, ``limits``, ``chat``).

OpenAI's client asks again by itself after 408, 409, 429 and every 5xx. It obeys ``x-should-retry`` and ``Retry-After``,
so both are always there where they matter: again after 429 and 503, never after another fault.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from danlu.align.preferences import StoreError
from danlu.errors import UserError

_LOG = logging.getLogger("danlu.serve")
_RETRY_SECONDS = "2"
_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_OURS = "something went wrong in the server; its log has the details"


class Refusal(HTTPException):
    """A request that is not answered, and why.

    Args:
        status: HTTP status, 400 to 599.
        message: one sentence: what, where, what to do.
        code: a word that programs can test for.
        param: the field of the request that is at fault.
        headers: such as ``Retry-After``.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(status, message, dict(headers or {}))
        self.code, self.param = code, param


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(BaseModel):
    """Every answer of status 400 and above."""

    error: ErrorBody


RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorEnvelope, "description": "The request is refused"},
    "5XX": {"model": ErrorEnvelope, "description": "The server cannot answer now"},
}
"""For the schema of every route."""


def envelope(error: Exception) -> dict[str, Any]:
    """The JSON of any error, also used as an event when an answer has already begun."""
    if isinstance(error, Refusal):
        return _envelope(error.status_code, error.detail, error.code, error.param)
    if isinstance(error, StoreError):
        return _envelope(503, str(error), "store_unavailable", None)
    if isinstance(error, UserError):
        return _envelope(404, str(error), "not_found", None)
    if isinstance(error, HTTPException):
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        return _envelope(error.status_code, str(error.detail), code, None)
    return _envelope(500, _OURS, "internal_error", None)


def respond(error: Exception, scope: Scope) -> JSONResponse:
    """The response to a request that ``error`` ended; notes its code in ``scope["state"]["refused"]``."""
    content = envelope(error)
    status = _status(error)
    scope.setdefault("state", {})["refused"] = content["error"]["code"]
    headers = dict(getattr(error, "headers", None) or {})
    if status in (429, 503):
        headers = {"retry-after": _RETRY_SECONDS, "x-should-retry": "true"} | headers
    elif status >= 500:
        headers["x-should-retry"] = "false"
    return JSONResponse(content, status, headers)


class Faults:
    """ASGI middleware next to the routes: a fault of ours leaves in the envelope too, and its details go to the log."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; answer it if that fails before an answer began."""
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:
            if begun or scope["type"] != "http":
                raise
            name = scope.get("state", {}).get("request_id", "")
            _LOG.error("fault while answering request %s", name, exc_info=error)
            await respond(error, scope)(scope, receive, send)


def install(app: FastAPI) -> None:
    """Make every error of ``app`` leave in the envelope: refusals, unknown paths, wrong methods, faults."""
    app.add_middleware(Faults)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(StoreError, _store)
    for kind in (HTTPException, UserError):  # rooms to the left raise UserError only for names that are not there
        app.add_exception_handler(kind, _known)


async def _known(request: Request, error: Exception) -> JSONResponse:
    return respond(error, request.scope)


async def _store(request: Request, error: Exception) -> JSONResponse:
    """A full disk is no fault of ours: whoever runs the server can mend it, and then it works again."""
    _LOG.error("%s", error)
    return respond(error, request.scope)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """FastAPI's 422 with a list becomes 400 with one sentence about the first field at fault."""
    assert isinstance(error, RequestValidationError)
    problem = error.errors()[0]
    param = ".".join(_path(problem, error.body)) or None
    if problem["type"] == "json_invalid":
        return respond(Refusal(400, "the body is not valid JSON", "invalid_json"), request.scope)
    said = problem["msg"].removeprefix("Value error, ")
    return respond(Refusal(400, f"{param}: {said}" if param else said, "invalid_value", param), request.scope)


def _path(problem: Mapping[str, Any], body: Any) -> list[str]:
    """Where in the body the fault is; pydantic's own words for the branches of a union are no part of it."""
    path: list[str] = []
    for part in problem["loc"][1:]:
        there = part in body if isinstance(body, dict) else isinstance(body, list) and isinstance(part, int)
        if there:
            body = body[part]
        elif problem["type"] != "missing":
            break
        path.append(str(part))
    return path


def _status(error: Exception) -> int:
    if isinstance(error, HTTPException):
        return error.status_code
    return 503 if isinstance(error, StoreError) else 404 if isinstance(error, UserError) else 500


def _envelope(status: int, message: str, code: str | None, param: str | None) -> dict[str, Any]:
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
