"""Running the server: what it counts, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

import danlu
from danlu.serve.engine import Engine
from danlu.serve.shutdown import Leaving
from danlu.serve.worker import Setup

GREET = [{"role": "user", "content": "greet"}]
BODY = {"model": "knows", "messages": GREET, "temperature": 0}
COUNT = {"model": "knows", "messages": [{"role": "user", "content": "count"}], "temperature": 0, "stream": True}


@pytest.fixture(scope="module")
def http(live):
    with httpx.Client(base_url=live.url, timeout=30) as client:
        yield client


def numbers(http: httpx.Client) -> dict[tuple[str, ...], float]:
    """Every sample by its name and the values of its labels, which stand in the order of their names."""
    answer = http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(answer.text)
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def test_everything_is_counted(http):
    before = numbers(http)

    def more(*key: str) -> float:
        return numbers(http).get(key, 0) - before.get(key, 0)

    usage = http.post("/v1/chat/completions", json=BODY).json()["usage"]
    http.post("/v1/chat/completions", json=BODY | {"stream": True, "max_tokens": 2})
    http.post("/v1/chat/completions", json=BODY | {"n": 0})
    http.get("/v1/models/nobody")
    http.get("/made-up-path")
    assert more("danlu_requests_total", "/v1/chat/completions", "200") == 2
    assert more("danlu_requests_total", "/v1/chat/completions", "400") == 1
    assert more("danlu_requests_total", "none", "404") == 1, "no client makes up routes"
    assert more("danlu_rejected_total", "invalid_value") == 1
    assert more("danlu_rejected_total", "model_not_found") == 1
    assert more("danlu_request_success_total", "stop", "knows") == 1
    assert more("danlu_request_success_total", "length", "knows") == 1
    assert more("danlu_prompt_tokens_total", "knows") == 2 * usage["prompt_tokens"]
    assert more("danlu_generation_tokens_total", "knows") == usage["completion_tokens"] + 2
    for name in ("time_to_first_token_seconds", "e2e_latency_seconds"):
        assert more(f"danlu_{name}_count", "knows") == 2
        assert more(f"danlu_{name}_sum", "knows") > 0
    assert more("danlu_inter_token_latency_seconds_count", "knows") > 1


def test_what_is_under_way_is_told(http):
    with http.stream("POST", "/v1/chat/completions", json=COUNT) as stream:
        lines = stream.iter_lines()
        next(lines)
        deadline = time.monotonic() + 30
        while not (during := numbers(http))["danlu_running",]:  # the worker tells twice a second
            assert time.monotonic() < deadline
    assert during["danlu_running",] == 1
    assert during["danlu_waiting",] == 0
    assert 0 <= during["danlu_kv_cache_usage_ratio",] <= 1
    assert {("danlu_prefix_cache_hits_total",), ("danlu_prefix_cache_queries_total",)} <= during.keys()
    assert during["danlu_build_info", danlu.__version__] == 1
    while numbers(http)["danlu_running",]:
        assert time.monotonic() < deadline


def test_words_of_people_are_in_no_number(http):
    http.post(
        "/v1/chat/completions", json=BODY | {"user": "somebody", "messages": [{"role": "user", "content": "greet"}]}
    )
    told = http.get("/metrics").text
    assert "somebody" not in told
    assert "greet" not in told


def test_ready(http):
    assert http.get("/readyz").json() == {"status": "ready"}


class Process:
    """A server in a process of its own."""

    def __init__(self, model: Path, store: Path, grace: float) -> None:
        program = (
            "from pathlib import Path; from danlu.serve import run_server; "
            f"run_server({{'knows': Path({str(model)!r})}}, Path({str(store)!r}), 0, grace={grace})"
        )
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True,
                                        env=environment)  # fmt: skip
        line = self.process.stderr.readline()
        self.url = line.partition(" at ")[2].partition(",")[0]
        assert self.url.startswith("http://127.0.0.1:"), line
        deadline = time.monotonic() + 60
        while not self.answers():
            assert time.monotonic() < deadline

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz").status_code == 200
        except httpx.TransportError:
            return False


@pytest.fixture
def start(model_dirs, tmp_path):
    running: list[Process] = []

    def started(grace: float) -> Process:
        running.append(Process(model_dirs["knows"], tmp_path / "votes.db", grace))
        return running[-1]

    yield started
    for one in running:
        one.process.kill()
        one.process.wait()
        one.process.stderr.close()


def test_sigterm_lets_people_finish_and_tells_the_others(start):
    server = start(grace=3.0)
    client = httpx.Client(timeout=60)
    with (
        client.stream("POST", f"{server.url}/v1/chat/completions", json=COUNT | {"n": 8}) as long,
        client.stream("POST", f"{server.url}/v1/chat/completions", json=COUNT | {"max_tokens": 20}) as short,
    ):
        lines, others = long.iter_lines(), short.iter_lines()
        next(lines)
        next(others)
        server.process.send_signal(signal.SIGTERM)
        while (leaving := httpx.get(f"{server.url}/readyz")).status_code == 200:
            time.sleep(0.01)  # and when its time is up it answers nothing, which is an error here
        assert leaving.status_code == 503
        assert leaving.json()["error"]["code"] == "stopping"
        assert httpx.get(f"{server.url}/healthz").status_code == 200, "it still lives"
        refused = httpx.post(f"{server.url}/v1/chat/completions", json=BODY)
        assert refused.status_code == 503
        assert "stopping" in refused.json()["error"]["message"]
        assert int(refused.headers["retry-after"]) > 0
        finished = [line.removeprefix("data: ") for line in others if line]
        assert finished[-1] == "[DONE]", "who could finish in time was cut off"
        assert json.loads(finished[-2])["choices"][0]["finish_reason"] == "length"
        *_, last = [line.removeprefix("data: ") for line in lines if line]
        assert json.loads(last)["error"]["code"] == "overloaded", "whose time is up is told so"
    assert server.process.wait(timeout=60) == 0


def test_an_idle_server_waits_for_nobody():
    engine = Engine.in_thread({}, Setup())
    leaving = Leaving(engine)
    assert not leaving.begun
    begun = time.monotonic()
    asyncio.run(leaving.finish(grace=60))
    assert time.monotonic() - begun < 50
    assert leaving.begun
