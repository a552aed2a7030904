"""INT8 weights: one byte per weight of a linear layer and one scale per output channel.

In:  a model.
Out: the same model with ``QuantLinear`` for every linear layer of its blocks.
Left out: activations (they stay in the compute dtype), calibration (8 bits do not need it), embeddings, head, norms,
router and expert tensors (they stay as they are); layers for multi-token prediction, which answering does not need.
"""

from __future__ import annotations

from dataclasses import replace

from danlu.model.decoder import Decoder
from danlu.model.linear import Linear
from danlu.model.quantized import QuantLinear


def quantize(model: Decoder) -> Decoder:
    """A copy of ``model`` in which every linear layer of the blocks is rounded to 8 bits, symmetrically per channel.

    Each weight is off by at most half its channel's scale, which is the channel's largest weight over 127.
    """
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("mtp.")}
    for name, module in model.blocks.named_modules(prefix="blocks"):
        if isinstance(module, Linear):
            stored = QuantLinear.from_linear(module).state_dict(prefix=f"{name}.")
            state |= stored
    result = Decoder(replace(model.config, quantization="int8", n_mtp=0), model.head_kind)
    result.load_state_dict(state)
    return result.to(model.embed.weight.device).compute_in(model.compute_dtype)
