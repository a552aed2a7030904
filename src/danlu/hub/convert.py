"""From one format to another: any model that danlu can read to a directory of ours, or to a GGUF file.

In:  a Hugging Face directory or a GGUF file.
Out: a model directory, or a GGUF file.
Left out: where models come from (``shelf``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from danlu.errors import UserError, unknown
from danlu.files import atomic_write
from danlu.hub.adapter import check_base, with_adapter
from danlu.hub.directory import load_pretrained, model_hash, open_directory, write_directory
from danlu.hub.lora import merged
from danlu.tokens.tokenizer import Tokenizer

_KEPT = ("reward.json", "LICENSE*", "NOTICE*")  # files that belong to a model and are not written anew
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def import_model(source: Path, out: Path, dtype: str | None = None) -> None:
    """Write a model as danlu writes them: its names, blocks and FP8 multiplied out, one dtype, a tokenizer understood.

    Tensors are read and written one after another; not more than one file of 5 GB is in memory.

    Args:
        source: a Hugging Face directory, or a GGUF file.
        out: a directory that does not exist yet.
        dtype: name of a dtype; as stored if None, and float16 for weights in blocks.

    Raises:
        UserError: ``out`` exists, or the model cannot be read; nothing is left of it then.
    """
    if out.exists():
        raise UserError(f"{out} exists; name a directory that does not")
    if dtype is not None and dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    wanted = DTYPES[dtype] if dtype else None
    if source.is_dir():
        model, state = open_directory(source, wanted)
        tokenizer, facts = Tokenizer.load(source), {"title": out.name, "imported from": source.name}
        also = [file for pattern in _KEPT for file in source.glob(pattern)]
        write_directory(model, state, state.dtype, out, tokenizer, card=facts, also=also)
        return
    from danlu.hub.gguf import open_gguf  # the package gguf takes a moment to import

    opened = open_gguf(source, wanted)
    write_directory(opened.model, opened.state, opened.state.dtype, out, opened.tokenizer, card=opened.facts)


def export_merged(source: Path, adapter: Path, out: Path) -> None:
    """Write a model with an adapter merged into it, in the dtype that the model is stored in.

    Args:
        source: directory of the base.
        adapter: a LoRA or DoRA adapter in peft's format.
        out: a directory that does not exist yet.

    Raises:
        UserError: ``out`` exists, or the adapter is not one of this model that danlu computes.
    """
    if out.exists():
        raise UserError(f"{out} exists; name a directory that does not")
    check_base(adapter, model_hash(source))
    model, tokenizer = load_pretrained(source, dtype=None)
    dtype = model.embed.weight.dtype
    plain = merged(with_adapter(model, adapter)).to(dtype)
    facts = {"title": out.name, "base": source.resolve().name, "adapter": adapter.resolve().name}
    also = [file for pattern in _KEPT for file in source.glob(pattern)]
    write_directory(plain, plain.state_dict(), dtype, out, tokenizer, card=facts, also=also)


def export_gguf(source: Path, out: Path, kind: str, adapter: Path | None = None) -> None:
    """Write a language model's directory as a GGUF file.

    Args:
        source: the directory.
        out: a file that does not exist yet.
        kind: of its matrices, one of ``gguf.TYPES``.
        adapter: a LoRA or DoRA adapter in peft's format that is merged first.

    Raises:
        UserError: ``out`` exists, or llama.cpp could not run the model; names what it lacks.
    """
    from danlu.hub.gguf import write_gguf

    if out.exists():
        raise UserError(f"{out} exists; name a file that does not")
    if adapter is not None:
        check_base(adapter, model_hash(source))
    model, tokenizer = load_pretrained(source)
    model = merged(with_adapter(model, adapter)) if adapter is not None else model
    with atomic_write(out, "wb") as handle:
        write_gguf(model, dict(_dense(model.state_dict())), tokenizer, Path(handle.name), kind, source.resolve().name)


def _dense(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Parameters with the scales of 8-bit weights multiplied out, without layers that only foresee."""
    for name, tensor in state.items():
        if name.startswith("mtp."):
            continue
        scale = state.get(name.removesuffix(".weight") + ".scale")
        if scale is not None and tensor.dtype == torch.int8:
            yield name, tensor.float() * scale[:, None]
        elif not name.endswith(".scale"):
            yield name, tensor
