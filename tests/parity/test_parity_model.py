"""The same weights give the same logits and gradients as transformers (tiny random models, fp32, 1e-5)."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from danlu.model import Decoder, ModelConfig, preset

transformers = pytest.importorskip("transformers")

VOCAB, LENGTH = 97, 24


def randomise(model: nn.Module) -> None:
    """Make norms, biases and router biases matter: their first values would hide half of all faults."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("inv_freq", "position_ids")):
                continue
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("e_score_correction_bias"):
                value.copy_(noise * 0.5 - 0.5)  # mostly negative: a dropped group masked with 0 would win
            elif value.ndim == 1 and name.endswith("weight"):
                value.copy_(1 + 0.3 * noise)
            elif value.ndim == 1:
                value.copy_(0.3 * noise)
            else:
                value.copy_(noise / value.shape[-1] ** 0.5)


def gpt2_state(hf: nn.Module, pick: Callable[[nn.Module], dict[str, Tensor]]) -> dict[str, Tensor]:
    names = [("transformer.wte", "embed"), ("transformer.wpe", "positions"), ("transformer.ln_f", "norm")]
    names += [("transformer.h", "blocks"), ("ln_1", "norm1"), ("ln_2", "norm2"), ("attn.c_proj", "attn.o")]
    names += [("mlp.c_fc", "ffn.up"), ("mlp.c_proj", "ffn.down")]
    state = {}
    for key, value in pick(hf).items():
        for theirs, ours in names:
            key = key.replace(theirs, ours)
        if value.ndim == 2 and key.startswith("blocks"):
            value = value.t()  # Conv1D keeps (in, out)
        if "c_attn" in key:
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                state[key.replace("c_attn", part)] = piece
        elif key != "lm_head.weight":
            state[key] = value
    return state


def llama_state(hf: nn.Module, pick: Callable[[nn.Module], dict[str, Tensor]]) -> dict[str, Tensor]:
    names = [("model.embed_tokens", "embed"), ("model.norm", "norm"), ("model.layers", "blocks"), ("lm_head", "head")]
    names += [("input_layernorm", "norm1"), ("post_attention_layernorm", "norm2"), ("self_attn", "attn")]
    names += [("kv_a_proj_with_mqa", "kv_a"), ("kv_a_layernorm", "kv_norm"), ("q_a_layernorm", "q_norm")]
    names += [("mlp.gate.e_score_correction_bias", "ffn.router.bias"), ("mlp.gate.weight", "ffn.router.weight")]
    names += [("mlp.experts.gate_up_proj", "ffn.gate_up"), ("mlp.experts.down_proj", "ffn.down")]
    names += [("mlp.shared_experts", "ffn.shared"), ("mlp", "ffn")]
    state = {}
    for key, value in pick(hf).items():
        for theirs, ours in names:
            key = key.replace(theirs, ours)
        state[re.sub("_proj", "", key)] = value
    if hf.config.tie_word_embeddings:
        state.pop("head.weight", None)
    return state


def values(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach() for k, v in module.state_dict().items()}


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {k: p.grad for k, p in module.named_parameters() if p.grad is not None}


def gpt2() -> tuple[nn.Module, ModelConfig]:
    hf = transformers.GPT2Config(vocab_size=VOCAB, n_positions=32, n_embd=64, n_layer=2, n_head=4)
    return transformers.GPT2LMHeadModel(hf), preset("gpt2-tiny", vocab_size=VOCAB, max_seq_len=32)


def llama(*, biases: bool, tied: bool) -> tuple[nn.Module, ModelConfig]:
    hf = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        rms_norm_eps=1e-3,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        attention_bias=biases,
        mlp_bias=biases,
        tie_word_embeddings=tied,
    )
    shape = {"head_dim": 24, "norm_eps": 1e-3, "rope_theta": 500.0, "tie_embeddings": tied}
    shape |= {"qkv_bias": biases, "out_bias": biases, "ffn_bias": biases}
    return transformers.LlamaForCausalLM(hf), preset("llama-tiny", vocab_size=VOCAB, **shape)


