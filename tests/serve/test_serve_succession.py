"""A server follows the champion: nobody waits, nobody's answer changes its author, a candidate is met blind."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from live_server import Live, serving

from danlu import hub
from danlu.align.champion import Registry
from danlu.align.preferences import PreferenceStore
from danlu.errors import UserError
from danlu.infer import Generator, Sampling
from danlu.records import Message
from danlu.serve import Options, create_app, succession
from danlu.serve.worker import Setup
from danlu.tokens import chat

COUNT = [{"role": "user", "content": "count"}]
GREET = [{"role": "user", "content": "greet"}]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(succession, "SECONDS", 0.02)
    monkeypatch.setattr(succession, "LINGER", 0.05)


@pytest.fixture
def registry(tmp_path, model_dirs) -> Registry:
    """Of a run that has made two models."""
    (tmp_path / "run").mkdir()
    registry = Registry(tmp_path / "run")
    for place in model_dirs.values():
        registry.add(place, {"stage": place.name})
    return registry


@pytest.fixture
def hashes(model_dirs) -> dict[str, str]:
    return {name: hub.model_hash(place) for name, place in model_dirs.items()}


@contextlib.contextmanager
def following(registry: Registry, places: dict[str, Path]) -> Iterator[tuple[Live, httpx.Client]]:
    store = PreferenceStore(registry.run / "votes.db")
    options = Options(setup=Setup(rows=4), follow=registry.run)
    app = create_app(places, store, options)
    with serving(app, store) as live, httpx.Client(base_url=live.url, timeout=60) as http:
        yield live, http
    store.close()


def wait_for(http: httpx.Client, wanted: str) -> None:
    """Until the champion that is served has this hash."""
    deadline = time.monotonic() + 30
    while {"id": "champion", "hash": wanted}.items() - http.get("/api/info").json()["models"][0].items():
        assert time.monotonic() < deadline, "the pointer is not followed"
        time.sleep(0.01)


def greedy(place: Path, words: str, limit: int) -> str:
    generator = Generator(*hub.load_pretrained(place))
    prompt = chat.encode_prompt(generator.tokenizer, [Message("user", words)])
    return generator.generate([prompt], Sampling(temperature=0, max_new_tokens=limit), [0])[0].text


def compared(http: httpx.Client, seed: int) -> tuple[str, dict]:
    """What is told before the vote, and the verdict after it."""
    asked = {"models": ["champion"], "messages": GREET, "max_tokens": 4, "temperature": 1.0, "seed": seed}
    told = http.post("/api/compare", json=asked).text
    comparison = json.loads(told.strip().splitlines()[-1].removeprefix("data: "))["comparison"]
    return told, http.post("/api/vote", json={"comparison": comparison, "choice": "tie"}).json()["verdict"]


def ranking(http: httpx.Client, answers: int) -> list[dict]:
    """Who wrote which of several answers, in the order in which they stood."""
    asked = {"models": ["champion"], "messages": GREET, "max_tokens": 4, "temperature": 1.0, "answers": answers}
    told = http.post("/api/rank", json=asked).text
    assert "candidate" not in told
    comparison = json.loads(told.strip().splitlines()[-1].removeprefix("data: "))["comparison"]
    return http.post("/api/vote", json={"comparison": comparison, "ranks": [0] * answers}).json()["verdict"]


def test_a_promotion_reaches_new_answers_and_leaves_running_ones_alone(registry, hashes, model_dirs):
    registry.crown(hashes["knows"], "first")
    body = {"model": "champion", "messages": COUNT, "temperature": 0, "max_tokens": 3800, "stream": True}
    short = body | {"messages": GREET, "max_tokens": 40, "stream": False}
    with following(registry, {}) as (live, http), httpx.Client(base_url=live.url, timeout=60) as other:
        with http.stream("POST", "/v1/chat/completions", json={**body, "repair": False}) as running:
            chunks = (json.loads(line.removeprefix("data: ")) for line in running.iter_lines() if line)
            seen = [next(chunks)]
            registry.promote(hashes["random"], "better")
            wait_for(other, hashes["random"])
            new = other.post("/v1/chat/completions", json=short | {"max_tokens": 5}).json()
            assert hashes["random"].startswith(new["system_fingerprint"].removeprefix("fp_"))
            time.sleep(2 * succession.LINGER)  # the old weights go when the old answer is written, not before
            seen += [next(chunks) for _ in range(200)]
            assert not live.app.state.engine.idle(), "the old answer was to be still under way"
        said = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in seen)
        assert len(said) > 100
        assert greedy(model_dirs["knows"], "count", len(seen) + 20).startswith(said)
        assert len({chunk["system_fingerprint"] for chunk in seen}) == 1
        held = live.app.state.engine._line._worker._engines
        deadline = time.monotonic() + 30
        while set(held) != {hashes["random"]}:
            assert time.monotonic() < deadline, f"weights that nobody needs are still held: {set(held)}"
            time.sleep(0.01)
        registry.roll_back("worse")
        wait_for(http, hashes["knows"])
        back = http.post("/v1/chat/completions", json=short).json()
        assert back["choices"][0]["message"]["content"] == "Hello, 你好。"


def test_a_candidate_is_met_in_comparisons_and_rankings_only_and_blind(registry, hashes):
    registry.crown(hashes["knows"], "first")
    with following(registry, {}) as (live, http):
        _, verdict = compared(http, 1)
        assert {who["model"] for who in verdict.values()} == {"champion"}
        registry.propose(hashes["random"], 1.0)
        deadline = time.monotonic() + 30
        seats = set()
        while len(seats) < 2:  # both sides are the candidate's now and then
            assert time.monotonic() < deadline
            told, verdict = compared(http, 2)
            names = {side: who["model"] for side, who in verdict.items()}
            if "candidate" in names.values():
                seats.add("left" if names["left"] == "candidate" else "right")
                assert sorted(names.values()) == ["candidate", "champion"]
                assert not any(word in told for word in ("candidate", *hashes.values()))
        kept = live.store.all()[-1]
        assert {answer.model for answer in kept.answers} == set(hashes.values())
        ranked = [who["model"] for who in ranking(http, 5)]
        assert sorted(ranked) == ["candidate", "candidate", "champion", "champion", "champion"], "every second one"
        orders = {tuple(who["model"] for who in ranking(http, 4)) for _ in range(8)}
        assert len(orders) > 1, "places are drawn by lot"
        for path in ("/v1/models", "/api/info"):
            assert "candidate" not in http.get(path).text
        assert http.post("/v1/chat/completions", json={"model": "candidate", "messages": GREET}).status_code == 404
        shown = http.get("/api/operator/champion").json()
        assert (shown["standing"]["champion"], shown["standing"]["candidate"]) == (hashes["knows"], hashes["random"])
        assert (shown["round"], shown["state"], shown["conditions"]) == (1, "collect", [])
        registry.withdraw(hashes["random"])
        deadline = time.monotonic() + 30
        while "candidate" in {who["model"] for who in compared(http, 3)[1].values()}:
            assert time.monotonic() < deadline


def test_a_candidate_that_cannot_be_loaded_is_told_and_keeps_the_champion_from_nothing(registry, hashes, monkeypatch):
    tries: list[Path] = []
    read = succession.read_served

    def counted(name: str, place: Path, shots: tuple) -> succession.Served:
        tries.append(place)
        return read(name, place, shots)

    monkeypatch.setattr(succession, "read_served", counted)
    registry.crown(hashes["knows"], "first")
    broken = registry.run / "versions" / "broken"
    shutil.copytree(registry.place(hashes["knows"]), broken)
    (broken / "config.json").write_text("{")

    def shown() -> dict:
        return http.get("/api/operator/champion").json()

    with following(registry, {}) as (_, http):
        registry.promote(hashes["random"], "better")
        registry.propose("broken", 0.5)
        wait_for(http, hashes["random"])
        deadline = time.monotonic() + 30
        while not shown()["trouble"]:
            assert time.monotonic() < deadline
        time.sleep(0.5)
        assert "broken" in shown()["trouble"]
        assert 1 <= tries.count(broken) <= 8, "it looks 25 times in half a second, and pauses double"
        registry.withdraw("broken")
        while shown()["trouble"]:
            assert time.monotonic() < deadline


def test_a_pointer_that_appears_or_breaks_while_serving(registry, hashes, model_dirs, caplog):
    with following(registry, {"knows": model_dirs["knows"]}) as (_, http):
        assert http.get("/api/operator/champion").json() == {"standing": None, "trouble": ""}
        assert [model["id"] for model in http.get("/api/info").json()["models"]] == ["knows"]
        registry.crown(hashes["random"], "first")
        wait_for(http, hashes["random"])
        sound = registry.pointer.read_text()
        registry.pointer.write_text("{")
        deadline = time.monotonic() + 30
        while "cannot be followed" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert http.get("/api/info").json()["models"][0]["hash"] == hashes["random"]
        registry.pointer.write_text(sound)
        registry.promote(hashes["knows"], "better")
        wait_for(http, hashes["knows"])
        with pytest.raises(UserError, match="no version"):
            registry.promote("0000", "a guess")
