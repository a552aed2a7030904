"""Completions of plain text, embeddings and token ids on the wire.

In:  JSON of clients.
Out: checked requests.
Left out: chat (``wire_chat``), answers (``replies``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from danlu.infer import Sampling
from danlu.serve.bodies import Body, is_text
from danlu.serve.wire import MAX_CHOICES, Drawing, ModelName, Text, Turns, refuse_unsupported
from danlu.serve.wire_chat import StreamOptions

MAX_PROMPTS = 128
MAX_OLD_TOP = 5
MAX_IDS = 1_000_000
DEFAULT_TOKENS = 16
"""OpenAI's own for this route, which continues a text that has no end of its own."""

_HIGHEST_ID = 2**31 - 1
_KINDS = "must be a text, token ids, or a list of either"


def _as_prompts(given: Any) -> list[str | list[int]]:
    """One prompt or several, each a text or token ids, as a list of those."""
    several = given if isinstance(given, list) and not _are_ids(given) else [given]
    if not several or not all(isinstance(one, str) or _are_ids(one) for one in several):
        raise ValueError(_KINDS)
    for one in several:
        if isinstance(one, str):
            is_text(one)
    return several


def _are_ids(given: Any) -> bool:
    return bool(given) and isinstance(given, list) and all(type(id) is int and 0 <= id <= _HIGHEST_ID for id in given)


_TokenId = Annotated[int, Field(ge=0, le=_HIGHEST_ID)]
_IDS_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": _HIGHEST_ID}, "minItems": 1}
_EACH_SCHEMA = {"anyOf": [{"type": "string"}, _IDS_SCHEMA]}
_Prompts = Annotated[
    list[Any],
    BeforeValidator(_as_prompts),
    Field(max_length=MAX_PROMPTS),
    WithJsonSchema({"anyOf": [*_EACH_SCHEMA["anyOf"], {"type": "array", "items": _EACH_SCHEMA, "minItems": 1,
                                                       "maxItems": MAX_PROMPTS}]}),
]  # fmt: skip
_NEUTRAL: dict[str, tuple[Any, ...]] = {"suffix": (None, "")}


class CompletionRequest(Drawing):
    """POST /v1/completions."""

    model: ModelName
    prompt: _Prompts
    max_tokens: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_OLD_TOP)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        return refuse_unsupported(data, _NEUTRAL)

    @model_validator(mode="after")
    def _fits_together(self) -> CompletionRequest:
        if self.best_of not in (None, self.n or 1):
            raise ValueError("'best_of' is not supported by this server; ask for 'n' answers and choose among them")
        if self.limit() == 0 and not self.echo:
            raise ValueError("'max_tokens' is 0, so there is nothing to answer; give 1 or more, or 'echo': true")
        return self

    def limit(self) -> int:
        """How long an answer may get, in tokens."""
        return DEFAULT_TOKENS if self.max_tokens is None else self.max_tokens

    def sampling(self, max_new_tokens: int) -> Sampling:
        """How to draw, and how many other tokens to tell."""
        return replace(super().sampling(max_new_tokens), top_logprobs=self.logprobs or 0)

    @property
    def counts(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class EmbeddingRequest(Body):
    """POST /v1/embeddings."""

    model: ModelName
    input: _Prompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None


class TokenizeRequest(Body):
    """POST /v1/tokenize: a text, or a dialogue as the model would read it."""

    model: ModelName
    prompt: Text | None = None
    messages: Turns | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either 'prompt' or 'messages'")
        return self


class DetokenizeRequest(Body):
    """POST /v1/detokenize."""

    model: ModelName
    tokens: Annotated[list[_TokenId], Field(max_length=MAX_IDS)]
