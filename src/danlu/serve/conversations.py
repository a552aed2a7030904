"""Conversations over HTTP: list, search, open, rename, forget, go on; every one for its owner only.

In:  requests whose caller is known (``accounts``).
Out: routes below ``/api``; ``Conversations``, which also says whose a comparison is.
Left out: queries (``dialogues``), the answer itself (``talk``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, TypeVar

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.responses import Response

from danlu.align.preferences import PreferenceStore
from danlu.errors import UserError
from danlu.records import Message
from danlu.serve.accounts import caller_of
from danlu.serve.bodies import PlainBody
from danlu.serve.dialogues import Generation, title_of
from danlu.serve.sse import EventStream
from danlu.serve.store import ServeStore
from danlu.serve.talk import SayRequest, Talk
from danlu.serve.thumbs import NewThumb, Thumbs
from danlu.serve.votes import RankRequest, VoteRequest
from danlu.serve.wire import CompareRequest

_Words = Annotated[str, Field(max_length=1_000_000)]


class NewConversation(PlainBody):
    """POST /api/conversations, and PATCH of one: what is left out stays."""

    title: Annotated[str, Field(max_length=200)] | None = None
    system: _Words | None = None


class NewMessage(PlainBody):
    """POST /api/conversations/{id}/messages: a message that was written elsewhere, such as the answer voted for."""

    parent: Annotated[str, Field(max_length=32)] | None = None
    role: Literal["user", "assistant"]
    content: _Words
    model: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    model_hash: Annotated[str, Field(max_length=128)] = ""
    finish_reason: Annotated[str, Field(max_length=32)] = ""
    sampling: dict[str, Any] = Field(default_factory=dict, max_length=64)
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    usage: dict[str, Annotated[int, Field(ge=0, lt=2**31)]] = Field(default_factory=dict)
    seconds: Annotated[float, Field(ge=0)] = 0.0

    def generation(self) -> Generation | None:
        """How it was written, if that is told: of an answer that was compared, or comes out of a file."""
        if self.model is None:
            return None
        return Generation(
            self.model, self.model_hash, self.sampling, self.seed, self.finish_reason,
            self.usage.get("prompt_tokens", 0), self.usage.get("completion_tokens", 0), self.seconds,
        )  # fmt: skip


_Contest = TypeVar("_Contest", CompareRequest, RankRequest)


class Conversations:
    """Conversations of the server's store, and the comparisons in them of the preference store."""

    def __init__(self, store: ServeStore, preferences: PreferenceStore) -> None:
        self.store, self._dialogues, self._preferences = store, store.dialogues, preferences
        self._thumbs = Thumbs(store.dialogues, preferences)

    async def inside(
        self, owner: str, asked: _Contest, show: Callable[[_Contest], Awaitable[EventStream]]
    ) -> EventStream:
        """Show answers side by side in a conversation of ``owner``'s, a new one if none is named.

        Whoever is known by an account votes by that name: a pseudonym that a client makes up could be anybody's.

        Raises:
            UserError: there is no such conversation.
            Refusal: as ``show``; a new conversation is forgotten again then.
        """
        rater = owner or asked.rater
        conversation = await run_sync(self._open, owner, asked.conversation, title_of(asked.turns()[-1].content), rater)
        try:
            return await show(asked.model_copy(update={"conversation": conversation, "rater": rater}))
        except BaseException:
            if asked.conversation is None:
                await run_sync(self.forget, owner, conversation)
            raise

    def whole(self, owner: str, conversation: str) -> dict[str, Any]:
        """A conversation with its tree of messages, and what was said of its answers.

        Raises:
            UserError: there is no such conversation.
        """
        read = self._dialogues.read(owner, conversation)
        return {**read, "messages": self._thumbs.on(read["messages"])}

    def judge(self, owner: str, conversation: str, message: str, thumb: NewThumb) -> dict[str, Any]:
        """Give an answer a thumb.

        Raises:
            UserError: there is no such answer.
        """
        return self._thumbs.give(owner, conversation, message, thumb)

    async def ballot(self, owner: str, vote: VoteRequest) -> VoteRequest:
        """Let people vote on what was shown to them, by their own name.

        Raises:
            UserError: there is no such comparison for this owner.
        """
        conversation = await run_sync(self._preferences.conversation_of, vote.comparison)
        if not await run_sync(self._may, owner, conversation):
            raise UserError(f"comparison '{vote.comparison}' does not exist; show new answers and vote on those")
        return vote.model_copy(update={"rater": owner or vote.rater})

    def forget(self, owner: str, conversation: str) -> None:
        """Delete a conversation's words and votes, wherever they are.

        Raises:
            UserError: there is no such conversation.
        """
        if not self._may(owner, conversation):
            raise UserError(f"conversation '{conversation[:64]}' does not exist, or was deleted")
        ours = self._dialogues.owns(owner, conversation)
        if not ours or self._preferences.knows(conversation):
            self._preferences.delete_conversation(conversation)
        if ours:  # last: until then the owner still sees it, and can ask again if the other store failed
            self._dialogues.delete(owner, conversation)
        self.store.audit(owner, "conversation.delete", conversation)

    def _open(self, owner: str, conversation: str | None, title: str, rater: str) -> str:
        if conversation is None:
            conversation = self._dialogues.start(owner, title)
        elif not self._may(owner, conversation):
            raise UserError(f"conversation '{conversation}' does not exist, or was deleted")
        self._preferences.ensure_conversation(conversation, rater)
        return conversation

    def _may(self, owner: str, conversation: str) -> bool:
        """What was compared before there were conversations belongs to whoever sits at this machine."""
        if self._dialogues.owns(owner, conversation):
            return True
        older = not conversation or (self._preferences.knows(conversation) and not self._dialogues.exists(conversation))
        return owner == "" and older


