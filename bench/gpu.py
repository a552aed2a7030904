"""The model and the loop on one GPU: share of its peak while pre-training, and of its memory's while decoding.

In:  nothing; models have random weights, tokens are drawn with the frequencies of words (Zipf).
Out: ``results/gpu-*.json`` and the table; with ``--profile``, where the time of a step goes, beside them.
Left out: several GPUs; reading text, which a thread does ahead of the step.

The share is MFU by the convention of PaLM (appendix B): 6 FLOPs per active matmul parameter and token and 12 L H D T
for attention, over 989 TFLOP/s, the dense bf16 peak of H100 SXM and H200. A step is the loop's own: several
micro-batches, one clipped AdamW update. The peer is transformers with the same shape, tokens and optimizer, bf16
autocast, SDPA, every layer and the head's loss compiled; ours and theirs run in turn in one process.

    python bench/gpu.py [--seconds 300] [--folder bench/results] [--only NAME ...] [--profile]
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from danlu.device import choose, matmul_flops
from danlu.files import write_json
from danlu.model import Decoder, ModelConfig, flops_per_token, parameters, preset
from danlu.tokens.loader import Batch
from danlu.train.compiled import compile_blocks
from danlu.train.language import next_token_loss, split_rows
from danlu.train.loop import train_step
from danlu.train.optim import build_optimizer
from danlu.train.task import LoopSettings, Task
from table import RESULTS, hardware, row, write_table

PEAK = 989e12
ROUNDS = 3
DEVICE = choose().kind
GPT2 = {"n_layers": 12, "d_model": 768, "n_heads": 12, "n_kv_heads": 12, "head_dim": 64, "d_ff": 3072}
LLAMA = {"n_layers": 20, "d_model": 1280, "n_heads": 10, "n_kv_heads": 10, "head_dim": 128, "d_ff": 3456}
TINY = {"n_layers": 2, "d_model": 64, "n_heads": 2, "n_kv_heads": 2, "head_dim": 32, "d_ff": 128, "vocab_size": 512}


class Job:
    """What is trained: a shape, and how many rows of how many tokens a micro-batch and a step have."""

    def __init__(self, config: ModelConfig, length: int, micro: int, batch: int, target: float, mean: int = 0) -> None:
        self.config, self.length, self.micro, self.batch, self.target = config, length, micro, batch, target
        self.mean = mean  # tokens of a document; 0: a row is one document
        self.flops = flops_per_token(config, length)

    def tokens(self) -> Tensor:
        """(batch, length + 1) ids, drawn like words: the r-th as often as 1 / r."""
        generator = torch.Generator().manual_seed(0)
        weights = 1.0 / torch.arange(1, self.config.vocab_size + 1)
        drawn = torch.multinomial(weights, self.batch * (self.length + 1), replacement=True, generator=generator)
        return drawn.view(self.batch, -1)

    def documents(self) -> Tensor:
        """(batch, length) int32; lengths of documents are geometric."""
        if not self.mean:
            return torch.zeros(self.batch, self.length, dtype=torch.int32)
        generator = torch.Generator().manual_seed(1)
        begins = torch.rand(self.batch, self.length, generator=generator) < 1 / self.mean
        return begins.cumsum(1).to(torch.int32)


def jobs(tiny: bool) -> dict[str, Job]:
    """The shapes, by name; tiny ones to try this program where there is no GPU."""
    gpt2 = preset("gpt2-124m", **(TINY if tiny else {**GPT2, "vocab_size": 50304}))
    llama = preset("llama-tang", **(TINY if tiny else {**LLAMA, "vocab_size": 65536, "tie_embeddings": False}),
                   max_seq_len=2048)  # fmt: skip
    mixture: dict[str, Any] = {"n_layers": 5, "vocab_size": 32768}
    if tiny:
        mixture = {**TINY, "nope_dim": 32, "rope_dim": 16, "v_dim": 32, "kv_rank": 32, "n_experts": 8, "d_expert": 32}
    moe = preset("deepseek-v2-lite", **mixture, max_seq_len=2048, rope_scaling=None)
    if tiny:
        return {
            "124M": Job(gpt2, 64, 2, 4, 0.48), "packed 124M": Job(gpt2, 64, 2, 4, 0.0, mean=16),
            "560M": Job(llama, 64, 2, 4, 0.55), "mixture": Job(moe, 64, 2, 4, 0.35),
        }  # fmt: skip
    return {
        "124M": Job(gpt2, 1024, 60, 480, 0.48), "packed 124M": Job(gpt2, 1024, 60, 240, 0.0, mean=256),
        "560M": Job(llama, 2048, 24, 240, 0.55), "mixture": Job(moe, 2048, 16, 64, 0.35),
    }  # fmt: skip


def our_step(job: Job) -> Callable[[int], None]:
    """One step of danlu's loop."""
    settings = LoopSettings(batch_size=job.batch, micro_batch=job.micro, lr=1e-4, compile="auto")
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = Decoder(job.config).compute_in(choose().compute_dtype)
    print("ours:", compile_blocks(model, settings, DEVICE), flush=True)
    optimizer = build_optimizer(model, settings)
    tokens, documents = job.tokens(), job.documents()
    positions = torch.arange(job.length).repeat(job.batch, 1)
    batch = Batch(tokens[:, :-1], tokens[:, 1:].contiguous(), positions, documents, documents.numel())
    micro = split_rows(batch, job.micro)
    task = Task(lambda index: micro, next_token_loss, lambda model: {})

    def step(index: int) -> None:
        done = train_step(model, task, optimizer, settings, index, 1e-4)
        assert done.finite, "the loss is not finite"
        step.loss = done.loss  # type: ignore[attr-defined]

    return step


