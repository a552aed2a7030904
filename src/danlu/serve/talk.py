"""POST /api/chat: something said in a stored conversation, and the answer, kept whether or not anybody waits for it.

In:  a checked ``SayRequest`` and whose it is.
Out: server-sent events; the user's message stored before the first token, the answer when it ends.
Left out: conversations as a list and a tree (``conversations``), the OpenAI form of an answer (``chat``).

The answer is gathered by a task of its own: it is stored also when the page was closed, and then says "stopped".
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from anyio.to_thread import run_sync
from pydantic import Field, model_validator

from danlu.infer import Completion
from danlu.records import Message, check_messages
from danlu.serve.desk import Desk
from danlu.serve.dialogues import Dialogues, Generation, title_of
from danlu.serve.jobs import Finished, Job, Piece
from danlu.serve.models import Models, Served
from danlu.serve.problems import Refusal
from danlu.serve.replies import usage
from danlu.serve.sse import EventStream
from danlu.serve.wire import Asking, WireMessage

STOPPED, FAILED = "stopped", "failed"
_Id = Annotated[str, Field(min_length=1, max_length=32)]


class SayRequest(Asking):
    """POST /api/chat: with ``content`` something new is said below ``parent``; without, ``parent`` is answered anew."""

    messages: list[WireMessage] = Field(default_factory=list, max_length=0)
    """None: they are in the store."""
    model: Annotated[str, Field(min_length=1, max_length=200)]
    conversation: _Id | None = None
    parent: _Id | None = None
    content: Annotated[str, Field(min_length=1)] | None = None
    system: str | None = None

    @model_validator(mode="after")
    def _something_to_answer(self) -> SayRequest:
        for text in (self.content or "", self.system or "", self.model):
            WireMessage(role="user", content=text)  # text that can be stored and tokenised
        if self.content is None and (self.conversation is None or self.parent is None):
            raise ValueError(
                "give 'content' to say something, or 'conversation' and 'parent' to have it answered again"
            )
        if self.conversation is None and self.parent is not None:
            raise ValueError("'parent' is a message of a conversation; name the 'conversation' too")
        return self


@dataclass
class _Reply:
    """An answer that is being written, and where it belongs."""

    owner: str
    conversation: str
    user: str
    served: Served
    job: Job
    events: AsyncIterator[Piece | Finished]
    left_out: dict[str, int]
    began: float = field(default_factory=time.monotonic)
    text: str = ""
    tokens: int = 0

    def generation(self, reason: str, written: int) -> Generation:
        return Generation(
            model=self.served.name, model_hash=self.served.hash, sampling=asdict(self.job.sampling),
            seed=self.job.seed, finish_reason=reason, prompt_tokens=len(self.job.prompt), completion_tokens=written,
            seconds=round(time.monotonic() - self.began, 3),
        )  # fmt: skip


class Talk:
    """Answers in stored conversations."""

    def __init__(self, models: Models, desk: Desk, dialogues: Dialogues) -> None:
        self._models, self._desk, self._dialogues = models, desk, dialogues
        self._writing: set[asyncio.Task[None]] = set()

    async def say(self, owner: str, asked: SayRequest) -> EventStream:
        """Store what was said and answer it.

        Raises:
            Refusal: unknown model, turns that cannot be answered, too long, queue full; nothing is stored then.
            UserError: there is no such conversation or message.
        """
        served = self._models.get(asked.model)
        turns = await self._turns(owner, asked)
        fitting = await served.fit(asked, turns)
        job = await served.job(asked, fitting, asked.first_seed())
        answers, written, _ = await self._desk.write([job], turns, asked.conversation or "", repair=True)
        try:
            conversation, user = await run_sync(self._keep, owner, asked)
        except BaseException:
            answers.cancel()
            raise
        reply = _Reply(owner, conversation, user, served, job, written, asked.left_out(turns, fitting))
        events: asyncio.Queue[dict[str, Any] | Exception] = asyncio.Queue()
        task = asyncio.create_task(self._write(reply, events))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        return EventStream(answers, _events(reply, asked, events))

    async def settle(self) -> None:
        """Wait until every answer under way is stored; call after the engine has stopped."""
        await asyncio.gather(*self._writing, return_exceptions=True)

    async def _turns(self, owner: str, asked: SayRequest) -> Sequence[Message]:
        """Everything that is answered: instructions, the stored way to ``parent``, what is said now."""
        system, turns = asked.system or "", list[Message]()
        if asked.conversation is not None:
            stored, turns = await run_sync(self._dialogues.path, owner, asked.conversation, asked.parent)
            system = stored if asked.system is None else asked.system
        if asked.content is not None:
            turns.append(Message("user", asked.content))
        try:
            return check_messages([Message("system", system)] * bool(system.strip()) + turns, answered=False)
        except ValueError as error:
            raise Refusal(400, f"parent: {error}", "invalid_value", "parent") from None

    def _keep(self, owner: str, asked: SayRequest) -> tuple[str, str]:
        """Store what was said; returns the conversation and the message that is answered."""
        conversation, words = asked.conversation, asked.content
        if conversation is None:
            conversation = self._dialogues.start(owner, title_of(words or ""), asked.system or "")
        if words is None:
            return conversation, asked.parent or ""
        return conversation, self._dialogues.append(owner, conversation, asked.parent, Message("user", words))

    async def _write(self, reply: _Reply, events: asyncio.Queue[dict[str, Any] | Exception]) -> None:
        """Gather the answer and store it, whole or as far as it came."""
        finished: Completion | None = None
        failure: Exception | None = None
        try:
            async for event in reply.events:
                if isinstance(event, Finished):
                    finished = event.completion
                else:
                    reply.text += event.text
                    reply.tokens += len(event.tokens)
                    events.put_nowait({"type": "delta", "text": event.text})
            if finished is not None:
                reply.text = finished.text
                generation = reply.generation(finished.finish_reason, len(finished.tokens))
            else:
                generation = reply.generation(STOPPED, reply.tokens)
        except Exception as error:  # what was written until then is kept, and the client is told
            failure, generation = error, reply.generation(FAILED, reply.tokens)
        try:
            message = await self._store(reply, generation, whole=finished is not None)
            events.put_nowait(failure or _finish(message, generation))
        except Exception as error:
            events.put_nowait(failure or error)

    async def _store(self, reply: _Reply, generation: Generation, whole: bool) -> str | None:
        """Returns the message's id; None for nothing, which was not even meant to be the answer."""
        if not reply.text and not whole:
            return None
        said = Message("assistant", reply.text)
        return await run_sync(self._dialogues.append, reply.owner, reply.conversation, reply.user, said, generation)


async def _events(
    reply: _Reply, asked: SayRequest, events: asyncio.Queue[dict[str, Any] | Exception]
) -> AsyncIterator[dict[str, Any]]:
    user = reply.user if asked.content is not None else None
    yield {"type": "start", "conversation": reply.conversation, "user": user, **reply.left_out}
    while True:
        event = await events.get()
        if isinstance(event, Exception):
            raise event
        yield event
        if event["type"] == "finish":
            return


def _finish(message: str | None, generation: Generation) -> dict[str, Any]:
    return {
        "type": "finish", "message": message, "finish_reason": generation.finish_reason,
        "usage": usage(generation.prompt_tokens, generation.completion_tokens),
        "model": generation.model, "seed": generation.seed,
    }  # fmt: skip
