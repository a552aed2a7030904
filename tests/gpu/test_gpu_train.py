"""Training on a GPU: the step is the CPU's, compiled is eager, a run goes on where it stopped, PPO learns."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import stages
import torch

from danlu.align import losses
from danlu.align.ppo import ActorCritic, PPOSettings
from danlu.align.rollout import Prompt, Rollouts, Sampled
from danlu.hub.adapter import with_adapter, write_adapter
from danlu.infer.generate import Generator
from danlu.model import Decoder
from danlu.records import Message
from danlu.tokens import chat
from danlu.tokens.loader import Batch
from danlu.tokens.tokenizer import Tokenizer
from danlu.train.adapters import AdapterSettings, attach
from danlu.train.compiled import compile_blocks
from danlu.train.language import next_token_loss, split_rows
from danlu.train.loop import run_loop, train_step
from danlu.train.optim import build_optimizer
from danlu.train.task import LoopSettings, Task

MakeModel = Callable[..., Decoder]


def make_batch(step: int = 0, rows: int = 8, length: int = 64) -> Batch:
    """Random rows of a few documents each, another layout at every step; the last row is half padding."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(331, (rows, length + 1), generator=generator)
    begins = torch.rand(rows, length, generator=generator) < 0.05
    targets, documents = tokens[:, 1:].clone(), begins.cumsum(1).to(torch.int32)
    targets[0, :5] = -100
    targets[-1, length // 2 :], documents[-1, length // 2 :] = -100, -1
    positions = torch.arange(length).repeat(rows, 1)
    return Batch(tokens[:, :-1], targets, positions, documents, int((documents >= 0).sum()))


def make_task(batch: Callable[[int], Batch] = make_batch, micro: int = 3) -> Task:
    return Task(lambda step: split_rows(batch(step), micro), next_token_loss, lambda model: {"val_loss": 1.0})


def settings(**changes: object) -> LoopSettings:
    plain = {"steps": 8, "warmup": 2, "eval_every": 4, "save_every": 4, "log_every": 1, "lr": 3e-3, "dtype": "float32"}
    return LoopSettings(**(plain | {"device": "cuda"} | changes))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_is_the_cpus(pair: tuple[Decoder, Decoder], optimizer: str) -> None:
    options, found = settings(optimizer=optimizer), []
    before = [p.detach().clone() for p in pair[0].parameters()]
    for model in pair:
        step = train_step(model, make_task(), build_optimizer(model, options), options, 0, 1e-3)
        found.append((step, [p.detach().cpu() for p in model.parameters()]))
    (expected, theirs), (ours, mine) = found
    assert ours.loss == pytest.approx(expected.loss, rel=1e-5)
    assert ours.grad_norm == pytest.approx(expected.grad_norm, rel=1e-3)
    assert ours.tokens == expected.tokens
    moved = torch.cat([(b - a).flatten() for a, b in zip(before, theirs, strict=True)])
    differing = torch.cat([(b - a).flatten() for a, b in zip(theirs, mine, strict=True)])
    assert differing.norm() < 0.05 * moved.norm()  # of a step: AdamW's first one is a sign, which rounding may turn


@pytest.mark.parametrize(
    ("kind", "bits"), [("lora", 32), ("lora", 16), ("lora", 8), ("lora", 4), ("dora", 32), ("dora", 16), ("dora", 4)]
)
def test_an_adapters_steps_are_the_cpus(
    tmp_path: Path, make: MakeModel, shape: str, kind: str, bits: int, tokenizer: Tokenizer
) -> None:
    pytest.importorskip("peft")
    options, found = settings(), []
    adapter = AdapterSettings(kind=kind, rank=4, base_bits=bits)
    start = attach(make(shape), adapter, seed=3)
    for model in (copy.deepcopy(start), copy.deepcopy(start).cuda()):
        rule = build_optimizer(model, options)
        steps = [train_step(model, make_task(), rule, options, index, 1e-2) for index in range(2)]
        found.append((steps, {name: p.detach().cpu() for name, p in model.named_parameters() if p.requires_grad}))
    (expected, theirs), (ours, mine) = found
    assert [step.loss for step in ours] == pytest.approx([step.loss for step in expected], rel=1e-4)
    moved, differing = (
        torch.cat([(t[name] - other[name]).flatten() for name in theirs]).norm()
        for t, other in ((theirs, {n: p.cpu() for n, p in start.named_parameters()}), (theirs, mine))
    )
    assert differing < 0.05 * moved
    write_adapter(model, tmp_path / "adapter", tmp_path, {})
    again, tokens = with_adapter(make(shape), tmp_path / "adapter").cuda(), make_batch().tokens.cuda()
    if bits == 32:  # in fewer the base is another
        torch.testing.assert_close(again.hidden(tokens).states, model.hidden(tokens).states, atol=1e-4, rtol=1e-4)


def test_an_adapter_in_bf16_is_near_and_a_critic_gets_one_on_the_gpu(make: MakeModel, shape: str) -> None:
    """The trunk is packed on the GPU here, and the adapter's own weights stay fp32."""
    pytest.importorskip("peft")
    tokens = torch.randint(331, (3, 96), generator=torch.Generator().manual_seed(1))
    adapter, states = AdapterSettings(kind="lora", rank=4, base_bits=4), []
    for where, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        model = attach(make(shape, head="scalar").to(where).compute_in(dtype), adapter, seed=0)
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
        assert {p.device.type for p in model.parameters()} == {where}
        states.append(model.hidden(tokens.to(where)).states)
        model.values(states[-1]).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    away = (states[1].cpu().float() - states[0]).norm(dim=-1) / states[0].norm(dim=-1)
    assert away.median() < 3e-2


def test_blocks_with_lora_in_four_bits_compile_to_the_same_step(make: MakeModel) -> None:
    pytest.importorskip("peft")
    adapter, taken = AdapterSettings(kind="lora", rank=4, base_bits=4), []
    for compile_ in ("no", "yes"):
        options = settings(compile=compile_, dtype="bfloat16")
        model = attach(make("llama").cuda().compute_in(torch.bfloat16), adapter, seed=0)
        compile_blocks(model, options, "cuda")
        rule = build_optimizer(model, options)
        taken.append([train_step(model, make_task(micro=0), rule, options, index, 1e-2).loss for index in range(3)])
    assert taken[1] == pytest.approx(taken[0], rel=1e-2)
    torch._dynamo.reset()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_learns_one_batch_by_heart(tmp_path: Path, make: MakeModel, shape: str, optimizer: str) -> None:
    options = settings(
        optimizer=optimizer, steps=60, lr=1e-2, weight_decay=0.0, eval_every=60, save_every=60, dtype="auto"
    )
    stage = stages.make_stage(tmp_path, options, name="pretrain")
    run_loop(make(shape), make_task(lambda step: make_batch(0), micro=0), options, stage)
    learnt = [row["loss"] for row in stage.metrics.read() if "loss" in row]
    assert learnt[0] > 0.8 * math.log(331)
    assert learnt[-1] < 0.5 * learnt[0]


def test_compiled_blocks_take_the_same_step_and_compile_once(make: MakeModel, shape: str) -> None:
    found = []
    for compile_ in ("no", "yes"):
        options = settings(compile=compile_, dtype="bfloat16")
        model = make(shape, n_layers=3).cuda().compute_in(torch.bfloat16)
        assert compile_blocks(model, options, "cuda").startswith("compiled" if compile_ == "yes" else "not compiled")
        rule = build_optimizer(model, options)
        taken = [train_step(model, make_task(micro=0), rule, options, index, 1e-3) for index in range(3)]
        if compile_ == "yes":
            torch._dynamo.config.error_on_recompile = True  # other layouts of documents need no other kernels
            try:
                taken.append(train_step(model, make_task(micro=0), rule, options, 3, 1e-3))
            finally:
                torch._dynamo.config.error_on_recompile = False
        found.append(taken)
    for expected, ours in zip(*found, strict=False):
        assert ours.loss == pytest.approx(expected.loss, rel=1e-2)
        assert ours.grad_norm == pytest.approx(expected.grad_norm, rel=5e-2)
    torch._dynamo.reset()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_goes_on_from_its_checkpoint(tmp_path: Path, make: MakeModel, shape: str, optimizer: str) -> None:
    options = settings(optimizer=optimizer)
    whole = make(shape)
    run_loop(whole, make_task(), options, stages.make_stage(tmp_path / "whole", options, name="pretrain"))

    class StoppedError(Exception):
        """Stands for a power cut."""

    def until_five(step: int) -> Batch:
        if step >= 5:
            raise StoppedError
        return make_batch(step)

    stage = stages.make_stage(tmp_path / "cut", options, name="pretrain")
    with pytest.raises(StoppedError):
        run_loop(make(shape), make_task(until_five), options, stage)
    resumed = make(shape, seed=8)  # other weights: all must come from the checkpoint
    assert run_loop(resumed, make_task(), options, stage)["steps"] == 8
    for (name, expected), ours in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, atol=2e-3, rtol=1e-2, msg=name)  # a GPU adds in no fixed order


