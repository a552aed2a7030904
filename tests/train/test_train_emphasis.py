import pytest
import torch

from danlu.errors import UserError
from danlu.tokens.loader import Batch
from danlu.tokens.shards import read_shards
from danlu.tokens.tokenizer import Tokenizer
from danlu.train.emphasis import Emphasis, counter, emphasise
from danlu.train.language import Text, language_task, next_token_loss
from danlu.train.parallel import ALONE
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


def test_only_a_mark_that_stands_alone_counts(inputs):
    """In a poem of two rows the first 。 has merged with the line break, so the last foot alone counts."""
    tokenizer = Tokenizer.load(inputs["tokenizer"] / "model")
    ids = tokenizer.encode("春眠不觉晓，处处闻啼鸟。\n夜来风雨声，花落知多少。")
    count = counter(Emphasis(before="。", times=8), tokenizer)
    counts = count(torch.tensor([ids]))[0].tolist()
    assert tokenizer.decode(ids[-1:]) == "。"
    assert "。\n" in [tokenizer.decode([i]) for i in ids]
    assert [place for place, times in enumerate(counts) if times == 8] == [len(ids) - 2]


def test_sft_learns_with_emphasis_and_is_measured_without(inputs, pretrain_settings):
    """The setting reaches the task: its loss counts more, its evaluation does not."""
    tokenizer = Tokenizer.load(inputs["tokenizer"] / "model")
    shards = read_shards(inputs["tokens"] / "shards" / "train")
    tasks = []
    for times in (1, 8):
        settings = pretrain_settings(emphasis={"before": "。", "times": times})
        text = Text.lay_out(shards, settings, 0)
        model = new_model(settings.shape(tokenizer.vocab_size), 0)
        tasks.append(language_task(text, text, settings, model, tokenizer, 0, ALONE, lambda _: ""))
    (plain,), (loud,) = (task.batches(0) for task in tasks)
    assert tasks[1].loss(model, loud).n > tasks[0].loss(model, plain).n
    assert tasks[1].evaluate(model) == tasks[0].evaluate(model)


def test_without_emphasis_nothing_is_counted(inputs):
    assert counter(Emphasis(), Tokenizer.load(inputs["tokenizer"] / "model")) is None


def test_a_mark_of_several_tokens_is_refused(inputs):
    tokenizer = Tokenizer.load(inputs["tokenizer"] / "model")
    with pytest.raises(UserError, match=r"emphasis\.before '春眠不觉晓。' is \d+ tokens .* must be one"):
        counter(Emphasis(before="春眠不觉晓。", times=2), tokenizer)
