"""Thumbs on answers of conversations: kept with what the model read and wrote, told again, forgotten with the talk."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest
from live_server import Guarded, Live

from danlu.align.tables import Thumb
from danlu.records import Message

ASK = {"model": "knows", "temperature": 0.5, "max_tokens": 12, "seed": 3, "truncation": "auto"}


@pytest.fixture
def http(live: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.url, timeout=30) as client:
        yield client


def say(http: httpx.Client, **asked) -> dict:
    """Start and finish of an answer in one."""
    with http.stream("POST", "/api/chat", json=ASK | asked) as answer:
        assert answer.status_code == 200, answer.read()
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line]
    return {**events[0], **events[-1]}


def place(said: dict) -> str:
    return f"/api/conversations/{said['conversation']}/messages/{said['message']}/thumb"


def thumbs(live: Live, rater: str) -> list[Thumb]:
    return [thumb for thumb in live.store.thumbs() if thumb.rater == rater]


def test_a_thumb_is_kept_with_all_that_made_the_answer(http, live):
    first = say(http, content="greet", system="Be kind.")
    there = {"conversation": first["conversation"]}
    http.patch(f"/api/conversations/{first['conversation']}", json={"system": "Be brief."})
    second = say(http, **there, parent=first["message"], content="count")
    answer = http.put(place(second), json={"thumb": "up", "rater": "kept"})
    assert (answer.status_code, answer.json()) == (200, {"thumb": "up", "reason": ""})
    (thumb,) = thumbs(live, "kept")
    messages = http.get(f"/api/conversations/{first['conversation']}").json()["messages"]
    assert thumb.prompt == (Message("system", "Be brief."),
                            *(Message(one["role"], one["content"]) for one in messages[:3]))  # fmt: skip
    assert thumb.up
    assert (thumb.answer.text, thumb.answer.seed) == (messages[3]["content"], 3)
    assert len(thumb.answer.token_ids) == second["usage"]["completion_tokens"] == 12
    assert thumb.answer.model == second["model_hash"]
    assert thumb.answer.sampling["temperature"] == 0.5
    assert len(thumb.answer.sampling["tokenizer"]) > 8
    assert [one.get("thumb") for one in messages] == [None, None, None, "up"]
    http.put(place(first), json={"thumb": "down", "rater": "kept"})
    assert thumbs(live, "kept")[1].prompt[0] == Message("system", "Be kind.")


def test_a_changed_mind_and_a_reason_are_the_last_word_on_one_comparison(http, live):
    said = say(http, content="greet")
    for judged in ({"thumb": "up"}, {"thumb": "down"}, {"thumb": "down", "reason": "太短"}):
        told = http.put(place(said), json={**judged, "rater": "mind"}).json()
    assert told == {"thumb": "down", "reason": "太短"}
    (thumb,) = thumbs(live, "mind")
    assert (thumb.up, thumb.reason) == (False, "太短")
    assert http.get(f"/api/conversations/{said['conversation']}").json()["messages"][1]["reason"] == "太短"


def test_an_answer_from_a_file_may_be_judged_though_nobody_knows_who_wrote_it(http, live):
    conversation = http.post("/api/conversations", json={}).json()["id"]
    there = f"/api/conversations/{conversation}/messages"
    user = http.post(there, json={"role": "user", "content": "greet"}).json()["id"]
    answer = http.post(there, json={"parent": user, "role": "assistant", "content": "hi"}).json()["id"]
    assert http.put(f"{there}/{answer}/thumb", json={"thumb": "up", "rater": "file"}).status_code == 200
    (thumb,) = thumbs(live, "file")
    assert (thumb.answer.text, thumb.answer.model, thumb.answer.token_ids) == ("hi", "", ())
    refused = http.put(f"{there}/{user}/thumb", json={"thumb": "up"})
    assert refused.status_code == 404
    assert "is no answer" in refused.json()["error"]["message"]
    assert http.put(f"{there}/{answer}/thumb", json={"thumb": "sideways"}).status_code == 400


def test_thumbs_go_with_their_conversation(http, live):
    said = say(http, content="greet")
    http.put(place(said), json={"thumb": "up", "rater": "gone"})
    assert len(thumbs(live, "gone")) == 1
    assert http.delete(f"/api/conversations/{said['conversation']}").status_code == 204
    assert thumbs(live, "gone") == []
    assert http.put(place(said), json={"thumb": "up", "rater": "gone"}).status_code == 404


def test_thumbs_are_given_by_ones_own_name_on_ones_own_answers(guarded: Guarded):
    alice, bob = ({"authorization": f"Bearer {key}"} for key in (guarded.alice, guarded.bob))
    with httpx.Client(base_url=guarded.live.url, timeout=30) as http:
        http.headers.update(alice)
        said = say(http, content="greet")
        assert http.put(place(said), json={"thumb": "down", "rater": "bob"}).status_code == 200
        assert http.put(place(said), json={"thumb": "up"}, headers=bob).status_code == 404
    assert [(one.rater, one.up) for one in guarded.live.store.thumbs()] == [("alice", False)]
