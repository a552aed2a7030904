"""Documents that share a row, for the kernel that knows where each begins: nothing is computed across a border.

In:  which document every token of a batch belongs to; queries, keys and values.
Out: the borders of the documents in all rows laid end to end, and mixed values.
Left out: rows whose documents share a beginning, windows, fp32: these take the written-out mask (``attention``).

A mask that is written out sends a GPU to kernels that read it whole for every head and know nothing of groups of heads;
the variable-length kernel takes a dozen integers instead.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

WIDEST, STEP = 256, 8  # head widths that the flash kernels know: multiples of 8 up to 256
_kernel: Callable[..., Any] | None = None


def fits(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether the kernel computes heads of this width there."""
    return device.type == "cuda" and dtype == torch.bfloat16 and width % STEP == 0 and width <= WIDEST


def borders(documents: Tensor) -> Tensor:
    """Where each document begins, counted over all rows laid end to end, and behind them where the last one ends.

    Args:
        documents: (B, T); the tokens of a document stand together, padding is one more.

    Returns:
        (S + 1,) int32 on the device of ``documents``.
    """
    _load()
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    places = begins.flatten().nonzero().squeeze(1)
    return F.pad(places, (0, 1), value=documents.numel()).to(torch.int32)


def allowed(ends: Tensor, length: int) -> Tensor:
    """The mask that ``borders`` stand for: (B, 1, T, T), true where a query may see a key."""
    steps = torch.arange(int(ends[-1]), device=ends.device)
    documents = torch.bucketize(steps, ends, right=True).view(-1, 1, length)  # B, 1, T
    causal = torch.ones(length, length, dtype=torch.bool, device=ends.device).tril()
    return (documents.unsqueeze(-1) == documents.unsqueeze(-2)) & causal


def attend_packed(q: Tensor, k: Tensor, v: Tensor, scale: float, ends: Tensor) -> Tensor:
    """Causal attention inside documents: (B, H, T, D), twice (B, H / G, T, D) -> (B, H, T, D)."""
    batch, _, length, _ = q.shape
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # B*T, H, D
    assert _kernel is not None, "there are no borders without it"
    mixed: Tensor = _kernel(q, k, v, ends, ends, length, length, scale=scale, window_size=(-1, 0))
    return mixed.view(batch, length, *mixed.shape[1:]).transpose(1, 2)


def _load() -> None:
    """Find the kernel, outside anything that is compiled. Its module brings torch's compiler with it: seconds that no
    verb should wait for that never meets a GPU.
    """
    global _kernel
    if _kernel is None:
        from torch.nn.attention.varlen import varlen_attn

        told = {"enable_gqa": True} if "enable_gqa" in (varlen_attn.__kwdefaults__ or {}) else {}  # torch 2.11 has none
        _kernel = functools.partial(varlen_attn, **told)  # type: ignore[arg-type]
