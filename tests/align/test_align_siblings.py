"""Answers beside each other say what each says by itself, and their prompt is read once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from danlu.align import scoring, siblings
from danlu.model.decoder import Decoder

# Two prompts of different lengths, whose answers are neither in order nor of one length, and one with a single answer.
LONG, SHORT, ALONE = [1, 2, 3, 4, 5, 6, 7, 8], [9, 2], [30]
SEQUENCES = scoring.pad(
    [LONG, SHORT, LONG, ALONE, LONG, SHORT, LONG],
    [[11, 12], [13], [11, 14, 15, 16], [17, 18], [19], [20, 21, 22], [11, 12]], 0,
)  # fmt: skip


def read_tokens(model: Decoder, read: Callable[[], object]) -> int:
    """How many tokens, padding included, the model is given."""
    seen: list[int] = []
    handle = model.blocks[0].register_forward_hook(lambda _, given, __: seen.append(given[0].shape[:2].numel()))
    read()
    handle.remove()
    return sum(seen)


@pytest.mark.parametrize("entropy", [False, True])
def test_they_say_what_each_says_by_itself(make_model: Callable[..., Decoder], entropy: bool) -> None:
    model, found = make_model(), []
    weights = torch.linspace(-1, 2, SEQUENCES.mask.numel()).view(SEQUENCES.mask.shape)
    for reading in (scoring, siblings):
        if entropy:
            logprobs, entropies = reading.response_logprobs_entropy(model, SEQUENCES)
        else:
            logprobs, entropies = reading.response_logprobs(model, SEQUENCES), torch.zeros(())
        (weights * (logprobs + 0.5 * entropies)).sum().backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        model.zero_grad()
        found.append([logprobs, entropies.broadcast_to(logprobs.shape), *gradients])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_prompt_is_read_once(make_model: Callable[..., Decoder]) -> None:
    model, rows = make_model(), torch.tensor([0, 2, 4, 6])
    long = SEQUENCES.rows(rows)
    assert read_tokens(model, lambda: scoring.response_logprobs(model, long)) == 4 * 12
    # Answers of 2, 4, 1 and 2 tokens; three begin with 11, but the one with 19 does not: nothing more is shared.
    assert read_tokens(model, lambda: siblings.response_logprobs(model, long)) == 8 + 2 + 4 + 1 + 2


def test_a_row_holds_as_many_answers_as_cost_least(make_model: Callable[..., Decoder]) -> None:
    config = replace(make_model().config, d_model=10)  # a token's products cost what 60 keys do
    # 4 answers of 10 to a prompt of 10: alone 4 * 20 * (60 + 10) = 5600; in twos 2 * 30 * (60 + 30) = 5400; in threes
    # 2 * 40 * (60 + 40) = 8000; all in one row 50 * (60 + 50) = 5500.
    assert siblings.answers_a_row(config, 10, 10, 4) == 2
    assert siblings.answers_a_row(config, 1, 100, 4) == 1
    assert siblings.answers_a_row(config, 100, 1, 4) == 4
    assert siblings.answers_a_row(replace(config, window=8), 100, 1, 4) == 1


def test_parts_keep_answers_to_one_prompt_together() -> None:
    parts = [part.tolist() for part in siblings.parts_by_length(SEQUENCES, 4)]
    assert parts == [[3, 1, 5], [0, 2, 4, 6]]
    assert [part.tolist() for part in siblings.parts_by_length(SEQUENCES, 2, torch.tensor([6, 4, 3, 0]))] == [
        [3], [6, 4], [0],
    ]  # fmt: skip
    single = scoring.pad([[1], [2], [3], [4]], [[5, 6], [7], [8], [9, 9, 9]], 0)
    for one, other in zip(siblings.parts_by_length(single, 3), scoring.parts_by_length(single, 3), strict=True):
        assert one.tolist() == other.tolist()
