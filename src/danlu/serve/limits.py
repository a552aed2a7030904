"""The door: what is turned away before anybody looks at it, and the headers on everything that leaves.

In:  every HTTP request.
Out: 403 for a foreign ``Host`` or ``Origin``, 413 above 2 MB, 415 for bodies that are not JSON; security headers.
Left out: ranges of fields (``wire``), the queue (``engine``), accounts.

``Host`` is checked because a page anywhere can point its own name at 127.0.0.1 and then talk to us as its own origin
(DNS rebinding). ``Origin`` and the content type are checked because a page can post a form anywhere.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from danlu.serve.problems import Refusal, envelope

MAX_BODY_BYTES = 2_000_000
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})

HEADERS = {
    "content-security-policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types dompurify",
        )
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class Door:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it here."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            _check_headers(scope["method"], Headers(scope=scope))
            body = await _read(receive)
        except Refusal as refusal:
            await JSONResponse(envelope(refusal), refusal.status_code)(scope, receive, send_guarded)
            return
        await self.app(scope, _replay(body, receive), send_guarded)


def _check_headers(method: str, headers: Headers) -> None:
    if _name(headers.get("host", "")) not in HOSTS:
        raise Refusal(403, "this server answers to 127.0.0.1 and localhost only", "host_not_allowed")
    origin = headers.get("origin")
    if origin is not None and _name(origin.partition("://")[2]) not in HOSTS:
        raise Refusal(403, "pages from elsewhere may not use this server", "origin_not_allowed")
    if method in _WITH_BODY and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "the body must be JSON, with content-type application/json", "unsupported_media_type")
    length = headers.get("content-length", "0")
    if length.isdigit() and int(length) > MAX_BODY_BYTES:
        raise _too_large()


def _name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:  # an unclosed bracket
        return None


async def _read(receive: Receive) -> bytes:
    """The whole body, or a refusal as soon as it is too long: a length that was promised need not be kept."""
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY_BYTES:
            raise _too_large()
    return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives the body once and then what really comes: at some time, the client's leaving."""
    told = False

    async def replayed() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def _too_large() -> Refusal:
    return Refusal(413, f"the body is larger than {MAX_BODY_BYTES:,} bytes; send less", "body_too_large")
