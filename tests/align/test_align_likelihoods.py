"""Answers in one row have the likelihood that each has by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from danlu.align import likelihoods, scoring
from danlu.align.comparisons import Ranking
from danlu.align.likelihoods import all_logprobs, answer_logprobs, lay_out
from danlu.model.config import ModelConfig
from danlu.model.decoder import Decoder

RANKINGS = [
    Ranking(([1, 2], [1, 2], [1, 2]), ([5, 6], [5, 7, 8], [5, 7, 9, 10]), (0, 1, 1)),
    Ranking(([3], [3]), ([11, 12], [13]), (1, 0)),
    Ranking(([9, 4], [4]), ([5], [6, 7]), (0, 1)),  # cut to different lengths on the left: nothing is shared
    Ranking(([4], [4]), ([5], [5, 6]), (0, 1)),  # one answer begins as the other goes on
    Ranking(([8], [8, 8]), ([8, 8, 5], [8, 6]), (0, 1)),  # what is shared is an answer's here and a prompt's there
]
OTHERS = {
    "learned": {"positions": "learned", "norm": "layer"},
    "mla": {"attention": "mla", "kv_rank": 8, "nope_dim": 8, "rope_dim": 8, "v_dim": 8},
}


def apart(model: Decoder, ranking: Ranking) -> torch.Tensor:
    """The reference: every answer forwarded by itself."""
    sequences = scoring.pad(list(ranking.prompts), list(ranking.responses), 0)
    return scoring.response_logprobs(model, sequences).sum(1)


def check(model: Decoder) -> None:
    sums, lengths = answer_logprobs(model, lay_out(RANKINGS, 0, "cpu"))
    for row, counts, ranking in zip(sums, lengths, RANKINGS, strict=True):
        k = len(ranking.ranks)
        torch.testing.assert_close(row[:k], apart(model, ranking), rtol=1e-5, atol=1e-5)
        assert counts.tolist()[:k] == [len(response) for response in ranking.responses]
        assert not row[k:].any()


def test_sharing_a_beginning_changes_no_likelihood(make_model: Callable[..., Decoder]) -> None:
    check(make_model())


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_nor_does_it_with_other_parts(change: dict[str, object], shape: ModelConfig) -> None:
    torch.manual_seed(0)
    model = Decoder(ModelConfig(**{**vars(shape), **change}))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    check(model)


def test_the_gradient_is_that_of_answers_apart(make_model: Callable[..., Decoder]) -> None:
    model, gradients = make_model(), []
    weights = torch.tensor([1.0, -2.0, 0.5])
    together = (answer_logprobs(model, lay_out(RANKINGS[:1], 0, "cpu"))[0] * weights).sum()
    for loss in (together, (apart(model, RANKINGS[0]) * weights).sum()):
        model.zero_grad()
        loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for shared, alone in zip(*gradients, strict=True):
        torch.testing.assert_close(shared, alone, rtol=1e-4, atol=1e-5)


def test_many_rankings_come_back_in_their_order(make_model: Callable[..., Decoder]) -> None:
    model = make_model()
    found = all_logprobs(model, RANKINGS, 2, 0)
    assert found.shape == (len(RANKINGS), 3)
    torch.testing.assert_close(found, answer_logprobs(model, lay_out(RANKINGS, 0, "cpu"))[0].detach())


def test_what_was_computed_is_not_computed_again(tmp_path: Path) -> None:
    file = tmp_path / "reference" / "x.safetensors"
    first = likelihoods.remembered(file, lambda: {"answers": torch.tensor([1.5, -2.0])})
    again = likelihoods.remembered(file, lambda: pytest.fail("asked again"))
    assert torch.equal(first["answers"], again["answers"])
