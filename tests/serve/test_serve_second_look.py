"""An earlier comparison shown once more: blind, to nobody whose words it could give away, and voted on in its place."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from live_server import serving

from danlu.align import showings
from danlu.align.preferences import PreferenceStore
from danlu.records import Answer, Message
from danlu.serve import Options, create_app
from danlu.serve.second_look import SecondLooks

GREET = [{"role": "user", "content": "greet"}]
ASK = {"models": ["knows", "random"], "messages": GREET, "max_tokens": 6, "temperature": 0.9}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PreferenceStore]:
    opened = PreferenceStore(tmp_path_factory.mktemp("looks") / "votes.sqlite")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def http(model_dirs: dict[str, Path], store: PreferenceStore) -> Iterator[httpx.Client]:
    options = Options(starters=("greet",), second_look=1.0)
    with (
        serving(create_app(model_dirs, store, options), store) as running,
        httpx.Client(base_url=running.url, timeout=30) as client,
    ):
        yield client


def compare(http: httpx.Client, rater: str, **change) -> dict:
    """A comparison as its client sees it: texts by side, the id to vote on, every event."""
    seen: dict = {"left": "", "right": "", "events": []}
    with http.stream("POST", "/api/compare", json={**ASK, "rater": rater, **change}) as answer:
        assert answer.status_code == 200, answer.read()
        for event in (json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line):
            seen["events"].append(event)
            if event["type"] == "delta":
                seen[event["side"]] += event["text"]
            elif event["type"] == "end":
                seen["comparison"] = event["comparison"]
    return seen


def vote(http: httpx.Client, shown: dict, rater: str, choice: str) -> dict:
    answer = http.post("/api/vote", json={"comparison": shown["comparison"], "rater": rater, "choice": choice})
    assert answer.status_code == 200, answer.text
    return answer.json()["verdict"]


@pytest.fixture(scope="module")
def first(http: httpx.Client) -> dict:
    """What alice was shown, who preferred the left one."""
    shown = compare(http, "alice")
    vote(http, shown, "alice", "left")
    return shown


def test_another_rater_is_shown_the_same_answers_blind_and_votes_on_the_same_comparison(http, store, first):
    second = compare(http, "bob")
    assert sorted((second["left"], second["right"])) == sorted((first["left"], first["right"]))
    assert second["comparison"] != first["comparison"]
    told = json.dumps(second["events"])
    assert not any(name in told for name in ("knows", "random", "alice", "seed", first["comparison"]))
    kinds = [event["type"] for event in second["events"]]
    assert [kinds[0], *kinds[-3:]] == ["start", "finish", "finish", "end"]
    assert {event["side"] for event in second["events"] if event["type"] == "finish"} == {"left", "right"}
    side = "left" if second["left"] == first["left"] else "right"  # the answer that alice chose
    verdict = vote(http, second, "bob", side)
    alices, bobs = store.all()
    assert bobs.ranks == alices.ranks == (0, 1)
    assert bobs.answers == alices.answers
    assert verdict[side]["model_hash"] == alices.answers[0].model
    figures = http.get("/api/operator/ratings").json()
    assert (figures["agreement"]["comparisons"], figures["agreement"]["same"]) == (1, 1.0)
    assert figures["conduct"]["raters"] == 2


@pytest.mark.parametrize(
    "change",
    [
        {"messages": [{"role": "user", "content": "attack"}]},
        {"messages": [{"role": "system", "content": "Be brief."}, *GREET]},
        {"temperature": 1.3},
        {"models": ["knows"]},
        {"max_tokens": 5},
        {"seed": 3},
    ],
    ids=["no starter", "own instructions", "other temperature", "other models", "other length", "a seed"],
)
def test_whatever_else_is_asked_is_answered_anew(http, store, first, change):
    seeds = {answer.seed for preference in store.all() for answer in preference.answers}
    vote(http, compare(http, "carol", **change), "carol", "tie")
    newest = store.all()[-1]
    assert newest.rater == "carol"
    assert seeds.isdisjoint(answer.seed for answer in newest.answers)


def test_what_was_shown_again_is_forgotten_with_the_conversation_it_was_shown_in(http, store, first):
    shown = compare(http, "erin")
    assert {shown["left"], shown["right"]} in [{a.text for a in p.answers} for p in store.all()]
    assert http.delete(f"/api/conversations/{shown['events'][0]['conversation']}").status_code == 204
    gone = http.post("/api/vote", json={"comparison": shown["comparison"], "rater": "erin", "choice": "left"})
    assert gone.status_code == 404


def test_sides_are_drawn_anew_for_others_and_exchanged_for_oneself(tmp_path):
    store = PreferenceStore(tmp_path / "votes.sqlite")
    prompt = (Message("user", "greet"),)
    answers = [Answer("one", (1,), "m", {"max_new_tokens": 1, "stop": []}, 1), Answer("two", (2, 3), "m", {}, 2)]
    comparison = store.record(prompt, answers, store.start_conversation("alice"))
    store.vote(comparison, (0, 1), "alice")
    blanks = [Answer("", (), "m", {}), Answer("", (), "m", {"stop": (), "max_new_tokens": 1})]
    looks = SecondLooks(store, 1.0, 0.0, ["greet"], random.Random(0))
    drawn = [looks.draw("bob", prompt, blanks) for _ in range(20)]
    assert {replay.order for replay in drawn if replay} == {(0, 1), (1, 0)}
    assert dict(zip(drawn[0].order, drawn[0].finish_reasons(), strict=True)) == {0: "length", 1: "stop"}
    assert looks.draw("", prompt, blanks) is None, "nobody in particular"
    again = SecondLooks(store, 0.0, 1.0, [], random.Random(0))
    assert again.draw("alice", prompt, blanks) is None, "not within the hour"
    with store.database.session(writing=True) as session:
        session.get_one(showings.VoteRow, store.all()[0].id).time = "2026-01-01T00:00:00.000000+00:00"
    own = again.draw("alice", prompt, blanks)
    assert (own.order, own.own) == ((1, 0), True), "one's own words may be shown to oneself, starter or not"
    assert SecondLooks(store, 0.0, 0.0, ["greet"]).draw("bob", prompt, blanks) is None
    shares = SecondLooks(store, 0.25, 0.0, ["greet"], random.Random(1))
    assert 60 < sum(shares.draw("bob", prompt, blanks) is not None for _ in range(400)) < 140
    store.close()
