"""The models: one decoder for the whole family, GPT-1 to DeepSeek-V3, an encoder, and the losses that read them.

In:  a ``ModelConfig`` and token ids.
Out: ``Decoder`` (hidden states, logits or values), ``Encoder``, caches, chunked losses, presets, counts.
Left out: optimizers, files, collectives, family names on disk (``hub``); this room imports torch and nothing else.
"""

from danlu.model.cache import Cache, KVCache, LatentCache
from danlu.model.config import ModelConfig
from danlu.model.count import Parameters, flops_per_token, kv_bytes, parameters
from danlu.model.decoder import Decoder, Hidden, initialise
from danlu.model.encoder import ENCODER_HEADS, Encoder, build
from danlu.model.frozen import FrozenLinear
from danlu.model.linear import Linear
from danlu.model.losses import linear_cross_entropy, linear_logprobs, linear_logprobs_entropy
from danlu.model.presets import PRESETS, preset
from danlu.model.quantized import QuantLinear, quantized_linear

__all__ = [
    "ENCODER_HEADS",
    "PRESETS",
    "Cache",
    "Decoder",
    "Encoder",
    "FrozenLinear",
    "Hidden",
    "KVCache",
    "LatentCache",
    "Linear",
    "ModelConfig",
    "Parameters",
    "QuantLinear",
    "build",
    "flops_per_token",
    "initialise",
    "kv_bytes",
    "linear_cross_entropy",
    "linear_logprobs",
    "linear_logprobs_entropy",
    "parameters",
    "preset",
    "quantized_linear",
]
