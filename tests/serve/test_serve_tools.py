"""Tools and answers in a given form, over HTTP and with the real client."""

from __future__ import annotations

import asyncio
import json

import httpx
import openai
import pytest
from pydantic import ValidationError

from danlu import hub
from danlu.infer import Completion, Sampling
from danlu.serve import formats
from danlu.serve.chat import Telling
from danlu.serve.jobs import Finished, Job, Piece
from danlu.serve.replies import Reply
from danlu.serve.wire_chat import ChatRequest

GREET = [{"role": "user", "content": "greet"}]
PARAMETERS = {
    "type": "object", "properties": {"city": {"enum": ["长安", "洛阳"]}}, "required": ["city"],
    "additionalProperties": False,
}  # fmt: skip
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {},
                                                                          "additionalProperties": False}}}  # fmt: skip
BODY = {"model": "random", "messages": GREET, "temperature": 0, "max_tokens": 200}


@pytest.fixture(scope="module")
def client(live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def post(live, **change) -> httpx.Response:
    return httpx.post(f"{live.url}/v1/chat/completions", json=BODY | change, timeout=60)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}], ids=str)
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_required_comes_from_any_model(client, choice, stream):
    answer = client.chat.completions.create(**BODY, tools=[WEATHER, CLOCK], tool_choice=choice, stream=stream)
    if stream:
        chunks = list(answer)
        (call,) = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
        reason = chunks[-1].choices[0].finish_reason
        assert call.index == 0
        assert not any(chunk.choices[0].delta.content for chunk in chunks)
    else:
        message = answer.choices[0].message
        (call,), reason = message.tool_calls, answer.choices[0].finish_reason
        assert message.content is None
    assert reason == "tool_calls"
    assert call.id.startswith("call_")
    arguments = json.loads(call.function.arguments)
    if isinstance(choice, dict):
        assert call.function.name == "weather"
    assert arguments == {} if call.function.name == "clock" else arguments["city"] in ("长安", "洛阳")


def test_an_answer_keeps_to_its_schema(client):
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
              "required": ["n"], "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    plain = client.chat.completions.create(**BODY, response_format=form)
    assert set(json.loads(plain.choices[0].message.content)) == {"n"}
    streamed = client.chat.completions.create(**BODY, response_format=form, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == plain.choices[0].message.content


def test_an_answer_that_is_any_object(client):
    ask = {**BODY, "max_tokens": 40, "response_format": {"type": "json_object"}}
    answer = client.chat.completions.create(**ask).choices[0]
    assert answer.message.content.startswith("{")
    if answer.finish_reason == "stop":
        assert isinstance(json.loads(answer.message.content), dict)


def deep(levels: int) -> dict:
    schema: dict = {"type": "string"}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("change", "said"),
    [({"response_format": {"type": "json_schema"}}, "'json_schema' is missing"),
     ({"response_format": {"type": "yaml"}}, "response_format"),
     ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "objekt"}}}},
      "objekt"),
     ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://x.test/s"}}}}, "x.test"),
     ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"pattern": "[(", "type": "string"}}}},
      "kept to this JSON schema"),
     ({"response_format": {"type": "json_schema", "json_schema": {"schema": deep(20)}}}, "16 is the most"),
     ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": ["x" * 65_000]}}}}, "64,000"),
     ({"tools": [WEATHER, WEATHER]}, "same name"),
     ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
     ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "rain"}}}, "not in 'tools'"),
     ({"tool_choice": "required"}, "'tools' has none"),
     ({"tools": [WEATHER], "tool_choice": "required", "response_format": {"type": "json_object"}}, "exclude"),
     ({"functions": [{"name": "x"}]}, "functions")],
    ids=lambda value: str(value)[:50],
)  # fmt: skip
def test_forms_that_are_refused(live, change, said):
    answer = post(live, **change)
    assert answer.status_code == 400, answer.text
    assert said in answer.json()["error"]["message"]


def test_tools_are_described_to_the_model_unless_it_may_not_call_any(live):
    def prompt_tokens(**change) -> int:
        return post(live, max_tokens=1, **change).json()["usage"]["prompt_tokens"]

    plain = prompt_tokens()
    assert prompt_tokens(tools=[WEATHER]) > plain + 100
    assert prompt_tokens(tools=[WEATHER], tool_choice="none") == plain
    named = {"type": "function", "function": {"name": "clock"}}
    assert prompt_tokens(tools=[WEATHER, CLOCK], tool_choice=named) == prompt_tokens(tools=[CLOCK])


def test_definitions_of_several_tools_stand_at_the_root():
    tool = {"function": {"name": "a", "parameters": {"$ref": "#/$defs/A", "$defs": {"A": {"type": "object"}}}}}
    schema = formats.call_schema([tool, {"function": {"name": "b"}}])
    assert schema["$defs"] == {"A": {"type": "object"}}
    assert json.loads(formats.compile_grammar(schema, "tools")) == schema
    other = {"function": {"name": "c", "parameters": {"$defs": {"A": {"type": "string"}}}}}
    with pytest.raises(ValueError, match="rename one"):
        formats.call_schema([tool, other])


def test_depth():
    assert [formats.depth(value) for value in (1, {}, {"a": 1}, {"a": {"b": [1]}})] == [0, 0, 1, 3]


TEXT = 'I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "长安"}}\n</tool_call>'


@pytest.fixture(scope="module")
def telling(model_dirs):
    def make(**change) -> Telling:
        asked = ChatRequest.model_validate({"model": "m", "messages": GREET, "tools": [WEATHER]} | change)
        return Telling(asked, hub.load_pretrained(model_dirs["knows"])[1], Reply("m", "hash"))

    return make


def written(finish_reason: str = "stop") -> Finished:
    return Finished(0, Completion((1,), TEXT, (-1.0,), finish_reason))


JOBS = (Job("m", (1, 2), Sampling(), 0),)


def test_a_model_calls_by_itself(telling):
    choice = telling().whole(list(JOBS), [written()])["choices"][0]
    assert choice["message"]["content"] == "I look."
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "长安"}'}
    assert choice["finish_reason"] == "tool_calls"
    assert telling().whole(list(JOBS), [written("length")])["choices"][0]["finish_reason"] == "length"
    plain = telling(tools=None).whole(list(JOBS), [written()])["choices"][0]
    assert plain["message"]["content"] == TEXT
    assert plain["finish_reason"] == "stop"


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_a_model_calls_in_a_stream(telling, size):
    async def events():
        for place in range(0, len(TEXT), size):
            yield Piece(0, TEXT[place : place + size], ())
        yield written()

    async def gathered():
        return [chunk async for chunk in telling().chunks(JOBS, events())]

    *chunks, done = asyncio.run(gathered())
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert done == "[DONE]"
    assert "".join(delta.get("content", "") for delta in deltas) == "I look."
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert [(call["index"], call["function"]["name"]) for call in calls] == [(0, "weather")]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_repair_keeps_out_of_what_programs_read():
    def repairs(**change) -> bool:
        return ChatRequest.model_validate({"model": "m", "messages": GREET} | change).repairs()

    assert repairs()
    assert not repairs(repair=False)
    assert not repairs(tools=[WEATHER])
    assert not repairs(logprobs=True)
    assert not repairs(response_format={"type": "json_object"})
    with pytest.raises(ValidationError):
        repairs(repair="no")
