"""Comparisons in one row each say what every answer says by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from danlu.align import comparisons, losses, scoring
from danlu.align.comparisons import Ranking, accuracy, batch_of, encode, ranking_loss
from danlu.align.heads import with_heads, with_mean_head
from danlu.align.reward import RewardSettings
from danlu.console import Console
from danlu.model.config import ModelConfig
from danlu.model.decoder import Decoder
from danlu.records import Answer, Message, Preference
from danlu.run import Metrics, Stage
from danlu.tokens import chat
from danlu.tokens.tokenizer import Tokenizer

RANKINGS = [
    Ranking(([1, 2], [1, 2], [1, 2]), ([5, 6], [5, 7, 8], [5, 7, 9, 10]), (0, 1, 1)),
    Ranking(([3], [3]), ([11, 12], [13]), (1, 0)),
    Ranking(([9, 4], [4]), ([5], [6, 7]), (0, 1)),  # cut to different lengths on the left: nothing is shared
    Ranking(([4], [4]), ([5], [5, 6]), (0, 1)),  # one answer begins as the other goes on
]
MLA = {"attention": "mla", "kv_rank": 8, "nope_dim": 8, "rope_dim": 8, "v_dim": 8}


def apart(model: Decoder, ranking: Ranking) -> torch.Tensor:
    """The reference: every answer forwarded by itself."""
    return scoring.rewards(model, scoring.pad(list(ranking.prompts), list(ranking.responses), 0))


def check(model: Decoder) -> None:
    found = comparisons.scores(model, batch_of(RANKINGS, 0, "cpu"))
    for row, ranking in zip(found, RANKINGS, strict=True):
        k = len(ranking.ranks)
        torch.testing.assert_close(row[:k], apart(model, ranking), rtol=1e-5, atol=1e-6)
        assert not row[k:].any()


def test_sharing_a_beginning_changes_no_score(make_model: Callable[..., Decoder]) -> None:
    check(make_model("scalar"))


@pytest.mark.parametrize("change", [{"positions": "learned", "norm": "layer"}, MLA], ids=["learned", "mla"])
def test_nor_does_it_with_other_parts(change: dict[str, object], shape: ModelConfig) -> None:
    torch.manual_seed(0)
    model = Decoder(ModelConfig(**{**vars(shape), **change}), "scalar")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    check(model)


def test_what_did_not_fit_and_what_is_anothers_is_counted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A comparison that fits to the token is whole; an answer with this tokenizer's own tokens keeps them."""
    prompt = (Message("user", "写：春夏秋冬"),)
    own = Answer("山水", (7, 8, 9), sampling={"tokenizer": tokenizer.hash})
    theirs, words = replace(own, sampling={"tokenizer": "another"}), Answer("山")
    room = len(chat.encode_prompt(tokenizer, prompt)) + 3
    pairs = ((own, own, room), (own, own, room - 1), (theirs, words, 60), (own, theirs, 60))
    found = [encode(Preference("p", prompt, pair, (0, 1)), tokenizer, longest) for *pair, longest in pairs]
    assert [(one.cut, one.anew) for one in found] == [(False, 0), (True, 0), (False, 1), (False, 1)]
    said: list[str] = []
    stage = Stage("reward", tmp_path, RewardSettings(), {}, {}, 0, Metrics(tmp_path / "m.jsonl"), Console(quiet=True))
    stage.console.say = lambda text, **_: said.append(text)  # type: ignore[method-assign]
    assert comparisons.altered(found, stage) == {"prompts_cut": 1, "answers_read_anew": 2}
    assert said[0].startswith("reward: 1 prompts lose their beginning to fit the context; 2 answers are another")
    assert comparisons.altered(found[:1], stage) == {}
    assert len(said) == 1


def test_the_gradient_is_that_of_answers_apart(make_model: Callable[..., Decoder]) -> None:
    model = make_model("scalar")
    ranking_loss(model, batch_of(RANKINGS[:1], 0, "cpu")).loss_sum.backward()
    shared = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    losses.bradley_terry(apart(model, RANKINGS[0])[None], torch.tensor([RANKINGS[0].ranks])).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(shared[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_what_is_shared_is_read_once() -> None:
    assert [ranking.shared() for ranking in RANKINGS] == [3, 1, 0, 1]
    assert [ranking.tokens() for ranking in RANKINGS] == [3 + 1 + 2 + 3, 1 + 2 + 1, 3 + 3, 1 + 1 + 2]
    batch = batch_of(RANKINGS, 0, "cpu")
    assert batch.n_tokens == sum(ranking.tokens() for ranking in RANKINGS)
    assert batch.rows(torch.tensor([1])).n_tokens == RANKINGS[1].tokens()


def test_a_near_miss_differs_in_less_than_half_of_its_answers() -> None:
    assert Ranking(([1], [1]), ([2, 3, 4], [2, 3, 5]), (0, 1)).near_miss()
    assert Ranking(([1], [1]), ([2, 3, 4, 5], [2, 3, 6]), (0, 1)).near_miss()
    assert not Ranking(([1], [1]), ([2, 3, 4, 5, 6], [2, 3, 7]), (0, 1)).near_miss()
    assert not Ranking(([1, 2, 3, 4], [1, 2, 3, 4]), ([5, 6], [7, 8]), (0, 1)).near_miss()  # prompts do not count


def test_the_loss_is_the_sum_over_comparisons_however_they_are_batched(make_model: Callable[..., Decoder]) -> None:
    model = make_model("scalar")
    together = ranking_loss(model, batch_of(RANKINGS, 0, "cpu"))
    singly = [ranking_loss(model, batch_of([ranking], 0, "cpu")) for ranking in RANKINGS]
    assert together.n == len(RANKINGS)
    torch.testing.assert_close(together.loss_sum, torch.stack([one.loss_sum for one in singly]).sum())


def test_accuracy_counts_pairs_and_not_absent_answers() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0], [0.0, 1.0, 9.0], [1.0, 1.0, 9.0], [1.0, 2.0, 9.0]])
    ranks = torch.tensor([[0, 1, 1], [0, 1, -1], [0, 1, -1], [0, 0, -1]])
    assert accuracy(scores, ranks).tolist() == [1.0, 0.0, 0.5, 0.5]


def test_a_comparison_is_felt_by_its_weight_and_by_the_head_of_its_fold(make_model: Callable[..., Decoder]) -> None:
    model = with_heads(make_model(), seed=1, heads=3)
    ranking = replace(RANKINGS[0], fold=2)
    ranking_loss(model, batch_of([ranking], 0, "cpu")).loss_sum.backward()
    gradient = model.score.weight.grad.clone()
    assert gradient.any(1).tolist() == [False, False, True]
    model.zero_grad()
    ranking_loss(model, batch_of([replace(ranking, weight=0.25)], 0, "cpu")).loss_sum.backward()
    torch.testing.assert_close(model.score.weight.grad, gradient / 4)


def test_the_mean_of_heads_is_a_head(make_model: Callable[..., Decoder]) -> None:
    model, batch = with_heads(make_model(), seed=1, heads=3), batch_of(RANKINGS, 0, "cpu")
    every, mean = comparisons.head_scores(model, batch), comparisons.scores(model, batch)
    assert every.shape == (4, 3, 3)
    assert float(every[0].detach().std(-1).min()) > 0
    weight = with_mean_head(model)
    assert weight.shape == (3, model.config.d_model)
    torch.testing.assert_close(comparisons.scores(model, batch), mean)
