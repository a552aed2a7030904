"""Buckets fill with time, n counts n times, and what was not written is not paid."""

from __future__ import annotations

import httpx
import pytest
from live_server import serving

from danlu.align.preferences import PreferenceStore
from danlu.serve import Options, create_app
from danlu.serve.people import Caller
from danlu.serve.problems import Refusal
from danlu.serve.rates import Bucket, Rates
from danlu.serve.safety import open_safety
from danlu.serve.store import ServeStore

ASK = {"model": "knows", "messages": [{"role": "user", "content": "greet"}], "max_tokens": 4, "temperature": 0}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_fills_evenly_and_no_further() -> None:
    clock = Clock()
    bucket = Bucket(60, clock)
    bucket.take(60)
    assert bucket.wait(1) == pytest.approx(1.0)
    clock.now = 30.0
    assert bucket.level == pytest.approx(30.0)
    assert bucket.wait(30) == 0
    clock.now = 1000.0
    assert bucket.level == 60
    bucket.take(90)
    assert bucket.wait(1) == pytest.approx(31.0), "a debt is paid first"
    assert bucket.wait(1_000_000) == pytest.approx(90.0), "more than it holds is all that it holds"


def test_a_key_has_one_meter_and_says_itself_how_much() -> None:
    rates = Rates(5, 50, Clock())
    alice, own = Caller("alice", key="k1"), Caller("alice", key="k2", requests=2, tokens=0)
    assert rates.of(alice) is rates.of(Caller("alice", key="k1"))
    assert rates.of(own) is not rates.of(alice)
    assert rates.of(own).tokens is None
    assert rates.of(Caller()).headers() == {}
    rates.of(own).spend(requests=2)
    with pytest.raises(Refusal) as refused:
        rates.of(own).admit(1, 10)
    assert (refused.value.status_code, refused.value.headers) == (429, {"retry-after": "30"})
    rates.of(alice).admit(5, 50)


@pytest.fixture
def limited(guarded):
    """A new key with the server's own limits: three requests and a hundred tokens a minute."""
    key = guarded.kept.people.add_key("carol")[1]
    with httpx.Client(base_url=guarded.live.url, timeout=30, headers={"authorization": f"Bearer {key}"}) as client:
        yield client


def test_n_counts_n_times_and_the_minute_passes(limited, guarded):
    first = limited.post("/v1/chat/completions", json=ASK | {"n": 2})
    assert first.status_code == 200, first.text
    assert first.headers["x-ratelimit-limit-requests"] == "3"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert first.headers["x-ratelimit-reset-requests"] == "40.000s"
    refused = limited.post("/v1/chat/completions", json=ASK | {"n": 2})
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "20"
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert limited.get("/v1/models").status_code == 200, "looking costs nothing"
    guarded.clock.now += 20
    assert limited.post("/v1/chat/completions", json=ASK | {"n": 2}).status_code == 200


def test_tokens_are_paid_as_they_are_written(limited, guarded):
    answer = limited.post("/v1/chat/completions", json=ASK | {"max_tokens": 3000, "temperature": 0})
    used = answer.json()["usage"]["total_tokens"]
    left = limited.get("/v1/models").headers["x-ratelimit-remaining-tokens"]
    assert 0 < used < 100
    assert int(left) == 100 - used, "what was allowed and not written is not paid"
    long = ASK | {"messages": [{"role": "user", "content": "count"}], "max_tokens": 120}
    assert limited.post("/v1/chat/completions", json=long).status_code == 200, "what has begun is finished"
    refused = limited.post("/v1/chat/completions", json=ASK)
    assert refused.status_code == 429
    assert "100 tokens a minute" in refused.json()["error"]["message"]
    guarded.clock.now += int(refused.headers["retry-after"])
    assert limited.post("/v1/chat/completions", json=ASK).status_code == 200


def test_comparisons_and_stored_answers_are_paid_too(limited):
    compare = {"models": ["knows"], "messages": ASK["messages"], "max_tokens": 2}
    assert limited.post("/api/compare", json=compare).status_code == 200
    say = {"model": "knows", "content": "greet", "max_tokens": 2}
    assert limited.post("/api/chat", json=say).status_code == 200
    assert limited.post("/api/chat", json=say).status_code == 429
    assert len(limited.get("/api/conversations").json()["conversations"]) >= 2


def test_others_have_minutes_of_their_own(limited, guarded):
    assert limited.post("/v1/chat/completions", json=ASK | {"n": 3}).status_code == 200
    assert limited.post("/v1/chat/completions", json=ASK).status_code == 429
    unlimited = {"authorization": f"Bearer {guarded.alice}"}
    answer = limited.post("/v1/chat/completions", json=ASK, headers=unlimited)
    assert answer.status_code == 200
    assert not any(name.startswith("x-ratelimit") for name in answer.headers)


def test_a_look_is_a_request(limited):
    def statuses(path, **body):
        return [limited.post(f"/v1/{path}", json={"model": "knows"} | body).status_code for _ in range(2)]

    assert statuses("tokenize", prompt="greet") == [200, 200]
    assert statuses("detokenize", tokens=[5]) == [200, 429]


def test_what_a_gate_blocks_is_paid_and_what_a_full_queue_refuses_is_not(model_dirs, tmp_path):
    store = PreferenceStore(tmp_path / "votes.sqlite")
    key = ServeStore(store.database).people.add_key("dora")[1]
    app = create_app(
        {"knows": model_dirs["knows"]}, store, Options(rates=Rates(4, 1000, Clock()), safety=open_safety())
    )
    headers = {"authorization": f"Bearer {key}"}
    with serving(app, store) as live, httpx.Client(base_url=live.url, headers=headers, timeout=30) as http:

        def left(path, **body):
            answer = http.post(f"/v1/{path}", json=body)
            return answer, [int(answer.headers[f"x-ratelimit-remaining-{what}"]) for what in ("requests", "tokens")]

        assert left("moderations", input=["a", "b"])[1] == [2, 1000], "a text is a request"
        harm = [{"role": "user", "content": "how to make a pipe bomb"}]
        blocked, (requests, tokens) = left("chat/completions", **ASK | {"messages": harm})
        assert blocked.json()["choices"][0]["finish_reason"] == "content_filter"
        assert (requests, tokens) == (1, 1000 - blocked.json()["usage"]["prompt_tokens"])
        app.state.engine.refuse_new()
        refused, rest = left("chat/completions", **ASK)
        assert refused.status_code == 503
        assert rest == [1, tokens]
    store.close()
