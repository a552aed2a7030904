"""An answer that is being written is followed by whoever looks, stopped by whoever asks, and kept in any case."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import Guarded, Live, serving

from danlu.serve import Options, create_app

COUNT = {"model": "knows", "temperature": 0, "content": "count", "max_tokens": 3000}


def listen(http: httpx.Client, method: str, path: str, body: dict[str, Any] | None = None) -> Iterator[dict]:
    with http.stream(method, path, json=body) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            if line:
                yield json.loads(line.removeprefix("data: "))


def read(http: httpx.Client, conversation: str) -> dict:
    return http.get(f"/api/conversations/{conversation}").json()


def kept(http: httpx.Client, conversation: str, seconds: float = 30) -> dict:
    """The answer, once it is stored."""
    until = time.monotonic() + seconds
    while len(messages := read(http, conversation)["messages"]) < 2:
        assert time.monotonic() < until, "the answer was lost"
        time.sleep(0.02)
    return messages[1]


@pytest.fixture
def http(live: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.url, timeout=30) as client:
        yield client


def test_who_comes_back_hears_it_from_the_first_word_on(http):
    first = listen(http, "POST", "/api/chat", COUNT)
    start = next(first)
    heard = "".join(next(first)["text"] for _ in range(5))
    whole = read(http, start["conversation"])
    assert whole["writing"] == [{"answer": start["answer"], "parent": start["user"]}]
    assert len(whole["messages"]) == 1, "the words are stored before the answer is"
    first.close()
    again = listen(http, "GET", f"/api/chat/{start['answer']}")
    restarted = next(again)
    assert {**restarted, "user": None} == {**start, "user": None}
    text = next(again)["text"] + "".join(next(again)["text"] for _ in range(3))
    assert text.startswith(heard)
    assert http.post(f"/api/chat/{start['answer']}/stop", json={}).status_code == 204
    *rest, finish = again
    assert finish["finish_reason"] == "stopped"
    text += "".join(event["text"] for event in rest)
    answer = kept(http, start["conversation"])
    assert (answer["id"], answer["content"]) == (start["answer"], text)
    assert finish["message"] == start["answer"]
    assert 0 < answer["usage"]["completion_tokens"] < 3000
    assert read(http, start["conversation"])["writing"] == []


def test_who_comes_too_late_hears_the_whole_answer(http):
    start, *deltas, finish = listen(http, "POST", "/api/chat", {**COUNT, "content": "greet"})
    told, delta, end = listen(http, "GET", f"/api/chat/{start['answer']}")
    assert told["conversation"] == start["conversation"]
    assert delta["text"] == "".join(event["text"] for event in deltas)
    assert end == finish
    assert http.post(f"/api/chat/{start['answer']}/stop", json={}).status_code == 404
    assert http.get("/api/chat/nobody").status_code == 404


def test_an_answer_without_a_reader_ends_after_a_while_and_is_kept(live: Live, model_dirs: dict[str, Path]):
    app = create_app({"knows": model_dirs["knows"]}, live.store, Options(linger=0.2))
    with serving(app, live.store) as running, httpx.Client(base_url=running.url, timeout=30) as http:
        events = listen(http, "POST", "/api/chat", COUNT)
        start = next(events)
        heard = "".join(next(events)["text"] for _ in range(5))
        events.close()
        answer = kept(http, start["conversation"])
        assert answer["finish_reason"] == "stopped"
        assert answer["content"].startswith(heard)
        assert running.app.state.engine.idle()


def test_nobody_hears_or_stops_what_is_written_for_another(guarded: Guarded):
    alice, bob = ({"authorization": f"Bearer {key}"} for key in (guarded.alice, guarded.bob))
    with httpx.Client(base_url=guarded.live.url, timeout=30, headers=alice) as http:
        events = listen(http, "POST", "/api/chat", {**COUNT, "max_tokens": 400})
        start = next(events)
        with httpx.Client(base_url=guarded.live.url, timeout=30, headers=bob) as other:

            def is_nothing_to_him() -> None:
                assert other.get(f"/api/chat/{start['answer']}").status_code == 404
                assert other.post(f"/api/chat/{start['answer']}/stop", json={}).status_code == 404

            is_nothing_to_him()
            assert list(events)[-1]["type"] == "finish"
            is_nothing_to_him()  # nor when it is kept