def their_model(config: ModelConfig) -> Any:
    """The same shape in transformers."""
    common = {"vocab_size": config.vocab_size, "use_cache": False, "attn_implementation": "sdpa"}
    if config.positions == "learned":
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                n_embd=config.d_model,
                n_layer=config.n_layers,
                n_head=config.n_heads,
                n_inner=config.d_ff,
                n_positions=config.max_seq_len,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                **common,
            )
        )
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=config.d_model,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            head_dim=config.head_dim,
            intermediate_size=config.d_ff,
            max_position_embeddings=config.max_seq_len,
            tie_word_embeddings=config.tie_embeddings,
            **common,
        )
    )


def their_step(job: Job) -> Callable[[int], None]:
    """One step of the same size with transformers' model and torch's own tools."""
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = their_model(job.config).train()
    body = model.get_decoder()
    compile_ = torch.compile if DEVICE == "cuda" else (lambda function: function)
    if DEVICE == "cuda":
        for layer in body.h if hasattr(body, "h") else body.layers:
            layer.compile()
    head_loss = compile_(lambda states, targets: F.cross_entropy(model.lm_head(states).float(), targets))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, (0.9, 0.95), 1e-8, 0.1, fused=True)
    tokens = job.tokens().to(DEVICE)
    parts = list(tokens.split(job.micro))

    def step(index: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        for part in parts:
            with torch.autocast(DEVICE, torch.bfloat16):
                states = body(input_ids=part[:, :-1], use_cache=False).last_hidden_state
                loss = head_loss(states.flatten(0, 1), part[:, 1:].flatten())
            (loss / len(parts)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step.loss = float(loss.detach())  # type: ignore[attr-defined]

    return step


def timed(step: Callable[[int], None], job: Job, index: int) -> float:
    """Tokens a second of one step."""
    wait()
    started = time.perf_counter()
    step(index)
    wait()
    return job.batch * job.length / (time.perf_counter() - started)


def wait() -> None:
    """Until the GPU has done what it was asked."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def training(name: str, job: Job, peer: bool, profile: Path | None) -> Iterator[dict[str, Any]]:
    """MFU of one shape, ours and theirs in turn."""
    sides = [our_step(job)] + ([their_step(job)] if peer else [])
    for step in sides:
        began = time.perf_counter()
        step(0)
        print(f"{name}: first step {time.perf_counter() - began:.1f} s, loss {step.loss:.4f}", flush=True)  # type: ignore[attr-defined]
    found: list[list[float]] = [[] for _ in sides]
    for index in range(ROUNDS):
        for speeds, step in zip(found, sides, strict=True):
            speeds.append(timed(step, job, 1 + index))
    shares = [[100 * speed * job.flops / PEAK for speed in speeds] for speeds in found]
    size = parameters(job.config)
    memory = torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else 0.0
    note = (
        f"{size.total / 1e6:.0f}M parameters, {size.active / 1e6:.0f}M active; {statistics.median(found[0]):,.0f} "
        f"tokens/s; steps of {job.batch} x {job.length} in micro-batches of {job.micro}; {memory:.0f} GiB"
    )
    if job.mean:
        note += f"; documents of {job.mean} tokens on average"
    theirs = statistics.median(shares[1]) if peer else None
    met = statistics.median(shares[0]) >= 100 * job.target
    yield row(
        f"pre-training, {name}: MFU", shares[0], "%", f">= {job.target:.0%}" if job.target else "reported", met,
        peer=theirs, peer_name=f"transformers {transformers.__version__}, compiled" if peer else "", note=note,
    )  # fmt: skip
    if profile is not None and DEVICE == "cuda":
        explain(sides, job, profile / f"profile-{name.replace(' ', '-')}.txt")


def explain(sides: list[Callable[[int], None]], job: Job, path: Path) -> None:
    """Write down which kernels a step's time goes to, side by side with how long it took."""
    text = [f"a step of {job.batch // job.micro} micro-batches; ours first"]
    for step in sides:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as recorded:
            seconds = job.batch * job.length / timed(step, job, 9)
        table = recorded.key_averages().table(sort_by="self_cuda_time_total", row_limit=45, max_name_column_width=100)
        text.append(f"{seconds:.3f} s by the clock\n{table}")
    path.write_text("\n\n".join(text), encoding="utf-8")


@torch.inference_mode()
def decoding(tiny: bool) -> Iterator[dict[str, Any]]:
    """Single tokens of SmolLM2-135M's shape in bf16 against the time that reading its weights once takes."""
    config = preset("smollm2-135m", **(TINY if tiny else {}), tie_embeddings=True)
    new, capacity = (8, 64) if tiny else (128, 512)
    with torch.device(DEVICE):
        model = Decoder(config).to(torch.bfloat16).compute_in(torch.bfloat16)
        cache = model.new_cache(1, capacity)
        token, place = torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, dtype=torch.long)
    weight_bytes = 2 * parameters(config).matmul
    roof = copied() / weight_bytes

    def step() -> None:
        states = model.hidden(token, place, cache=cache).states
        token.copy_(model.logits(states)[:, 0].argmax(-1, keepdim=True))
        place.add_(1)

    def speed(once: Callable[[], None]) -> float:
        place.fill_(capacity // 2)
        wait()
        started = time.perf_counter()
        for _ in range(new):
            once()
        wait()
        return new / (time.perf_counter() - started)

    speed(step)
    note = f"{weight_bytes / 1e6:.0f} MB of weights a token; the roof is {roof:,.0f} tokens/s"
    speeds = [speed(step) for _ in range(ROUNDS)]
    met = statistics.median(speeds) >= 0.8 * roof
    yield row("decoding, 135M, batch 1", speeds, "tokens/s", ">= 80 % of the memory roof", met, peer=roof,
              peer_name="memory roof", note=note)  # fmt: skip
    if DEVICE == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        speeds = [speed(graph.replay) for _ in range(ROUNDS)]
        yield row("decoding, 135M, batch 1, captured as a CUDA graph", speeds, "tokens/s", "reported", True, peer=roof,
                  peer_name="memory roof", note=note + "; not how the engine decodes yet")  # fmt: skip


def copied() -> float:
    """Bytes a second that the memory moves, reading and writing counted: the fastest of several copies."""
    big = torch.empty(2**31 if DEVICE == "cuda" else 2**24, dtype=torch.int8, device=DEVICE)
    other, best = torch.empty_like(big), float("inf")
    for _ in range(10):
        wait()
        started = time.perf_counter()
        other.copy_(big)
        wait()
        best = min(best, time.perf_counter() - started)
    return 2 * big.numel() / best


def ceilings() -> Iterator[dict[str, Any]]:
    """What the card does at best."""
    product = matmul_flops(torch.bfloat16, DEVICE) / 1e12
    yield row("matrix product, bf16, 4096 x 4096", [product], "TFLOP/s", "reported", True)
    yield row("memory, copy of 2 GiB, bytes read and written", [copied() / 1e12], "TB/s", "reported", True)


def arguments() -> argparse.Namespace:
    """How long, where to, what."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="begin nothing after so long")
    parser.add_argument("--folder", type=Path, default=RESULTS)
    parser.add_argument("--only", nargs="*", help="names of what to measure; everything by default")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to try this program")
    parser.add_argument("--profile", action="store_true", help="write down where the time of a step goes")
    return parser.parse_args()


def main() -> None:
    """Measure, and write after every row: whatever ends the program, what was measured is kept."""
    asked = arguments()
    transformers.logging.set_verbosity_error()
    until, rows, folder = time.perf_counter() + asked.seconds, [], asked.folder
    profile = folder if asked.profile else None
    parts: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {"ceilings": ceilings}
    for name, job in jobs(asked.tiny).items():
        peer = name in ("124M", "560M")
        parts[name] = lambda name=name, job=job, peer=peer: training(name, job, peer, profile)
    parts["decoding"] = lambda: decoding(asked.tiny)
    path = folder / f"gpu-{hardware()}-{datetime.date.today().isoformat()}.json"
    for name in asked.only or parts:
        if time.perf_counter() > until:
            rows.append(row(name, [], "", "", False, note="no time was left"))
            continue
        with contextlib.suppress(RuntimeError):  # said by the traceback; the other parts can still be measured
            try:
                for item in parts[name]():
                    rows.append(item)
                    print(
                        f"{item['what']:<56}{item['ours']:>12.4g} {item['unit']} {item['ratio'] or ''} {item['note']}"
                    )
            except Exception as error:
                traceback.print_exc()
                rows.append(row(name, [], "", "", False, note=f"failed: {error}".splitlines()[0]))
        write_json(path, rows)
        torch._dynamo.reset()  # or the next shape is compiled for all sizes, and slower
        gc.collect()
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    if folder == RESULTS:
        write_table()


if __name__ == "__main__":
    main()
