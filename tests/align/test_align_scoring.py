"""One numeric path: log-probabilities, values and rewards mean the same whatever stands beside them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from danlu.align import scoring
from danlu.align.scoring import Opening
from danlu.model.decoder import Decoder
from danlu.records import Answer, Message
from danlu.tokens import chat
from danlu.tokens.tokenizer import Tokenizer

PROMPTS = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
RESPONSES = [[10, 11], [12, 13, 14, 15], [16]]


def test_logprobs_are_those_of_the_plain_softmax(make_model: Callable[..., Decoder]) -> None:
    model = make_model()
    found = scoring.response_logprobs(model, scoring.pad(PROMPTS, RESPONSES, 0))
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        logits = model(torch.tensor([[*prompt, *response]]))[0]
        for place, token in enumerate(response):
            expected = logits[len(prompt) - 1 + place].log_softmax(-1)[token]
            torch.testing.assert_close(found[row, place], expected, rtol=1e-4, atol=1e-5)
        assert (found[row, len(response) :] == 0).all()


@pytest.mark.parametrize("score", [scoring.response_logprobs, scoring.response_values, scoring.rewards])
def test_padding_and_neighbours_change_nothing(
    make_model: Callable[..., Decoder], score: Callable[..., Tensor]
) -> None:
    model = make_model("lm" if score is scoring.response_logprobs else "scalar")
    together = score(model, scoring.pad(PROMPTS, RESPONSES, 0))
    otherwise = score(model, scoring.pad(PROMPTS, RESPONSES, 99))
    torch.testing.assert_close(together, otherwise, rtol=0, atol=0)
    for row in range(3):
        alone = score(model, scoring.pad([PROMPTS[row]], [RESPONSES[row]], 0))
        wanted = together[row, : len(RESPONSES[row])] if together.ndim == 2 else together[row]
        torch.testing.assert_close(alone[0], wanted, rtol=1e-4, atol=1e-5)


def test_padding_gets_no_gradient(make_model: Callable[..., Decoder]) -> None:
    model = make_model(tie_embeddings=False)  # tied, every token of the vocabulary gets a gradient as an output
    scoring.response_logprobs(model, scoring.pad([[1, 2], [3, 4]], [[5], [6, 7, 8]], 200)).sum().backward()
    gradient = model.embed.weight.grad
    assert gradient is not None
    read = [1, 2, 3, 4, 6, 7]  # the last token of an answer predicts nothing
    assert gradient.any(1).nonzero().flatten().tolist() == read


def test_rows_cut_padding_and_keep_what_they_mean(make_model: Callable[..., Decoder]) -> None:
    model, whole = make_model(), scoring.pad(PROMPTS, RESPONSES, 0)
    part = whole.rows(torch.tensor([2, 0]))
    assert part.tokens.tolist() == [[6, 7, 8, 9, 16], [1, 2, 3, 10, 11]]
    expected = scoring.response_logprobs(model, whole)[[2, 0]]
    torch.testing.assert_close(scoring.response_logprobs(model, part), expected, rtol=1e-4, atol=1e-5)


def test_parts_have_similar_lengths_and_the_result_the_rows_order(make_model: Callable[..., Decoder]) -> None:
    model, whole = make_model(), scoring.pad(PROMPTS, RESPONSES, 0)
    parts = scoring.parts_by_length(whole, 2)
    assert [part.tolist() for part in parts] == [[0, 2], [1]]
    found = scoring.without_gradient(scoring.response_logprobs, model, whole, parts)
    torch.testing.assert_close(found, scoring.response_logprobs(model, whole), rtol=1e-4, atol=1e-5)
    assert not found.is_inference()


def test_an_empty_response_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        scoring.pad([[1]], [[]], 0)


def test_a_text_ends_with_the_stop_token_and_a_sample_stays_as_it_was(tokenizer: Tokenizer) -> None:
    prompt = (Message("user", "写：春"),)
    stop = chat.stop_ids(tokenizer)[0]
    written, answer = scoring.answer_ids(tokenizer, prompt, Answer("夏秋"), 64)
    assert written == chat.encode_prompt(tokenizer, prompt)
    assert answer == [*tokenizer.encode("夏秋"), stop]
    cut_off = Answer("夏秋", (5, 6), sampling={"tokenizer": tokenizer.hash})
    assert scoring.answer_ids(tokenizer, prompt, cut_off, 64)[1] == [5, 6]
    foreign = Answer("夏秋", (5, 6), sampling={"tokenizer": "another"})
    assert scoring.answer_ids(tokenizer, prompt, foreign, 64)[1] == answer


def test_what_does_not_fit_goes_from_the_prompts_left(tokenizer: Tokenizer) -> None:
    prompt = (Message("user", "写：春夏秋冬山水"),)
    whole, answer = scoring.answer_ids(tokenizer, prompt, Answer("花月"), 64)
    cut, kept = scoring.answer_ids(tokenizer, prompt, Answer("花月"), len(answer) + 3)
    assert kept == answer
    assert cut == whole[-3:]


def test_what_was_opened_is_taken_once_and_for_its_rows_alone() -> None:
    rows, found = torch.tensor([2, 0]), torch.ones(2, 3)
    assert Opening(found, rows).take(torch.tensor([0, 2])) is None
    opening = Opening(found, rows)
    assert opening.take(rows) is found
    assert opening.take(rows) is None
