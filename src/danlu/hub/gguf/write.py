"""A model as a GGUF file that llama.cpp runs.

In:  a model's parameters, its tokenizer, how its matrices shall be stored.
Out: one file.
Left out: reward models; K-quants and importance matrices.

Vectors and routers stay in float32, as llama.cpp wants them. With Q4_0 the table of tokens and the head get 8 bits: a
third of a small model's weight is there, and four bits hurt it more than anything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from torch import Tensor

from danlu.errors import UserError, unknown
from danlu.files import free_space
from danlu.hub.gguf.architectures import architecture_of
from danlu.hub.gguf.positions import FREQUENCIES, divisors
from danlu.hub.gguf.vocabulary import tokenizer_keys
from danlu.hub.state import theirs
from danlu.model import Decoder
from danlu.tokens.tokenizer import Tokenizer

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0")
_FILE_TYPES = {"F32": "ALL_F32"}  # the others are MOSTLY_ themselves
_TABLES = ("token_embd.weight", "output.weight")
_EXACT = ("ffn_gate_inp", "position_embd", "exp_probs_b", "rope_freqs")


def write_gguf(
    model: Decoder, state: Mapping[str, Tensor], tokenizer: Tokenizer, out: Path, kind: str, name: str
) -> None:
    """Write one file.

    Args:
        model: says the shape; may be without memory.
        state: its parameters, dense.
        tokenizer: the model's.
        out: the file.
        kind: of the matrices, one of ``TYPES``.
        name: what the model is called.

    Raises:
        UserError: a reward model, a shape or a tokenizer that llama.cpp does not have, or an unknown kind.
    """
    if kind not in TYPES:
        raise unknown("GGUF type", kind, TYPES)
    if model.head_kind != "lm":
        raise UserError("llama.cpp has no head for a reward model; export it as hf")
    config = model.config
    architecture = architecture_of(config)
    keys = {**architecture.metadata(config), **tokenizer_keys(tokenizer, config.vocab_size)}
    entries = [entry for entry in architecture.entries(config, ()) if entry.ours[0] in state]
    free_space(out.parent, sum(tensor.numel() for tensor in model.state_dict().values()) * 4)
    out.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(out, architecture.name)
    _write_keys(writer, keys, kind, name)
    extra = divisors(config)
    if extra is not None:
        writer.add_tensor(FREQUENCIES, extra.numpy())
    for tensor_name, tensor in theirs(state, entries):
        values, raw = _stored(tensor_name, tensor, kind)
        writer.add_tensor(tensor_name, values, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_keys(writer: gguf.GGUFWriter, keys: Mapping[str, Any], kind: str, name: str) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES.get(kind, f"MOSTLY_{kind}")])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in keys.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)


def _stored(name: str, tensor: Tensor, kind: str) -> tuple[np.ndarray[Any, Any], gguf.GGMLQuantizationType]:
    """A tensor's bytes and how they are to be read."""
    chosen = gguf.GGMLQuantizationType[_kind_of(name, tensor, kind)]
    return gguf.quants.quantize(tensor.float().numpy(), chosen), chosen


def _kind_of(name: str, tensor: Tensor, kind: str) -> str:
    if tensor.ndim == 1 or any(part in name for part in _EXACT):
        return "F32"
    block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    if tensor.shape[-1] % block:
        return "F16"
    return "Q8_0" if kind == "Q4_0" and name in _TABLES else kind
