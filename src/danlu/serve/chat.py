"""POST /v1/chat/completions: a dialogue in, one or more answers out, whole or as a stream.

In:  a checked ``ChatRequest``.
Out: OpenAI's chat completion, or its chunks as server-sent events.
Left out: the wire's shapes (``wire_chat``, ``replies``), who writes (``engine``).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from anyio.to_thread import run_sync
from starlette.responses import JSONResponse, Response
from starlette.types import Receive

from danlu.infer import Completion, Token
from danlu.records import Message
from danlu.serve import formats, replies
from danlu.serve.desk import Desk
from danlu.serve.jobs import Finished, Job, Piece
from danlu.serve.models import Models
from danlu.serve.replies import Reply
from danlu.serve.safety import Passage
from danlu.serve.sse import DONE, EventStream, cancelled_when_gone
from danlu.serve.wire_chat import ChatRequest
from danlu.streams import stream_seed
from danlu.tokens.tokenizer import Tokenizer
from danlu.tokens.tools import Call, CallParser, introduce


async def complete(models: Models, desk: Desk, asked: ChatRequest, receive: Receive) -> Response:
    """Answer a request.

    Args:
        models: what is served.
        desk: takes what is to be written.
        asked: the request.
        receive: tells of the client's leaving.

    Raises:
        Refusal: unknown model, too long, a schema that cannot be kept to, queue full.
    """
    served = models.get(asked.model)
    turns: Sequence[Message] = asked.turns()
    if offered := asked.offered():
        turns = introduce(served.tokenizer, turns, offered)
    said = turns  # with what tools say of themselves, which the gates look at too
    turns = await served.fit(asked, turns)
    job = await served.job(asked, turns, asked.first_seed())
    if (schema := asked.answer_schema()) is not None:
        param = "tool_choice" if asked.must_call() else "response_format"
        grammar = await run_sync(formats.compile_grammar, schema, param)
        job = replace(job, sampling=replace(job.sampling, grammar=grammar))
    jobs = [replace(job, seed=seed) for seed in seeds_of(job.seed, asked.n or 1)]
    passage = await desk.write(jobs, said, repair=asked.repairs())
    reply = Reply(served.name, served.hash, {**asked.left_out(said, turns), **passage.further})
    return await told(Telling(asked, served.tokenizer, reply), passage, bool(asked.stream), receive)


class Tells(Protocol):
    """Puts answers into a form: piece by piece, or whole."""

    def chunks(self, jobs: Sequence[Job], events: AsyncIterator[Piece | Finished]) -> AsyncIterator[Any]:
        """Events of a stream."""

    def whole(self, jobs: Sequence[Job], finished: Sequence[Finished]) -> dict[str, Any]:
        """One object."""


async def told(telling: Tells, passage: Passage, stream: bool, receive: Receive) -> Response:
    """Answers under way as a response, which ends them if the client leaves."""
    answers, events, _ = passage
    if stream:
        return EventStream(answers, telling.chunks(answers.jobs, events))
    async with cancelled_when_gone(receive, answers):
        finished = [event async for event in events if isinstance(event, Finished)]
    if len(finished) < len(answers.jobs):
        return Response(status_code=499)  # the client left: nobody reads this
    return JSONResponse(telling.whole(answers.jobs, finished))


def seeds_of(first: int, n: int) -> list[int]:
    """One seed per answer; the first is the client's own, so the same request gives the same answer."""
    return [first, *(stream_seed(first, "choice", index) for index in range(1, n))]


def tokens_of(completion: Completion, tokenizer: Tokenizer) -> Iterator[Token]:
    """The tokens of a completion's text: those of a stop string, which is not part of it, are left out."""
    left = len(completion.text.encode())
    tops = completion.top or ((),) * len(completion.tokens)
    for token in map(Token, completion.tokens, completion.logprobs, tops):
        left -= len(tokenizer.token_bytes(token.id))
        if left < 0:
            return
        yield token


