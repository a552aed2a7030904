"""llama.cpp's architectures as tables: what it calls a shape's numbers, and how it names and lays out weights.

In:  a ``ModelConfig``, or the metadata of a GGUF file and the names of its tensors.
Out: ``ARCHITECTURES``, and the one of them that a shape or a file belongs to.
Left out: files and numbers (``tensors``, ``write``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from danlu.errors import UserError, unknown
from danlu.hub.config import family_of
from danlu.hub.gguf.architectures.architecture import Architecture, Metadata
from danlu.hub.gguf.architectures.heads import GPT2, LLAMA, QWEN2, QWEN3, QWEN3MOE
from danlu.hub.gguf.architectures.latent import DEEPSEEK2
from danlu.hub.gguf.positions import FREQUENCIES, refuse_scaling
from danlu.model.config import ModelConfig

ARCHITECTURES = {found.name: found for found in (GPT2, LLAMA, QWEN2, QWEN3, QWEN3MOE, DEEPSEEK2)}
IGNORED = (FREQUENCIES,)  # read by ``positions``


def architecture_of(config: ModelConfig) -> Architecture:
    """The architecture that stores this shape.

    Raises:
        UserError: llama.cpp has none, saying why.
    """
    family = family_of(config).model_type
    found = next((a for a in ARCHITECTURES.values() if family in a.families), None)
    if found is None:
        raise UserError(f"llama.cpp is not known here to run '{family}'; export it as hf")
    reason = "window" if config.window else refuse_scaling(config) or found.refuse(config)
    if reason:
        raise UserError(f"llama.cpp's architecture '{found.name}' has no {reason}; export the model as hf")
    return found


def read_architecture(values: Mapping[str, Any], tensors: Collection[str]) -> tuple[Architecture, Metadata]:
    """The architecture that a file names.

    Raises:
        UserError: it is not known here, naming the nearest.
    """
    name = str(values.get("general.architecture"))
    if name not in ARCHITECTURES:
        raise unknown("architecture", name, ARCHITECTURES, "general.architecture")
    return ARCHITECTURES[name], Metadata(values, tensors, name)
