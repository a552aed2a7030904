"""Grok-1 against its published JAX code, written out here in torch, since transformers has no class for it.

Source: xai-org/grok-1, ``model.py`` (functions ``rotate``, ``MultiHeadAttention``, ``MoELayer``, ``DecoderLayer``).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from danlu import hub
from danlu.errors import UserError
from danlu.model import Decoder, ModelConfig, preset
from danlu.pipeline import SECTIONS, SHORTCUTS
from danlu.recipe import load_recipe

SMALL = {
    "vocab_size": 96, "n_layers": 2, "d_model": 48, "max_seq_len": 64, "n_heads": 6, "n_kv_heads": 2, "head_dim": 8,
    "d_ff": 40, "d_expert": 40, "n_experts": 4,
}  # fmt: skip


DRAWN = st.fixed_dictionaries({
    "n_layers": st.sampled_from([1, 2, 3]), "n_kv_heads": st.sampled_from([1, 2, 3, 6]),
    "top_k": st.sampled_from([1, 2, 4]), "attn_softcap": st.sampled_from([0.5, 2.0, 30.0]),
    "embed_scale": st.sampled_from([1.0, 6.9]), "logit_scale": st.sampled_from([0.577, 1.3]),
    "tie_embeddings": st.booleans(), "d_ff": st.sampled_from([24, 40]),
})  # fmt: skip


def small_model(**changes: Any) -> Decoder:
    torch.manual_seed(4)
    shape = {**preset("grok-1").to_dict(), **SMALL, "attn_softcap": 2.0, **changes}
    model = Decoder(ModelConfig.from_dict({**shape, "d_expert": shape["d_ff"]})).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.2)
    return model


def rms(x: Tensor, scale: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * scale


def rotated(x: Tensor) -> Tensor:
    """(T, H, D); first and second half of a head turn together."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[0])[:, None] / 10000 ** (torch.arange(half) / half)
    cos, sin = torch.cat([angles, angles], 1).cos()[:, None], torch.cat([angles, angles], 1).sin()[:, None]
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def attention(x: Tensor, w: dict[str, Tensor], name: str, config: ModelConfig) -> Tensor:
    n, groups = len(x), config.n_heads // config.n_kv_heads
    q, k, v = ((x @ w[f"{name}.{p}_proj.weight"].T).view(n, -1, config.head_dim) for p in "qkv")
    q, k = rotated(q), rotated(k)
    mixed = []
    for head in range(config.n_heads):
        scores = q[:, head] @ k[:, head // groups].T * config.head_dim**-0.5
        scores = config.attn_softcap * torch.tanh(scores / config.attn_softcap)
        scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -math.inf)
        mixed.append(scores.softmax(-1) @ v[:, head // groups])
    return torch.cat(mixed, -1) @ w[f"{name}.o_proj.weight"].T


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def mixture(x: Tensor, w: dict[str, Tensor], name: str, config: ModelConfig) -> Tensor:
    shares = (x @ w[f"{name}.gate.weight"].T).softmax(-1)
    out = torch.zeros_like(x)
    for token in range(len(x)):
        for expert in shares[token].topk(config.top_k).indices.tolist():
            part = f"{name}.experts.{expert}"
            hidden = gelu(w[f"{part}.linear.weight"] @ x[token]) * (w[f"{part}.linear_v.weight"] @ x[token])
            out[token] += shares[token, expert] * (w[f"{part}.linear_1.weight"] @ hidden)
    return out


def reference(tokens: Tensor, w: dict[str, Tensor], config: ModelConfig) -> Tensor:
    x = w["model.embed_tokens.weight"][tokens] * config.embed_scale
    for i in range(config.n_layers):
        at, norm = f"model.layers.{i}", lambda x, name, at=f"model.layers.{i}": rms(x, w[f"{at}.{name}_norm.scale"])
        x = x + norm(attention(norm(x, "pre_attn"), w, f"{at}.attn", config), "post_attn")
        x = x + norm(mixture(norm(x, "pre_moe"), w, f"{at}.moe_block", config), "post_moe")
    head = w["model.embed_tokens.weight" if config.tie_embeddings else "lm_head.weight"]
    return rms(x, w["model.norm.scale"]) @ head.T * config.logit_scale


@settings(
    max_examples=4, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, phases=[Phase.generate]
)  # fmt: skip
@given(changes=DRAWN)
def test_logits_gradients_and_files(changes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    model, tmp_path = small_model(**changes), tmp_path_factory.mktemp("grok")
    hub.save(model, tmp_path, None, card={"title": "t"})
    weights = {name: tensor.requires_grad_() for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    again = hub.load(tmp_path)
    assert again.config == model.config
    tokens = torch.randint(0, 96, (14,))
    ours, theirs = again(tokens[None])[0], reference(tokens, weights, model.config)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    for logits in (ours, theirs):
        torch.nn.functional.cross_entropy(logits, tokens.roll(-1)).backward()
    experts = [weights[f"model.layers.0.moe_block.experts.{e}.linear_v.weight"] for e in range(4)]
    up = torch.stack([torch.zeros_like(w) if w.grad is None else w.grad for w in experts])  # some are never chosen
    torch.testing.assert_close(again.blocks[0].ffn.gate_up.grad.chunk(2, 1)[1], up, atol=1e-5, rtol=1e-4)
    assert all(p.grad is not None for p in again.parameters())


def test_decoding_step_by_step_is_the_whole_forward() -> None:
    model = small_model()
    tokens = torch.randint(0, 96, (2, 12))
    cache = model.new_cache(2, 12)
    with torch.no_grad():
        whole = model(tokens)
        for at in range(12):
            place = torch.full((2, 1), at)
            step = model.logits(model.hidden(tokens[:, at : at + 1], place, cache=cache).states)
            torch.testing.assert_close(step[:, 0], whole[:, at], atol=1e-5, rtol=1e-5)


def test_it_is_read_by_our_own_table_and_not_trained_from_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="transformers has no class for 'grok-1'"):
        load_recipe("tiny", ["pretrain.model={preset: grok-1}"], SECTIONS, SHORTCUTS)
    hub.save(small_model(), tmp_path, None, card={"title": "t"})
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "x.Grok"}}), encoding="utf-8")
    assert hub.load(tmp_path).config.embed_scale > 78  # whatever code lies beside it
