"""A decoding step in one native call: no operator is launched, dispatched or waited for between embedding and logits.

In:  a dense decoder in fp32 on a CPU, the last tokens of some rows, their cache.
Out: states and logits; keys and values in the cache.
Left out: models that the kernels do not know (``StepForward.fits``) and prompts, which take the forward of ``forward``.

By torch a step of SmolLM2-135M launches more than a thousand operators, which takes longer than reading its weights.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from danlu.infer.forward import Decoded, Forward
from danlu.infer.kernels.products import CProduct, Kernels, Product, Weights
from danlu.infer.storage import Storage
from danlu.model import Decoder, KVCache
from danlu.model.attention import GroupedQueryAttention
from danlu.model.block import Block
from danlu.model.feedforward import MLP, GatedMLP
from danlu.model.norm import LayerNorm, RMSNorm
from danlu.model.positions import Rope, rope_table

_ACTIVATIONS = {"silu": 0, "gelu_tanh": 1}
_ROTATIONS = {"half": 1, "interleaved": 2}  # 0: learned positions
_WIDEST_HEAD = 512
_P, _L, _F = ctypes.c_void_p, ctypes.c_long, ctypes.c_float


class _Norm(ctypes.Structure):
    _fields_ = (("weight", _P), ("bias", _P))


class _Layer(ctypes.Structure):
    _fields_ = (
        ("before_attention", _Norm), ("before_network", _Norm), ("q_norm", _P), ("k_norm", _P),
        *((name, CProduct) for name in ("q", "k", "v", "o", "gate", "up", "down")), ("window", _L),
    )  # fmt: skip


class _Shape(ctypes.Structure):
    _fields_ = (
        *((name, _L) for name in ("layers", "width", "heads", "kv_heads", "head_dim", "hidden", "activation",
                                  "rotation")),
        ("eps", _F), ("logit_scale", _F),
    )  # fmt: skip


class _Cache(ctypes.Structure):
    _fields_ = (("keys", _P), ("values", _P), ("layer", _L), ("row", _L), ("head", _L), ("slot", _L))


class _Step(ctypes.Structure):
    _fields_ = (
        ("tokens", _L), ("width", _L), ("x", _P), ("positions", _P), ("cos", _P), ("sin", _P), ("cache", _Cache),
        ("threads", _L),
    )  # fmt: skip


class StepForward(Forward):
    """A forward whose decoding steps are native.

    Args:
        model: as prepared for inference, see ``fits``; its weights may change their values and not their place.
        output_weight: (V, D) the rows that may be drawn.
        native: states times ``output_weight``.
        kernels: the kernels.
    """

    def __init__(self, model: Decoder, output_weight: Tensor, native: Product, kernels: Kernels) -> None:
        super().__init__(model, output_weight, native)
        assert kernels.library is not None
        self._run = kernels.library.danlu_step
        self._run.argtypes, self._run.restype = (_P,) * 5, None
        blocks = [block for block in model.blocks if isinstance(block, Block)]
        self._shape, self._layers = _shape(model), (_Layer * len(blocks))(*map(_layer, blocks))
        self._last = _norm(model.norm)
        self._head = native.described
        self._angles: Rope | None = None  # of all positions up to some, (1, 1, S, D/2)

    @staticmethod
    def fits(model: Decoder, kernels: Kernels) -> bool:
        """Whether the kernels know all of a model: a dense one, norms before its parts, its weights readable."""
        config = model.config
        known = (
            config.attention == "gqa" and not config.n_experts and not config.attn_softcap
            and config.norm_placement == "pre" and config.activation in _ACTIVATIONS
            and config.head_dim <= _WIDEST_HEAD
        )  # fmt: skip
        return known and all(kernels.reads(Weights.of(layer)) for block in model.blocks for layer in _layers_of(block))

    def decode(
        self, storage: Storage, rows: Sequence[Sequence[int]], read: Sequence[int], needs: Sequence[int]
    ) -> Decoded:
        """States and logits behind every token of the first rows."""
        tokens, positions, reach = self.laid_out(rows, read, needs)
        cache = storage.view(0, len(rows), reach)
        assert isinstance(cache, KVCache), "grouped-query attention in slots"
        x = self._model.embedded(tokens, positions).contiguous()  # R, T, D
        logits = x.new_empty((*tokens.shape, self.vocab_size))
        head = CProduct.from_buffer_copy(self._head)
        head.out = logits.data_ptr()
        step = _Step(
            tokens.numel(), tokens.shape[1], x.data_ptr(), positions.data_ptr(), *self._turns(reach), _cache(cache),
            torch.get_num_threads(),
        )  # fmt: skip
        self._run(*map(ctypes.byref, (self._shape, self._layers, self._last, head, step)))
        return Decoded(x, logits)

    def _turns(self, reach: int) -> tuple[int | None, int | None]:
        """Where the angles of all positions are; computed anew only when they reach twice as far."""
        config = self._model.config
        if config.positions != "rope":
            return None, None
        if self._angles is None or self._angles.cos.shape[2] < reach:
            places = torch.arange(2 * reach)[None]
            self._angles = rope_table(places, config.head_dim, config.rope_theta, torch.float32, config.rope_scaling)
        return self._angles.cos.data_ptr(), self._angles.sin.data_ptr()


def _shape(model: Decoder) -> _Shape:
    config = model.config
    rotation = _ROTATIONS[config.rope_layout] if config.positions == "rope" else 0
    return _Shape(
        config.n_layers, config.d_model, config.n_heads, config.n_kv_heads, config.head_dim, config.d_ff,
        _ACTIVATIONS[config.activation], rotation, config.norm_eps, config.logit_scale,
    )  # fmt: skip


def _layers_of(block: nn.Module) -> list[nn.Module]:
    """The linear layers of a dense block in the order of ``_Layer``; all but the gate, if there is none."""
    assert isinstance(block, Block)
    attn, ffn = block.attn, block.ffn
    assert isinstance(attn, GroupedQueryAttention)
    assert isinstance(ffn, MLP | GatedMLP)
    return [attn.q, attn.k, attn.v, attn.o, *([ffn.gate] if isinstance(ffn, GatedMLP) else []), ffn.up, ffn.down]


def _layer(block: Block) -> _Layer:
    attn = block.attn
    assert isinstance(attn, GroupedQueryAttention)
    products = [CProduct.of(Weights.of(layer)) for layer in _layers_of(block)]
    if len(products) == 6:
        products.insert(4, CProduct())
    products[3].adds = products[6].adds = True  # to the residual stream
    norms = (attn.q_norm.weight.data_ptr(), attn.k_norm.weight.data_ptr()) if attn.config.qk_norm else (None, None)
    window = attn.config.window if attn.windowed else 0
    return _Layer(_norm(block.norm1), _norm(block.norm2), *norms, *products, window)


def _norm(norm: nn.Module) -> _Norm:
    assert isinstance(norm, RMSNorm | LayerNorm)
    return _Norm(norm.weight.data_ptr(), norm.bias.data_ptr() if isinstance(norm, LayerNorm) else None)


def _cache(cache: KVCache) -> _Cache:
    """Where each number is; keys and values lie alike."""
    layer, row, head, slot, one = cache.keys.stride()
    assert one == 1
    assert cache.values.stride() == cache.keys.stride()
    return _Cache(cache.keys.data_ptr(), cache.values.data_ptr(), layer, row, head, slot)
