"""Completions of text, embeddings and token ids, with the real client."""

from __future__ import annotations

import json
import time

import httpx
import numpy as np
import openai
import pytest
import torch

from danlu import hub
from danlu.infer import Generator, Sampling

PROMPT = "Hello, 你"


@pytest.fixture(scope="module")
def client(live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def generator(model_dirs) -> Generator:
    return Generator(*hub.load_pretrained(model_dirs["knows"]))


def complete(client, prompt, **options):
    return client.completions.create(model="knows", prompt=prompt, **{"temperature": 0, "max_tokens": 6} | options)


def test_a_text_is_continued_as_the_generator_continues_it(client, generator):
    answer = complete(client, PROMPT)
    assert answer.object == "text_completion"
    ids = [generator.tokenizer.bos, *generator.tokenizer.encode(PROMPT)]
    own = generator.generate([ids], Sampling(temperature=0, max_new_tokens=6), [0])[0]
    assert answer.choices[0].text == own.text
    assert answer.choices[0].finish_reason == own.finish_reason
    assert answer.usage.prompt_tokens == len(ids)
    assert complete(client, ids).choices[0].text == own.text, "the same as ids"


def test_several_prompts_and_several_answers_of_each(client):
    prompts = [PROMPT, "greet"]
    answer = complete(client, prompts, n=2)
    alone = [complete(client, prompt).choices[0].text for prompt in prompts]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == [alone[0]] * 2 + [alone[1]] * 2
    assert answer.usage.prompt_tokens == sum(complete(client, prompt).usage.prompt_tokens for prompt in prompts)


def test_what_was_read_before_is_told_by_prompt(client):
    prompts = ["and on | " * 12, "on and | " * 12]
    first, again = (complete(client, prompts[:1]).usage for _ in range(2))
    both = complete(client, prompts).usage
    assert first.prompt_tokens_details.cached_tokens == 0
    assert again.prompt_tokens_details.cached_tokens == (again.prompt_tokens - 1) // 16 * 16 > 0
    assert both.prompt_tokens_details.cached_tokens == again.prompt_tokens_details.cached_tokens


def test_a_stream_adds_up(client):
    plain = complete(client, PROMPT, logprobs=2, echo=True)
    chunks = list(complete(client, PROMPT, logprobs=2, echo=True, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage == plain.usage
    assert chunks[-1].choices == []
    choices = [chunk.choices[0] for chunk in chunks[:-1]]
    assert "".join(choice.text for choice in choices) == plain.choices[0].text
    assert choices[-1].finish_reason == plain.choices[0].finish_reason
    told = [token for choice in choices if choice.logprobs for token in choice.logprobs.tokens]
    assert told == plain.choices[0].logprobs.tokens[: len(told)]
    offsets = [offset for choice in choices if choice.logprobs for offset in choice.logprobs.text_offset]
    assert offsets == plain.choices[0].logprobs.text_offset[: len(offsets)]


def test_harnesses_score_a_text_without_writing_anything(client, generator):
    ids = [generator.tokenizer.bos, *generator.tokenizer.encode("greet Hello, 你好。")]
    answer = complete(client, ids, echo=True, logprobs=1, max_tokens=0)
    told = answer.choices[0].logprobs
    assert answer.usage.completion_tokens == 0
    assert len(told.tokens) == len(ids)
    assert told.token_logprobs[0] is None
    with torch.no_grad():
        logits = generator.model(torch.tensor([ids]))[0, :, : generator.tokenizer.vocab_size]
    expected = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    assert told.token_logprobs[1:] == pytest.approx(expected, abs=1e-3)
    assert max(told.top_logprobs[3].values()) == pytest.approx(float(logits[2].log_softmax(-1).max()), abs=1e-3)
    text = complete(client, "greet Hello, 你好。", echo=True, logprobs=0, max_tokens=0).choices[0]
    assert text.text == "greet Hello, 你好。"
    assert text.logprobs.token_logprobs == pytest.approx(told.token_logprobs[1:], abs=1e-3), "bos is not the client's"
    assert text.logprobs.text_offset[0] == 0


@pytest.mark.parametrize(
    ("change", "param"),
    [({"suffix": "end"}, None), ({"best_of": 3}, None), ({"prompt": []}, "prompt"), ({"prompt": [[]]}, "prompt"),
     ({"prompt": [1, "a"]}, "prompt"), ({"prompt": [-1]}, "prompt"), ({"prompt": [10**8]}, "prompt"),
     ({"prompt": None}, "prompt"), ({"max_tokens": 0}, None), ({"logprobs": 6}, "logprobs"),
     ({"prompt": ["a"] * 5}, "prompt"), ({"logit_bias": {"99999": 1}}, "logit_bias"), ({"prompt": "\ud800"}, "prompt")],
    ids=str,
)  # fmt: skip
def test_what_is_refused(live, change, param):
    body = json.dumps({"model": "knows", "prompt": "a"} | change)
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{live.url}/v1/completions", content=body, headers=headers)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_embeddings_are_the_mean_of_the_final_states(client, generator):
    texts = ["greet", "Hello, 你好。 greet", "count"]
    floats = client.embeddings.create(model="knows", input=texts, encoding_format="float")
    coded = client.embeddings.create(model="knows", input=texts)  # the client asks for base64 by itself
    vectors = np.array([row.embedding for row in floats.data])
    assert np.allclose(vectors, [row.embedding for row in coded.data], atol=1e-6)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    for text, vector in zip(texts, vectors, strict=True):
        ids = [generator.tokenizer.bos, *generator.tokenizer.encode(text)]
        with torch.no_grad():
            mean = generator.model.hidden(torch.tensor([ids])).states[0].float().mean(0)
        assert np.allclose(vector, (mean / mean.norm()).numpy(), atol=1e-3), "its neighbours must not matter"
    assert floats.usage.prompt_tokens == floats.usage.total_tokens > len(texts)
    again = client.embeddings.create(model="knows", input=[ids], encoding_format="float").data[0].embedding
    assert np.allclose(again, vectors[-1], atol=1e-3)


def test_nothing_more_is_read_for_whoever_has_left(live, generator):
    engine, texts = live.app.state.engine, [[generator.tokenizer.bos] * 1000] * 120
    before = next(engine._numbers)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{live.url}/v1/embeddings", json={"model": "knows", "input": texts}, timeout=0.1)
    deadline = time.monotonic() + 60
    while not engine.idle():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert next(engine._numbers) - before <= 100, "jobs are numbered: not all were asked for"


@pytest.mark.parametrize("change", [{"input": ""}, {"input": []}, {"input": [[99999999]]}, {"dimensions": 7}], ids=str)
def test_embeddings_that_cannot_be(live, change):
    answer = httpx.post(f"{live.url}/v1/embeddings", json={"model": "knows", "input": "a"} | change)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == next(iter(change))


def test_ids_there_and_back(live, generator):
    def post(path, **body):
        answer = httpx.post(f"{live.url}/v1/{path}", json={"model": "knows"} | body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    text = "Hello, 你好。<|end|>"
    told = post("tokenize", prompt=text)
    assert told == {"tokens": generator.tokenizer.encode(text), "count": len(told["tokens"]), "max_model_len": 4096}
    assert post("detokenize", tokens=told["tokens"]) == {"prompt": text}
    wrong = httpx.post(f"{live.url}/v1/tokenize", json={"model": "knows"})
    assert "'prompt' or 'messages'" in wrong.json()["error"]["message"]
