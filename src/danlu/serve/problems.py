"""What goes wrong on the wire, in OpenAI's envelope: ``{"error": {message, type, param, code}}``.

In:  refusals raised by handlers, FastAPI's own validation errors, faults of ours.
Out: responses that the OpenAI client turns into its exceptions; sentences a person can act on.
Left out: which requests are refused (``wire``, ``limits``, ``chat``).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from danlu.align.preferences import StoreError
from danlu.errors import UserError

_LOG = logging.getLogger("danlu.serve")
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


def envelope(error: Exception) -> dict[str, Any]:
    """The JSON of any error, also used as an event when an answer has already begun."""
    if isinstance(error, Refusal):
        return _envelope(error.status_code, error.detail, error.code, error.param)
    if isinstance(error, StoreError):
        return _envelope(503, str(error), "store_unavailable", None)
    if isinstance(error, UserError):
        return _envelope(404, str(error), "not_found", None)
    return _envelope(500, _OURS, "internal_error", None)


def install(app: FastAPI) -> None:
    """Make every error of ``app`` leave in the envelope: refusals, unknown paths, wrong methods, faults."""
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(UserError, _user)
    app.add_exception_handler(StoreError, _store)
    app.add_exception_handler(Exception, _fault)


async def _http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error, Refusal):
        content = envelope(error)
    else:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
        content = _envelope(error.status_code, str(error.detail), code, None)
    return JSONResponse(content, error.status_code, headers=error.headers)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    """FastAPI's 422 with a list becomes 400 with one sentence about the first field at fault."""
    assert isinstance(error, RequestValidationError)
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"][1:]]
    if problem["type"] == "json_invalid":
        return JSONResponse(_envelope(400, "the body is not valid JSON", "invalid_json", None), 400)
    param = ".".join(path) or None
    said = problem["msg"].removeprefix("Value error, ")
    message = f"{param}: {said}" if param else said
    return JSONResponse(_envelope(400, message, "invalid_value", param), 400)


async def _user(_: Request, error: Exception) -> JSONResponse:
    """The rooms to the left raise ``UserError`` here only for things that were named and are not there."""
    return JSONResponse(envelope(error), 404)


async def _store(_: Request, error: Exception) -> JSONResponse:
    """A full disk is no fault of ours: whoever runs the server can mend it, and then it works again."""
    _LOG.error("%s", error)
    return JSONResponse(envelope(error), 503)


async def _fault(_: Request, error: Exception) -> JSONResponse:
    _LOG.error("fault while answering a request", exc_info=error)
    # Asking again would only fail again: the client must not retry by itself.
    return JSONResponse(envelope(error), 500, headers={"x-should-retry": "false"})


def _envelope(status: int, message: str, code: str | None, param: str | None) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
