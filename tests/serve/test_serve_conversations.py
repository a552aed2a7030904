"""Conversations on the server: said, answered, found again, branched, forgotten."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

ASK = {"model": "knows", "temperature": 0, "max_tokens": 8, "truncation": "auto"}


@pytest.fixture(scope="module")
def http(live):
    with httpx.Client(base_url=live.url, timeout=30) as client:
        yield client


def stream(http: httpx.Client, **asked: Any) -> Iterator[dict]:
    with http.stream("POST", "/api/chat", json=ASK | asked) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            if line:
                yield json.loads(line.removeprefix("data: "))


def say(http: httpx.Client, **asked: Any) -> dict:
    """Start and finish of an answer in one, with its text."""
    start, *deltas, finish = stream(http, **asked)
    assert [start["type"], finish["type"]] == ["start", "finish"]
    assert {event["type"] for event in deltas} <= {"delta"}
    return {**start, **finish, "text": "".join(event["text"] for event in deltas)}


def read(http: httpx.Client, conversation: str) -> dict:
    answer = http.get(f"/api/conversations/{conversation}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_what_was_said_and_answered_is_kept_with_all_it_needs(http):
    said = say(http, content="greet", system="Be kind.", seed=5)
    assert said["left_out"] == 0
    kept = read(http, said["conversation"])
    assert (kept["title"], kept["system"]) == ("greet", "Be kind.")
    user, answer = kept["messages"]
    assert (user["id"], user["parent"], user["role"], user["content"]) == (said["user"], None, "user", "greet")
    assert (answer["id"], answer["parent"], answer["role"]) == (said["message"], user["id"], "assistant")
    assert answer["content"] == said["text"]
    assert (answer["model"], answer["seed"], answer["finish_reason"]) == ("knows", 5, said["finish_reason"])
    assert answer["sampling"]["max_new_tokens"] == 8
    assert answer["usage"] == said["usage"]
    assert answer["usage"]["prompt_tokens"] > 0
    assert answer["model_hash"] == next(m["hash"] for m in http.get("/api/info").json()["models"] if m["id"] == "knows")


def test_it_goes_on_branches_and_is_answered_again(http):
    first = say(http, content="greet")
    there = {"conversation": first["conversation"]}
    second = say(http, **there, parent=first["message"], content="and then?")
    edited = say(http, **there, parent=first["message"], content="and before?")
    again = say(http, **there, parent=first["user"], temperature=1.3, seed=4)
    assert again["user"] is None
    nodes = {node["id"]: node for node in read(http, first["conversation"])["messages"]}
    assert nodes[second["user"]]["parent"] == nodes[edited["user"]]["parent"] == first["message"]
    assert nodes[again["message"]]["parent"] == nodes[first["message"]]["parent"] == first["user"]
    assert len(nodes) == 7


def test_the_stored_turns_are_what_the_model_reads(http):
    first = say(http, content="greet")
    asked = [{"role": "user", "content": "greet"}, {"role": "assistant", "content": first["text"]},
             {"role": "user", "content": "count"}]  # fmt: skip
    plain = http.post("/v1/chat/completions", json={**ASK, "messages": asked}).json()
    second = say(http, conversation=first["conversation"], parent=first["message"], content="count")
    assert second["text"] == plain["choices"][0]["message"]["content"]
    assert second["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]


def test_the_list_is_searched_by_title_and_words_and_comes_in_pages(http):
    made = [say(http, content=f"greet needle{i} 大海捞针")["conversation"] for i in range(3)]

    def found(**query: Any) -> list[str]:
        return [row["id"] for row in http.get("/api/conversations", params=query).json()["conversations"]]

    assert found(search="NEEDLE1") == [made[1]]
    assert found(search="大海捞针") == made[::-1]
    assert found(search="100%") == []
    http.patch(f"/api/conversations/{made[0]}", json={"title": "Haystack"})
    assert found(search="haystack") == [made[0]]
    page = http.get("/api/conversations", params={"search": "needle", "limit": 2}).json()
    assert page["more"] is True
    assert [row["messages"] for row in page["conversations"]] == [2, 2]
    last = page["conversations"][-1]["updated"]
    assert found(search="needle", before=last) == made[:1]


def test_instructions_and_title_are_changed_and_the_next_answer_reads_them(http):
    made = http.post("/api/conversations", json={"title": "T"})
    assert made.status_code == 201
    conversation = made.json()["id"]
    bare = say(http, conversation=conversation, content="greet")["usage"]["prompt_tokens"]
    changed = http.patch(f"/api/conversations/{conversation}", json={"system": "Be kind."}).json()
    assert (changed["title"], changed["system"]) == ("T", "Be kind.")
    assert say(http, conversation=conversation, content="greet")["usage"]["prompt_tokens"] > bare


def test_a_message_that_was_written_elsewhere_is_put_into_the_tree(http):
    conversation = http.post("/api/conversations", json={}).json()["id"]
    place = f"/api/conversations/{conversation}/messages"
    user = http.post(place, json={"parent": None, "role": "user", "content": "greet"})
    assert user.status_code == 201
    answer = http.post(place, json={"parent": user.json()["id"], "role": "assistant", "content": "chosen"}).json()["id"]
    assert say(http, conversation=conversation, parent=answer, content="count")["text"]
    assert http.post(place, json={"parent": "nobody", "role": "user", "content": "x"}).status_code == 404
    assert http.post(place, json={"parent": None, "role": "system", "content": "x"}).status_code == 400


def test_how_an_answer_was_written_is_kept_with_one_that_was_written_elsewhere(http):
    conversation = http.post("/api/conversations", json={}).json()["id"]
    place = f"/api/conversations/{conversation}/messages"
    user = http.post(place, json={"parent": None, "role": "user", "content": "greet"}).json()["id"]
    told = {
        "model": "other", "model_hash": "ab12", "finish_reason": "length", "sampling": {"temperature": 0.5}, "seed": 7,
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}, "seconds": 1.5,
    }  # fmt: skip
    answer = {"parent": user, "role": "assistant", "content": "there"}
    assert http.post(place, json=answer | told).status_code == 201
    question, kept = read(http, conversation)["messages"]
    assert {name: kept[name] for name in told} == told
    assert "model" not in question
    assert http.post(place, json=answer | told | {"seed": -1}).status_code == 400
    assert http.post(place, json=answer | told | {"seconds": -1.0}).status_code == 400


def test_deleted_while_it_is_answered_nothing_comes_back(http):
    events = stream(http, content="count", max_tokens=400)
    conversation = next(events)["conversation"]
    assert http.delete(f"/api/conversations/{conversation}").status_code == 204
    assert "does not exist" in list(events)[-1]["error"]["message"]
    assert http.get(f"/api/conversations/{conversation}").status_code == 404
    assert http.delete(f"/api/conversations/{conversation}").status_code == 404


@pytest.mark.parametrize(
    ("change", "status"),
    [({}, 400), ({"content": "x", "parent": "y"}, 400), ({"conversation": "nobody", "content": "x"}, 404),
     ({"content": "x", "model": "nobody"}, 404), ({"content": "\ud800"}, 400), ({"content": " "}, 400),
     ({"content": "greet " * 9000, "truncation": None}, 400), ({"content": "x", "messages": [{}]}, 400)],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_and_leaves_nothing(http, change, status):
    before = http.get("/api/conversations", params={"limit": 1}).json()
    body = json.dumps(ASK | change)
    answer = http.post("/api/chat", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]
    assert http.get("/api/conversations", params={"limit": 1}).json() == before


def test_a_message_below_the_wrong_one_is_refused(http):
    first = say(http, content="greet")
    there = {"conversation": first["conversation"]}
    refused = http.post("/api/chat", json=ASK | there | {"parent": first["user"], "content": "x"})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "parent"
    assert http.post("/api/chat", json=ASK | there | {"parent": first["message"]}).status_code == 400
    elsewhere = say(http, content="greet")["message"]
    assert http.post("/api/chat", json=ASK | there | {"parent": elsewhere, "content": "x"}).status_code == 404


def test_a_comparison_happens_in_a_conversation_of_the_same_id(http, live):
    conversation = http.post("/api/conversations", json={}).json()["id"]
    asked = {"models": ["knows", "random"], "messages": [{"role": "user", "content": "greet"}], "max_tokens": 2}
    with http.stream("POST", "/api/compare", json=asked | {"conversation": conversation}) as answer:
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line]
    assert events[0]["conversation"] == conversation
    assert http.post("/api/vote", json={"comparison": events[-1]["comparison"], "choice": "left"}).status_code == 200
    before = live.store.count()
    assert http.delete(f"/api/conversations/{conversation}").status_code == 204
    assert live.store.count() == before - 1
    titles = http.get("/api/conversations", params={"search": "kept for refused"}).json()["conversations"]
    refused = asked | {"models": ["nobody"], "messages": [{"role": "user", "content": "kept for refused"}]}
    assert http.post("/api/compare", json=refused).status_code == 404
    assert http.get("/api/conversations", params={"search": "kept for refused"}).json()["conversations"] == titles == []
