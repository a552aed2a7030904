"""What OpenAI-compatible servers get wrong: one test each, with the real client, on a real socket."""

from __future__ import annotations

import asyncio
import json

import httpx
import openai
import pytest

GREET = [{"role": "user", "content": "greet"}]
ANSWER = "Hello, 你好。"
BODY = {"model": "knows", "messages": GREET, "temperature": 0}


@pytest.fixture(scope="module")
def client(live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def http(live):
    with httpx.Client(base_url=live.url, timeout=30) as client:
        yield client


def refused(answer: httpx.Response, status: int, code: str | None = None) -> dict:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert code in (None, error["code"])
    return error


def post(http: httpx.Client, body: str) -> httpx.Response:
    headers = {"content-type": "application/json"}
    return http.post("/v1/chat/completions", content=body.encode(), headers=headers)


def test_trap_1_no_422_with_a_detail(http):
    error = refused(http.post("/v1/chat/completions", json={"model": "knows"}), 400)
    assert error["param"] == "messages"
    schema = http.get("/openapi.json").json()
    for path, routes in schema["paths"].items():
        for route in routes.values():
            assert "422" not in route["responses"], path
            assert {"4XX", "5XX"} <= set(route["responses"]), path


def test_trap_2_without_a_limit_an_answer_may_take_the_rest_of_the_context(client):
    asked = [{"role": "user", "content": "count"}]
    answer = client.chat.completions.create(model="knows", messages=asked, temperature=0, max_tokens=60,
                                            max_completion_tokens=70)  # fmt: skip
    assert answer.usage.completion_tokens == 70, "the newer field wins"
    stream = client.chat.completions.create(model="knows", messages=asked, temperature=0, stream=True)
    texts = [chunk.choices[0].delta.content for _, chunk in zip(range(40), stream, strict=False)]
    stream.close()
    assert len(texts) == 40, "sixteen tokens are not the default"


def test_trap_3_roles_and_contents(client):
    parts = [{"type": "text", "text": "gre"}, {"type": "text", "text": "et"}]
    for messages in (
        [{"role": "user", "content": parts}],
        [{"role": "developer", "content": "Be kind."}, *GREET],
        [*GREET, {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}]},
         {"role": "tool", "tool_call_id": "call_1", "content": "four"}],
    ):  # fmt: skip
        answer = client.chat.completions.create(model="knows", messages=messages, temperature=0, max_tokens=3)
        assert answer.usage.prompt_tokens > 3


def test_what_tools_gave_back_and_what_the_user_says_to_it_is_one_turn(http):
    called = {"role": "assistant", "tool_calls": [{"function": {"name": "clock", "arguments": "{}"}}]}
    results = [{"role": "tool", "content": "four"}, {"role": "tool", "content": "五"}]
    turns = [*GREET, called, *results, {"role": "user", "content": "greet"}]
    ids = http.post("/v1/tokenize", json={"model": "knows", "messages": turns}).json()["tokens"]
    text = http.post("/v1/detokenize", json={"model": "knows", "tokens": ids}).json()["prompt"]
    assert text == (
        'greet<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call><tool_response>\nfour\n</tool_response>\n'
        "<tool_response>\n五\n</tool_response>\ngreet"
    )


@pytest.mark.parametrize("stop", [None, "o, ", ["zzz", "o, "], []])
def test_trap_4_stop_in_every_form_never_leaks(client, stop):
    plain = client.chat.completions.create(**BODY, stop=stop).choices[0].message.content
    stream = client.chat.completions.create(**BODY, stop=stop, stream=True)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert plain == streamed == ("Hell" if stop else ANSWER)


def test_trap_5_no_stream_when_none_was_asked_for_and_choices_by_index(client, http):
    answer = http.post("/v1/chat/completions", json={**BODY, "stream": False, "n": 4})
    assert answer.headers["content-type"] == "application/json"
    assert [choice["index"] for choice in answer.json()["choices"]] == [0, 1, 2, 3]
    chunks = list(client.chat.completions.create(**BODY, n=3, stream=True))
    for index in range(3):
        own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert own[0].delta.role == "assistant"
        assert own[-1].finish_reason == "stop"
        assert "".join(choice.delta.content or "" for choice in own) == ANSWER