def usage_of(jobs: Sequence[Job], finished: Sequence[Finished]) -> dict[str, Any]:
    """A prompt counts once, however many answers it gets, and so does what was cached of it before the first."""
    prompts = {id(job.prompt): len(job.prompt) for job in jobs}
    cached = dict(prompts)
    for event in finished:
        prompt = id(jobs[event.index].prompt)
        cached[prompt] = min(cached[prompt], event.completion.cached)
    written = sum(len(event.completion.tokens) for event in finished)
    return replies.usage(sum(prompts.values()), written, sum(cached.values()))


class Telling:
    """Puts what is written into OpenAI's form."""

    def __init__(self, asked: ChatRequest, tokenizer: Tokenizer, reply: Reply) -> None:
        self._asked, self._tokenizer, self._reply = asked, tokenizer, reply
        self._names = [tool["function"]["name"] for tool in asked.offered()]

    def whole(self, jobs: Sequence[Job], finished: Sequence[Finished]) -> dict[str, Any]:
        """All answers, in order."""
        in_order = sorted(finished, key=lambda event: event.index)
        return self._reply.whole([self._choice(event) for event in in_order], usage_of(jobs, finished))

    def _choice(self, event: Finished) -> dict[str, Any]:
        said, parser = event.completion, self._parser()
        parts = [*parser.feed(said.text), *parser.finish()]
        text, calls = _parted(parts)
        return {
            "index": event.index,
            "message": replies.message(text, calls),
            "logprobs": self._logprobs(tokens_of(said, self._tokenizer)),
            **replies.ending(said, called=bool(calls)),
        }

    async def chunks(self, jobs: Sequence[Job], events: AsyncIterator[Piece | Finished]) -> AsyncIterator[Any]:
        """The role first, then text and calls, then why it ended; the last chunk has numbers if they were asked for."""
        nothing: dict[str, Any] = {"usage": None} if self._asked.counts else {}
        streams = [_Stream(self._parser(), index) for index in range(len(jobs))]
        finished = []
        for index in range(len(jobs)):
            yield self._reply.chunk([replies.delta(index, {"role": "assistant", "content": ""})], **nothing)
        async for event in events:
            stream = streams[event.index]
            if isinstance(event, Finished):
                finished.append(event)
                choices = [
                    *stream.end(),
                    replies.delta(event.index, {}, replies.ending(event.completion, stream.called)),
                ]
            else:
                choices = stream.say(event.text, self._logprobs(event.tokens))
            for choice in choices:
                yield self._reply.chunk([choice], **nothing)
        if self._asked.counts:
            yield self._reply.chunk([], usage=usage_of(jobs, finished))
        yield DONE

    def _parser(self) -> CallParser:
        return CallParser(self._names, forced=self._asked.must_call())

    def _logprobs(self, tokens: Iterable[Token]) -> dict[str, Any] | None:
        return replies.logprobs(self._tokenizer, tokens) if self._asked.logprobs else None


class _Stream:
    """One answer of a stream: which pieces are text and which are calls."""

    def __init__(self, parser: CallParser, index: int) -> None:
        self._parser, self._index = parser, index
        self._calls = 0

    @property
    def called(self) -> bool:
        """Whether there was a call."""
        return self._calls > 0

    def say(self, text: str, logprobs: dict[str, Any] | None) -> list[dict[str, Any]]:
        """Choices for a piece; tokens are told at once, even if what they say is held back."""
        choices = self._choices(self._parser.feed(text))
        if logprobs is not None:
            choices = choices or [replies.delta(self._index, {"content": ""})]
            choices[0]["logprobs"] = logprobs
        return choices

    def end(self) -> list[dict[str, Any]]:
        """Choices for what was held back."""
        return self._choices(self._parser.finish())

    def _choices(self, parts: Iterable[str | Call]) -> list[dict[str, Any]]:
        return [replies.delta(self._index, self._content(part)) for part in parts]

    def _content(self, part: str | Call) -> dict[str, Any]:
        if isinstance(part, str):
            return {"content": part}
        self._calls += 1
        return {"tool_calls": [{"index": self._calls - 1, **replies.tool_call(part)}]}


def _parted(parts: Iterable[str | Call]) -> tuple[str, list[dict[str, Any]]]:
    """The text of an answer and its calls."""
    listed = list(parts)
    calls = [replies.tool_call(part) for part in listed if isinstance(part, Call)]
    return "".join(part for part in listed if isinstance(part, str)), calls
