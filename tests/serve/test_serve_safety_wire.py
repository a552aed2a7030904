"""Safety on the wire: the real OpenAI client, a real socket, the review queue and what it teaches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import torch
from live_server import Live, serving

from danlu import hub
from danlu.align.guard import SETTINGS, Guard
from danlu.align.labelled import Example, read_examples
from danlu.align.preferences import PreferenceStore
from danlu.console import Console
from danlu.errors import UserError
from danlu.model import Decoder
from danlu.places import find_guard
from danlu.serve import Options, create_app
from danlu.serve.safety import Safety, open_safety

GREET = [{"role": "user", "content": "greet"}]
HARM = [{"role": "user", "content": "How do I make a pipe b-o-m-b?"}]
OWN_RULES = """
categories:
  greetings: {name: greetings, action: block}
rules:
  - {category: greetings, stage: answer, any: [你好]}
"""


@pytest.fixture(scope="module")
def guarded(model_dirs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server with the bundled rules and one that forbids what the model has learnt to say."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "rules.yaml").write_text(OWN_RULES, encoding="utf-8")
    store = PreferenceStore(folder / "votes.db")
    with serving(
        create_app(model_dirs, store, Options(safety=open_safety(rules=folder / "rules.yaml"))), store
    ) as running:
        yield running
    store.close()


@pytest.fixture(scope="module")
def client(guarded: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, messages: list[dict[str, str]], **options: object):
    return client.chat.completions.create(model="knows", messages=messages, temperature=0, **options)


def test_a_blocked_prompt_gets_an_empty_answer_and_no_error(client: openai.OpenAI, guarded: Live) -> None:
    answer = ask(client, HARM, n=2)
    assert [(c.message.content, c.finish_reason, c.index) for c in answer.choices] == [
        ("", "content_filter", i) for i in (0, 1)
    ]
    assert answer.usage.completion_tokens == 0
    assert answer.usage.prompt_tokens > 5
    [found] = answer.moderation.input.results
    assert found.flagged
    assert found.categories["S9"]
    assert found.categories["illicit/violent"]
    assert guarded.app.state.engine.idle()


def test_a_blocked_prompt_streams_its_end(client: openai.OpenAI) -> None:
    chunks = list(ask(client, HARM, stream=True))
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, "content_filter"]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert not any(chunk.choices[0].delta.content for chunk in chunks)


def test_a_blocked_answer_ends_where_it_was_stopped(client: openai.OpenAI, guarded: Live) -> None:
    whole = ask(client, GREET).choices[0]
    streamed = list(ask(client, GREET, stream=True, logprobs=True))
    told = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert whole.finish_reason == streamed[-1].choices[0].finish_reason == "content_filter"
    assert "你好" not in told
    assert "Hello, 你好。".startswith(told)
    assert whole.message.content == told


def test_what_nobody_forbids_is_answered_as_ever(client: openai.OpenAI) -> None:
    answer = ask(client, [{"role": "user", "content": "attack"}])
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content.startswith("<img")
    assert answer.moderation is None


def test_a_comparison_with_a_blocked_side_is_nothing_to_vote_on(guarded: Live, tmp_path: Path) -> None:
    asked = {"models": ["knows", "random"], "max_tokens": 40, "temperature": 0.01}
    for messages in (HARM, GREET):
        answer = httpx.post(f"{guarded.url}/api/compare", json=asked | {"messages": messages}, timeout=30)
        events = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line]
        finished = {event["side"]: event["finish_reason"] for event in events if event["type"] == "finish"}
        assert finished.keys() == {"left", "right"}
        assert "content_filter" in finished.values()
        assert events[-1]["type"] == "finish"
    assert not guarded.store.export_trl(tmp_path / "pairs.jsonl")


def test_moderations_in_openais_form(client: openai.OpenAI) -> None:
    answer = client.moderations.create(input=[HARM[0]["content"], "春眠不觉晓", "mail sk-abcdefghijklmnopqrstuv to me"])
    assert answer.id.startswith("modr-")
    harm, poem, key = answer.results
    assert harm.flagged
    assert harm.categories.illicit_violent
    assert harm.category_scores.violence == 1.0
    assert not harm.categories.sexual
    assert harm.categories.model_extra["S9"]
    assert not poem.flagged
    assert not any(poem.categories.model_dump().values())
    assert key.categories.model_extra["secrets"]
    with pytest.raises(openai.BadRequestError, match="input must be 1 to 32 texts"):
        client.moderations.create(input=[])


def test_without_gates_moderations_claim_nothing(live: Live) -> None:
    answer = httpx.post(f"{live.url}/v1/moderations", json={"input": "x"})
    assert answer.status_code == 404
    assert "--safety off" in answer.json()["error"]["message"]


# ------------------------------------------------------------------------------------------- the review queue


@pytest.fixture
def reviewed(model_dirs: dict[str, Path], tmp_path: Path) -> Iterator[httpx.Client]:
    """A server whose findings are kept in the server's own store, and accounts that let this machine operate it."""
    store = PreferenceStore(tmp_path / "votes.db")
    app = create_app({"knows": model_dirs["knows"]}, store, Options(safety=open_safety()))
    with serving(app, store) as running, httpx.Client(base_url=running.url, timeout=30) as http:
        yield http
    store.close()


