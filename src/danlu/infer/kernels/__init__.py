"""Native kernels for decoding on CPUs: compiled by the machine they run on, tried before they are trusted.

In:  a model made ready for inference.
Out: the same model, reading every weight once and in the width it is stored in; decoding steps in one call.
Left out: training, GPUs, prefill in fp32: torch's own kernels are as good or better there.
"""

from danlu.infer.kernels.products import NONE, Kernels, Product, Weights, kernels, speed_up
from danlu.infer.kernels.step import StepForward

__all__ = ["NONE", "Kernels", "Product", "StepForward", "Weights", "kernels", "speed_up"]
