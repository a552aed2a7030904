import pytest
import torch

from danlu.errors import UserError
from danlu.tokens.loader import Batch
from danlu.tokens.tokenizer import Tokenizer
from danlu.train.emphasis import Emphasis, counter, emphasise
from danlu.train.language import next_token_loss
from danlu.train.pretrain import new_model

MARK = 9


def batch_of(targets):
    """A batch of random tokens with these targets."""
    tokens = torch.randint(64, targets.shape, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(targets.shape[1]).repeat(len(targets), 1)
    return Batch(tokens, targets, positions, torch.zeros_like(targets, dtype=torch.int32), targets.numel())


def test_what_stands_before_a_learnt_mark_counts():
    targets = torch.tensor([[MARK, 1, 2, MARK, -100, 3], [-100, MARK, 4, MARK, MARK, 5], [1, 2, 3, 4, 5, MARK]])
    counts = emphasise(targets, MARK, 8)
    assert counts.tolist() == [[1, 1, 8, 1, 1, 1], [1, 1, 8, 8, 1, 1], [1, 1, 1, 1, 8, 1]]


def test_emphasis_is_the_weighted_mean_of_the_losses(tiny_config):
    model = new_model(tiny_config, 0)
    batch = batch_of(torch.tensor([[1, 2, MARK, 3, -100], [4, MARK, 5, 6, MARK]]))
    output = next_token_loss(model, batch, lambda targets: emphasise(targets, MARK, 5))
    logprobs = model(batch.tokens).log_softmax(-1)
    times = {(0, 1): 5, (1, 0): 5, (1, 3): 5}
    learnt = (batch.targets >= 0).nonzero().tolist()
    expected = sum(-times.get((b, t), 1) * logprobs[b, t, batch.targets[b, t]] for b, t in learnt)
    assert output.n == 9 + 3 * 4
    assert output.loss_sum.item() == pytest.approx(expected.item(), rel=1e-5)


def test_without_emphasis_nothing_is_counted(inputs):
    assert counter(Emphasis(), Tokenizer.load(inputs["tokenizer"] / "model")) is None


def test_a_mark_of_several_tokens_is_refused(inputs):
    tokenizer = Tokenizer.load(inputs["tokenizer"] / "model")
    with pytest.raises(UserError, match=r"emphasis\.before '春眠不觉晓。' is \d+ tokens .* must be one"):
        counter(Emphasis(before="春眠不觉晓。", times=2), tokenizer)