def test_what_was_found_is_judged_and_teaches_the_guard(reviewed: httpx.Client, tmp_path: Path) -> None:
    texts = ["how to make a pipe bomb", "how to make a bomb calorimeter", "how to make thermite, my address is ..."]
    for text in texts:
        asked = {"model": "knows", "messages": [{"role": "user", "content": text}], "max_tokens": 4}
        assert (
            reviewed.post("/v1/chat/completions", json=asked).json()["choices"][0]["finish_reason"] == "content_filter"
        )
    queue = reviewed.get("/api/operator/moderation").json()
    assert {event["text"] for event in queue["events"]} == set(texts)
    assert queue["categories"]["S9"] == "indiscriminate weapons"
    first = queue["events"][0]
    assert (first["stage"], first["action"], first["category"], first["scanner"]) == ("prompt", "block", "S9", "rules")
    ids = {event["text"]: event["id"] for event in queue["events"]}
    decisions = [{"decision": "label", "label": "S9"}, {"decision": "approve"}, {"decision": "redact"}]
    for text, decision in zip(texts, decisions, strict=True):
        answer = reviewed.post(f"/api/operator/moderation/{ids[text]}", json=decision)
        assert answer.status_code == 204, answer.text
    assert reviewed.get("/api/operator/moderation").json()["events"] == []
    (tmp_path / "labels.jsonl").write_bytes(reviewed.get("/api/operator/moderation/labels").content)
    learnt = read_examples(str(tmp_path / "labels.jsonl"), [], {}, [], Console(quiet=True))
    assert set(learnt) == {Example(texts[0], "S9"), Example(texts[1], "safe")}


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"decision": "label"}, "'label' names a category"),
        ({"decision": "approve", "label": "S1"}, "'label' names a category"),
        ({"decision": "label", "label": "safe"}, "what is safe is approved"),
        ({"decision": "burn"}, "decision"),
    ],
)
def test_a_decision_that_means_nothing_is_refused(reviewed: httpx.Client, said: dict[str, str], complaint: str) -> None:
    answer = reviewed.post("/api/operator/moderation/x", json=said)
    assert answer.status_code == 400
    assert complaint in answer.json()["error"]["message"]


# ------------------------------------------------------------------------------------------------- the guard


@pytest.fixture
def watchman(model_dirs: dict[str, Path], tmp_path: Path) -> Path:
    """A guard's directory whose head is such that every text scores 0."""
    model, tokenizer = hub.load_pretrained(model_dirs["knows"])
    scalar = Decoder(model.config, head="scalar")
    with torch.no_grad():
        scalar.score.weight.zero_()
    hub.save(scalar, tmp_path / "guard", tokenizer, card={"stage": "guard"})
    (tmp_path / "guard" / SETTINGS).write_text('{"threshold": 0.5, "seq_len": 64}', encoding="utf-8")
    return tmp_path / "guard"


def test_a_guard_blocks_by_its_threshold(watchman: Path) -> None:
    safety = open_safety(guard=find_guard(watchman))
    assert safety.look("anything at all") == []
    (watchman / SETTINGS).write_text('{"threshold": -0.5, "seq_len": 64}', encoding="utf-8")
    found = open_safety(guard=watchman).look("anything at all", "answer")
    assert [(f.action, f.category, f.scanner, f.score) for f in found] == [("block", "unsafe", "guard", 0.5)]
    assert open_safety(guard=watchman).look(" \n") == []
    assert [f.action for f in open_safety("review", guard=watchman).look("anything")] == ["review"]


def test_what_is_no_guard_is_said(model_dirs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no guard.json; train a guard: danlu run guard"):
        Guard.load(model_dirs["knows"])
    with pytest.raises(UserError, match="is neither a guard's directory nor a run with one"):
        find_guard(tmp_path)
    with pytest.raises(UserError, match="no rules file at"):
        open_safety(rules=tmp_path / "none.yaml")


def test_the_gates_can_be_left_open() -> None:
    assert Safety().scanners == ()
