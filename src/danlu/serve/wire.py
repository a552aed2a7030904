"""The shapes on the wire: requests with a range on every number, answers in OpenAI's form.

In:  JSON of clients that may be anybody's.
Out: checked requests; chat completions, chunks and usage as plain data.
Left out: what an answer says (``chat``), errors (``problems``).

Unknown fields are ignored, as OpenAI's clients expect of a server. Known fields that would change the answer and are
not supported are refused: an answer that silently ignores them would be a wrong one.
"""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from danlu.infer import Sampling, Token
from danlu.records import Message, check_messages
from danlu.tokens.tokenizer import Tokenizer

MAX_MESSAGES = 256
MAX_CHOICES = 4
MAX_STOPS = 4
MAX_STOP_CHARS = 64
MAX_BIASES = 300  # as OpenAI's server, like the next
MAX_TOP = 20
MAX_SEED = 2**53 - 1  # what a browser can hold exactly
_DRAWN_SEED = 2**31  # short enough to be read out


def _is_text(value: str) -> str:
    """JSON can spell half a surrogate pair; no tokenizer and no database can store it."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("half a surrogate pair (\\ud800 to \\udfff) is not text") from None
    return value


Text = Annotated[str, AfterValidator(_is_text)]
_Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
_Stop = Annotated[Text, Field(min_length=1, max_length=MAX_STOP_CHARS)]
_Id = Annotated[str, Field(pattern=r"^\d{1,9}$")]  # JSON has no numbers as keys
_Bias = Annotated[float, Field(ge=-100, le=100)]
ModelName = Annotated[Text, Field(min_length=1, max_length=200)]
_Rater = Annotated[Text, Field(max_length=64)]


class Body(BaseModel):
    """A JSON object of a request; nothing is converted, unknown fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class WireMessage(Body):
    """A turn: OpenAI's ``developer`` is our ``system``."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text

    @field_validator("content", mode="before")
    @classmethod
    def _join_parts(cls, content: Any) -> Any:
        """OpenAI's list of parts; text is the only kind that these models read."""
        if not isinstance(content, list):
            return content
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise ValueError("must be a string or a list of parts with a text")
        return "".join(part["text"] for part in content)

    def message(self) -> Message:
        """Our own record."""
        return Message("system" if self.role == "developer" else self.role, self.content)


class Asking(Body):
    """What a chat completion and a comparison have in common: the turns and how to draw."""

    messages: Annotated[list[WireMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    stop: Annotated[list[_Stop], Field(max_length=MAX_STOPS)] = []
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[_Id, _Bias], Field(max_length=MAX_BIASES)] | None = None
    seed: _Seed | None = None
    truncation: Literal["auto", "disabled"] | None = None
    """``"auto"``, a word of OpenAI's Responses API, leaves out the oldest turns of a dialogue that is too long."""

    @field_validator("stop", mode="before")
    @classmethod
    def _as_list(cls, stop: Any) -> Any:
        """One string, several, or null."""
        return [stop] if isinstance(stop, str) else stop if stop is not None else []

    @field_validator("messages")
    @classmethod
    def _turns(cls, messages: list[WireMessage]) -> list[WireMessage]:
        check_messages([message.message() for message in messages], answered=False)
        return messages

    def turns(self) -> tuple[Message, ...]:
        """The dialogue, ending with the user's turn."""
        return tuple(message.message() for message in self.messages)

    def first_seed(self) -> int:
        """The client's seed, or a new one."""
        return secrets.randbelow(_DRAWN_SEED) if self.seed is None else self.seed

    def limit(self) -> int | None:
        """How long an answer may get, in tokens, if the client says so; the newer field wins."""
        return self.max_completion_tokens or self.max_tokens

    def may_leave_out(self) -> bool:
        """Whether the oldest turns may be left out; if not, a dialogue that is too long is refused."""
        return self.truncation == "auto"

    def left_out(self, turns: Sequence[Message]) -> dict[str, int]:
        """What the client is told if only ``turns`` are answered: how many messages are not, if it allowed for that."""
        return {"left_out": len(self.messages) - len(turns)} if self.may_leave_out() else {}

    def sampling(self, max_new_tokens: int) -> Sampling:
        """How to draw; what is left out is OpenAI's default, 1."""
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k,
            top_p=1.0 if self.top_p is None else self.top_p,
            min_p=self.min_p,
            max_new_tokens=max_new_tokens,
            stop=tuple(self.stop),
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=tuple((int(id), bias) for id, bias in sorted((self.logit_bias or {}).items())),
        )


class StreamOptions(Body):
    """``include_usage``: one more chunk at the end that counts tokens."""

    include_usage: bool = False


class ChatRequest(Asking):
    """POST /v1/chat/completions."""

    model: ModelName
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for name, neutral in _NEUTRAL.items():
                if data.get(name) not in neutral:
                    raise ValueError(f"'{name}' is not supported by this server; leave it out")
        return data

    @model_validator(mode="after")
    def _top_needs_logprobs(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("'top_logprobs' needs 'logprobs' to be true")
        return self

    def sampling(self, max_new_tokens: int) -> Sampling:
        """How to draw, and how many other tokens to tell."""
        return replace(super().sampling(max_new_tokens), top_logprobs=self.top_logprobs or 0)

    @property
    def counts(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return self.stream_options is not None and self.stream_options.include_usage


_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
}


class CompareRequest(Asking):
    """POST /api/compare: two answers of one model, or one of each of two."""

    models: Annotated[list[ModelName], Field(min_length=1, max_length=2)]
    conversation: Annotated[Text, Field(max_length=32)] | None = None
    rater: _Rater = ""


@dataclass(frozen=True)
class Reply:
    """What every piece of one chat completion repeats: its id, its time, its model.

    Attributes:
        model: the name the client asked for.
        fingerprint: hash of the model that answers.
        further: fields that OpenAI's form does not have; its clients pass them on.
    """

    model: str
    fingerprint: str
    further: Mapping[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def chunk(self, choices: Sequence[dict[str, Any]], **usage: Any) -> dict[str, Any]:
        """A ``chat.completion.chunk``."""
        return self._frame("chat.completion.chunk", choices) | usage

    def whole(self, choices: Sequence[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        """A ``chat.completion``."""
        return self._frame("chat.completion", choices) | {"usage": usage}

    def _frame(self, kind: str, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": list(choices),
            **self.further,
        }


def delta(
    index: int, content: dict[str, str], finish_reason: str | None = None, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A choice of a chunk."""
    return {"index": index, "delta": content, "logprobs": logprobs, "finish_reason": finish_reason}


def choice(index: int, text: str, finish_reason: str, logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
    """A choice of a whole completion."""
    message = {"role": "assistant", "content": text, "refusal": None}
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish_reason}


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


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Token counts, special tokens included."""
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}
