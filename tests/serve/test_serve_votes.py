"""Rankings of several answers, thumbs, reasons; the list of votes and what they say."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from live_server import Live, serving
from starlette.types import Receive, Scope, Send

from danlu.align.preferences import PreferenceStore
from danlu.records import Answer, Message
from danlu.serve import Options, create_app, operator, problems
from danlu.serve.accounts import Caller
from danlu.serve.models import Models
from danlu.serve.runs import Runs
from danlu.serve.worker import Setup

GREET = [{"role": "user", "content": "greet"}]
ASK = {"models": ["knows", "random"], "answers": 3, "messages": GREET, "max_tokens": 4, "temperature": 0.9}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PreferenceStore]:
    opened = PreferenceStore(tmp_path_factory.mktemp("votes") / "votes.sqlite")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def served(model_dirs: dict[str, Path], store: PreferenceStore) -> Iterator[Live]:
    with serving(create_app(model_dirs, store, Options(setup=Setup(rows=6), waiting=6)), store) as running:
        yield running


@pytest.fixture(scope="module")
def http(served: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=30) as client:
        yield client


def rank(http: httpx.Client, **change) -> dict:
    """All events of a ranking, gathered: texts by place, the comparison's id."""
    seen: dict = {"texts": {}, "finished": set(), "events": []}
    with http.stream("POST", "/api/rank", json=ASK | change) as answer:
        assert answer.status_code == 200, answer.read()
        for event in (json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line):
            seen["events"].append(event)
            if event["type"] == "delta":
                seen["texts"][event["place"]] = seen["texts"].get(event["place"], "") + event["text"]
            elif event["type"] == "finish":
                seen["finished"].add(event["place"])
            elif event["type"] == "end":
                seen["comparison"] = event["comparison"]
    return seen


def vote(http: httpx.Client, comparison: str, **ballot) -> httpx.Response:
    return http.post("/api/vote", json={"comparison": comparison, "rater": "tester", **ballot})


def alone(store: PreferenceStore, text: str = "Hello", model: str = "") -> str:
    return store.record([Message("user", "greet")], [Answer(text, (1,), model)])


@pytest.mark.parametrize("answers", [2, 6])
def test_as_many_answers_are_written_as_were_asked_for(http, answers):
    shown = rank(http, answers=answers)
    assert shown["finished"] == set(range(answers))
    assert [shown["events"][0]["type"], shown["events"][-1]["type"]] == ["start", "end"]


def test_a_ranking_is_stored_place_by_place_and_told_who_wrote_what(http, store):
    shown = rank(http)
    told = json.dumps(shown["events"])
    hashes = {model["id"]: model["hash"] for model in http.get("/api/info").json()["models"]}
    assert not any(name in told for name in ("knows", "random", "seed", *hashes.values()))
    answer = vote(http, shown["comparison"], ranks=[1, 0, 1], reason="it rhymes")
    verdict = answer.json()["verdict"]
    kept = store.all()[-1]
    assert kept.ranks == (1, 0, 1)
    assert [shown["texts"].get(place, "") for place in range(3)] == [a.text for a in kept.answers]
    assert [who["model_hash"] for who in verdict] == [a.model for a in kept.answers]
    assert sorted(who["model"] for who in verdict) == ["knows", "knows", "random"], "models take turns"
    assert len({who["seed"] for who in verdict}) == 3
    assert http.get("/api/operator/votes?limit=1").json()["votes"][0]["reason"] == "it rhymes"


def test_places_are_drawn_by_lot(http):
    first = set()
    for _ in range(24):
        shown = rank(http, answers=2, max_tokens=1)
        first.add(vote(http, shown["comparison"], ranks=[0, 0]).json()["verdict"][0]["model"])
        if len(first) == 2:
            return
    pytest.fail(f"the first answer always came from {first}")


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"answers": 1}, 400, "invalid_value"),
        ({"answers": 7}, 400, "invalid_value"),
        ({"models": []}, 400, "invalid_value"),
        ({"answers": 2, "models": ["knows", "random", "knows"]}, 400, "invalid_value"),
        ({"models": ["nobody"]}, 404, "model_not_found"),
        ({"temperature": 0}, 400, "nothing_to_compare"),
    ],
)
def test_a_ranking_that_cannot_be_is_refused(http, change, status, code):
    answer = http.post("/api/rank", json=ASK | change)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_greedy_answers_of_different_models_can_be_ranked(http):
    assert rank(http, answers=2, temperature=0)["finished"] == {0, 1}


def test_a_vote_must_fit_what_was_shown(http, store):
    three, one = rank(http, max_tokens=1)["comparison"], alone(store)
    before = store.count(), len(store.thumbs())
    for comparison, ballot, field in (
        (three, {"choice": "left"}, "choice"),
        (three, {"ranks": [0, 1]}, "ranks"),
        (three, {"thumb": "up"}, "thumb"),
        (one, {"ranks": [0]}, "ranks"),
        (one, {"choice": "tie"}, "choice"),
    ):
        error = vote(http, comparison, **ballot)
        assert error.status_code == 400, ballot
        assert (error.json()["error"]["code"], error.json()["error"]["param"]) == ("vote_does_not_fit", field)
    for ballot in ({}, {"ranks": [0, 1, 6]}, {"ranks": [0, -1, 1]}, {"ranks": [0, 1, 2], "choice": "left"},
                   {"thumb": "sideways"}, {"ranks": [0, 1, 2], "reason": "x" * 2001}):  # fmt: skip
        assert vote(http, three, **ballot).status_code == 400, ballot
    assert vote(http, "nothing", ranks=[0, 1]).status_code == 404
    assert (store.count(), len(store.thumbs())) == before
    assert vote(http, three, ranks=[]).status_code == 200, "all bad"
    assert store.all()[-1].ranks == ()


