"""POST /api/chat: something said in a stored conversation, and the answer, kept whether or not anybody waits for it.

In:  a checked ``SayRequest`` and whose it is.
Out: server-sent events; the user's message stored before the first token; answers that are followed again, or stopped.
Left out: how an answer is gathered and kept (``writing``), what of a long dialogue the model reads (``condense``),
    conversations as a list and a tree (``conversations``), the OpenAI form of an answer (``chat``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

from anyio.to_thread import run_sync
from pydantic import Field, model_validator

from danlu.errors import UserError
from danlu.records import Message, check_messages
from danlu.serve.condense import Condenser
from danlu.serve.desk import Desk
from danlu.serve.dialogues import Dialogues, Way, title_of
from danlu.serve.models import Models
from danlu.serve.problems import Refusal
from danlu.serve.sse import EventStream, Nobody
from danlu.serve.tables import new_id
from danlu.serve.wire import Asking, WireMessage
from danlu.serve.writing import LINGER_SECONDS, Place, Writing, replayed

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
    summarise: bool = False
    """Whether the model writes a note on turns that would be left out, with ``"truncation": "auto"``."""

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
        if self.summarise and not self.may_leave_out():
            raise ValueError("'summarise' is about turns that are left out; set 'truncation' to 'auto' too")
        return self


class Talk:
    """Answers in stored conversations.

    Args:
        models: what is served.
        desk: takes what is to be written.
        dialogues: where conversations are kept.
        condenser: makes long ones fit.
        linger: seconds that an answer goes on without a reader.
    """

    def __init__(
        self, models: Models, desk: Desk, dialogues: Dialogues, condenser: Condenser, linger: float = LINGER_SECONDS
    ) -> None:
        self._models, self._desk, self._dialogues = models, desk, dialogues
        self._condenser, self._linger = condenser, linger
        self._writing: dict[asyncio.Task[None], Writing] = {}

    async def say(self, owner: str, asked: SayRequest) -> EventStream:
        """Store what was said and answer it.

        Raises:
            Refusal: unknown model, turns that cannot be answered, too long, queue full; nothing is stored then.
            UserError: there is no such conversation or message.
        """
        served = self._models.get(asked.model)
        way, turns = await self._turns(owner, asked)
        conversation = asked.conversation or new_id()  # what the gates note of it goes when it is deleted
        read = await self._condenser.read(served, asked, way, turns, asked.summarise, conversation)
        job = await served.job(asked, read.turns, asked.first_seed())
        answers, events, _ = await self._desk.write([job], turns, conversation, repair=True)
        try:
            user = await run_sync(self._keep, owner, asked, conversation)
        except BaseException:
            answers.cancel()
            raise
        place = Place(owner, conversation, user, asked.content is not None, way.system)
        writing = Writing(place, served, read, answers, events, self._dialogues, self._linger)
        task = asyncio.create_task(writing.write())
        self._writing[task] = writing
        task.add_done_callback(self._writing.pop)
        return writing.follow()

    async def follow(self, owner: str, answer: str) -> EventStream:
        """An answer from its first word on, whether it is still written or whole by now.

        Raises:
            UserError: there is no such answer for this owner.
        """
        if (writing := self._find(owner, answer)) is not None:
            return writing.follow()
        conversation, message = await run_sync(self._dialogues.message, owner, answer)
        return EventStream(Nobody(), replayed(conversation, message))

    def stop(self, owner: str, answer: str) -> None:
        """Write an answer no further.

        Raises:
            UserError: no such answer is being written for this owner.
        """
        writing = self._find(owner, answer)
        if writing is None:
            raise UserError(f"answer '{answer}' is not being written, or not any more")
        writing.stop()

    def under_way(self, owner: str, conversation: str) -> list[dict[str, str]]:
        """The answers that are being written in a conversation, each with the message it answers."""
        here = [one for one in self._writing.values() if one.place.conversation == conversation]
        return [{"answer": one.id, "parent": one.place.asked} for one in here if one.place.owner == owner]

    async def settle(self) -> None:
        """Wait until every answer under way is stored; call after the engine has stopped."""
        await asyncio.gather(*self._writing, return_exceptions=True)

    def _find(self, owner: str, answer: str) -> Writing | None:
        return next((one for one in self._writing.values() if (one.id, one.place.owner) == (answer, owner)), None)

    async def _turns(self, owner: str, asked: SayRequest) -> tuple[Way, Sequence[Message]]:
        """The stored way to ``parent``, with the instructions that hold, and everything that is answered."""
        way = Way("")
        if asked.conversation is not None:
            way = await run_sync(self._dialogues.path, owner, asked.conversation, asked.parent)
        way = way if asked.system is None else Way(asked.system, way.ids, way.turns)
        instructions = [Message("system", way.system)] * bool(way.system.strip())
        new = [Message("user", asked.content)] if asked.content is not None else []
        try:
            return way, check_messages([*instructions, *way.turns, *new], answered=False)
        except ValueError as error:
            raise Refusal(400, f"parent: {error}", "invalid_value", "parent") from None

    def _keep(self, owner: str, asked: SayRequest, conversation: str) -> str:
        """Store what was said, in a new conversation if none was named; returns the message that is answered."""
        words = asked.content
        if asked.conversation is None:
            self._dialogues.start(owner, title_of(words or ""), asked.system or "", conversation)
        if words is None:
            return asked.parent or ""
        return self._dialogues.append(owner, conversation, asked.parent, Message("user", words))
