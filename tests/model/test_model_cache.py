"""Decoding step by step gives what one forward over everything gives, for both kinds of attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from danlu.model import Decoder, KVCache, LatentCache, kv_bytes, preset
from danlu.model.attention import Context, cached_mask
from danlu.model.mla import ABSORB_UP_TO, LatentAttention
from danlu.model.positions import rope_table

VOCAB = 61
YARN = {"kind": "yarn", "factor": 4.0, "original_len": 32, "mscale": 0.7, "mscale_all_dim": 0.7}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt1": ("gpt2-tiny", {"norm_placement": "post"}),
    "gpt2": ("gpt2-tiny", {}),
    "llama": ("llama-tiny", {}),
    "windows": ("llama-tiny", {"window": 4, "n_full_layers": 1, "qk_norm": True}),
    "sandwich": ("llama-tiny", {"norm_placement": "sandwich", "attn_softcap": 5.0, "embed_scale": 3.0}),
    "deepseek": ("deepseek-tiny", {}),
    "yarn": ("deepseek-tiny", {"rope_scaling": YARN, "router_score": "softmax", "balance": "none"}),
}


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest) -> Decoder:
    torch.manual_seed(1)
    name, changes = SHAPES[request.param]
    model = Decoder(preset(name, vocab_size=VOCAB, init_std=0.2, **changes)).eval()
    return model.requires_grad_(False)


def rows() -> tuple[Tensor, Tensor, Tensor]:
    """Three rows with 5, 9 and 2 tokens of prompt, padded on the right with a token that must not matter."""
    tokens, lengths = torch.randint(1, VOCAB, (3, 16)), torch.tensor([5, 9, 2])
    prompts = tokens[:, :9].masked_fill(torch.arange(9) >= lengths[:, None], 0)
    return tokens, lengths, prompts


@pytest.mark.parametrize("reach", [32, 16])
def test_steps_equal_full_forward_with_rows_of_different_lengths(model: Decoder, reach: int) -> None:
    tokens, lengths, prompts = rows()
    full = model(tokens)
    cache = model.new_cache(batch=3, capacity=32)
    cache.reach = reach
    logits = model.logits(model.hidden(prompts, cache=cache).states)
    every = torch.arange(3)
    torch.testing.assert_close(logits[every, lengths - 1], full[every, lengths - 1], atol=1e-4, rtol=1e-4)
    for step in range(7):
        place = lengths + step
        states = model.hidden(tokens[every, place, None], positions=place[:, None], cache=cache).states
        torch.testing.assert_close(model.logits(states)[:, 0], full[every, place], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [3, 7])
def test_prefill_in_chunks_equals_full_forward(model: Decoder, size: int) -> None:
    assert 3 <= ABSORB_UP_TO < 7
    tokens, _, _ = rows()
    cache = model.new_cache(batch=3, capacity=16)
    parts = []
    for start in range(0, 16, size):
        places = torch.arange(start, min(start + size, 16)).expand(3, -1)
        states = model.hidden(tokens[:, start : start + size], positions=places, cache=cache).states
        parts.append(model.logits(states))
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens), atol=1e-4, rtol=1e-4)


def test_selected_rows_go_on_alone(model: Decoder) -> None:
    tokens, lengths, prompts = rows()
    cache = model.new_cache(batch=3, capacity=16)
    model.hidden(prompts, cache=cache)
    keep = torch.tensor([2, 0])
    kept, place = cache.select(keep), lengths[keep]
    states = model.hidden(tokens[keep, place, None], positions=place[:, None], cache=kept).states
    torch.testing.assert_close(model.logits(states)[:, 0], model(tokens)[keep, place], atol=1e-4, rtol=1e-4)


def test_bytes_per_token_are_those_of_the_buffers(model: Decoder) -> None:
    cache = model.new_cache(batch=2, capacity=10, dtype=torch.bfloat16)
    buffers = (cache.keys, cache.values) if isinstance(cache, KVCache) else (cache.entries,)
    assert cache.bytes_per_token() == sum(b.nbytes for b in buffers) // 20 == kv_bytes(model.config, 2)


def test_a_cached_row_is_one_document(model: Decoder) -> None:
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="documents"):
        model.hidden(tokens, documents=tokens, cache=model.new_cache(1, 8))


def test_absorbed_equals_expanded_with_and_without_int8() -> None:
    for quantization in ("none", "int8"):
        config = preset("deepseek-tiny", vocab_size=VOCAB, quantization=quantization)
        layer = LatentAttention(config)
        with torch.no_grad():
            for value in [*layer.parameters(), *layer.buffers()]:
                value.copy_(
                    torch.randint(-90, 90, value.shape) if value.dtype == torch.int8 else torch.rand(value.shape)
                )
        positions = torch.tensor([[4, 5], [9, 10]])
        rope = rope_table(positions, config.rope_dim, config.rope_theta, torch.float32)
        context = Context(cached_mask(positions, 12, torch.float32), None, rope, positions)
        nope, pe = torch.randn(2, 4, 2, config.nope_dim), torch.randn(2, 4, 2, config.rope_dim)
        entries = torch.randn(2, 12, config.kv_rank + config.rope_dim) / 10
        absorbed = layer.attend_absorbed(nope / 50, pe, entries, context)
        expanded = layer.attend_expanded(nope / 50, pe, entries, context)
        torch.testing.assert_close(absorbed, expanded, atol=1e-3, rtol=1e-4)


def test_latents_are_smaller_than_heads() -> None:
    shape = preset("deepseek-tiny", vocab_size=VOCAB)
    assert isinstance(Decoder(shape).new_cache(1, 4), LatentCache)
    assert kv_bytes(shape) * 2 < kv_bytes(preset("gpt2-tiny", vocab_size=VOCAB))


def test_prompts_padded_on_the_left_decode_as_alone(model: Decoder) -> None:
    """Padding before a prompt takes slots behind it, which nobody sees and which later tokens overwrite."""
    tokens, lengths, _ = rows()
    width = int(lengths.max())
    padding = (width - lengths)[:, None]
    column = torch.arange(width)
    places = torch.where(column < padding, column + lengths[:, None], column - padding)
    prompts = tokens.gather(1, places).masked_fill(column < padding, 0)
    cache = model.new_cache(3, 32)
    found = [model.logits(model.hidden(prompts, places, cache=cache).states)[:, -1]]
    for step in range(4):
        place = (lengths + step)[:, None]
        found.append(model.logits(model.hidden(tokens.gather(1, place), place, cache=cache).states)[:, 0])
    for row, length in enumerate(lengths.tolist()):
        whole = model(tokens[row : row + 1, : length + 4])[0, length - 1 :]
        torch.testing.assert_close(torch.stack([one[row] for one in found]), whole, atol=1e-4, rtol=1e-4)
