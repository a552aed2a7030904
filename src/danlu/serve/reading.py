"""What is asked of a model that writes nothing: embeddings, the ids of a text, the text of ids.

In:  checked requests.
Out: OpenAI's list of embeddings; ids and text as vLLM's server gives them.
Left out: writing (``chat``, ``completions``).

An embedding is the mean of the model's final hidden states over the text, scaled to length 1. A language model was not
trained for that: good enough to find what is alike, and behind a model made for it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from pydantic import BaseModel
from starlette.types import Receive

from danlu.infer import Sampling
from danlu.serve.jobs import Finished, Job
from danlu.serve.models import Models, Served
from danlu.serve.problems import Refusal
from danlu.serve.rates import Meter, Writes
from danlu.serve.sse import cancelled_when_gone
from danlu.serve.wire import dialogue
from danlu.serve.wire_text import DetokenizeRequest, EmbeddingRequest, TokenizeRequest
from danlu.tokens import chat
from danlu.tokens.tokenizer import Tokenizer

MAX_READ_TOKENS = 131_072
MAX_WAITING = 16
_AT_ONCE = 4


class Embedding(BaseModel):
    """A vector, as numbers or as base64 of little-endian 32-bit floats."""

    object: str
    index: int
    embedding: list[float] | str


class ReadUsage(BaseModel):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """One vector per text, in order."""

    object: str
    model: str
    data: list[Embedding]
    usage: ReadUsage


class TokenList(BaseModel):
    """Ids of a text, how many, and how many the model can read."""

    tokens: list[int]
    count: int
    max_model_len: int


class PlainText(BaseModel):
    """The text of some ids."""

    prompt: str


class Reader:
    """Lets one reading at a time pass, a few wait, and refuses more: nobody's texts may hold up everybody's answers."""

    def __init__(self, engine: Writes, meter: Callable[[], Meter]) -> None:
        self._engine, self._meter, self._turn = engine, meter, CapacityLimiter(1)

    async def read(
        self, served: Served, prompts: Sequence[Sequence[int]], what: str, receive: Receive, top: int = 0
    ) -> list[Finished]:
        """Read ``prompts``, when it is their turn, a few at a time.

        Args:
            served: the model that reads.
            prompts: token ids.
            what: ``"embed"`` or ``"score"``.
            receive: tells of the client's leaving, after which nothing more is read.
            top: how many other tokens to tell with each.

        Raises:
            Refusal: too much to read, too many wait, or nobody does any more.
        """
        total = sum(map(len, prompts))
        if total > MAX_READ_TOKENS:
            message = (
                f"{total:,} tokens are too much to read at once, {MAX_READ_TOKENS:,} are the most; send fewer texts"
            )
            raise Refusal(400, message, "invalid_value", "input")
        if self._turn.statistics().tasks_waiting >= MAX_WAITING:
            raise Refusal(503, "the server is busy and its queue is full; try again in a moment", "overloaded")
        self._meter().pay(len(prompts), total)  # once for all of it: a part would be of no use
        jobs = [
            Job(served.name, tuple(ids), Sampling(top_logprobs=top), 0, read=what, weights=served.weights)
            for ids in prompts
        ]
        found: list[Finished] = []
        async with self._turn:
            for start in range(0, len(jobs), _AT_ONCE):
                found += await self._read_few(jobs[start : start + _AT_ONCE], receive)
        return found

    async def _read_few(self, jobs: Sequence[Job], receive: Receive) -> list[Finished]:
        answers = self._engine.submit(jobs)
        async with cancelled_when_gone(receive, answers):
            found = [event async for event in answers if isinstance(event, Finished)]
        if len(found) < len(jobs):
            raise Refusal(499, "the client left before everything was read", "client_left")
        return sorted(found, key=lambda event: event.index)


def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[str | list[int]], param: str) -> list[list[int]]:
    """Ids of each prompt: a text begins a document, ids are taken as they are.

    Raises:
        Refusal: an id does not exist.
    """
    for prompt in prompts:
        if not isinstance(prompt, str):
            _check_ids(tokenizer, prompt, param)
    return [[tokenizer.bos, *tokenizer.encode(p)] if isinstance(p, str) else list(p) for p in prompts]


async def embed(models: Models, reader: Reader, asked: EmbeddingRequest, receive: Receive) -> dict[str, Any]:
    """POST /v1/embeddings.

    Raises:
        Refusal: unknown model, an empty text, one longer than the context, another number of dimensions; nobody waits.
    """
    served = models.get(asked.model)
    if any(isinstance(text, str) and not text.strip() for text in asked.input):
        raise Refusal(400, "a text to embed says nothing; leave it out", "invalid_value", "input")
    prompts = await run_sync(encode_prompts, served.tokenizer, asked.input, "input")
    longest = max(map(len, prompts))
    if longest > served.context:
        raise served.too_long(longest, 0)
    vectors = [one.vector for one in await reader.read(served, prompts, "embed", receive)]
    if asked.dimensions not in (None, len(vectors[0])):
        message = f"this model's vectors have {len(vectors[0])} dimensions and cannot be shortened"
        raise Refusal(400, f"{message}; leave the field out", "invalid_value", "dimensions")
    written = _base64 if asked.encoding_format == "base64" else list
    data = [{"object": "embedding", "index": i, "embedding": written(v)} for i, v in enumerate(vectors)]
    n_tokens = sum(map(len, prompts))
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return {"object": "list", "model": served.name, "data": data, "usage": usage}


async def tokenize(models: Models, asked: TokenizeRequest) -> dict[str, Any]:
    """POST /v1/tokenize: the ids of a text, or of a dialogue up to where the answer begins."""
    served = models.get(asked.model)
    if asked.messages is not None:
        ids = await run_sync(chat.encode_prompt, served.tokenizer, dialogue(asked.messages))
    else:
        ids = await run_sync(served.tokenizer.encode, asked.prompt or "")
    return {"tokens": ids, "count": len(ids), "max_model_len": served.context}


async def detokenize(models: Models, asked: DetokenizeRequest) -> dict[str, Any]:
    """POST /v1/detokenize: the text of ids; special tokens say nothing."""
    served = models.get(asked.model)
    _check_ids(served.tokenizer, asked.tokens, "tokens")
    return {"prompt": await run_sync(served.tokenizer.decode, asked.tokens)}


def _check_ids(tokenizer: Tokenizer, ids: Sequence[int], param: str) -> None:
    if max(ids, default=0) >= tokenizer.vocab_size:
        message = f"there is no token {max(ids)}: the vocabulary has {tokenizer.vocab_size}"
        raise Refusal(400, message, "invalid_value", param)


def _base64(vector: Sequence[float]) -> str:
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()
