"""What the server refuses, always in one envelope with one sentence."""

from __future__ import annotations

import re

import httpx
import pytest

GREET = [{"role": "user", "content": "greet"}]
GOOD = {"model": "knows", "messages": GREET, "max_tokens": 4}


@pytest.fixture(scope="module")
def http(live):
    with httpx.Client(base_url=live.url) as client:
        yield client


def refused(answer: httpx.Response, status: int) -> dict:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2**70}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"n": 9}, "n"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**53}, "seed"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": 7}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", "x" * 65]}, "stop.1"),
        ({"stream": "yes"}, "stream"),
        ({"truncation": "always"}, "truncation"),
        ({"messages": []}, "messages"),
        ({"messages": "greet"}, "messages"),
        ({"messages": [{"role": "assistant", "content": "greet"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "  "}]}, "messages"),
        ({"messages": GREET * 257}, "messages"),
        ({"messages": [{"role": "robot", "content": "greet"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"model": ""}, "model"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_values_out_of_range(http, change, param):
    error = refused(http.post("/v1/chat/completions", json=GOOD | change), 400)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param


def test_what_would_be_ignored_silently_is_refused(http):
    assert "functions" in refused(http.post("/v1/chat/completions", json=GOOD | {"functions": [{}]}), 400)["message"]


@pytest.mark.parametrize(
    ("change", "param"),
    [({"presence_penalty": 3}, "presence_penalty"), ({"frequency_penalty": "much"}, "frequency_penalty"),
     ({"logit_bias": {"x": 1}}, "logit_bias"), ({"logit_bias": {"5": 101}}, "logit_bias"),
     ({"top_logprobs": 3}, ""), ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
     ({"logit_bias": {"999999999": 1}}, "logit_bias"), ({"repetition_penalty": 0}, "repetition_penalty")],
    ids=str,
)  # fmt: skip
def test_penalties_out_of_range(http, change, param):
    assert (refused(http.post("/v1/chat/completions", json=GOOD | change), 400)["param"] or "").startswith(param)


def test_a_bias_bans_and_commands(http):
    def answer(**change):
        reply = http.post("/v1/chat/completions", json=GOOD | {"temperature": 0, "max_tokens": 4} | change)
        assert reply.status_code == 200, reply.text
        return reply.json()["choices"][0]["message"]["content"]

    ids = {str(id): -100 for id in range(256)}  # every byte
    assert answer(logit_bias={"97": 100}) != answer()
    assert answer(logit_bias=ids, presence_penalty=1.5, frequency_penalty=-0.5, repetition_penalty=1.1) != answer()


def test_unknown_and_neutral_fields_are_accepted(http):
    extra = {"user": "somebody", "store": False, "presence_penalty": 0, "tools": None, "stop": None}
    assert http.post("/v1/chat/completions", json=GOOD | extra).status_code == 200


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"text"', b'{"model": "knows"}', b"\xff\xfe", b"[" * 100_000, b"1" * 5000,
     b'{"model":"knows","messages":[{"role":"user","content":"\\ud800"}]}',
     b'{"model":"knows","messages":[{"role":"user","content":"greet"}],"temperature":NaN}'],
    ids=lambda body: body[:20],
)  # fmt: skip
def test_bodies_that_are_no_request(http, body):
    headers = {"content-type": "application/json"}
    refused(http.post("/v1/chat/completions", content=body, headers=headers), 400)


def test_bodies_that_are_not_json(http):
    refused(http.post("/v1/chat/completions", data={"model": "knows"}), 415)
    refused(http.post("/api/vote", content=b"{}", headers={"content-type": "text/plain"}), 415)


def test_a_body_without_length_is_cut_off_all_the_same(http):
    chunks = (b" " * 100_000 for _ in range(30))
    headers = {"content-type": "application/json"}
    assert refused(http.post("/v1/chat/completions", content=chunks, headers=headers), 413)["code"] == "body_too_large"


def test_unknown_paths_and_methods(http):
    assert refused(http.get("/v1/nothing"), 404)["code"] == "not_found"
    assert refused(http.get("/v1/chat/completions"), 405)["code"] == "method_not_allowed"
    refused(http.get("/assets/../../pyproject.toml"), 404)
    refused(http.get("/docs"), 404)


@pytest.mark.parametrize("host", ["evil.test", "127.0.0.1.evil.test", "localhost.evil.test:80", "[::2]", "0.0.0.0", ""])
def test_foreign_hosts_are_turned_away(http, host):
    assert refused(http.get("/healthz", headers={"host": host}), 403)["code"] == "host_not_allowed"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000"])
def test_own_hosts_are_let_in(http, host):
    assert http.get("/healthz", headers={"host": host}).json() == {"status": "ok"}


def test_pages_from_elsewhere_are_turned_away(http):
    error = refused(http.post("/v1/chat/completions", json=GOOD, headers={"origin": "https://evil.test"}), 403)
    assert error["code"] == "origin_not_allowed"
    refused(http.post("/v1/chat/completions", json=GOOD, headers={"origin": "null"}), 403)
    own = http.post("/v1/chat/completions", json=GOOD, headers={"origin": "http://127.0.0.1:8000"})
    assert own.status_code == 200
    assert "access-control-allow-origin" not in own.headers


def test_everything_leaves_with_a_strict_content_policy(http):
    for answer in (http.get("/"), http.get("/healthz"), http.get("/nothing"), http.get("/", headers={"host": "evil"})):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "require-trusted-types-for 'script'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_page_is_served_as_built(http):
    page = http.get("/?response=forged&answer=forged")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["cache-control"] == "no-cache"
    assert len(page.headers.get_list("content-security-policy")) == 1
    assert "forged" not in page.text
    for path in re.findall(r'(?:src|href)="(/[^"]+)"', page.text):
        asset = http.get(path)
        assert asset.status_code == 200
        assert ("immutable" in asset.headers["cache-control"]) == path.startswith("/assets/")


def test_info(http):
    facts = http.get("/api/info").json()
    assert [model["id"] for model in facts["models"]] == ["knows", "random"]
    assert len({model["hash"] for model in facts["models"]}) == 2
    assert all(model["context"] == 4096 and model["parameters"] > 10_000 for model in facts["models"])


def test_an_origin_that_is_no_address_is_refused(live):
    answer = httpx.get(f"{live.url}/api/info", headers={"origin": "http://["})
    assert answer.status_code == 403
