import math

import pytest
import torch

from danlu.errors import UserError
from danlu.model.config import ModelConfig
from danlu.model.decoder import Decoder
from danlu.tokens.loader import Batch
from danlu.train.language import next_token_loss, split_rows
from danlu.train.loop import run_loop, train_step
from danlu.train.optim import build_optimizer
from danlu.train.pretrain import new_model
from danlu.train.task import LoopSettings, LossOutput, Task

MOE = {
    "attention": "mla", "kv_rank": 16, "nope_dim": 8, "rope_dim": 8, "v_dim": 8, "n_experts": 4, "top_k": 2,
    "d_expert": 16, "n_shared_experts": 1, "n_dense_layers": 1,
}  # fmt: skip
GPT = {"norm": "layer", "positions": "learned", "feedforward": "mlp", "activation": "gelu_tanh", "n_kv_heads": 2}
GPT |= {"qkv_bias": True, "out_bias": True, "ffn_bias": True}


def make_batch(step=0, rows=6, length=16, vocab=64):
    """Random rows of one document each; the last row is half padding, and a few targets are not learnt."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(vocab, (rows, length + 1), generator=generator)
    targets, documents = tokens[:, 1:].clone(), torch.zeros(rows, length, dtype=torch.int32)
    targets[0, :5] = -100
    targets[-1, length // 2 :], documents[-1, length // 2 :] = -100, -1
    positions = torch.arange(length).repeat(rows, 1)
    return Batch(tokens[:, :-1], targets, positions, documents, int((documents >= 0).sum()))


def make_task(batch=make_batch, micro=0, loss=next_token_loss):
    return Task(lambda step: split_rows(batch(step), micro), loss, lambda model: {"val_loss": 1.0})


def settings(**changes):
    plain = {"steps": 8, "warmup": 2, "eval_every": 4, "save_every": 4, "log_every": 1, "lr": 3e-3, "dtype": "float32"}
    return LoopSettings(**(plain | changes))


def weights(model):
    return {name: p.detach().clone() for name, p in (*model.named_parameters(), *model.named_buffers())}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def variant(config, changes):
    return ModelConfig.from_dict(config.to_dict() | changes)


@pytest.mark.parametrize("changes", [{}, GPT, MOE], ids=["llama", "gpt2", "deepseek"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_twice_as_long_equals_stopping_and_going_on(tmp_path, tiny_config, changes, optimizer, make_stage):
    config, options = variant(tiny_config, changes), settings(optimizer=optimizer)
    whole = new_model(config, 0)
    run_loop(whole, make_task(), options, make_stage(tmp_path / "whole", options))

    class StoppedError(Exception):
        """Stands for a power cut."""

    def until_five(step):
        if step == 5:
            raise StoppedError
        return make_batch(step)

    stage = make_stage(tmp_path / "cut", options)
    with pytest.raises(StoppedError):
        run_loop(new_model(config, 0), make_task(until_five), options, stage)
    resumed = new_model(config, 1)  # other weights: all must come from the checkpoint
    figures = run_loop(resumed, make_task(), options, stage)
    assert same(weights(whole), weights(resumed))
    assert figures["steps"] == 8
    assert figures["val_loss"] == 1.0
    assert figures["skipped_steps"] == 0
    rows = [row["step"] for row in stage.metrics.read() if "loss" in row]
    assert rows == list(range(1, 9))  # steps that were taken twice are logged once


@pytest.mark.parametrize("changes", [{}, GPT, MOE], ids=["llama", "gpt2", "deepseek"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_moves(tmp_path, tiny_config, changes, optimizer, make_stage):
    model, options = new_model(variant(tiny_config, changes), 0), settings(optimizer=optimizer, steps=2)
    before = weights(model)
    run_loop(model, make_task(), options, make_stage(tmp_path, options))
    after = weights(model)
    still = [name for name, _ in model.named_parameters() if torch.equal(before[name], after[name])]
    assert still == []
    if changes is MOE:  # the balancing bias is a buffer and moves by its own rule
        assert [n for n, _ in model.named_buffers() if "bias" in n and torch.equal(before[n], after[n])] == []


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_overfits_one_batch(tmp_path, tiny_config, optimizer, make_stage):
    options = settings(optimizer=optimizer, steps=80, lr=1e-2, weight_decay=0.0, eval_every=80, save_every=80)
    stage = make_stage(tmp_path, options)
    run_loop(new_model(tiny_config, 0), make_task(lambda step: make_batch(0)), options, stage)
    losses = [row["loss"] for row in stage.metrics.read() if "loss" in row]
    assert losses[0] == pytest.approx(math.log(64), abs=0.3)
    assert losses[-1] < 0.1


@pytest.mark.parametrize("changes", [{}, MOE], ids=["llama", "deepseek"])
def test_splitting_a_batch_does_not_change_the_step(tiny_config, changes):
    config, options = variant(tiny_config, changes), settings(clip=0.1)
    found = []
    for micro in (0, 4, 1):
        model = new_model(config, 0)
        step = train_step(model, make_task(micro=micro), build_optimizer(model, options), options, 0, 1e-3)
        found.append((step, {name: p.grad for name, p in model.named_parameters()}))
    (whole, gradients), *others = found
    for step, split in others:
        assert step.loss == pytest.approx(whole.loss, rel=1e-6)
        assert step.tokens == whole.tokens
        assert step.grad_norm == pytest.approx(whole.grad_norm, rel=1e-5)
        for name, gradient in gradients.items():
            assert torch.allclose(split[name], gradient, atol=1e-7, rtol=1e-4), name


def test_gradient_is_that_of_the_mean_loss_clipped(tiny_config):
    options = settings(clip=0.1)
    model, twin = new_model(tiny_config, 0), new_model(tiny_config, 0)
    step = train_step(model, make_task(micro=2), build_optimizer(model, options), options, 0, 1e-3)
    output = next_token_loss(twin, make_batch(0))
    (output.loss_sum / output.n).backward()
    norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
    assert step.grad_norm == pytest.approx(float(norm), rel=1e-5)
    assert float(norm) > 0.1
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-7, rtol=1e-4), name


def poisoned(steps, how):
    """The usual loss, except that in some steps loss or gradient is not finite."""

    def batch(step):
        made = make_batch(step)
        made.tokens.poison = how if step in steps else None
        return made

    def loss(model, made):
        output = next_token_loss(model, made)
        poison = getattr(made.tokens, "poison", None)
        if poison == "nan loss":
            return LossOutput(output.loss_sum * math.nan, output.n, output.tokens)
        if poison == "infinite gradient":
            zero = (model.output_weight[:1] - model.output_weight[:1].detach()).abs().sum().sqrt()  # slope of sqrt at 0
            return LossOutput(output.loss_sum + zero, output.n, output.tokens)
        return output

    return Task(lambda step: [batch(step)], loss, lambda model: {})


@pytest.mark.parametrize("how", ["nan loss", "infinite gradient"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_poisoned_batch_changes_nothing(tiny_config, how, optimizer):
    options = settings(optimizer=optimizer)
    model = new_model(tiny_config, 0)
    rule = build_optimizer(model, options)
    train_step(model, poisoned((), how), rule, options, 0, 1e-3)
    before, state = weights(model), {name: t.clone() for name, t in rule.tensors().items()}
    step = train_step(model, poisoned((1,), how), rule, options, 1, 1e-3)
    assert not step.finite
    assert same(before, weights(model))
    assert same(state, rule.tensors())


def test_poisoned_steps_are_skipped_and_counted(tmp_path, tiny_config, make_stage):
    options = settings()
    stage = make_stage(tmp_path, options)
    model = new_model(tiny_config, 0)
    figures = run_loop(model, poisoned((2, 3, 6), "nan loss"), options, stage)
    assert figures["steps"] == 8
    assert figures["skipped_steps"] == 3
    assert figures["tokens"] == 5 * make_batch().n_tokens
    assert all(torch.isfinite(tensor).all() for tensor in weights(model).values())


def test_too_many_poisoned_steps_stop_the_run_and_leave_the_checkpoint(tmp_path, tiny_config, make_stage):
    options = settings(steps=40, max_skips=3, save_every=2)
    stage = make_stage(tmp_path, options)
    with pytest.raises(UserError, match="not finite for 3 steps in a row, up to step 8; the checkpoint of step 4 is"):
        run_loop(new_model(tiny_config, 0), poisoned(range(5, 40), "nan loss"), options, stage)
    good = settings(steps=4, warmup=2, save_every=4)
    assert (tmp_path / "ckpt" / "000004").is_dir()
    assert not (tmp_path / "ckpt" / "000006").exists()
    assert run_loop(new_model(tiny_config, 1), make_task(), good, stage)["steps"] == 4


def test_a_batch_without_targets_is_a_step_of_nothing(tiny_config):
    options = settings(weight_decay=0.0)
    model = new_model(tiny_config, 0)
    before = weights(model)

    def empty(step):
        batch = make_batch(step)
        batch.targets.fill_(-100)
        return batch

    step = train_step(model, make_task(empty), build_optimizer(model, options), options, 0, 1e-3)
    assert step.finite
    assert step.loss == 0.0
    assert step.grad_norm == 0.0
    assert same(before, weights(model))


def test_a_checkpoint_of_another_shape_is_refused(tmp_path, tiny_config, make_stage):
    options = settings(steps=4)
    stage = make_stage(tmp_path, options)
    run_loop(new_model(tiny_config, 0), make_task(), options, stage)
    with pytest.raises(UserError, match="another model"):
        run_loop(new_model(variant(tiny_config, {"n_layers": 3}), 0), make_task(), options, stage)


def test_only_matrices_are_decayed_and_muon_takes_the_hidden_ones(tiny_config):
    model = Decoder(variant(tiny_config, MOE | {"tie_embeddings": False}))
    groups = {rule.__class__.__name__: rule.param_groups for rule in build_optimizer(model, settings()).rules}
    plain = {p for group in groups["AdamW"] if not group["weight_decay"] for p in group["params"]}
    for name, p in model.named_parameters():
        assert (p in plain) == (p.ndim < 2 or "embed" in name), name
    both = {r.__class__.__name__: r.param_groups for r in build_optimizer(model, settings(optimizer="muon")).rules}
    hidden = {p for group in both["Muon"] for p in group["params"]}
    for name, p in model.named_parameters():
        assert (p in hidden) == (p.ndim >= 2 and name.startswith("blocks.") and "router" not in name), name
    assert {p.ndim for p in hidden} == {2, 3}
