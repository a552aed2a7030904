"""Comparisons are blind, votes land in the preference store, deleted words are gone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import httpx
import pytest
from full_disk import full_disk

from danlu.records import Message

GREET = [{"role": "user", "content": "greet"}]
ASK = {"models": ["knows", "random"], "messages": GREET, "max_tokens": 6, "temperature": 0.9, "rater": "tester"}


@pytest.fixture(scope="module")
def http(live):
    with httpx.Client(base_url=live.url, timeout=30) as client:
        yield client


def events(http: httpx.Client, **change) -> Iterator[dict]:
    with http.stream("POST", "/api/compare", json=ASK | change) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            if line:
                yield json.loads(line.removeprefix("data: "))


def compare(http: httpx.Client, **change) -> dict:
    """All events of a comparison, gathered: texts by side, ids."""
    seen = {"left": "", "right": "", "finished": set(), "events": []}
    for event in events(http, **change):
        seen["events"].append(event)
        if event["type"] == "delta":
            seen[event["side"]] += event["text"]
        elif event["type"] == "finish":
            seen["finished"].add(event["side"])
        else:
            seen |= {key: value for key, value in event.items() if key != "type"}
    return seen


def vote(http: httpx.Client, comparison: str, choice: str) -> httpx.Response:
    return http.post("/api/vote", json={"comparison": comparison, "choice": choice, "rater": "tester"})


def stored(live, shown: dict):
    texts = {shown["left"], shown["right"]}
    return [p for p in live.store.all() if {answer.text for answer in p.answers} == texts][-1]


def test_both_sides_are_written_side_by_side(http):
    shown = compare(http, models=["random"], max_tokens=48, seed=5)
    assert shown["finished"] == {"left", "right"}
    assert [shown["events"][0]["type"], shown["events"][-1]["type"]] == ["start", "end"]
    marks = [(event["type"], event["side"]) for event in shown["events"] if "side" in event]
    begun = max(marks.index(("delta", side)) for side in ("left", "right"))
    ended = min(marks.index(("finish", side)) for side in ("left", "right"))
    assert begun < ended, "one side waits for the other"


def test_nothing_tells_who_is_who_before_the_vote(http, live):
    shown = compare(http)
    told = json.dumps(shown["events"])
    hashes = [model["hash"] for model in http.get("/api/info").json()["models"]]
    assert not any(name in told for name in ("knows", "random", "seed", *hashes))


@pytest.mark.parametrize(("choice", "ranks"), [("left", (0, 1)), ("right", (1, 0)), ("tie", (0, 0)), ("both_bad", ())])
def test_a_vote_lands_in_the_store_with_all_it_needs(http, live, choice, ranks):
    shown = compare(http)
    verdict = vote(http, shown["comparison"], choice).json()["verdict"]
    kept = stored(live, shown)
    assert kept.ranks == ranks
    assert kept.rater == "tester"
    assert kept.prompt == (Message("user", "greet"),)
    hashes = {model["id"]: model["hash"] for model in http.get("/api/info").json()["models"]}
    for side, answer in zip(("left", "right"), kept.answers, strict=True):
        who = verdict[side]
        assert answer.text == shown[side]
        assert answer.model == who["model_hash"] == hashes[who["model"]]
        assert answer.seed == who["seed"]
        assert answer.sampling["temperature"] == 0.9
        assert answer.sampling["max_new_tokens"] == 6
        assert 0 < len(answer.token_ids) <= 6


def test_a_restarted_server_still_knows_who_wrote_what(http, live, restarted):
    shown = compare(http)
    with httpx.Client(base_url=restarted.url, timeout=30) as anew:
        verdict = vote(anew, shown["comparison"], "tie").json()["verdict"]
    random = next(model["hash"] for model in http.get("/api/info").json()["models"] if model["id"] == "random")
    assert {who["model"] for who in verdict.values()} == {"knows", random[:12]}
    assert [who["seed"] for who in verdict.values()] == [answer.seed for answer in stored(live, shown).answers]


def test_sides_are_drawn_by_lot(http):
    lefts = set()
    for _ in range(24):  # all on one side: once in eight million
        shown = compare(http, max_tokens=1)
        lefts.add(vote(http, shown["comparison"], "tie").json()["verdict"]["left"]["model"])
        if len(lefts) == 2:
            return
    pytest.fail(f"the left answer always came from {lefts}")


def test_one_model_twice_draws_with_different_seeds(http):
    shown = compare(http, models=["random"], temperature=1.2, max_tokens=16)
    assert shown["left"] != shown["right"]
    verdict = vote(http, shown["comparison"], "left").json()["verdict"]
    assert verdict["left"]["model"] == verdict["right"]["model"] == "random"
    assert verdict["left"]["seed"] != verdict["right"]["seed"]


def test_a_comparison_that_cannot_differ_is_refused(http):
    answer = http.post("/api/compare", json=ASK | {"models": ["knows"], "temperature": 0})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "nothing_to_compare"


def test_a_vote_on_nothing_says_so(http, live):
    before = live.store.count()
    answer = vote(http, "0123456789abcdef", "left")
    assert answer.status_code == 404
    assert "does not exist" in answer.json()["error"]["message"]
    assert vote(http, "0123456789abcdef", "best").status_code == 400
    assert live.store.count() == before


def test_both_sides_answer_the_same_turns_and_those_are_stored(http, live):
    said = {"role": "assistant", "content": "Hello, 你好。" * 20}
    talk = [message for _ in range(40) for message in (GREET[0], said)] + GREET
    assert http.post("/api/compare", json=ASK | {"messages": talk}).status_code == 400
    shown = compare(http, messages=talk, truncation="auto")
    assert 0 < shown["left_out"] < len(talk) - 1
    vote(http, shown["comparison"], "left")
    assert [*stored(live, shown).prompt] == [Message(**turn) for turn in talk[shown["left_out"] :]]


def test_deleting_a_conversation_takes_its_votes_and_ends_it(http, live):
    shown = compare(http)
    vote(http, shown["comparison"], "left")
    with_vote = live.store.count()
    assert http.delete(f"/api/conversations/{shown['conversation']}").status_code == 204
    assert live.store.count() == with_vote - 1
    answer = vote(http, shown["comparison"], "right")
    assert answer.status_code == 404
    assert "was deleted" in answer.json()["error"]["message"]
    again = http.post("/api/compare", json=ASK | {"conversation": shown["conversation"]})
    assert again.status_code == 404
    assert "was deleted" in again.json()["error"]["message"]
    assert http.delete("/api/conversations/nobody").status_code == 404


def test_a_full_disk_is_told_and_nothing_is_lost(http, live):
    shown = compare(http)
    long = [{"role": "user", "content": "greet " * 600}]  # more than is left of the file's last page
    before = live.store.count()
    with full_disk(live.store):
        votes = (vote(http, shown["comparison"], ("left", "right")[i % 2]) for i in range(1000))
        failed = next(answer for answer in votes if answer.status_code != 200)
        last = list(events(http, messages=long))[-1]
    assert failed.status_code == 503
    for error in (failed.json()["error"], last["error"]):
        assert error["code"] == "store_unavailable"
        assert error["type"] == "server_error"
        assert "full" in error["message"]
    assert vote(http, shown["comparison"], "tie").status_code == 200
    assert live.store.count() == before + 1


def test_a_conversation_goes_on_under_its_id(http):
    first = compare(http)
    turns = [*GREET, {"role": "assistant", "content": first["left"] or "…"}, *GREET]
    second = compare(http, messages=turns, conversation=first["conversation"])
    assert second["conversation"] == first["conversation"]
    assert second["comparison"] != first["comparison"]


def test_leaving_before_the_end_stops_both_sides(http, live):
    seen = events(http, messages=[{"role": "user", "content": "count"}], models=["knows"], max_tokens=3000)
    while next(seen)["type"] != "delta":
        pass
    assert not live.app.state.engine.idle()
    seen.close()
    deadline = time.monotonic() + 60
    while not live.app.state.engine.idle():
        assert time.monotonic() < deadline, "both sides are still written for a client that left"
        time.sleep(0.02)


def test_two_comparisons_more_than_fit_are_refused(http):
    asked = {"messages": [{"role": "user", "content": "count"}], "models": ["knows"], "max_tokens": 3000}
    first, second = events(http, **asked), events(http, **asked)  # four answers: two are written, two wait
    assert next(first)["type"] == next(second)["type"] == "start"
    assert http.post("/api/compare", json=ASK).status_code == 503
    first.close()
    second.close()
