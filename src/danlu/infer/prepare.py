"""A model's weights, put where and how decoding reads them best.

In:  a language model, the dtype of its products, native kernels.
Out: the same model on weights that were cast or moved once; the head by itself.
Left out: running it (``generate``).

The head is a fifth of a small model, and is read whole for every token. A model of 8-bit weights has it rounded to 8
bits too where kernels read such; the table of embeddings, which a token reads one row of, stays what it is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from danlu.infer.kernels import Kernels, Product, Weights, settled, speed_up
from danlu.model import Decoder, Linear, QuantLinear
from danlu.model.norm import LayerNorm, RMSNorm
from danlu.model.quantized import quantize_rows


def prepare(model: Decoder, dtype: torch.dtype, kernels: Kernels) -> tuple[Decoder, list[tuple[Tensor, Tensor]]]:
    """A model that shares everything with ``model`` but the weights that nothing computes with as they are.

    Returns:
        The model, whose linear layers multiply by the kernels, and (our copy, original) of each weight that had to be
        cast, or to be moved for a kernel.
    """
    memo: dict[int, Tensor] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    read = [weight for weight in _matrices(model) if kernels.reads(Weights(weight))]
    copies = list(zip(settled(read), read, strict=True))
    left = {*map(id, read), id(model.output_table.weight)}
    copies += [(weight.detach().to(dtype), weight) for weight in _to_cast(model, dtype) if id(weight) not in left]
    for ours, theirs in copies:
        memo[id(theirs)] = nn.Parameter(ours, requires_grad=False) if isinstance(theirs, nn.Parameter) else ours
    prepared = copy.deepcopy(model, memo).compute_in(dtype)
    speed_up(prepared, kernels)
    return prepared, copies


def native_head(model: Decoder, rows: int, kernels: Kernels) -> Product | None:
    """States times the first rows of a model's output weight, as it is now; None where torch has to do it."""
    weight = model.output_weight.detach()[:rows]
    rounded = model.config.quantization == "int8" and torch.int8 in kernels.dtypes
    head = Weights(*quantize_rows(weight)) if rounded else Weights(weight)
    return kernels.product(Weights(*settled(filter(torch.is_tensor, head)))) if kernels.reads(head) else None


def _matrices(model: Decoder) -> Iterator[Tensor]:
    """What products of rows read, each once; in latent attention decoding multiplies with parts of a weight instead."""
    if model.config.attention != "mla":
        parts = (model.blocks, *([model.mtp] if model.config.n_mtp else []))
        for module in (module for part in parts for module in part.modules()):
            if isinstance(module, Linear | QuantLinear):
                yield module.weight


def _to_cast(model: Decoder, dtype: torch.dtype) -> Iterator[nn.Parameter]:
    """Weights of products that are not in ``dtype``, weights of norms that are narrower."""
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            product, norm = hasattr(module, "compute_dtype"), isinstance(module, RMSNorm | LayerNorm)
            if (product and weight.dtype != dtype) or (norm and weight.dtype.itemsize < dtype.itemsize):
                yield weight
