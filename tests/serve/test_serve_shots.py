"""Examples stand before every dialogue that is served, and are left out before anybody is refused."""

from __future__ import annotations

import httpx
import pytest
from live_server import serving

from danlu.records import Message
from danlu.serve import Options, create_app

SHOTS = tuple(Message(role, f"{i}, 你好") for i in range(30) for role in ("user", "assistant"))
GREET = {"model": "knows", "messages": [{"role": "user", "content": "greet"}], "temperature": 0, "max_tokens": 2}


@pytest.fixture(scope="module")
def shown(model_dirs, live):
    app = create_app({"knows": model_dirs["knows"]}, live.store, Options(shots=SHOTS))
    with serving(app, live.store) as running, httpx.Client(base_url=running.url, timeout=30) as http:
        yield http


def test_examples_are_read_first_as_far_as_they_fit(shown, live):
    def prompt_tokens(http: httpx.Client, **change) -> int:
        answer = http.post("/v1/chat/completions", json=GREET | change)
        assert answer.status_code == 200, answer.text
        assert answer.json().get("left_out", 0) == 0
        return answer.json()["usage"]["prompt_tokens"]

    with httpx.Client(base_url=live.url, timeout=30) as plain:
        alone = prompt_tokens(plain)
    with_all = prompt_tokens(shown)
    assert with_all > alone + 300
    assert prompt_tokens(shown, truncation="auto") == with_all
    # An answer that takes nearly all of the context leaves no room for examples: they go, and nobody is refused.
    end = {"max_tokens": 4096 - alone, "stop": "H"}
    assert prompt_tokens(shown, **end) == alone
    refused = shown.post("/v1/chat/completions", json=GREET | {"max_tokens": 4097 - alone})
    assert refused.json()["error"]["code"] == "context_length_exceeded"
