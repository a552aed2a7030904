"""POST /v1/chat/completions: a dialogue in, one or more answers out, whole or as a stream.

In:  a checked ``ChatRequest``.
Out: OpenAI's chat completion, or its chunks as server-sent events.
Left out: the wire's shapes (``wire``), who writes (``engine``).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import replace
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive

from danlu.infer import Completion, Token
from danlu.serve import wire
from danlu.serve.engine import Answers
from danlu.serve.jobs import Finished, Job
from danlu.serve.models import Models
from danlu.serve.rates import Writes
from danlu.serve.sse import DONE, EventStream, cancelled_when_gone
from danlu.serve.wire import ChatRequest, Reply
from danlu.streams import stream_seed
from danlu.tokens.tokenizer import Tokenizer


async def complete(models: Models, engine: Writes, asked: ChatRequest, receive: Receive) -> Response:
    """Answer a request.

    Args:
        models: what is served.
        engine: what writes.
        asked: the request.
        receive: tells of the client's leaving.

    Raises:
        Refusal: unknown model, too long, queue full.
    """
    served = models.get(asked.model)
    turns = await served.fit(asked, asked.turns())
    job = await served.job(asked, turns, asked.first_seed())
    jobs = [replace(job, seed=seed) for seed in _seeds(job.seed, asked.n)]
    answers = engine.submit(jobs)
    reply = Reply(served.name, served.hash, asked.left_out(turns))
    if asked.stream:
        return EventStream(answers, _chunks(reply, answers, asked, served.tokenizer))
    async with cancelled_when_gone(receive, answers):
        finished = [event async for event in answers if isinstance(event, Finished)]
    if len(finished) < len(jobs):
        return Response(status_code=499)  # the client left: nobody reads this
    finished.sort(key=lambda event: event.index)
    choices = [
        wire.choice(
            f.index,
            f.completion.text,
            f.completion.finish_reason,
            _logprobs(asked, served.tokenizer, _tokens(f.completion, served.tokenizer)),
        )
        for f in finished
    ]
    return JSONResponse(reply.whole(choices, _usage(jobs, finished)))


def _tokens(completion: Completion, tokenizer: Tokenizer) -> Iterator[Token]:
    """The tokens of a completion's text: those of a stop string, which is not part of it, are left out."""
    left = len(completion.text.encode())
    tops = completion.top or ((),) * len(completion.tokens)
    for token in map(Token, completion.tokens, completion.logprobs, tops):
        left -= len(tokenizer.token_bytes(token.id))
        if left < 0:
            return
        yield token


def _logprobs(asked: ChatRequest, tokenizer: Tokenizer, tokens: Iterable[Token]) -> dict[str, Any] | None:
    return wire.logprobs(tokenizer, tokens) if asked.logprobs else None


async def _chunks(reply: Reply, answers: Answers, asked: ChatRequest, tokenizer: Tokenizer) -> AsyncIterator[Any]:
    """The role first, then text, then why it ended; if asked for, every chunk has ``usage``, the last one numbers."""
    nothing: dict[str, Any] = {"usage": None} if asked.counts else {}
    finished = []
    for index in range(len(answers.jobs)):
        yield reply.chunk([wire.delta(index, {"role": "assistant", "content": ""})], **nothing)
    async for event in answers:
        if isinstance(event, Finished):
            finished.append(event)
            choice = wire.delta(event.index, {}, event.completion.finish_reason)
        else:
            told = _logprobs(asked, tokenizer, event.tokens)
            choice = wire.delta(event.index, {"content": event.text}, logprobs=told)
        yield reply.chunk([choice], **nothing)
    if asked.counts:
        yield reply.chunk([], usage=_usage(answers.jobs, finished))
    yield DONE


def _usage(jobs: tuple[Job, ...] | list[Job], finished: list[Finished]) -> dict[str, int]:
    """The prompt counts once, however many answers it gets."""
    return wire.usage(len(jobs[0].prompt), sum(len(event.completion.tokens) for event in finished))


def _seeds(first: int, n: int) -> list[int]:
    """One seed per answer; the first is the client's own, so the same request gives the same answer."""
    return [first, *(stream_seed(first, "choice", index) for index in range(1, n))]
