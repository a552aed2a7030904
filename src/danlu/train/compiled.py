"""Blocks and the last norm compiled: their small operations become few kernels, made once for all of one shape.

In:  a model on its device, what the settings say, how many steps there are.
Out: the same model, its parts compiled in place; names and weights are untouched, and copies are not compiled.
Left out: embeddings; the head, whose loss ``model.losses`` fuses; inference.
"""

from __future__ import annotations

import torch

from danlu.hub.lora import adapted, shape_of
from danlu.model.decoder import Decoder
from danlu.model.fused import compiles
from danlu.train.task import LoopSettings

# Parameters times steps: compiling takes the better part of a minute. Of 1.4M and 480 steps on an H100 it was most of
# what training took; 124M win it back in a hundred.
WORTHWHILE = 10**10
_VARIANTS = 64  # kernels per block for lengths, rows, with gradient or without, before torch gives up


def compile_blocks(model: Decoder, settings: LoopSettings, kind: str) -> str:
    """Compile the blocks of ``model`` if ``settings.compile`` says so.

    Args:
        model: where it will be trained.
        settings: of the loop.
        kind: of its device, "cpu" or "cuda".

    Returns:
        What was done and why, in one phrase for the log.
    """
    if settings.compile == "no":
        return "not compiled (asked for)"
    if settings.compile == "auto" and not compiles(kind):
        return "not compiled (there is no GPU with Triton)"
    if settings.compile == "auto" and settings.steps * sum(p.numel() for p in model.parameters()) < WORTHWHILE:
        return "not compiled (too small a model for so few steps)"
    if adapted(model) and shape_of(model).dora:
        return "not compiled (peft's DoRA breaks graphs)"
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _VARIANTS)
    for part in (*model.blocks, *(depth.block for depth in getattr(model, "mtp", ())), model.norm):
        part.compile(fullgraph=True)
    return "compiled"
