"""POST /v1/chat/completions on the wire: what OpenAI's request has beyond a dialogue and how to draw.

In:  JSON of clients.
Out: checked requests.
Left out: what is shared with comparisons (``wire``), answers (``replies``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from danlu.infer import Sampling
from danlu.serve import formats
from danlu.serve.bodies import Body
from danlu.serve.wire import MAX_CHOICES, MAX_TOP, Asking, ModelName, Text, refuse_unsupported

MAX_TOOLS = 128

_ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
_Schema = Annotated[dict[str, Any], AfterValidator(formats.check_size)]
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "functions": (None, []),
    "function_call": (None, "none"),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "web_search_options": (None,),
}


class StreamOptions(Body):
    """``include_usage``: one more chunk at the end that counts tokens."""

    include_usage: bool = False


class Function(Body):
    """A tool: its name, what it is for, and a JSON schema of its arguments."""

    name: _ToolName
    description: Text | None = None
    parameters: _Schema | None = None


class Tool(Body):
    """A tool that the model may call."""

    type: Literal["function"] = "function"
    function: Function

    def described(self) -> dict[str, Any]:
        """As the model reads it."""
        return {"type": "function", "function": self.function.model_dump(exclude_none=True)}


class NamedFunction(Body):
    """The name of a tool."""

    name: _ToolName


class NamedTool(Body):
    """The one tool that has to be called."""

    type: Literal["function"] = "function"
    function: NamedFunction


class SchemaFormat(Body):
    """A JSON schema and its name."""

    name: Text | None = None
    json_schema: _Schema = Field(default={"type": "object"}, alias="schema")


class ResponseFormat(Body):
    """What form the answer has."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("'json_schema' is missing")
        return self

    def schema_asked(self) -> dict[str, Any] | None:
        """The JSON schema of the answer, if it has one."""
        if self.type == "json_schema" and self.json_schema:
            return self.json_schema.json_schema
        return {"type": "object"} if self.type == "json_object" else None


class ChatRequest(Asking):
    """POST /v1/chat/completions."""

    model: ModelName
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    repair: bool | None = None
    """False: the answer as the model wrote it, loops and all."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        return refuse_unsupported(data, _NEUTRAL)

    @model_validator(mode="after")
    def _fits_together(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("'top_logprobs' needs 'logprobs' to be true")
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("two tools in 'tools' have the same name")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f"'tool_choice' names '{self.tool_choice.function.name}', which is not in 'tools'")
        if self.tool_choice == "required" and not names:
            raise ValueError("'tool_choice' requires a call and 'tools' has none")
        if self.must_call() and self._format():
            raise ValueError("'response_format' and a 'tool_choice' that requires a call exclude each other")
        formats.check_size(self.offered())
        return self

    def offered(self) -> list[dict[str, Any]]:
        """The tools that the model is told of: none if it may not call any, one if it has to call that one."""
        if self.tool_choice == "none":
            return []
        named = self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None
        return [tool.described() for tool in self.tools or () if named in (None, tool.function.name)]

    def must_call(self) -> bool:
        """Whether the answer is one call and nothing else."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)

    def answer_schema(self) -> dict[str, Any] | None:
        """The JSON schema that the answer keeps to, if any."""
        return formats.call_schema(self.offered()) if self.must_call() else self._format()

    def repairs(self) -> bool:
        """Whether loops are cut: not where programs read the answer, nor where every token is accounted for."""
        return self.repair is not False and not (self.logprobs or self.offered() or self._format())

    def sampling(self, max_new_tokens: int) -> Sampling:
        """How to draw, and how many other tokens to tell."""
        return replace(super().sampling(max_new_tokens), top_logprobs=self.top_logprobs or 0)

    @property
    def counts(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def _format(self) -> dict[str, Any] | None:
        return self.response_format.schema_asked() if self.response_format else None
