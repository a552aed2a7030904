"""How parameters of ours lie in tensors on disk: names, and the rearrangements between them.

In:  tables of names.
Out: ``Entry``: some of our parameters, the tensors on disk that hold the same numbers, and the way between the two.
Left out: which family uses which (``families``), files (``directory``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Two functions, each other's inverse, between a list of our tensors and a list of theirs.

    ``write`` also runs on the meta device, where it tells which shapes a file must hold.
    """

    read: Callable[[list[Tensor]], list[Tensor]]
    write: Callable[[list[Tensor]], list[Tensor]]


def _join_pairs(pairs: list[Tensor]) -> list[Tensor]:
    """gate 0, up 0, gate 1, up 1 ..., each (I, D) -> (E, 2I, D)."""
    return [torch.stack([torch.cat(pair) for pair in zip(pairs[::2], pairs[1::2], strict=True)])]


def _pack(quantized: list[Tensor]) -> list[Tensor]:
    """int8 (out, in), scale (out,) -> int32 (out, in/4), scale (out, 1), shape (2,)."""
    weight, scale = quantized
    unsigned = (weight.to(torch.int16) + 128).to(torch.uint8)
    padded = torch.nn.functional.pad(unsigned, (0, -weight.shape[1] % 4))
    return [padded.contiguous().view(torch.int32), scale[:, None], torch.tensor(weight.shape)]


def _unpack(packed: list[Tensor]) -> list[Tensor]:
    """The inverse of ``_pack``."""
    words, scale, shape = packed
    unsigned = words.contiguous().view(torch.uint8)[:, : int(shape[1])]
    return [(unsigned.to(torch.int16) - 128).to(torch.int8), scale[:, 0].float()]


SAME = Layout(read=lambda t: t, write=lambda t: t)
# GPT-2 keeps its matrices as (in, out), "Conv1D", and q, k, v in one of them.
CONV1D = Layout(read=lambda t: [t[0].T], write=lambda t: [t[0].T])
FUSED_CONV1D = Layout(read=lambda t: list(t[0].T.chunk(3)), write=lambda t: [torch.cat(t).T])
FUSED_BIAS = Layout(read=lambda t: list(t[0].chunk(3)), write=lambda t: [torch.cat(t)])
# One tensor per expert on disk; transformers 5 fuses them only in memory, and so do we.
EXPERT_PAIRS = Layout(read=_join_pairs, write=lambda t: [half for expert in t[0] for half in expert.chunk(2)])
EXPERTS = Layout(read=lambda t: [torch.stack(t)], write=lambda t: list(t[0]))
# compressed-tensors, 8 bits, one scale per output channel: four unsigned bytes to an int32, or plain int8.
PACKED_INT8 = Layout(read=_unpack, write=_pack)
PLAIN_INT8 = Layout(read=lambda t: [t[0], t[1][:, 0].float()], write=lambda t: [t[0], t[1][:, None]])


@dataclass(frozen=True)
class Entry:
    """Some parameters of ours and the tensors on disk that hold the same numbers."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    layout: Layout = SAME


@dataclass(frozen=True)
class Row:
    """A line of a family's table: an ``Entry`` without its prefixes; ``{e}`` stands for every expert."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    layout: Layout = SAME

    def entry(self, ours: str, theirs: str, n_experts: int) -> Entry:
        """Put the prefixes before the names and spell out the experts."""
        experts = range(n_experts) if any("{e}" in name for name in self.theirs) else range(1)
        names = tuple(theirs + name.format(e=e) for e in experts for name in self.theirs)
        return Entry(tuple(ours + name for name in self.ours), names, self.layout)


def modules(names: Mapping[str, str], weight: Layout = SAME) -> tuple[Row, ...]:
    """Rows for modules, ours -> theirs, that have a weight and perhaps a bias."""
    return tuple(
        Row((f"{ours}.{part}",), (f"{theirs}.{part}",), weight if part == "weight" else SAME)
        for ours, theirs in names.items()
        for part in ("weight", "bias")
    )
