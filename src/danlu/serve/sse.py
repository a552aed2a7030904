"""Server-sent events, written by hand: a client that leaves stops the answer, an error after the start is an event.

In:  answers under way and an async iterator of JSON values.
Out: ``data: <json>`` and a blank line each, ``data: [DONE]`` at the end of a chat stream.
Left out: retry and event ids: a broken stream is asked for again from its beginning (``writing``), not resumed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from danlu.serve.problems import envelope

DONE = "[DONE]"
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class Cancels(Protocol):
    """What somebody has to be told who leaves."""

    def cancel(self) -> None:
        """Nobody listens any more; harmless when all is said."""


class Nobody:
    """For a stream of which all is written already."""

    def cancel(self) -> None:
        """There is nothing to end."""


class EventStream(Response):
    """A response that sends each event as it comes.

    Args:
        answers: what is cancelled when the client leaves, or all is sent.
        events: JSON values, or ``DONE``.
    """

    media_type = "text/event-stream"

    def __init__(self, answers: Cancels, events: AsyncIterator[Any]) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self.answers, self.events = answers, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        async with cancelled_when_gone(receive, self.answers):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for event in self._lines():
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _lines(self) -> AsyncIterator[bytes]:
        try:
            async for event in self.events:
                yield _line(event)
        except Exception as error:  # the status is sent already: the client learns of any fault by an event
            yield _line(envelope(error))


@asynccontextmanager
async def cancelled_when_gone(receive: Receive, answers: Cancels) -> AsyncIterator[None]:
    """While the block runs, watch for the client's leaving; afterwards nothing is written any more."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        answers.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        answers.cancel()
        watching.cancel()


def _line(event: Any) -> bytes:
    text = event if event == DONE else json.dumps(event, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()
