"""The model directory, one of the five records: written whole or not at all, read without running anything in it.

In:  a ``Decoder`` and a ``Tokenizer``, or a Hugging Face directory of GPT-2, Llama or DeepSeek-V3.
Out: the other of the two.
Left out: GGUF, downloads, FP8 weights, multi-token prediction layers.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from danlu.errors import UserError
from danlu.files import atomic_directory, atomic_write, free_space, hash_paths, read_json, write_json
from danlu.hub.card import model_card
from danlu.hub.config import family_of, from_hf, hf_config, quantization_format
from danlu.hub.families import Family
from danlu.hub.layout import PACKED_INT8, PLAIN_INT8, SAME, Entry
from danlu.hub.weights import WEIGHTS, TensorFiles, weight_files
from danlu.model import Decoder, ModelConfig
from danlu.tokens.tokenizer import Tokenizer

CONFIG, GENERATION, CARD = "config.json", "generation_config.json", "README.md"
# What belongs to a model besides its weights; anything else in its directory is its owner's and is not handed on.
_MODEL_FILES = (
    CONFIG, GENERATION, CARD, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "reward.json", "LICENSE*", "NOTICE*",
)  # fmt: skip
_PACKED = "pack-quantized"
_TIED = "lm_head.weight"


def load(path: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Decoder:
    """Read a model: ours or anybody's GPT-2, Llama or DeepSeek-V3, language model or reward model, plain or INT8.

    Args:
        path: the directory.
        dtype: of the parameters in memory; INT8 weights, their scales and the router's bias are what they are.
        device: where to put them.

    Raises:
        UserError: there is no model, its architecture is not known here, or a tensor is missing, superfluous or
            misshapen; names file and tensor.
    """
    path = Path(path)
    config, head, family, storage = _read_config(path)
    with torch.device("meta"):
        model = Decoder(config, head)
    model.load_state_dict(_read_state(model, family, storage, TensorFiles(path), dtype), assign=True)
    return model.to(device)


def read_config(path: Path) -> tuple[ModelConfig, str]:
    """Shape and head kind (``"lm"``, ``"scalar"``) of a model directory, without its weights.

    Raises:
        UserError: there is no model, or its architecture is not known here.
    """
    config, head, _, _ = _read_config(Path(path))
    return config, head


def load_pretrained(path: Path, dtype: torch.dtype = torch.float32) -> tuple[Decoder, Tokenizer]:
    """Read a model and its tokenizer.

    Raises:
        UserError: as ``load``; or the tokenizer is missing or knows ids that the model does not.
    """
    model, tokenizer = load(path, dtype), Tokenizer.load(Path(path))
    if tokenizer.vocab_size > model.config.vocab_size:
        ids = f"{tokenizer.vocab_size} ids and the model {model.config.vocab_size}"
        raise UserError(f"the tokenizer in {path} has {ids}; they do not belong together")
    return model, tokenizer


def save(model: Decoder, folder: Path, tokenizer: Tokenizer | None, *, card: Mapping[str, Any]) -> None:
    """Write a directory that ``load`` and transformers read, replacing what was there once everything is written.

    Args:
        model: its parameters are written in the dtype they have.
        folder: where to.
        tokenizer: the model's; without it nobody can tell padding from text, so a reward model needs it.
        card: provenance for README.md, in the order to be shown (see ``card.model_card``).

    Raises:
        UserError: the shape has no Hugging Face counterpart, naming the option; or the disk is too full for it.
    """
    config, head = model.config, model.head_kind
    family = family_of(config)
    tensors = _write_state(model, family)
    ids = {f"{role}_token_id": getattr(tokenizer, role, None) for role in ("bos", "eos", "pad")}
    dtype = str(model.embed.weight.dtype).removeprefix("torch.")
    n_parameters = sum(t.numel() for name, t in model.state_dict().items() if not name.endswith(".scale"))
    free_space(Path(folder), sum(tensor.nbytes for tensor in tensors.values()))
    with atomic_directory(Path(folder)) as beside:
        write_json(beside / CONFIG, {**hf_config(config, head), **ids, "dtype": dtype, "torch_dtype": dtype})
        write_json(beside / GENERATION, ids)
        save_file(tensors, beside / WEIGHTS, metadata={"format": "pt"})
        if tokenizer is not None:
            tokenizer.save(beside)
        with atomic_write(beside / CARD) as handle:
            handle.write(model_card(config, head, family, n_parameters, card))


def export_directory(source: Path, out: Path) -> None:
    """Copy a model, whole or not at all, after reading it once to be sure that it can be read.

    Only files that belong to a model are copied: configuration, weights, tokenizer, card and licence.

    Raises:
        UserError: there is no model in ``source``, ``out`` exists already, or the disk is too full for it.
    """
    source, out = Path(source), Path(out)
    if out.exists():
        raise UserError(f"{out} exists; name a directory that does not")
    load(source)
    free_space(out, sum(file.stat().st_size for file in source.rglob("*") if file.is_file()))
    with atomic_directory(out) as beside:
        for file in (*weight_files(source), *(f for name in _MODEL_FILES for f in source.glob(name) if f.is_file())):
            shutil.copyfile(file, beside / file.name)


def model_hash(folder: Path) -> str:
    """Identity of a model: its shape, its weights and its tokenizer, wherever the directory lies."""
    folder = Path(folder)
    weights = sorted(path.name for path in folder.glob("*.safetensors"))
    return hash_paths(folder, (CONFIG, "tokenizer.json", "tokenizer_config.json", *weights))


def _read_config(path: Path) -> tuple[ModelConfig, str, Family, str | None]:
    """Shape, head kind, family and storage of the linear layers."""
    if not (path / CONFIG).is_file():
        raise UserError(f"no {CONFIG} in {path}; a model directory in the Hugging Face layout has one")
    data = read_json(path / CONFIG)
    try:
        return *from_hf(data), quantization_format(data)
    except KeyError as error:
        raise UserError(f"{path / CONFIG}: key {error} is missing") from None
    except (UserError, ValueError, TypeError) as error:
        raise UserError(f"{path / CONFIG}: {error}") from None


def _entries(model: Decoder, family: Family, storage: str | None, trunk: str | None = None) -> Iterator[Entry]:
    """The entries of the tensors that this very model has, in the storage of its linear layers."""
    names = model.state_dict().keys()
    for entry in family.entries(model.config, trunk):
        if entry.ours[0] in names:
            scale = entry.ours[0].removesuffix(".weight") + ".scale"
            yield _int8(entry, scale, storage) if scale in names else entry


def _int8(entry: Entry, scale: str, storage: str | None) -> Entry:
    """A quantized weight's entry: integers and scales in the compressed-tensors spelling."""
    assert entry.layout is SAME, "only plain linear layers are quantized"
    ours, name = (entry.ours[0], scale), entry.theirs[0]
    if storage == _PACKED:
        return Entry(ours, (f"{name}_packed", f"{name}_scale", f"{name}_shape"), PACKED_INT8)
    return Entry(ours, (name, f"{name}_scale"), PLAIN_INT8)


