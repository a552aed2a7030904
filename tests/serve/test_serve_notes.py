"""Conversations that the model can no longer read whole: it writes a note on the oldest turns, once, and reads that."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest
from live_server import Live

from danlu.records import Message
from danlu.serve.condense import with_words
from danlu.serve.store import ServeStore

ASK = {"model": "random", "temperature": 0, "max_tokens": 8, "truncation": "auto", "summarise": True}
LONG = "Hello, 你好。" * 30  # a context holds some eight turns with it


@pytest.fixture
def http(live: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.url, timeout=60) as client:
        yield client


@pytest.fixture
def store(live: Live) -> ServeStore:
    return ServeStore(live.store.database)


def had(store: ServeStore, turns: int, conversation: str = "", parent: str | None = None, words: str = LONG) -> tuple:
    """So many questions with answers; returns the conversation and its last message."""
    conversation = conversation or store.dialogues.start("", "long", "Be kind.")
    for _ in range(turns):
        for role, text in (("user", "greet"), ("assistant", words)):
            parent = store.dialogues.append("", conversation, parent, Message(role, text))
    return conversation, parent


def say(http: httpx.Client, conversation: str, parent: str | None, **asked) -> dict:
    """Start and finish of an answer in one."""
    body = {**ASK, "conversation": conversation, "parent": parent, "content": "greet", **asked}
    with http.stream("POST", "/api/chat", json=body) as answer:
        assert answer.status_code == 200, answer.read()
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line]
    assert events[-1]["type"] == "finish", events[-1]
    return {**events[0], **events[-1], "left_out": events[0]["left_out"]}


def test_the_oldest_turns_are_noted_once_and_read_again_with_the_next_question(http, store, live):
    conversation, last = had(store, 10)
    first = say(http, conversation, last)
    note = first["note"]
    assert note["text"]
    assert 2 < note["messages"] < 20
    messages = store.dialogues.read("", conversation)["messages"]
    assert messages[-1]["note"] == note
    way = [one["id"] for one in messages]
    kept = store.notes.newest(way, first["model_hash"])
    end = way.index(kept.message) + 1
    assert (kept.words, kept.messages + kept.left_out) == (note["text"], end)
    # What the model read: its instructions with the note, and every turn after those that it tells of.
    read = [{"role": "system", "content": with_words("Be kind.", note["text"])}]
    read += [{"role": one["role"], "content": one["content"]} for one in messages[end:-1]]
    plain = {"model": "random", "temperature": 0, "max_tokens": 8, "messages": read}
    told = http.post("/v1/chat/completions", json=plain).json()
    assert told["usage"]["prompt_tokens"] == first["usage"]["prompt_tokens"]
    assert told["choices"][0]["message"]["content"] == messages[-1]["content"]
    second = say(http, conversation, first["message"])
    assert second["note"] == note, "the note holds for the next turn too"
    http.put(f"/api/conversations/{conversation}/messages/{first['message']}/thumb", json={"thumb": "up", "rater": "n"})
    thumb = next(one for one in live.store.thumbs() if one.rater == "n")
    assert [{"role": one.role, "content": one.content} for one in thumb.prompt] == read


def test_the_next_note_is_made_of_the_first_and_another_branch_has_its_own(http, store):
    conversation, fork = had(store, 1)
    first = say(http, conversation, had(store, 8, conversation, fork)[1])
    second = say(http, conversation, had(store, 4, conversation, first["message"])[1])
    assert first["left_out"] == second["left_out"] == 0
    assert second["note"]["messages"] > first["note"]["messages"] > 2, "it tells of turns after the fork"
    other = say(http, conversation, had(store, 8, conversation, fork, LONG.replace("Hello", "Hallo"))[1])
    assert other["note"]["text"] not in {first["note"]["text"], second["note"]["text"]}


def test_without_being_asked_for_nothing_is_noted(http, store):
    conversation, last = had(store, 10)
    left = say(http, conversation, last, summarise=False)
    assert left["left_out"] > 0
    assert "note" not in left
    short, last = had(store, 2)
    whole = say(http, short, last)
    assert whole["left_out"] == 0
    assert "note" not in whole


def test_what_cannot_be_is_refused(http, store):
    conversation, last = had(store, 1)
    body = {**ASK, "conversation": conversation, "parent": last, "content": "greet"}
    refused = http.post("/api/chat", json={**body, "truncation": None})
    assert refused.status_code == 400
    assert "'truncation' to 'auto'" in refused.json()["error"]["message"]
    alone = http.post("/api/chat", json={**body, "content": "春眠" * 4000})
    assert alone.json()["error"]["code"] == "context_length_exceeded"


def test_a_note_is_headed_in_its_own_language():
    assert with_words("", "他们谈过月亮。").startswith("更早的对话")
    assert with_words("Be kind.", "They spoke of the moon.").startswith("Be kind.\n\nWhat was said before")
