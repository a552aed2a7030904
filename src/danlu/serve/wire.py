"""The shapes on the wire that chat, comparisons and completions share, with a range on every number.

In:  JSON of clients that may be anybody's.
Out: checked requests.
Left out: what only OpenAI's API has (``wire_chat``, ``wire_text``), answers (``replies``), errors (``problems``).

Unknown fields are ignored, as OpenAI's clients expect of a server. Known fields that would change the answer and are
not supported are refused: an answer that silently ignores them would be a wrong one.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from danlu.align.splits import is_person
from danlu.infer import Sampling
from danlu.infer import left_out as count_left_out
from danlu.records import Message, check_messages
from danlu.serve.bodies import Body, is_text
from danlu.tokens import tools

MAX_MESSAGES = 256
MAX_CHOICES = 8
MAX_STOPS = 4
MAX_STOP_CHARS = 64
MAX_BIASES = 300  # as OpenAI's server, like the next
MAX_TOP = 20
MAX_SEED = 2**53 - 1  # what a browser can hold exactly
_DRAWN_SEED = 2**31  # short enough to be read out


def _as_list(stop: Any) -> Any:
    """One string, several, or null."""
    return [stop] if isinstance(stop, str) else stop if stop is not None else []


def _join_parts(content: Any) -> Any:
    """OpenAI's list of parts; text is the only kind that these models read."""
    if not isinstance(content, list):
        return content
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        raise ValueError("must be a string or a list of parts with a text")
    return "".join(part["text"] for part in content)


_STOP_SCHEMA = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS}
_PART_SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}

Text = Annotated[str, AfterValidator(is_text)]
ModelName = Annotated[Text, Field(min_length=1, max_length=200)]
_Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
_Stop = Annotated[Text, Field(min_length=1, max_length=MAX_STOP_CHARS)]
_Stops = Annotated[
    list[_Stop],
    Field(max_length=MAX_STOPS),
    BeforeValidator(_as_list),
    WithJsonSchema({"anyOf": [_STOP_SCHEMA, {"type": "array", "items": _STOP_SCHEMA, "maxItems": MAX_STOPS},
                              {"type": "null"}]}),
]  # fmt: skip
_Content = Annotated[
    Text | None,
    BeforeValidator(_join_parts),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": _PART_SCHEMA}, {"type": "null"}]}),
]
_Id = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]  # JSON has no numbers as keys
_Bias = Annotated[float, Field(ge=-100, le=100)]


def _is_a_person(rater: str) -> str:
    """A colon marks sources of many people's judgements, which are held to no share of the votes."""
    if rater and not is_person(rater):
        raise ValueError("a rater's name has no colon, which marks judgements out of a file; choose another name")
    return rater


Rater = Annotated[Text, Field(max_length=64, json_schema_extra={"pattern": "^[^:]*$"}), AfterValidator(_is_a_person)]


class CalledFunction(Body):
    """What the assistant called, with the text of a JSON object as arguments."""

    name: Annotated[Text, Field(min_length=1, max_length=64)]
    arguments: Text = "{}"


class ToolCall(Body):
    """A call that the assistant made earlier in the dialogue."""

    function: CalledFunction


class WireMessage(Body):
    """A turn: OpenAI's ``developer`` is our ``system``; what tools gave back is read in a user's turn."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] | None = None
    content: Annotated[_Content, Field(validate_default=True)] = None

    @field_validator("content")
    @classmethod
    def _says_something(cls, content: str | None, info: ValidationInfo) -> str | None:
        if content is None and not (info.data.get("role") == "assistant" and info.data.get("tool_calls")):
            raise ValueError("must be text; only an assistant's turn with 'tool_calls' has none")
        return content

    @property
    def speaker(self) -> str:
        """Whose turn it is for the model."""
        return {"developer": "system", "tool": "user"}.get(self.role, self.role)

    def words(self) -> str:
        """What the model reads of it."""
        content = self.content or ""
        if self.role == "tool":
            return tools.given_back(content)
        calls = [tools.spelt(tools.Call(c.function.name, c.function.arguments)) for c in self.tool_calls or ()]
        return "\n".join(part for part in (content, *calls) if part) if calls else content


class Drawing(Body):
    """How an answer is drawn; what is left out is OpenAI's default, 1."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    stop: _Stops = Field(default=[])
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[_Id, _Bias], Field(max_length=MAX_BIASES)] | None = None
    seed: _Seed | None = None

    def first_seed(self) -> int:
        """The client's seed, or a new one."""
        return secrets.randbelow(_DRAWN_SEED) if self.seed is None else self.seed

    def sampling(self, max_new_tokens: int) -> Sampling:
        """As the engine takes it."""
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


def dialogue(messages: Sequence[WireMessage]) -> tuple[Message, ...]:
    """Our own records; what tools gave back, and what the user says to it, is one turn."""
    merged: list[Message] = []
    before = ""
    for message in messages:
        if before == "tool" and message.speaker == "user":
            merged[-1] = Message("user", f"{merged[-1].content}\n{message.words()}")
        else:
            merged.append(Message(message.speaker, message.words()))
        before = message.role
    return tuple(merged)


def _in_order(messages: list[WireMessage]) -> list[WireMessage]:
    check_messages(dialogue(messages), answered=False)
    return messages


Turns = Annotated[list[WireMessage], Field(min_length=1, max_length=MAX_MESSAGES), AfterValidator(_in_order)]


class Asking(Drawing):
    """What a chat completion and a comparison have in common: the turns and how to draw."""

    messages: Turns
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    """``"auto"``, a word of OpenAI's Responses API, leaves out the oldest turns of a dialogue that is too long."""

    def turns(self) -> tuple[Message, ...]:
        """The dialogue, ending with the user's turn or what tools gave back."""
        return dialogue(self.messages)

    def limit(self) -> int | None:
        """How long an answer may get, in tokens, if the client says so; the newer field wins."""
        return self.max_completion_tokens or self.max_tokens

    def may_leave_out(self) -> bool:
        """Whether the oldest turns may be left out; if not, a dialogue that is too long is refused."""
        return self.truncation == "auto"

    def left_out(self, said: Sequence[Message], kept: Sequence[Message]) -> dict[str, int]:
        """What the client is told if only ``kept`` is answered: how many others are not, if it allowed for that."""
        return {"left_out": count_left_out(said, kept)} if self.may_leave_out() else {}


class CompareRequest(Asking):
    """POST /api/compare: two answers of one model, or one of each of two."""

    models: Annotated[list[ModelName], Field(min_length=1, max_length=2)]
    conversation: Annotated[Text, Field(max_length=32)] | None = None
    rater: Rater = ""


def refuse_unsupported(data: Any, neutral: Mapping[str, tuple[Any, ...]]) -> Any:
    """Refuse known fields that are not supported unless they have a value that changes nothing.

    Args:
        data: a body before it is checked.
        neutral: field -> values that are let through.
    """
    if isinstance(data, dict):
        for name, values in neutral.items():
            if data.get(name) not in values:
                raise ValueError(f"'{name}' is not supported by this server; leave it out")
    return data
