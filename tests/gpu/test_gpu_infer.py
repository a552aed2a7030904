"""Answers of a GPU are the CPU's; its caches hold what a forward without them would compute."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from danlu.infer.answer import Completion, Request
from danlu.infer.batching import answer_all
from danlu.infer.engine import Engine
from danlu.infer.generate import Generator
from danlu.infer.sampler import Sampling
from danlu.infer.speculate import PromptLookup
from danlu.model import Decoder
from danlu.tokens.tokenizer import Tokenizer
from danlu.train.adapters import AdapterSettings, attach

GREEDY = Sampling(temperature=0.0, max_new_tokens=24)


@pytest.fixture
def prompts(tokenizer: Tokenizer) -> list[list[int]]:
    """Of different lengths."""
    return [[tokenizer.bos, *tokenizer.encode(text)] for text in ("春", "春夏秋冬山水", "写：花月", "风云" * 5)]


def test_greedy_answers_are_the_cpus(
    make: Callable[..., Decoder], shape: str, tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    model, sampling = make(shape, tokenizer.vocab_size), Sampling(temperature=0.0, max_new_tokens=24)
    expected = Generator(model, tokenizer).generate(prompts, sampling, [0] * 4)
    generator = Generator(model.cuda(), tokenizer)
    together = generator.generate(prompts, sampling, [0] * 4)
    alone = [generator.generate([prompt], sampling, [0])[0] for prompt in prompts]
    for one, mine, single in zip(expected, together, alone, strict=True):
        assert one.tokens == mine.tokens == single.tokens
        torch.testing.assert_close(mine.logprobs, one.logprobs, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cache_changes_nothing(make: Callable[..., Decoder], shape: str, dtype: torch.dtype) -> None:
    model = make(shape).cuda().compute_in(dtype)
    tokens = torch.randint(331, (2, 40), generator=torch.Generator().manual_seed(1)).cuda()
    with torch.no_grad():
        whole, cache = model.hidden(tokens).states, model.new_cache(2, 64)
        steps = torch.arange(40, device="cuda").expand(2, -1)
        parts = [model.hidden(tokens[:, :30], steps[:, :30], cache=cache).states]
        parts += [model.hidden(tokens[:, i : i + 1], steps[:, i : i + 1], cache=cache).states for i in range(30, 40)]
    away = (torch.cat(parts, 1).float() - whole.float()).norm(dim=-1) / whole.float().norm(dim=-1)
    assert away.median() < (1e-4 if dtype == torch.float32 else 3e-2)


def test_samples_in_bf16_depend_on_prompt_and_seed_alone(
    make: Callable[..., Decoder], tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    generator = Generator(make("llama", tokenizer.vocab_size).cuda().compute_in(torch.bfloat16), tokenizer)
    warm = Sampling(temperature=0.9, top_p=0.95, max_new_tokens=16)
    first = generator.generate(prompts * 2, warm, [1, 2, 3, 4] * 2)
    assert [c.tokens for c in first[:4]] == [c.tokens for c in first[4:]]
    assert len({c.tokens for c in generator.generate([prompts[0]] * 6, warm, range(6))}) > 1


def test_many_answers_in_bf16_are_drawn_by_recorded_steps(
    make: Callable[..., Decoder], shape: str, tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    generator = Generator(make(shape, tokenizer.vocab_size).cuda().compute_in(torch.bfloat16), tokenizer)
    for _ in range(2):  # what was recorded is replayed
        done = generator.generate(prompts * 10, Sampling(max_new_tokens=12), range(40))
        assert all(-30 < logprob <= 0 for completion in done for logprob in completion.logprobs)
        generator.refresh()


def answered(engine: Engine, prompts: Sequence[Sequence[int]], salt: str = "") -> list[Completion]:
    return answer_all(engine, [Request(tuple(p), GREEDY, seed, salt) for seed, p in enumerate(prompts)])


@pytest.mark.parametrize("guesser", ["lookup", "twin", "another", "mtp"])
def test_guesses_on_pages_change_nothing_but_the_steps(
    make: Callable[..., Decoder], shape: str, guesser: str, tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    if guesser == "mtp" and shape == "gpt2":
        pytest.skip("learned positions foresee nothing")
    generator = Generator(make(shape, tokenizer.vocab_size, n_mtp=int(guesser == "mtp")).cuda(), tokenizer)
    generator.stop_ids = ()
    plain = [c.tokens for c in generator.generate(prompts, GREEDY, range(4))]
    other = Generator(make("llama", tokenizer.vocab_size, seed=8).cuda(), tokenizer)
    drafters = {
        "lookup": PromptLookup, "twin": lambda: generator.drafter(tokenizer.vocab_size),
        "another": lambda: other.drafter(tokenizer.vocab_size), "mtp": lambda: None,
    }  # fmt: skip
    engine = generator.engine(4, budget=16, drafter=drafters[guesser](), foresight=guesser == "mtp")
    assert [c.tokens for c in answered(engine, prompts)] == plain
    lonely, steps = generator.engine(1, budget=64, drafter=drafters[guesser](), foresight=guesser == "mtp"), 0
    answer = lonely.add(Request(tuple(prompts[1]), GREEDY, 0))
    while not answer.finish_reason:
        lonely.step()
        steps += 1
    assert tuple(answer.tokens) == plain[1]
    if guesser == "twin":  # all guesses are right, and so five tokens come a step
        assert steps <= 2 + -(-24 // 5)


def test_what_is_left_behind_in_the_pool_spares_reading_and_changes_nothing(
    make: Callable[..., Decoder], shape: str, tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    foresees = shape != "gpt2"
    generator = Generator(make(shape, tokenizer.vocab_size, n_mtp=int(foresees)).cuda(), tokenizer)
    long = [prompt * 4 for prompt in prompts]
    plain = [c.tokens for c in generator.generate(long, GREEDY, range(4))]
    for foresight in {False, foresees}:
        engine = generator.engine(2, budget=16, pool_bytes=1 << 20, foresight=foresight)
        first, again = answered(engine, long), answered(engine, long)
        assert [c.tokens for c in first] == [c.tokens for c in again] == plain
        assert [c.cached for c in again] == [(len(prompt) - 1) // 16 * 16 for prompt in long]
        assert max(c.cached for c in again) > 0
        assert not any(c.cached for c in answered(engine, long[:2], salt="somebody else"))


def test_a_pool_that_is_full_gives_its_oldest_blocks_away(
    make: Callable[..., Decoder], shape: str, tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    """And many answers at once, more than experts of fp32 can be gathered for."""
    generator = Generator(make(shape, tokenizer.vocab_size).cuda(), tokenizer)
    many = [[*prompt, *tokenizer.encode(letter * 20)] for prompt in prompts for letter in "春夏秋冬山水花月"]
    plain = [c.tokens for c in generator.generate(many, GREEDY, range(32))]
    engine = generator.engine(4, budget=64, cache_bytes=1, pool_bytes=1)  # as little as there can be
    for _ in range(2):
        assert [c.tokens for c in answered(engine, many)] == plain
    assert engine.use().taken == 0


def test_texts_are_scored_and_embedded_as_on_the_cpu(
    make: Callable[..., Decoder], shape: str, tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    model = make(shape, tokenizer.vocab_size)
    theirs = Generator(model, tokenizer)
    expected, vectors = theirs.score(prompts, top=3), theirs.embed(prompts)
    ours = Generator(model.cuda(), tokenizer)
    torch.testing.assert_close(ours.embed(prompts), vectors, atol=1e-4, rtol=1e-4)
    for mine, one in zip(ours.score(prompts, top=3), expected, strict=True):
        assert [(t.id, [id for id, _ in t.top]) for t in mine] == [(t.id, [id for id, _ in t.top]) for t in one]
        told, said = (torch.tensor([t.logprob for t in tokens]) for tokens in (mine, one))
        torch.testing.assert_close(told, said, atol=1e-3, rtol=1e-3)


def test_what_steers_an_answer_steers_it_as_on_the_cpu(
    make: Callable[..., Decoder], tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    model = make("llama", tokenizer.vocab_size)
    steered = [
        Sampling(temperature=0.9, max_new_tokens=20, repetition_penalty=1.5, top_logprobs=2),
        Sampling(temperature=0.0, max_new_tokens=20, frequency_penalty=2.0, presence_penalty=2.0),
        Sampling(temperature=0.9, top_k=5, max_new_tokens=20, logit_bias=((tokenizer.encode("风")[0], 5.0),)),
        Sampling(temperature=0.9, top_p=0.8, min_p=0.01, max_new_tokens=20),
    ]
    expected = Generator(model, tokenizer).generate(prompts, steered, range(4))
    for ours, one in zip(
        Generator(model.cuda(), tokenizer).generate(prompts, steered, range(4)), expected, strict=True
    ):
        assert ours.tokens == one.tokens
        assert [[id for id, _ in top] for top in ours.top] == [[id for id, _ in top] for top in one.top]


def test_a_schema_is_kept_to(make: Callable[..., Decoder], tokenizer: Tokenizer, prompts: list[list[int]]) -> None:
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"w": {"enum": ["a", "b"]}}, "required": ["w"]}
    sampling = Sampling(max_new_tokens=30, grammar=json.dumps(schema | {"additionalProperties": False}))
    generator = Generator(make("llama", tokenizer.vocab_size).cuda().compute_in(torch.bfloat16), tokenizer)
    for done in generator.generate(prompts, sampling, range(4)):
        assert json.loads(done.text)["w"] in ("a", "b")


@pytest.mark.parametrize("adapter", [("lora", 32), ("dora", 16), ("lora", 8), ("lora", 4), ("dora", 4)])
def test_answers_of_a_model_with_an_adapter_are_the_cpus(
    make: Callable[..., Decoder], shape: str, adapter: tuple[str, int], tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    """Graphs of peft's layers around ours; and the weights that a step changes are seen after ``refresh``."""
    pytest.importorskip("peft")
    kind, bits = adapter
    model = attach(make(shape, tokenizer.vocab_size), AdapterSettings(kind=kind, rank=4, base_bits=bits), seed=0)
    theirs, found = Generator(model, tokenizer), []
    stirred = [torch.randn_like(p) * 0.1 for p in model.parameters() if p.requires_grad]
    for generator in (theirs, None):
        generator = generator or Generator(model.cuda(), tokenizer)
        before = generator.generate(prompts, GREEDY, [0] * 4)
        stir(model, stirred, 1.0)
        generator.refresh()
        after = generator.generate(prompts, GREEDY, [0] * 4)
        stir(model, stirred, -1.0)
        found.append([c.tokens for c in (*before, *after)])
    assert found[0] == found[1]
    assert found[0][:4] != found[0][4:]