def test_ppo_samples_scores_and_learns(make: MakeModel, tokenizer: Tokenizer) -> None:
    options = PPOSettings(
        judge="prose", iterations=8, batch_size=16, mini_batch=8, micro_batch=4, epochs=1, max_new_tokens=6, lr=3e-3,
        critic_lr=1e-2, approx_kl_limit=10.0,
    )  # fmt: skip
    policy, critic = (make("llama", tokenizer.vocab_size, head).cuda() for head in ("lm", "scalar"))
    reference = copy.deepcopy(policy)
    for model in (policy, critic, reference):
        model.compute_in(torch.bfloat16)
    turns = [(Message("user", f"写：{letter}"),) for letter in "春夏秋冬山水花月" * 2]
    prompts = [Prompt(turn, turn[0].content, tuple(chat.encode_prompt(tokenizer, turn))) for turn in turns]
    sampler, learner = Generator(policy, tokenizer), ActorCritic(policy, critic, options)
    wanted = tokenizer.encode("风")[0]

    def score(sampled: Sampled) -> torch.Tensor:
        tokens, lengths = sampled.sequences.tokens, sampled.sequences.prompt_lengths
        answer = torch.arange(tokens.shape[1], device=tokens.device) >= lengths[:, None]
        return ((tokens == wanted) & answer).float().sum(1)

    rollouts, rewards = Rollouts(sampler, score, 6, tokenizer.pad, "cuda"), []
    for iteration in range(8):
        sampler.refresh()
        experience = rollouts.collect(prompts, 1, "test", iteration)
        scored = learner.score(experience, reference, beta=0.0)
        if iteration == 0:
            assert float(losses.kl_k1(scored.logprobs, scored.reference).abs().max()) < 0.1
        figures = learner.update(scored, iteration, seed=iteration)
        assert figures["skipped_steps"] == 0.0
        assert all(math.isfinite(value) for value in figures.values())
        rewards.append(float(experience.scores.mean()))
    assert sum(rewards[-2:]) > sum(rewards[:2])
