"""Answers in OpenAI's form: chat completions, completions of text, their chunks, log-probabilities, usage.

In:  what was written.
Out: plain data, and its shapes for the schema at /openapi.json.
Left out: requests (``wire``), how an answer comes about (``chat``, ``completions``).
"""

from __future__ import annotations

import codecs
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from danlu.infer import Completion, Token
from danlu.serve.repair import REPETITION
from danlu.tokens.tokenizer import Tokenizer
from danlu.tokens.tools import Call


class ModelCard(BaseModel):
    """OpenAI's model object."""

    id: str
    object: str
    created: int
    owned_by: str


class ModelList(BaseModel):
    """Every model that is served."""

    object: str
    data: list[ModelCard]


class PromptDetails(BaseModel):
    """Tokens of the prompt that an earlier one had in common with it, so that they were not read again."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens, special ones included."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class AssistantMessage(BaseModel):
    """What the assistant says, or which tools it calls."""

    role: str
    content: str | None
    refusal: None
    tool_calls: list[dict[str, Any]] | None = None


class ChatChoice(BaseModel):
    """One answer; ``cut`` says why it ends early, which OpenAI has no word for."""

    index: int
    message: AssistantMessage
    logprobs: dict[str, Any] | None
    finish_reason: str
    cut: str | None = None


class TextChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: str


class _Frame(BaseModel):
    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage


class ChatCompletion(_Frame):
    """Answers to a dialogue; ``left_out`` with ``"truncation": "auto"`` only."""

    choices: list[ChatChoice]
    left_out: int | None = None


class TextCompletion(_Frame):
    """Continuations of texts."""

    choices: list[TextChoice]


@dataclass(frozen=True)
class Reply:
    """What every piece of one answer repeats: its id, its time, its model.

    Attributes:
        model: the name the client asked for.
        fingerprint: hash of the model that answers.
        further: fields that OpenAI's form does not have; its clients pass them on.
        kind: ``object`` of the whole answer, and of its chunks.
        prefix: of the id.
    """

    model: str
    fingerprint: str
    further: Mapping[str, Any] = field(default_factory=dict)
    kind: tuple[str, str] = ("chat.completion", "chat.completion.chunk")
    prefix: str = "chatcmpl"
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def chunk(self, choices: Sequence[dict[str, Any]], **usage: Any) -> dict[str, Any]:
        """A piece of a stream."""
        return self._frame(self.kind[1], choices) | usage

    def whole(self, choices: Sequence[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        """The whole answer."""
        return self._frame(self.kind[0], choices) | {"usage": usage}

    def _frame(self, kind: str, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"{self.prefix}-{self.name}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": list(choices),
            **self.further,
        }


def delta(
    index: int, content: dict[str, Any], ending: Mapping[str, Any] | None = None, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A choice of a chunk of chat."""
    return {"index": index, "delta": content, "logprobs": logprobs, "finish_reason": None, **(ending or {})}


def message(text: str, calls: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The assistant's turn; one that only calls tools has no content."""
    said = {"role": "assistant", "content": text or (None if calls else ""), "refusal": None}
    return said | ({"tool_calls": list(calls)} if calls else {})


def tool_call(call: Call) -> dict[str, Any]:
    """A call, with an id that the client gives back with the result."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def ending(completion: Completion, called: bool = False) -> dict[str, str]:
    """Why an answer ends; a loop that was cut is OpenAI's ``stop`` and our ``cut``."""
    reason = completion.finish_reason
    if reason == REPETITION:
        return {"finish_reason": "stop", "cut": REPETITION}
    return {"finish_reason": "tool_calls" if called and reason == "stop" else reason}


def logprobs(tokenizer: Tokenizer, tokens: Iterable[Token]) -> dict[str, Any]:
    """OpenAI's form for the log-probabilities of tokens, special ones left out: they are no part of the text."""

    def entry(id: int, logprob: float) -> dict[str, Any]:
        raw = tokenizer.token_bytes(id)
        return {"token": raw.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(raw)}

    content = [
        {**entry(token.id, token.logprob), "top_logprobs": [entry(*other) for other in token.top]}
        for token in tokens
        if tokenizer.token_bytes(token.id)
    ]
    return {"content": content, "refusal": None}


def old_logprobs(tokenizer: Tokenizer, tokens: Iterable[Token], top: int, offset: int = 0) -> dict[str, Any]:
    """The form that completions of text have: four lists side by side.

    Args:
        tokenizer: the model's.
        tokens: a NaN stands for a log-probability that nobody knows, as of a text's first token.
        top: how many of the likeliest tokens are told; 0 for none.
        offset: characters of the text before the first token.
    """
    told: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # as the text was decoded
    for token in tokens:
        known = token.logprob == token.logprob
        told["tokens"].append(_spelling(tokenizer, token.id))
        told["token_logprobs"].append(token.logprob if known else None)
        others = {_spelling(tokenizer, id): logprob for id, logprob in token.top}
        told["top_logprobs"].append(others if known and top else None)
        told["text_offset"].append(offset)
        offset += len(decoder.decode(tokenizer.token_bytes(token.id)))
    return told if top else told | {"top_logprobs": None}


def _spelling(tokenizer: Tokenizer, id: int) -> str:
    """A token as text: OpenAI's way to write a part of a character, the name of a special one."""
    raw = tokenizer.token_bytes(id)
    try:
        return raw.decode() or next((name for name, special in tokenizer.specials.items() if special == id), "")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def usage(prompt_tokens: int, completion_tokens: int, cached: int | None = None) -> dict[str, Any]:
    """Token counts, special tokens included; of the prompt's, if known, how many were read for somebody before."""
    total = prompt_tokens + completion_tokens
    told = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}
    return told if cached is None else told | {"prompt_tokens_details": {"cached_tokens": cached}}