def stir(model: Decoder, changes: Sequence[torch.Tensor], times: float) -> None:
    with torch.no_grad():
        for parameter, change in zip((p for p in model.parameters() if p.requires_grad), changes, strict=True):
            parameter.add_(change.to(parameter.device), alpha=times)


def test_steps_are_recorded_while_another_thread_works(
    make: Callable[..., Decoder], tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    """As where a server loads the next model: memory is asked for, tensors are copied and waited for."""
    model, done = make("llama", tokenizer.vocab_size).cuda(), threading.Event()
    expected = [c.tokens for c in Generator(model, tokenizer).generate(prompts, GREEDY, range(4))]

    def works() -> int:
        kept: list[torch.Tensor] = []
        while not done.is_set():
            kept = [*kept[-20:], torch.ones((len(kept) + 1) << 20).cuda()]
            assert kept[-1].sum().item() == kept[-1].numel()
        return len(kept)

    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(works)
        try:
            for _ in range(3):
                generator = Generator(model, tokenizer)
                assert [c.tokens for c in generator.generate(prompts, GREEDY, range(4))] == expected
        finally:
            done.set()
        assert beside.result() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recorded_steps_follow_the_weights(
    make: Callable[..., Decoder], shape: str, dtype: torch.dtype, tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    """Practice samples, learns and samples again from graphs that were recorded before it learnt."""
    model = make(shape, tokenizer.vocab_size).cuda().compute_in(dtype)
    generator = Generator(model, tokenizer)
    generator.stop_ids = ()
    before = generator.generate(prompts, GREEDY, range(4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.2)
    generator.refresh()
    fresh = Generator(model, tokenizer)
    fresh.stop_ids = ()
    after = generator.generate(prompts, GREEDY, range(4))
    assert after != before
    assert [c.tokens for c in after] == [c.tokens for c in fresh.generate(prompts, GREEDY, range(4))]
    # More than there were pages for, and fewer again.
    assert len(generator.generate(prompts * 9, GREEDY, range(36))) == 36
    assert [c.tokens for c in generator.generate(prompts, GREEDY, range(4))] == [c.tokens for c in after]
