"""Every request has a name and is counted.

In:  every HTTP request.
Out: ``x-request-id`` on what comes back: the client's own if it gave one, so that its log and ours tell the same story.
Left out: what is counted (``metrics``), what anybody said: words of people are in no log.
"""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from danlu.serve.metrics import Metrics

_NAME = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Trace:
    """ASGI middleware around all others."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Name a request, pass it on, count its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        name = given if _NAME.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = name

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = name
                self.metrics.count(scope, message["status"])
            await send(message)

        await self.app(scope, receive, named)
