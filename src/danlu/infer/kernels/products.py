"""Products of few rows by the native kernels, and a model that takes them.

In:  a model made ready for inference in fp32 on a CPU; its weights may be stored in less.
Out: the same model, its layers calling the kernels; products of rows with a weight.
Left out: compiling (``build``); activations in anything but fp32, gradients, compiled graphs: those take torch's way.

Weights are read in the width they are stored in, once for all rows. What is computed is what torch computes, in
another order of sums: about 1e-6 of the largest output for fp32, bf16 and fp16 weights. With int8 weights activations
are rounded to 16 bits: about 3e-5. A row's result does not depend on the other rows, to the last bit.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence, Set
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.infer.kernels.build import build
from danlu.model import Decoder, Linear, QuantLinear, quantized_linear
from danlu.model.linear import Joint
from danlu.model.quantized import quantize_rows

WIDTHS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}
FEW = 32  # rows up to which fp32 weights are multiplied faster than by torch; narrower ones always are
_LEAST = 8  # outputs of a product: the kernels' widest tile
_CLOSE = {torch.int8: 3e-4}  # of the largest output, in the probe; 1e-5 for the others


Part = tuple[Tensor, Tensor | None, Tensor | None]
"""A weight (outputs, depth), its scale (outputs,) if it is int8, and its bias (outputs,) if it has one."""


class _Product(ctypes.Structure):
    _fields_ = (
        ("weight", ctypes.c_void_p), ("scale", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("out", ctypes.c_void_p),
        ("outputs", ctypes.c_long),
    )  # fmt: skip


class Kernels(NamedTuple):
    """The kernels, if this machine has them.

    Attributes:
        library: compiled; None where it is not.
        dtypes: of weights that it was seen to multiply rightly; none without a library.
        reason: what it was compiled with; or why torch multiplies instead.
    """

    library: ctypes.CDLL | None
    dtypes: frozenset[torch.dtype]
    reason: str

    def product(self, *parts: Part) -> Product | None:
        """Rows times the weights of ``parts``, see ``Product``; None where torch has to do it."""
        alike = len({(weight.dtype, weight.shape[1]) for weight, _, _ in parts}) == 1
        if self.library is None or not alike or not all(_takes(self.dtypes, *part) for part in parts):
            return None
        return Product(self.library, *parts)

    def reads(self, layer: nn.Module) -> bool:
        """Whether a layer can be left as it is stored."""
        return self.product(_parts(layer)) is not None

    def describe(self) -> str:
        """One line for a person."""
        return f"native ({self.reason})" if self.dtypes else f"torch's products ({self.reason})"


NONE = Kernels(None, frozenset(), "not asked for")


@functools.cache
def kernels() -> Kernels:
    """Compile, load and try the kernels, once per process."""
    library, reason = build()
    if library is None:
        return Kernels(None, frozenset(), reason)
    library.danlu_linear.argtypes = (
        ctypes.c_int, ctypes.c_void_p, ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_long, ctypes.c_int,
    )  # fmt: skip
    right = frozenset(dtype for dtype in WIDTHS if _probe(library, dtype))
    return Kernels(library, right, reason if right else "what was compiled gives wrong products")


class Product:
    """Rows times one weight or several, in one pass over them.

    Args:
        library: the compiled kernels.
        parts: of the same depth and dtype. They are kept, and read at every call: change them in place only.
    """

    def __init__(self, library: ctypes.CDLL, *parts: Part) -> None:
        self._multiply, self._count = library.danlu_linear, len(parts)
        self._kept = [tuple(None if x is None else x.detach() for x in part) for part in parts]
        weight = parts[0][0]
        self._kind, self._depth = WIDTHS[weight.dtype], weight.shape[1]
        self._limit = FEW if weight.dtype == torch.float32 else 1 << 31
        self._outputs = [len(weight) for weight, _, _ in parts]
        self._products = (_Product * len(parts))(*(_described(part) for part in self._kept))

    def __call__(self, x: Tensor) -> list[Tensor]:
        """(..., depth) fp32 -> (..., outputs) for each part."""
        rows = x.numel() // self._depth
        if rows > self._limit:
            return [F.linear(x, weight, bias) for weight, _, bias in self._kept]
        x = x.contiguous()
        shape = x.shape[:-1]
        out = [x.new_empty((*shape, n)) for n in self._outputs]
        products = (_Product * self._count).from_buffer_copy(self._products)  # two threads may be here at once
        for product, y in zip(products, out, strict=True):
            product.out = y.data_ptr()
        threads = torch.get_num_threads()
        if self._multiply(self._kind, x.data_ptr(), rows, self._depth, products, self._count, threads):
            raise NotImplementedError("this CPU has no kernel for these weights")
        return out

    def one(self, x: Tensor) -> Tensor:
        """The only product."""
        return self(x)[0]


def _described(part: Sequence[Tensor | None]) -> _Product:
    pointers = [None if x is None else x.data_ptr() for x in part]
    return _Product(*pointers, None, len(part[0]))


def _takes(dtypes: Set[torch.dtype], weight: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernels can read a weight, and its scale and bias."""
    good = weight.dtype in dtypes and weight.device.type == "cpu" and weight.is_contiguous() and len(weight) >= _LEAST
    return good and all(x is None or (x.dtype == torch.float32 and x.is_contiguous()) for x in others)


def speed_up(model: Decoder, by: Kernels) -> None:
    """Let every linear layer of a model multiply by the kernels; layers of the same input together.

    Args:
        model: computing in fp32 on a CPU, nobody's but the caller's: its weights may change in place only.
        by: the kernels.
    """
    for module in model.modules():
        if isinstance(module, Linear | QuantLinear):
            product = by.product(_parts(module))
            module.native = product and product.one
        if isinstance(module, Joint):
            module.native_together = by.product(*map(_parts, module.together()))


def _parts(layer: nn.Module) -> Part:
    assert isinstance(layer, Linear | QuantLinear)
    return layer.weight, layer.scale if isinstance(layer, QuantLinear) else None, layer.bias


def _probe(library: ctypes.CDLL, dtype: torch.dtype) -> bool:
    """Whether the kernels agree with torch on a shape without round numbers."""
    noise = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=noise) for shape in ((5, 77), (35, 77), (35,)))
    scale = None
    if dtype == torch.int8:
        weight, scale = quantize_rows(weight)
        right = quantized_linear(x, weight, scale, bias)
    else:
        weight = weight.to(dtype)
        right = F.linear(x, weight.float(), bias)
    try:
        (found,) = Product(library, (weight, scale, bias))(x)
    except NotImplementedError:  # of 8 bits without the instructions for it
        return False
    return bool((found - right).abs().max() <= _CLOSE.get(dtype, 1e-5) * right.abs().max())
