"""The door: what is turned away before anybody looks at it, and the headers on everything that leaves.

In:  every HTTP request.
Out: 403 for a foreign ``Host`` or ``Origin``, 413 above 2 MB, 415 for bodies that are not JSON or are compressed, 400
for JSON that other readers would read differently; security headers.
Left out: ranges of fields (``wire``), the queue (``engine``), accounts.

``Host`` is checked because a page anywhere can point its own name at 127.0.0.1 and then talk to us as its own origin
(DNS rebinding). Where others reach the server its numeric addresses will do too: nobody can point those elsewhere, and
names are let in by name. ``Origin`` and the content type are checked because a page can post a form anywhere.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, NoReturn
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from danlu.serve.problems import Refusal, respond

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
            "font-src 'self'",
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


@dataclass(frozen=True)
class Reach:
    """From where the server can be reached.

    Attributes:
        address: what it listens on.
        names: what it is called by others, such as a proxy's public name.
    """

    address: str = "127.0.0.1"
    names: tuple[str, ...] = ()

    @property
    def elsewhere(self) -> bool:
        """Whether anybody but this machine may come: then accounts are needed."""
        return bool(self.names) or self.address not in HOSTS

    def answers_to(self, host: str | None) -> bool:
        """Whether ``host`` is one of the server's names."""
        if host is None:
            return False
        named = host in HOSTS or host in {name.lower() for name in self.names}
        return named or (self.address not in HOSTS and _numeric(host))


class Door:
    """ASGI middleware around the whole application.

    Args:
        reach: from where requests may come.
    """

    def __init__(self, app: ASGIApp, reach: Reach = Reach()) -> None:
        self.app, self.reach = app, reach

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
            _check_headers(scope["method"], Headers(scope=scope), self.reach)
            body = await _read(receive)
            if scope["method"] in _WITH_BODY:
                check_json(body)
        except Refusal as refusal:
            await respond(refusal, scope)(scope, receive, send_guarded)
            return
        await self.app(scope, _replay(body, receive), send_guarded)


def _check_headers(method: str, headers: Headers, reach: Reach) -> None:
    host = _name(headers.get("host", ""))
    if not reach.answers_to(host):
        known = ", ".join(("127.0.0.1", "localhost", *reach.names))
        raise Refusal(403, f"this server answers to {known} only; --allow-host adds a name", "host_not_allowed")
    origin = headers.get("origin")
    own = _name(origin.partition("://")[2]) if origin is not None else host
    if own != host and not (own in HOSTS and host in HOSTS):
        raise Refusal(403, "pages from elsewhere may not use this server", "origin_not_allowed")
    if headers.get("content-encoding", "identity") != "identity":  # a small body may unpack to a very large one
        raise Refusal(415, "the body is compressed; send it as it is", "unsupported_encoding")
    if method in _WITH_BODY and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "the body must be JSON, with content-type application/json", "unsupported_media_type")
    length = headers.get("content-length", "0")
    if length.isdigit() and int(length) > MAX_BODY_BYTES:
        raise _too_large()


def check_json(body: bytes) -> None:
    """Refuse what JSON does not have (``NaN``, ``Infinity``) and keys given twice, of which each reader takes another.

    What is no JSON at all is left to whoever reads it next.

    Raises:
        Refusal: 400.
    """
    try:
        json.loads(body, parse_constant=_no_number, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError):
        return


def _no_number(word: str) -> NoReturn:
    raise Refusal(400, f"{word} is not a number in JSON; leave the field out or give a number", "invalid_json")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise Refusal(400, f"the key '{name[:64]}' is given twice; give it once", "invalid_json", name[:64])
        seen.add(name)


def _name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:  # an unclosed bracket
        return None


def _numeric(host: str) -> bool:
    try:
        return bool(ip_address(host))
    except ValueError:
        return False


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