def test_nobody_votes_by_the_name_of_a_source(http, store):
    """A name with a colon is no person's: it would be held to no share, and be seen in no figure."""
    one, before = alone(store), (store.count(), len(store.thumbs()))
    for path, body in (
        ("vote", {"comparison": one, "thumb": "up"}),
        ("rank", ASK),
        ("compare", {key: value for key, value in ASK.items() if key != "answers"}),
    ):
        answer = http.post(f"/api/{path}", json=body | {"rater": "import:x"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "rater"), path
        assert "has no colon" in answer.json()["error"]["message"]
    there = http.put("/api/conversations/c/messages/m/thumb", json={"thumb": "up", "rater": "judge:prose"})
    assert (there.status_code, there.json()["error"]["param"]) == (400, "rater")
    assert (store.count(), len(store.thumbs())) == before


def test_a_thumb_on_an_answer_is_stored_with_its_reason(http, store):
    comparison = alone(store)
    answer = vote(http, comparison, thumb="down", reason="too short")
    assert [who["model"] for who in answer.json()["verdict"]] == [""]
    thumb = store.thumbs()[-1]
    assert (thumb.up, thumb.reason, thumb.rater, thumb.answer.text) == (False, "too short", "tester", "Hello")


def test_votes_come_in_pages_and_whole_as_csv(http, store):
    for i in range(3):
        vote(http, alone(store, "=1+1"), thumb="up", reason=f"-{i}")
    pages, before = [], ""
    while before is not None:
        got = http.get("/api/operator/votes", params={"limit": 2, "before": before}).json()
        pages.append(got["votes"])
        before = got["next"]
    listed = [one["id"] for page in pages for one in page]
    assert all(len(page) == 2 for page in pages[:-1])
    assert len(listed) == len(set(listed)) == got["total"]
    newest = pages[0][0]
    assert (newest["kind"], newest["thumb"], newest["reason"], newest["prompt"]) == ("thumb", "up", "-2", GREET)
    sheet = http.get("/api/operator/votes.csv")
    assert sheet.headers["content-disposition"] == 'attachment; filename="votes.csv"'
    rows = [*csv.DictReader(io.StringIO(sheet.content.decode("utf-8-sig")))]
    assert [*dict.fromkeys(row["id"] for row in rows)] == listed
    assert (rows[0]["text"], rows[0]["reason"]) == ("'=1+1", "'-2")
    assert http.get("/api/operator/votes", params={"before": "yesterday"}).status_code == 404
    assert http.get("/api/operator/votes", params={"limit": 0}).status_code == 400


def test_ratings_say_who_is_better_once_there_are_enough_votes(http, model_dirs, tmp_path):
    store = PreferenceStore(tmp_path / "votes.sqlite")
    hashes = {model["id"]: model["hash"] for model in http.get("/api/info").json()["models"]}
    prompt = [Message("user", "greet")]
    with (
        serving(create_app(model_dirs, store), store) as running,
        httpx.Client(base_url=running.url, timeout=30) as anew,
    ):
        nothing = anew.get("/api/operator/ratings").json()
        assert (nothing["votes"], nothing["models"], nothing["agreement"], nothing["anchor"]) == (0, [], None, None)
        for i in range(12):
            pair = [Answer("Hello", model=hashes["knows"], seed=i), Answer("xyz", model=hashes["random"], seed=i)]
            comparison = store.record(prompt, pair)
            for rater in ("one", "two"):
                store.vote(comparison, (0, 1) if i else (1, 0), rater)
        told = anew.get("/api/operator/ratings").json()
    assert (told["votes"], told["anchor"]) == (24, "random")
    best, last = told["models"]
    assert (best["model"], best["wins"], best["losses"], best["decided"]) == ("knows", 22, 2, True)
    assert 0 < best["low"] < best["points"] < best["high"]
    assert (last["model"], last["points"]) == ("random", 0.0)
    assert (told["left"]["times"], told["left"]["of"]) == (22, 24)
    assert (told["agreement"]["comparisons"], told["agreement"]["same"], told["agreement"]["alpha"]) == (12, 1.0, 1.0)
    store.close()


def test_whoever_lacks_the_scope_sees_nothing_of_runs_and_votes(store):
    """The routes themselves refuse, whatever stands before them."""
    routes = FastAPI()
    problems.install(routes)
    router = operator.routes(Models([]), store, Runs(None))
    routes.include_router(router)
    scopes = {"chat"}

    async def known(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["state"] = {**scope.get("state", {}), "caller": Caller("somebody", frozenset(scopes), "key")}
        await routes(scope, receive, send)

    paths = ["/api/runs", "/api/runs/tang", "/api/runs/tang/metrics?stage=sft", "/api/operator/votes",
             "/api/operator/votes.csv", "/api/operator/ratings", "/api/operator/champion"]  # fmt: skip
    assert {
        route.path.replace("{name}", "tang") for route in operator.routes(Models([]), store, Runs(None)).routes
    } == {path.partition("?")[0] for path in paths}
    with serving(known, store) as running, httpx.Client(base_url=running.url, timeout=30) as client:
        assert {client.get(path).status_code for path in paths} == {403}
        assert "scope 'operator'" in client.get("/api/runs").json()["error"]["message"]
        scopes.add("operator")
        assert client.get("/api/runs").json() == {"runs": []}
