"""The sampler draws from the distribution it says, whatever the batch."""

import numpy as np
import pytest
import torch
from scipy import stats

from danlu.errors import UserError
from danlu.infer.sampler import Options, Sampling, draw, uniforms

V = 400  # more than the sampler looks at first


def draws(logits, sampling, n=20_000, seed=1):
    rows = logits.expand(n, -1)
    return draw(rows, Options.of([sampling] * n), uniforms([seed], n)[0])


def expected(logits, sampling):
    """The textbook, one filter after another, in plain NumPy."""
    p = torch.softmax(logits.double() / sampling.temperature, -1).numpy()
    order = np.argsort(-p, kind="stable")
    if sampling.top_k:
        p[order[sampling.top_k :]] = 0
    p /= p.sum()
    before = np.concatenate([[0.0], p[order].cumsum()[:-1]])
    if sampling.top_p < 1:
        p[order[before >= sampling.top_p]] = 0
    p[p < sampling.min_p * p.max()] = 0
    return p / p.sum()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.6),
        Sampling(temperature=1.7, top_k=20),
        Sampling(top_p=0.7),
        Sampling(temperature=3.0, top_p=0.95),
        Sampling(min_p=0.02),
        Sampling(temperature=0.9, top_k=60, top_p=0.8, min_p=0.05),
    ],
)
def test_frequencies_pass_chi_square(sampling):
    logits = torch.randn(1, V, generator=torch.Generator().manual_seed(0)) * 1.5
    tokens, _ = draws(logits, sampling)
    p = expected(logits[0], sampling)
    counts = np.bincount(tokens.numpy(), minlength=V)
    assert counts[p == 0].sum() == 0
    often = p * len(tokens) >= 5
    assert often.sum() > 3
    seen, wanted = counts[often], p[often] * len(tokens)
    if p[~often].sum():
        seen, wanted = np.append(seen, counts[~often].sum()), np.append(wanted, p[~often].sum() * len(tokens))
    assert stats.chisquare(seen, wanted).pvalue > 1e-3


def test_log_probability_is_that_of_the_distribution_before_truncation():
    logits = torch.randn(64, V)
    tokens, logprobs = draw(logits, Options.of([Sampling(temperature=0.7, top_k=5)] * 64), uniforms([3], 64)[0])
    wanted = torch.log_softmax(logits / 0.7, -1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logprobs, wanted, atol=1e-5, rtol=1e-5)


def test_rows_have_their_own_options():
    logits = torch.randn(1, V).expand(3, -1)
    rows = [Sampling(temperature=0.0), Sampling(top_k=1, temperature=5.0), Sampling(temperature=1e-4)]
    tokens, _ = draw(logits, Options.of(rows), torch.full((3,), 0.999, dtype=torch.float64))
    assert tokens.tolist() == [int(logits[0].argmax())] * 3


def test_draw_inverts_the_cumulative_sum_at_its_edges():
    probabilities = torch.zeros(1, 130)
    probabilities[0, [3, 64, 128]] = torch.tensor([0.5, 0.25, 0.25])
    points = torch.tensor([0.0, 0.4999, 0.5, 0.7499, 0.75, 1 - 2**-53], dtype=torch.float64)
    tokens, _ = draw(probabilities.log().expand(6, -1), Options.of([Sampling()] * 6), points)
    assert tokens.tolist() == [3, 3, 64, 64, 128, 128]


def test_uniforms_are_addressed_by_seed_and_step():
    numbers = uniforms([5, 6, 2**64 - 1, -1], 1000)
    assert torch.equal(numbers[1], uniforms([6], 1000)[0])
    assert torch.equal(numbers[1, :10], uniforms([6], 10)[0])
    assert torch.equal(numbers[2], numbers[3])  # seeds are taken modulo 2**64
    assert numbers.min() >= 0
    assert numbers.max() < 1
    grid = uniforms(range(300), 300)  # neither along a stream nor across neighbouring seeds
    for flat in (grid.flatten(), grid.T.flatten()):
        pairs = flat[: flat.numel() // 2 * 2].view(-1, 2)
        counts = np.histogram2d(*pairs.T.numpy(), bins=16, range=[[0, 1], [0, 1]])[0]
        assert stats.chisquare(counts.flatten()).pvalue > 1e-3


@pytest.mark.parametrize(
    ("option", "value"),
    [("temperature", -0.1), ("top_k", -1), ("top_p", 0.0), ("min_p", 1.5), ("max_new_tokens", 0), ("stop", ("",))],
)
def test_impossible_options_are_refused_by_name(option, value):
    with pytest.raises(UserError, match=option):
        Sampling(**{option: value})


@pytest.mark.parametrize("sampling", [Sampling(top_p=1e-310), Sampling(temperature=1e-310), Sampling(temperature=1e-40),
                                      Sampling(temperature=1e-7, top_p=0.5), Sampling(temperature=1e-5, min_p=1.0)],
                         ids=str)  # fmt: skip
def test_values_that_are_nothing_in_single_precision_take_the_likeliest(sampling):
    logits = torch.randn(1, V, generator=torch.Generator().manual_seed(0)) * 30
    tokens, logprobs = draws(logits, sampling, n=50)
    assert set(tokens.tolist()) == {int(logits.argmax())}
    assert torch.isfinite(logprobs).all()