def _read_state(
    model: Decoder, family: Family, storage: str | None, files: TensorFiles, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Our state dict from their files; every tensor accounted for."""
    wanted = model.state_dict()
    dtypes = {name: t.dtype for name, t in wanted.items()} | {name: dtype for name, _ in model.named_parameters()}
    alone = not any(name.startswith(family.trunk) for name in files.where)
    state: dict[str, Tensor] = {}
    unused = {name for name in files.where if not name.endswith(family.ignored)}
    for entry in _entries(model, family, storage, "" if alone else None):
        shapes = [part.shape for part in entry.layout.write([wanted[name] for name in entry.ours])]
        parts = [files.read(name, shape) for name, shape in zip(entry.theirs, shapes, strict=True)]
        for name, part in zip(entry.ours, entry.layout.read(parts), strict=True):
            state[name] = part.to(dtypes[name], memory_format=torch.contiguous_format, copy=True)
        unused -= set(entry.theirs)
    if _TIED in unused and model.config.tie_embeddings:
        tied = files.read(_TIED, state["embed.weight"].shape).to(dtype)
        unused -= {_TIED} if torch.equal(tied, state["embed.weight"]) else set()
    if unused:
        name = min(unused)
        raise UserError(f"tensor '{name}' in {files.where[name]} belongs to nothing that config.json describes")
    return state


def _write_state(model: Decoder, family: Family) -> dict[str, Tensor]:
    """Their tensors from our state dict."""
    state = model.state_dict()
    tensors: dict[str, Tensor] = {}
    for entry in _entries(model, family, _PACKED):
        parts = entry.layout.write([state.pop(name).cpu() for name in entry.ours])
        if entry.layout is not SAME:  # rearranged tensors may share memory, which the format refuses
            parts = [part.clone() for part in parts]
        tensors |= zip(entry.theirs, (part.contiguous() for part in parts), strict=True)
    assert not state, f"no name on disk for {min(state)}"
    return tensors