def test_trap_6_special_tokens_are_counted(client, http):
    usage = client.chat.completions.create(**BODY).usage
    ids = http.post("/v1/tokenize", json={"model": "knows", "messages": GREET}).json()
    assert usage.prompt_tokens == ids["count"] == len(ids["tokens"])
    words = http.post("/v1/tokenize", json={"model": "knows", "prompt": ANSWER}).json()["count"]
    assert usage.completion_tokens == words + 1, "the token that ends the answer was written too"


def test_trap_7_wrong_names_paths_methods(http):
    assert refused(http.post("/v1/chat/completions", json=BODY | {"model": "no"}), 404, "model_not_found")
    assert refused(http.get("/v1/models/no"), 404, "model_not_found")["param"] == "model"
    assert refused(http.put("/v1/models"), 415)
    wrong = http.delete("/v1/models")
    assert refused(wrong, 405, "method_not_allowed")
    assert "GET" in wrong.headers["allow"]


def test_trap_8_too_long_says_both_numbers_on_every_route(http):
    long = "春眠" * 4000
    for path, body in (
        ("chat/completions", {"messages": [{"role": "user", "content": long}]}),
        ("completions", {"prompt": long}),
        ("completions", {"prompt": [5] * 4090}),
        ("embeddings", {"input": long}),
    ):
        error = refused(http.post(f"/v1/{path}", json={"model": "knows"} | body), 400, "context_length_exceeded")
        assert "4096" in error["message"]
        assert any(int(word) > 4096 for word in error["message"].replace(",", "").split() if word.isdigit())


def test_trap_9_nothing_buffers_a_stream(client):
    raw = client.chat.completions.with_raw_response.create(**BODY, stream=True)
    assert raw.headers["cache-control"] == "no-cache"
    assert raw.headers["x-accel-buffering"] == "no"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in raw.parse()) == ANSWER


@pytest.mark.parametrize(
    ("field", "code"),
    [('"temperature": NaN', "invalid_json"), ('"user": NaN', "invalid_json"), ('"top_p": Infinity', "invalid_json"),
     ('"top_p": -Infinity', "invalid_json"), ('"temperature": 1e999', None), ('"seed": 1' + "0" * 400, None),
     ('"max_tokens": -1', "invalid_value"), ('"n": 0', "invalid_value"), ('"n": 1.5', None), ('"top_k": "4"', None),
     ('"model": "random"', "invalid_json"), ('"metadata": {"a": 1, "a": 2}', "invalid_json"),
     ('"logit_bias": {"1": 1e400}', None)],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_trap_10_numbers_that_are_none_and_keys_given_twice(http, field, code):
    body = json.dumps({"model": "knows", "messages": GREET})
    refused(post(http, f"{body[:-1]}, {field}}}"), 400, code)


@pytest.mark.parametrize("said", ["", " \n", "<|end|><|assistant|>", "<|bos|>"])
def test_trap_11_empty_prompts_and_prompts_of_special_tokens_only(http, said):
    answer = http.post("/v1/chat/completions", json=BODY | {"messages": [{"role": "user", "content": said}],
                                                            "max_tokens": 2})  # fmt: skip
    if said.strip():
        assert answer.status_code == 200
    else:
        assert refused(answer, 400)["param"] == "messages"
    assert http.post("/v1/completions", json={"model": "knows", "prompt": said, "max_tokens": 2}).status_code == 200


def test_trap_12_bodies_that_are_no_object_or_are_compressed(http):
    for body in ("[]", "1", "null", '"x"', "[" * 5000):
        refused(post(http, body), 400)
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    bomb = http.post("/v1/chat/completions", content=b"\x1f\x8b", headers=headers)
    assert refused(bomb, 415, "unsupported_encoding")


def test_fields_that_change_nothing_are_ignored(client):
    answer = client.chat.completions.create(
        **BODY, user="someone", service_tier="auto", store=False, metadata={"a": "b"}, verbosity="low",
        prompt_cache_key="k", safety_identifier="s", parallel_tool_calls=True, extra_body={"unheard_of": [1]},
    )  # fmt: skip
    assert answer.choices[0].message.content == ANSWER


def test_the_async_client(live):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
            plain = client.chat.completions.create(**BODY)
            stream = await client.chat.completions.create(**BODY, stream=True)
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return (await plain).choices[0].message.content, "".join(pieces)

    assert asyncio.run(ask()) == (ANSWER, ANSWER)


def test_the_clients_own_helper_for_streams(client):
    with client.chat.completions.stream(**BODY) as stream:
        whole = stream.get_final_completion()
    assert whole.choices[0].message.content == ANSWER
    assert whole.choices[0].finish_reason == "stop"


def test_the_client_asks_again_when_told_to_and_not_otherwise(live):
    count = BODY | {"messages": [{"role": "user", "content": "count"}], "stream": True}
    statuses: list[int] = []

    def note(response: httpx.Response) -> None:
        statuses.append(response.status_code)
        if response.status_code == 503:
            assert response.headers["x-should-retry"] == "true"
            assert 0 < int(response.headers["retry-after"]) <= 120
            for stream in streams:  # they leave while the client waits
                stream.close()

    with (
        httpx.Client(base_url=live.url, timeout=30) as http,
        httpx.Client(event_hooks={"response": [note]}, timeout=30) as listened,
        openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=2, http_client=listened) as client,
    ):
        asks = [http.build_request("POST", "/v1/chat/completions", json=count) for _ in range(4)]
        streams = [http.send(ask, stream=True) for ask in asks]  # two are written, two wait: the server is full
        assert client.chat.completions.create(**BODY).choices[0].message.content == ANSWER
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(**(BODY | {"temperature": 3}))
    assert statuses[0] == 503
    assert statuses[-2:] == [200, 400], "a mistake is not repeated"


