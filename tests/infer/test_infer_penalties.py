"""Penalties: transformers' own arithmetic, one row's are not its neighbours', and half a character is no word."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from danlu.errors import UserError
from danlu.infer.generate import Generator
from danlu.infer.penalties import Penalties
from danlu.infer.sampler import Sampling


def test_repetition_is_transformers_own(tokenizer):
    transformers = pytest.importorskip("transformers")
    sampling = Sampling(repetition_penalty=1.7)
    prompt = tokenizer.encode("fox dog")
    penalties = Penalties([sampling], [prompt], tokenizer, tokenizer.vocab_size, torch.device("cpu"))
    said = tokenizer.encode("lazy")
    for token in said:
        penalties.note(torch.tensor([token]), torch.tensor([0]))
    logits = torch.randn(1, tokenizer.vocab_size, generator=torch.Generator().manual_seed(1))
    theirs = transformers.RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([[*prompt, *said]]), logits.clone())
    torch.testing.assert_close(penalties.apply(logits, torch.tensor([0])), theirs)


def test_frequency_counts_and_presence_does_not(tokenizer):
    sampling = Sampling(presence_penalty=0.5, frequency_penalty=0.25, logit_bias=((3, -2.0),))
    penalties = Penalties([Sampling(), sampling], [[1], [1]], tokenizer, tokenizer.vocab_size, torch.device("cpu"))
    (word,) = set(tokenizer.encode("a"))
    for _ in range(3):
        penalties.note(torch.tensor([word, word]), torch.tensor([0, 1]))
    plain, penalised = penalties.apply(torch.zeros(2, tokenizer.vocab_size), torch.tensor([0, 1]))
    assert not plain.any()
    assert {i: float(x) for i, x in enumerate(penalised) if x} == {word: -(0.5 + 3 * 0.25), 3: -2.0}


def test_part_of_a_character_is_never_penalised(tokenizer):
    parts = tokenizer.encode("龘")  # never seen in training: three bytes
    assert len(parts) > 1
    sampling = Sampling(repetition_penalty=2.0, presence_penalty=1.0)
    penalties = Penalties([sampling], [parts], tokenizer, tokenizer.vocab_size, torch.device("cpu"))
    for part in parts:
        penalties.note(torch.tensor([part]), torch.tensor([0]))
    assert torch.equal(
        penalties.apply(torch.ones(1, tokenizer.vocab_size), torch.tensor([0]))[0, parts], torch.ones(len(parts))
    )


def test_in_a_batch_as_alone_and_nobody_elses(llama, tokenizer, prompts):
    generator = Generator(llama, tokenizer)
    samplings = [
        Sampling(temperature=0.0, max_new_tokens=20),
        Sampling(temperature=0.0, max_new_tokens=20, frequency_penalty=2.0, presence_penalty=2.0),
        Sampling(temperature=0.9, max_new_tokens=20, repetition_penalty=1.5),
        Sampling(temperature=0.9, max_new_tokens=20),
    ]
    together = generator.generate([prompts[1]] * 4, samplings, [7] * 4)
    alone = [generator.generate([prompts[1]], s, [7])[0] for s in samplings]
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    torch.testing.assert_close(
        [one.logprobs for one in together], [one.logprobs for one in alone], atol=1e-4, rtol=1e-4
    )
    most, fewer = (max(Counter(one.tokens).values()) for one in together[:2])
    assert fewer < most


def test_log_probabilities_stay_the_models(llama, tokenizer, prompts):
    generator = Generator(llama, tokenizer)
    free = Sampling(temperature=0.0, max_new_tokens=1)
    banned = generator.generate([prompts[0]], free, [0])[0].tokens[0]
    forced = Sampling(temperature=0.0, max_new_tokens=1, logit_bias=((banned, -100.0),))
    completion = generator.generate([prompts[0]], forced, [0])[0]
    assert completion.tokens[0] != banned
    with torch.no_grad():
        logp = llama(torch.tensor([prompts[0]]))[0, -1].log_softmax(-1)
    assert completion.logprobs[0] == pytest.approx(float(logp[completion.tokens[0]]), abs=1e-4)


def test_a_token_that_is_not_there_is_refused(llama, tokenizer, prompts):
    with pytest.raises(UserError, match=rf"token {tokenizer.vocab_size}, and the vocabulary has"):
        Generator(llama, tokenizer).generate([prompts[0]], Sampling(logit_bias=((tokenizer.vocab_size, 1.0),)), [0])
    with pytest.raises(UserError, match="repetition_penalty must be above 0"):
        Sampling(repetition_penalty=0.0)
