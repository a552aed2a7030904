"""Products of few rows by the native kernels.

In:  rows in fp32 on a CPU; weights as they are stored: fp32, bf16, fp16, or int8 with scales.
Out: rows times weights; a model whose linear layers multiply so.
Left out: compiling (``build``); activations in anything but fp32, gradients, compiled graphs: those take torch's way.

Weights are read in the width they are stored in, once for all rows. What is computed is what torch computes, in
another order of sums: about 1e-6 of the largest output for fp32, bf16 and fp16 weights. With int8 weights activations
are rounded to 16 bits: about 3e-5. A row's result does not depend on the other rows, to the last bit.
"""

from __future__ import annotations

import ctypes
import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.device import Device
from danlu.infer.kernels.build import build
from danlu.model import Decoder, Linear, QuantLinear, quantized_linear
from danlu.model.quantized import quantize_rows

WIDTHS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}
FEW = 32  # rows up to which fp32 weights are multiplied faster than by torch; narrower ones always are
_LEAST = 8  # outputs of a product: the kernels' widest tile
_CLOSE = {torch.int8: 3e-4}  # of the largest output, in the probe; 1e-5 for the others


class Weights(NamedTuple):
    """What rows are multiplied with.

    Attributes:
        matrix: (outputs, depth).
        scale: (outputs,) if it is int8.
        bias: (outputs,) if there is one.
    """

    matrix: Tensor
    scale: Tensor | None = None
    bias: Tensor | None = None

    @staticmethod
    def of(layer: nn.Module) -> Weights:
        """A linear layer's."""
        assert isinstance(layer, Linear | QuantLinear), f"{type(layer).__name__} is no linear layer"
        return Weights(layer.weight, layer.scale if isinstance(layer, QuantLinear) else None, layer.bias)


class CProduct(ctypes.Structure):
    """``Product`` of products.h."""

    _fields_ = (
        ("weight", ctypes.c_void_p), ("scale", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("out", ctypes.c_void_p),
        ("outputs", ctypes.c_long), ("width", ctypes.c_long), ("adds", ctypes.c_long),
    )  # fmt: skip

    @staticmethod
    def of(weights: Weights, adds: bool = False) -> CProduct:
        """Everything but where the result goes; whoever has it keeps the weights alive, and in their place."""
        pointers = [None if x is None else x.data_ptr() for x in weights]
        return CProduct(*pointers, None, len(weights.matrix), WIDTHS[weights.matrix.dtype], adds)


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

    def reads(self, weights: Weights) -> bool:
        """Whether there is a kernel for these."""
        matrix, scale, bias = weights
        plain = all(x.device.type == "cpu" and x.is_contiguous() for x in weights if x is not None)
        exact = all(x is None or x.dtype == torch.float32 for x in (scale, bias))
        return matrix.dtype in self.dtypes and plain and exact and len(matrix) >= _LEAST

    def product(self, weights: Weights) -> Product | None:
        """Rows times these weights; None where torch has to do it."""
        return Product(self.library, weights) if self.library is not None and self.reads(weights) else None

    def describe(self) -> str:
        """One line for a person."""
        return f"native ({self.reason})" if self.dtypes else f"torch's ({self.reason})"


NONE = Kernels(None, frozenset(), "not asked for")


@functools.cache
def kernels() -> Kernels:
    """Compile, load and try the kernels, once per process."""
    library, reason = build()
    if library is None:
        return Kernels(None, frozenset(), reason)
    library.danlu_linear.argtypes = (
        ctypes.c_void_p, ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_long, ctypes.c_int,
    )  # fmt: skip
    right = frozenset(dtype for dtype in WIDTHS if _probe(library, dtype))
    return Kernels(library, right, reason if right else "what was compiled gives wrong products")


def kernels_for(place: Device) -> Kernels:
    """The kernels where they are of use: on a CPU that computes in fp32."""
    if place.kind != "cpu" or place.compute_dtype != torch.float32:
        return NONE._replace(reason=f"{place.kind} computes in {str(place.compute_dtype).removeprefix('torch.')}")
    return kernels()


class Product:
    """Rows times one matrix.

    Args:
        library: the compiled kernels.
        weights: kept, and read at every call: change them in place only.

    Attributes:
        described: the same for native code; copy it to say where results go.
    """

    def __init__(self, library: ctypes.CDLL, weights: Weights) -> None:
        self._multiply = library.danlu_linear
        kept = (None if x is None else x.detach() for x in weights[1:])
        self._weights = Weights(weights.matrix.detach(), *kept)
        self.described = CProduct.of(self._weights)
        self._outputs, self._depth = weights.matrix.shape
        self._most = FEW if weights.matrix.dtype == torch.float32 else None

    def __call__(self, x: Tensor) -> Tensor:
        """(..., depth) fp32 -> (..., outputs).

        Raises:
            RuntimeError: this CPU has no kernel for the weights; the probe finds that out.
        """
        rows = x.numel() // self._depth
        if self._most is not None and rows > self._most:
            return F.linear(x, self._weights.matrix, self._weights.bias)
        x = x.contiguous()
        out = x.new_empty((*x.shape[:-1], self._outputs))
        product = CProduct.from_buffer_copy(self.described)  # another thread may be here at the same time
        product.out = out.data_ptr()
        threads = torch.get_num_threads()
        if self._multiply(x.data_ptr(), rows, self._depth, ctypes.byref(product), 1, threads):
            raise RuntimeError(f"no kernel for weights in {self._weights.matrix.dtype} on this CPU")
        return out


def speed_up(model: Decoder, by: Kernels) -> None:
    """Let every linear layer of a model multiply by the kernels.

    Args:
        model: computing in fp32 on a CPU, nobody's but the caller's: its weights may change in place only.
        by: the kernels.
    """
    for module in model.modules():
        if isinstance(module, Linear | QuantLinear):
            module.native = by.product(Weights.of(module))


def _probe(library: ctypes.CDLL, dtype: torch.dtype) -> bool:
    """Whether the kernels agree with torch on a shape without round numbers."""
    noise = torch.Generator().manual_seed(0)
    x, matrix, bias = (torch.randn(*shape, generator=noise) for shape in ((5, 77), (35, 77), (35,)))
    scale = None
    if dtype == torch.int8:
        matrix, scale = quantize_rows(matrix)
        right = quantized_linear(x, matrix, scale, bias)
    else:
        matrix = matrix.to(dtype)
        right = F.linear(x, matrix.float(), bias)
    try:
        found = Product(library, Weights(matrix, scale, bias))(x)
    except RuntimeError:
        return False
    return bool((found - right).abs().max() <= _CLOSE.get(dtype, 1e-5) * right.abs().max())