def test_every_answer_has_a_name(http, client):
    assert http.get("/healthz", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = http.get("/healthz", headers={"x-request-id": "no spaces, please"}).headers["x-request-id"]
    assert made.startswith("req_")
    assert http.get("/nowhere").headers["x-request-id"] != made
    assert http.get("/healthz", headers={"host": "evil.test"}).headers["x-request-id"].startswith("req_")
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**(BODY | {"temperature": 3}))
    assert caught.value.request_id.startswith("req_")


def test_a_fault_of_ours_leaves_in_the_envelope_too(live, http, monkeypatch, caplog):
    monkeypatch.setattr(live.app.state.metrics, "watch", None)  # whatever: something that nobody foresaw
    answer = http.post("/v1/chat/completions", json=BODY, headers={"x-request-id": "fault-7"})
    error = refused(answer, 500, "internal_error")
    assert "NoneType" not in error["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["x-request-id"] == "fault-7"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "fault-7" in caplog.text


def test_loops_are_cut_unless_they_are_asked_for(http):
    (letter,) = http.post("/v1/tokenize", json={"model": "random", "prompt": "a"}).json()["tokens"]
    loop = {"model": "random", "messages": GREET, "temperature": 0, "max_tokens": 120, "logit_bias": {str(letter): 100}}
    raw = http.post("/v1/chat/completions", json=loop | {"repair": False}).json()["choices"][0]
    assert (raw["message"]["content"], raw["finish_reason"]) == ("a" * 120, "length")
    answer = http.post("/v1/chat/completions", json=loop).json()
    assert answer["usage"]["completion_tokens"] < 120, "the rest need not be written"
    cut = answer["choices"][0]
    assert (cut["message"]["content"], cut["finish_reason"], cut["cut"]) == ("a" * 16, "stop", "repetition")
    with http.stream("POST", "/v1/chat/completions", json=loop | {"stream": True}) as stream:
        lines = [line.removeprefix("data: ") for line in stream.iter_lines() if line]
    chunks = [json.loads(line)["choices"][0] for line in lines[:-1]]
    assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == "a" * 16
    assert (chunks[-1]["finish_reason"], chunks[-1]["cut"]) == ("stop", "repetition")