def deepseek(*, q_rank: int, interleaved: bool, norm_topk: bool) -> tuple[nn.Module, ModelConfig]:
    hf = transformers.DeepseekV3Config(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=160,
        moe_intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        n_shared_experts=2,
        n_routed_experts=8,
        routed_scaling_factor=2.5,
        kv_lora_rank=32,
        q_lora_rank=q_rank or None,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=12,
        n_group=4,
        topk_group=2,
        num_experts_per_tok=3,
        first_k_dense_replace=1,
        norm_topk_prob=norm_topk,
        rms_norm_eps=1e-3,
        rope_interleave=interleaved,
        attention_bias=bool(q_rank),
        tie_word_embeddings=False,
        num_mtp_layers=0,
    )
    shape = {"n_layers": 3, "q_rank": q_rank, "v_dim": 12, "n_shared_experts": 2, "routed_scale": 2.5, "top_k": 3}
    shape |= {"router_groups": 4, "router_groups_kept": 2, "norm_topk": norm_topk, "norm_eps": 1e-3}
    shape |= {"rope_layout": "interleaved" if interleaved else "half", "tie_embeddings": False}
    shape |= {"qkv_bias": bool(q_rank), "out_bias": bool(q_rank)}
    return transformers.DeepseekV3ForCausalLM(hf), preset("deepseek-tiny", vocab_size=VOCAB, **shape)


CASES = {
    "gpt2": gpt2,
    "llama": lambda: llama(biases=False, tied=True),
    "llama-biases-untied": lambda: llama(biases=True, tied=False),
    "deepseek": lambda: deepseek(q_rank=24, interleaved=True, norm_topk=True),
    "deepseek-plain-queries": lambda: deepseek(q_rank=0, interleaved=False, norm_topk=False),
}


@pytest.fixture(params=CASES)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, Decoder, Callable[..., dict[str, Tensor]]]:
    torch.manual_seed(0)
    hf, config = CASES[request.param]()
    hf = hf.eval()
    randomise(hf)
    translate = gpt2_state if request.param == "gpt2" else llama_state
    ours = Decoder(config)
    ours.load_state_dict(translate(hf, values))
    return hf, ours, translate


def test_logits_equal(pair: tuple[nn.Module, Decoder, Callable[..., dict[str, Tensor]]]) -> None:
    hf, ours, _ = pair
    tokens = torch.randint(0, VOCAB, (3, LENGTH))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), hf(tokens).logits, atol=1e-5, rtol=1e-5)


def test_gradients_equal(pair: tuple[nn.Module, Decoder, Callable[..., dict[str, Tensor]]]) -> None:
    hf, ours, translate = pair
    tokens = torch.randint(0, VOCAB, (3, LENGTH))
    direction = torch.randn(3, LENGTH, VOCAB)
    (hf(tokens).logits * direction).sum().backward()
    (ours(tokens) * direction).sum().backward()
    theirs, mine = translate(hf, gradients), gradients(ours)
    assert theirs.keys() == mine.keys()
    size = torch.stack([g.abs().max() for g in theirs.values()]).median().item()  # key biases have none but rounding
    for name, expected in theirs.items():
        worst = (mine[name] - expected).abs().max().item()
        assert worst <= 1e-5 * max(size, expected.abs().max().item()), f"{name}: off by {worst}"


def test_padded_rows_equal_short_rows(pair: tuple[nn.Module, Decoder, Callable[..., dict[str, Tensor]]]) -> None:
    hf, ours, _ = pair
    tokens = torch.randint(0, VOCAB, (1, LENGTH))
    padded = torch.cat([tokens, torch.zeros(1, 5, dtype=torch.int64)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(ours(padded)[:, :LENGTH], hf(tokens).logits, atol=1e-5, rtol=1e-5)