def routes(conversations: Conversations, talk: Talk) -> APIRouter:
    """Everything below ``/api`` that has to do with conversations."""
    router = APIRouter()
    dialogues = conversations.store.dialogues
    _add_chat(router, talk)

    @router.get("/api/conversations")
    async def listing(
        request: Request,
        search: Annotated[str, Query(max_length=200)] = "",
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        before: Annotated[str, Query(max_length=40)] = "",
    ) -> dict[str, Any]:
        found, more = await run_sync(dialogues.listing, caller_of(request).owner, search, limit, before)
        return {"conversations": found, "more": more}

    @router.post("/api/conversations", status_code=201)
    async def start(asked: NewConversation, request: Request) -> dict[str, Any]:
        owner = caller_of(request).owner
        conversation = await run_sync(dialogues.start, owner, asked.title or "", asked.system or "")
        return await run_sync(conversations.whole, owner, conversation)

    @router.get("/api/conversations/{conversation}")
    async def read(conversation: str, request: Request) -> dict[str, Any]:
        owner = caller_of(request).owner
        # Before the store is read: what ends in between is told twice, and nothing not at all.
        under_way = talk.under_way(owner, conversation)
        return {**await run_sync(conversations.whole, owner, conversation), "writing": under_way}

    @router.patch("/api/conversations/{conversation}")
    async def change(conversation: str, asked: NewConversation, request: Request) -> dict[str, Any]:
        owner = caller_of(request).owner
        await run_sync(dialogues.change, owner, conversation, asked.title, asked.system)
        return await run_sync(conversations.whole, owner, conversation)

    @router.delete("/api/conversations/{conversation}", status_code=204)
    async def forget(conversation: str, request: Request) -> None:
        await run_sync(conversations.forget, caller_of(request).owner, conversation)

    @router.post("/api/conversations/{conversation}/messages", status_code=201)
    async def append(conversation: str, asked: NewMessage, request: Request) -> dict[str, str]:
        said = Message(asked.role, asked.content)
        owner = caller_of(request).owner
        told = asked.generation()
        return {"id": await run_sync(dialogues.append, owner, conversation, asked.parent, said, told)}

    @router.put("/api/conversations/{conversation}/messages/{message}/thumb")
    async def judge(conversation: str, message: str, asked: NewThumb, request: Request) -> dict[str, Any]:
        return await run_sync(conversations.judge, caller_of(request).owner, conversation, message, asked)

    return router


def _add_chat(router: APIRouter, talk: Talk) -> None:
    @router.post("/api/chat")
    async def say(asked: SayRequest, request: Request) -> Response:
        return await talk.say(caller_of(request).owner, asked)

    @router.get("/api/chat/{answer}")
    async def follow(answer: str, request: Request) -> Response:
        return await talk.follow(caller_of(request).owner, answer)

    @router.post("/api/chat/{answer}/stop", status_code=204)
    async def stop(answer: str, request: Request) -> None:
        talk.stop(caller_of(request).owner, answer)
