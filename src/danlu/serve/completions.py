"""POST /v1/completions: texts in, their continuations out; also what harnesses need that score given texts.

In:  a checked ``CompletionRequest``.
Out: OpenAI's text completion, or its chunks as server-sent events.
Left out: dialogues (``chat``), repair of answers: who asks here wants what the model writes.

A prompt that is text begins a document, so the token that begins documents stands before it; token ids are taken as
they are. With ``echo`` and ``logprobs`` every token of the prompt is told too: with ``max_tokens`` 0 a text is scored.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from anyio.to_thread import run_sync
from starlette.responses import JSONResponse, Response
from starlette.types import Receive

from danlu.infer import Token
from danlu.records import Message
from danlu.serve import replies
from danlu.serve.chat import seeds_of, tokens_of, told, usage_of
from danlu.serve.desk import Desk
from danlu.serve.jobs import Finished, Job, Piece
from danlu.serve.models import Models, Served
from danlu.serve.problems import Refusal
from danlu.serve.reading import Reader, encode_prompts
from danlu.serve.replies import Reply
from danlu.serve.sse import DONE
from danlu.serve.wire_text import CompletionRequest

_UNKNOWN = float("nan")


@dataclass(frozen=True)
class _Echo:
    """What is said of a prompt before its continuation: its text, its tokens; nothing if not asked for."""

    text: str = ""
    tokens: tuple[Token, ...] = ()


async def complete(
    models: Models, desk: Desk, reader: Reader, most: int, asked: CompletionRequest, receive: Receive
) -> Response:
    """Answer a request.

    Raises:
        Refusal: unknown model, too long, too many answers at once, queue full.
    """
    served = models.get(asked.model)
    prompts = await run_sync(encode_prompts, served.tokenizer, asked.prompt, "prompt")
    jobs = _jobs(most, served, asked, prompts)
    telling = _Telling(asked, served, await _echoes(reader, served, asked, prompts, receive))
    if not jobs:
        return JSONResponse(telling.unanswered(sum(map(len, prompts))))
    texts = [Message("user", served.tokenizer.decode(prompt)) for prompt in prompts]
    passage = await desk.write(jobs, texts, new=len(texts))
    return await told(telling, passage, bool(asked.stream), receive)


def _jobs(most: int, served: Served, asked: CompletionRequest, prompts: Sequence[list[int]]) -> list[Job]:
    """``n`` jobs for every prompt, in order; none if nothing is to be written."""
    n, wanted = asked.n or 1, asked.limit()
    if len(prompts) * n > most:
        message = f"{len(prompts) * n} answers were asked for, and {most} are the most at once"
        raise Refusal(400, f"{message}; ask for fewer", "invalid_value", "prompt")
    for prompt in prompts:
        if len(prompt) + wanted > served.context:
            raise served.too_long(len(prompt), wanted)
    served.check_bias(asked.logit_bias)
    if not wanted:
        return []
    seeds = seeds_of(asked.first_seed(), n)
    return [
        Job(served.name, ids, asked.sampling(wanted), seed, weights=served.weights)
        for ids in map(tuple, prompts)
        for seed in seeds
    ]


async def _echoes(
    reader: Reader, served: Served, asked: CompletionRequest, prompts: Sequence[list[int]], receive: Receive
) -> list[_Echo]:
    """One for every answer."""
    n = asked.n or 1
    if not asked.echo:
        return [_Echo()] * (len(prompts) * n)
    scored: list[list[Token]] = [[] for _ in prompts]
    if asked.logprobs is not None:
        found = await reader.read(served, prompts, "score", receive, asked.logprobs or 0)
        scored = [list(map(Token, one.completion.tokens, one.completion.logprobs, one.completion.top)) for one in found]
    echoes = []
    for given, prompt, tokens in zip(asked.prompt, prompts, scored, strict=True):
        first = () if isinstance(given, str) else (Token(prompt[0], _UNKNOWN),)  # a text's is ours, not the client's
        echoes += [_Echo(served.tokenizer.decode(prompt), (*first, *tokens))] * n
    return echoes


class _Telling:
    """Puts what is written into OpenAI's form."""

    def __init__(self, asked: CompletionRequest, served: Served, echoes: Sequence[_Echo]) -> None:
        self._asked, self._tokenizer, self._echoes = asked, served.tokenizer, echoes
        kinds = ("text_completion", "text_completion")
        self._reply = Reply(served.name, served.hash, kind=kinds, prefix="cmpl")

    def unanswered(self, n_prompt: int) -> dict[str, Any]:
        """The prompts alone, with what the model thinks of them."""
        choices = [
            self._choice(i, echo.text, echo.tokens, 0, {"finish_reason": "length"})
            for i, echo in enumerate(self._echoes)
        ]
        return self._reply.whole(choices, replies.usage(n_prompt, 0, cached=0))

    def whole(self, jobs: Sequence[Job], finished: Sequence[Finished]) -> dict[str, Any]:
        """All continuations, in order."""
        choices = []
        for event in sorted(finished, key=lambda event: event.index):
            echo, said = self._echoes[event.index], event.completion
            tokens = (*echo.tokens, *tokens_of(said, self._tokenizer))
            choices.append(self._choice(event.index, echo.text + said.text, tokens, 0, replies.ending(said)))
        return self._reply.whole(choices, usage_of(jobs, finished))

    async def chunks(self, jobs: Sequence[Job], events: AsyncIterator[Piece | Finished]) -> AsyncIterator[Any]:
        """The prompts if they were asked for, then text, then why it ended."""
        nothing: dict[str, Any] = {"usage": None} if self._asked.counts else {}
        finished = []
        offsets = [len(echo.text) for echo in self._echoes]
        for index, echo in enumerate(self._echoes):
            if echo.text:
                yield self._reply.chunk([self._choice(index, echo.text, echo.tokens, 0)], **nothing)
        async for event in events:
            if isinstance(event, Finished):
                finished.append(event)
                choice = self._choice(event.index, "", (), offsets[event.index], replies.ending(event.completion))
            else:
                choice = self._choice(event.index, event.text, event.tokens, offsets[event.index])
                offsets[event.index] += len(event.text)
            yield self._reply.chunk([choice], **nothing)
        if self._asked.counts:
            yield self._reply.chunk([], usage=usage_of(jobs, finished))
        yield DONE

    def _choice(
        self, index: int, text: str, tokens: Sequence[Token], offset: int, ending: dict[str, str] | None = None
    ) -> dict[str, Any]:
        top, told = self._asked.logprobs, None
        if top is not None and tokens:
            told = replies.old_logprobs(self._tokenizer, tokens, top, offset)
        return {"index": index, "text": text, "logprobs": told, "finish_reason": None, **(ending or {})}
