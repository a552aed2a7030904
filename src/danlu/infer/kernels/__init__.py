"""Native kernels for decoding on CPUs: compiled by the machine they run on, tried before they are trusted.

In:  a model made ready for inference.
Out: the same model with products that read every weight once, in the width it is stored in.
Left out: training, prefill of long prompts in fp32, GPUs: torch's own kernels are as good or better there.
"""

from danlu.infer.kernels.products import NONE, Kernels, Product, kernels, speed_up

__all__ = ["NONE", "Kernels", "Product", "kernels", "speed_up"]
