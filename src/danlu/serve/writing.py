"""An answer in a stored conversation while it is written: followed by any number of readers, kept when it ends.

In:  an answer under way, and its place in a conversation.
Out: its events, from the first word on, to whoever follows; the message in the store.
Left out: what is asked (``talk``), the stream on the wire (``sse``).

A page that is loaded again, or whose network was away for a moment, follows once more and misses nothing. An answer
that nobody follows is written for a little while longer, since its reader may come back, and then stopped: rows are for
those who read. It is stored in any case, and then says "stopped".
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Any

from anyio.to_thread import run_sync

from danlu.infer import Completion
from danlu.records import Message
from danlu.serve.condense import Reading
from danlu.serve.dialogues import Dialogues, Generation, facts
from danlu.serve.engine import Answers
from danlu.serve.jobs import Finished, Piece
from danlu.serve.models import Served
from danlu.serve.sse import EventStream
from danlu.serve.tables import new_id

STOPPED, FAILED = "stopped", "failed"
LINGER_SECONDS = 15.0


@dataclass(frozen=True)
class Place:
    """Where an answer belongs.

    Attributes:
        owner, conversation: whose, and which.
        asked: the message that is answered.
        new: whether that was said just now.
        system: the instructions that hold for the answer.
    """

    owner: str
    conversation: str
    asked: str
    new: bool
    system: str


class Writing:
    """One answer.

    Args:
        place: where it belongs.
        served: who writes it.
        read: what its model reads.
        answers, events: of the desk, for one job.
        dialogues: where it is kept.
        linger: seconds that it goes on without a reader.

    Attributes:
        id: the message's, from the beginning.
    """

    def __init__(
        self, place: Place, served: Served, read: Reading, answers: Answers, events: AsyncIterator[Piece | Finished],
        dialogues: Dialogues, linger: float = LINGER_SECONDS,
    ) -> None:  # fmt: skip
        self.id, self.place = new_id(), place
        self._served, self._read, self._answers, self._written = served, read, answers, events
        self._dialogues, self._linger = dialogues, linger
        self._began = time.monotonic()
        self._text, self._count = "", 0
        self._end: dict[str, Any] | Exception | None = None
        self._news = asyncio.Event()
        self._readers: set[_Reader] = set()
        self._leaving: asyncio.TimerHandle | None = None

    def follow(self) -> EventStream:
        """The answer from its first word on, to one more reader."""
        reader = _Reader(self)
        self._readers.add(reader)
        if self._leaving is not None:
            self._leaving.cancel()
        return EventStream(reader, self._events(reader))

    def stop(self) -> None:
        """Write no further; what there is, is kept."""
        self._answers.cancel()

    def leave(self, reader: _Reader) -> None:
        """A reader is gone; the last one may come back for a while."""
        if reader not in self._readers:
            return
        self._readers.remove(reader)
        self._wake()
        if not self._readers and self._end is None:
            self._leaving = asyncio.get_running_loop().call_later(self._linger, self.stop)

    async def write(self) -> None:
        """Gather the answer and store it, whole or as far as it came; for a task of its own."""
        finished: Completion | None = None
        failure: Exception | None = None
        try:
            async for event in self._written:
                if isinstance(event, Finished):
                    finished = event.completion
                else:
                    self._text += event.text
                    self._count += len(event.tokens)
                    self._wake()
            generation = self._generation(finished)
        except Exception as error:  # what was written until then is kept, and the client is told
            failure, generation = error, self._generation(None, FAILED)
        try:
            kept = await self._store(finished, generation)
            self._end = failure or {"type": "finish", "message": self.id if kept else None, **facts(generation)}
        except Exception as error:
            self._end = failure or error
        if self._leaving is not None:
            self._leaving.cancel()
        self._wake()

    def _generation(self, finished: Completion | None, reason: str = STOPPED) -> Generation:
        (job,) = self._answers.jobs
        note = self._read.note
        return Generation(
            model=self._served.name, model_hash=self._served.hash,
            sampling={**asdict(job.sampling), "tokenizer": self._served.tokenizer.hash}, seed=job.seed,
            finish_reason=finished.finish_reason if finished else reason, prompt_tokens=len(job.prompt),
            completion_tokens=len(finished.tokens) if finished else self._count,
            seconds=round(time.monotonic() - self._began, 3), tokens=finished.tokens if finished else None,
            system=self.place.system, left_out=self._read.left_out or 0, note=note.message if note else None,
        )  # fmt: skip

    async def _store(self, finished: Completion | None, generation: Generation) -> bool:
        """Returns whether there was anything to keep: nothing was not even meant to be the answer."""
        text = finished.text if finished else self._text
        if not text and not finished:
            return False
        said, place = Message("assistant", text), self.place
        append = self._dialogues.append
        await run_sync(append, place.owner, place.conversation, place.asked, said, generation, self.id)
        return True

    async def _events(self, reader: _Reader) -> AsyncIterator[dict[str, Any]]:
        place, told = self.place, 0
        yield {
            "type": "start", "conversation": place.conversation, "user": place.asked if place.new else None,
            "answer": self.id, "model": self._served.name, **self._read.told(),
        }  # fmt: skip
        while reader in self._readers:
            if told < len(self._text):
                text, told = self._text[told:], len(self._text)
                yield {"type": "delta", "text": text}
            elif self._end is not None:
                if isinstance(self._end, Exception):
                    raise self._end
                yield self._end
                return
            else:
                await self._news.wait()

    def _wake(self) -> None:
        """Let every reader look; whoever comes to wait later waits for the next time."""
        self._news.set()
        self._news = asyncio.Event()


class _Reader:
    """One of those who follow an answer."""

    def __init__(self, writing: Writing) -> None:
        self._writing = writing

    def cancel(self) -> None:
        """Follow no longer."""
        self._writing.leave(self)


async def replayed(conversation: str, message: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The events of an answer that is whole by now, for whoever comes to follow it just too late."""
    told = {name: value for name, value in message.items() if name in {"model", "left_out", "note"}}
    yield {"type": "start", "conversation": conversation, "user": None, "answer": message["id"], **told}
    yield {"type": "delta", "text": message["content"]}
    own = {"id", "parent", "role", "content", "created", "comparison", "note"}
    written = {name: value for name, value in message.items() if name not in own}
    yield {"type": "finish", "message": message["id"], **written}
