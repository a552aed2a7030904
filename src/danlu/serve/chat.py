"""POST /v1/chat/completions: a dialogue in, one or more answers out, whole or as a stream.

In:  a checked ``ChatRequest``.
Out: OpenAI's chat completion, or its chunks as server-sent events.
Left out: the wire's shapes (``wire``), who writes (``engine``), what may not be asked or answered (``safety``).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from danlu.infer import Completion, Token
from danlu.serve import wire
from danlu.serve.engine import Answers, Engine, Finished, Job, Piece
from danlu.serve.models import Models
from danlu.serve.safety import Origin, Safety, owner_of
from danlu.serve.sse import DONE, EventStream, cancelled_when_gone
from danlu.serve.wire import ChatRequest, Reply
from danlu.streams import stream_seed
from danlu.tokens.tokenizer import Tokenizer


async def complete(models: Models, engine: Engine, safety: Safety, asked: ChatRequest, request: Request) -> Response:
    """Answer a request; what the gates stop ends with ``finish_reason`` "content_filter".

    Args:
        models: what is served.
        engine: what writes.
        safety: the gates before and after the model.
        asked: the request.
        request: tells who asks, and of the client's leaving.

    Raises:
        Refusal: unknown model, too long, queue full.
    """
    served = models.get(asked.model)
    turns = await served.fit(asked, asked.turns())
    job = await served.job(asked, turns, asked.first_seed())
    jobs = [replace(job, seed=seed) for seed in _seeds(job.seed, asked.n)]
    origin = Origin(owner_of(request), models=(served.name,))
    answers, events, further = await safety.submit(engine, jobs, asked.turns(), origin)
    reply = Reply(served.name, served.hash, {**asked.left_out(turns), **further})
    if asked.stream:
        return EventStream(answers, _chunks(reply, answers, events, asked))
    async with cancelled_when_gone(request.receive, answers):
        finished = [event async for event in events if isinstance(event, Finished)]
    if len(finished) < len(jobs):
        return Response(status_code=499)  # the client left: nobody reads this
    finished.sort(key=lambda event: event.index)
    choices = [
        wire.choice(
            f.index,
            f.completion.text,
            f.completion.finish_reason,
            _logprobs(asked, job, _tokens(f.completion, served.tokenizer)),
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


def _logprobs(asked: ChatRequest, job: Job, tokens: Iterable[Token]) -> dict[str, Any] | None:
    return wire.logprobs(job.generator.tokenizer, tokens) if asked.logprobs else None


async def _chunks(
    reply: Reply, answers: Answers, events: AsyncIterator[Piece | Finished], asked: ChatRequest
) -> AsyncIterator[Any]:
    """The role first, then text, then why it ended; if asked for, every chunk has ``usage``, the last one numbers."""
    nothing: dict[str, Any] = {"usage": None} if asked.counts else {}
    finished = []
    for index in range(len(answers.jobs)):
        yield reply.chunk([wire.delta(index, {"role": "assistant", "content": ""})], **nothing)
    async for event in events:
        if isinstance(event, Finished):
            finished.append(event)
            choice = wire.delta(event.index, {}, event.completion.finish_reason)
        else:
            told = _logprobs(asked, answers.jobs[event.index], event.tokens)
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
