"""Answers of a GPU are the CPU's; its caches hold what a forward without them would compute."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from danlu.infer.generate import Generator
from danlu.infer.sampler import Sampling
from danlu.model import Decoder
from danlu.tokens.tokenizer import Tokenizer


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
