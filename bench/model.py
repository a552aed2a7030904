"""The model room against transformers: training speed by family, decoding speed and cache by kind of attention.

In:  nothing; models have random weights, the same on both sides.
Out: ``results/model-*.json`` and the table: tokens a second of forward and backward, ours and theirs in turn in one
process; tokens a second of decoding and bytes of cache at contexts from 1k to 32k.
Left out: optimizers, GPUs, compiled models.

    python bench/model.py [ROUNDS]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers

from danlu import hub
from danlu.device import choose
from danlu.model import Decoder, LatentCache, ModelConfig, kv_bytes, parameters
from danlu.tokens.loader import Batch
from danlu.train.language import next_token_loss
from table import row, save

VOCAB, ROWS, LENGTH, STEPS = 8192, 4, 256, 4
BASE: dict[str, Any] = {
    "vocab_size": VOCAB, "n_layers": 6, "d_model": 384, "max_seq_len": 32768 + 64, "n_heads": 6, "n_kv_heads": 6,
    "head_dim": 64, "d_ff": 1024, "tie_embeddings": True,
}  # fmt: skip
MIXTURE = {"n_experts": 16, "top_k": 4, "d_expert": 256, "router_score": "softmax", "balance": "none"}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "norm": "layer", "positions": "learned", "qkv_bias": True, "out_bias": True, "ffn_bias": True,
        "feedforward": "mlp", "activation": "gelu_tanh", "d_ff": 1536, "max_seq_len": 1024,
    },
    "llama": {"n_kv_heads": 2},
    "qwen3": {"n_kv_heads": 2, "qk_norm": True},
    "qwen3_moe": {"n_kv_heads": 2, "qk_norm": True, **MIXTURE, "norm_topk": True},
    "deepseek_v3": {
        "attention": "mla", "rope_layout": "interleaved", "q_rank": 192, "kv_rank": 128, "nope_dim": 48, "rope_dim": 16,
        "v_dim": 64, "n_experts": 16, "top_k": 3, "d_expert": 256, "n_shared_experts": 1, "n_dense_layers": 1,
    },
}  # fmt: skip
ATTENTIONS: dict[str, dict[str, Any]] = {
    "MHA": {},
    "GQA, 2 of 6 heads": {"n_kv_heads": 2},
    "MLA, 128 + 16": {**FAMILIES["deepseek_v3"], "n_experts": 0, "n_shared_experts": 0, "n_dense_layers": 0},
}  # fmt: skip
CONTEXTS = (1024, 4096, 16384, 32768)


def pair(config: ModelConfig, dtype: torch.dtype) -> tuple[Decoder, Any]:
    """The same weights as our model and as transformers'."""
    torch.manual_seed(0)
    ours = Decoder(config)
    with tempfile.TemporaryDirectory() as folder:
        hub.save(ours, Path(folder), None, card={"title": "bench"})
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return ours.compute_in(dtype), theirs.train()


def rate(step: Callable[[], None], tokens: int, times: int) -> float:
    """Tokens a second over so many steps."""
    started = time.perf_counter()
    for _ in range(times):
        step()
    return tokens * times / (time.perf_counter() - started)


def training(name: str, rounds: int, dtype: torch.dtype) -> dict[str, Any]:
    """Forward and backward of one family, ours and theirs in turn."""
    config = ModelConfig.from_dict({**BASE, **FAMILIES[name]})
    ours, theirs = pair(config, dtype)
    tokens = torch.randint(0, VOCAB, (ROWS, LENGTH))
    targets = tokens.roll(-1, 1)
    batch = Batch(
        tokens, targets, torch.arange(LENGTH).expand(ROWS, -1), torch.zeros_like(tokens).int(), tokens.numel()
    )

    def our_step() -> None:
        ours.zero_grad(set_to_none=True)
        output = next_token_loss(ours, batch)
        (output.loss_sum / output.n).backward()  # type: ignore[no-untyped-call]

    def their_step() -> None:
        theirs.zero_grad(set_to_none=True)
        logits = theirs(tokens).logits
        F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten()).backward()

    for step in (our_step, their_step):
        step()
    found: list[tuple[float, float]] = []
    for _ in range(rounds):
        found.append((rate(our_step, tokens.numel(), STEPS), rate(their_step, tokens.numel(), STEPS)))
    mine, others = zip(*found, strict=True)
    ratios = [a / b for a, b in found]
    size = parameters(config)
    note = (
        f"{size.total / 1e6:.1f}M parameters, {size.active / 1e6:.1f}M active, {ROWS} x {LENGTH} tokens in "
        f"{str(dtype).removeprefix('torch.')}; ratio of rounds {min(ratios):.2f}..{max(ratios):.2f}"
    )
    peer = statistics.median(others)
    return row(
        f"training, {name}", mine, "tokens/s", ">= transformers", statistics.median(ratios) >= 1.0, peer=peer,
        peer_name=f"transformers {transformers.__version__}", note=note,
    )  # fmt: skip


@torch.no_grad()
def decoding(name: str, context: int, rounds: int, dtype: torch.dtype) -> dict[str, Any]:
    """Single tokens after ``context`` others, whose keys are random numbers: speed does not depend on them."""
    config = ModelConfig.from_dict({**BASE, **ATTENTIONS[name]})
    torch.manual_seed(0)
    model = Decoder(config).to(dtype).compute_in(dtype)
    cache = model.new_cache(1, context + STEPS)
    for tensor in (cache.entries,) if isinstance(cache, LatentCache) else (cache.keys, cache.values):
        tensor.normal_()
    token = torch.zeros(1, 1, dtype=torch.long)
    places = iter(range(10**9))

    def step() -> None:
        place = torch.tensor([[context - 1 - next(places) % STEPS]])
        model.logits(model.hidden(token, place, cache=cache).states)

    rate(step, 1, STEPS)
    speeds = [rate(step, 1, 4 * STEPS) for _ in range(rounds)]
    note = f"cache of {kv_bytes(config, dtype.itemsize) * context / 1e6:.1f} MB in {str(dtype).removeprefix('torch.')}"
    return row(f"decoding, {name}, context {context:,}", speeds, "tokens/s", "reported", True, note=note)


def main() -> None:
    """Measure everything and write the results."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    dtype = choose().compute_dtype
    rows = [training(name, rounds, dtype) for name in FAMILIES]
    rows += [decoding(name, context, rounds, dtype) for context in CONTEXTS for name in ATTENTIONS]
    for item in rows:
        print(f"{item['what']:<44}{item['ours']:>10.1f} {item['unit']}{item['ratio'] or '':>8}")
    print(save("model", rows))


if __name__ == "__main__":
    main()
