"""The model directory, one of the five records: written whole or not at all, read without running anything in it.

In:  a ``Decoder`` and a ``Tokenizer``, or a Hugging Face directory of a family in ``families``.
Out: the other of the two.
Left out: GGUF (``gguf``), downloads (``shelf``).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from danlu.errors import UserError
from danlu.files import atomic_directory, atomic_write, free_space, hash_paths, read_json, write_json
from danlu.hub.card import model_card
from danlu.hub.config import family_of, fp8_block, from_hf, hf_config, quantization_format, refuse_counts
from danlu.hub.families import Family
from danlu.hub.lora import merged
from danlu.hub.state import PACKED, LazyState, entries_of, theirs, without_memory
from danlu.hub.weights import TensorFiles, weight_files, write_weights
from danlu.model import Decoder, Encoder, ModelConfig
from danlu.tokens.tokenizer import Tokenizer

CONFIG, GENERATION, CARD = "config.json", "generation_config.json", "README.md"
# What belongs to a model besides its weights; anything else in its directory is its owner's and is not handed on.
_MODEL_FILES = (
    CONFIG, GENERATION, CARD, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "reward.json", "guard.json",
    "LICENSE*", "NOTICE*",
)  # fmt: skip


class Described(NamedTuple):
    """What a model directory's config.json says.

    Attributes:
        config: the shape.
        head: ``"lm"`` or ``"scalar"``; of an encoder ``"mlm"`` or ``"classes"``.
        family: the architecture.
        storage: of the linear layers, see ``config.quantization_format``.
        block: rows and columns that share a factor, if weights are in FP8.
    """

    config: ModelConfig
    head: str
    family: Family
    storage: str | None
    block: tuple[int, int] | None


def load(path: Path, dtype: torch.dtype | None = torch.float32, device: torch.device | str = "cpu") -> Decoder:
    """Read a model: ours or anybody's of a family in ``families``, language model or reward model, plain or INT8.

    Args:
        path: the directory.
        dtype: of the parameters in memory, as they are stored if None; INT8 weights, their scales and the router's
            bias are what they are.
        device: where to put them.

    Raises:
        UserError: there is no model, its architecture is not known here, or a tensor is missing, superfluous or
            misshapen; names file and tensor.
    """
    model = _load(Path(path), dtype)
    if not isinstance(model, Decoder):
        raise UserError(f"{path} is an encoder, which reads and cannot write; load it with danlu.hub.load_encoder")
    return model.to(device)


def load_encoder(path: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Encoder:
    """Read an encoder (BERT) with its head for masked tokens or for classes; otherwise as ``load``.

    Raises:
        UserError: as ``load``; or the directory holds a decoder.
    """
    model = _load(Path(path), dtype)
    if not isinstance(model, Encoder):
        raise UserError(f"{path} is a decoder; load it with danlu.hub.load")
    return model.to(device)


def _load(path: Path, dtype: torch.dtype | None) -> Decoder | Encoder:
    model, state = open_directory(path, dtype)
    model.load_state_dict(dict(state), assign=True)
    return model


def open_directory(path: Path, dtype: torch.dtype | None = None) -> tuple[Decoder | Encoder, LazyState]:
    """A model without memory, and its parameters, each read when it is asked for.

    Args:
        path: the directory.
        dtype: of the parameters; as they are stored if None.

    Raises:
        UserError: as ``load``; tensors that are missing or misshapen are found when they are read.
    """
    said = _read_config(path)
    files = TensorFiles(path, said.block)
    said = _as_stored(said, files)
    model = without_memory(said.config, said.head, files, path / CONFIG)
    alone = not any(name.startswith(said.family.trunk) for name in files.where)
    entries = list(entries_of(model, said.family, said.storage, "" if alone else None))
    state = LazyState(model, entries, files, dtype or files.dtype(entries[0].theirs[0]))
    ignored = said.family.superfluous(said.config, files.where)
    tied = said.family.tied
    if said.config.tie_embeddings and tied in files.where:
        same = torch.equal(files.read(tied).float(), state["embed.weight"].float())
        ignored += [tied] if same else []
    state.refuse_rest(ignored)
    return model, state


def read_config(path: Path) -> tuple[ModelConfig, str]:
    """Shape and head kind (``"lm"``, ``"scalar"``, ``"mlm"``, ``"classes"``) of a model directory, without its weights.

    Raises:
        UserError: there is no model, or its architecture is not known here.
    """
    said = _read_config(Path(path))
    if said.config.n_mtp:
        said = _as_stored(said, TensorFiles(Path(path), said.block))
    return said.config, said.head


def load_pretrained(path: Path, dtype: torch.dtype | None = torch.float32) -> tuple[Decoder, Tokenizer]:
    """Read a model and its tokenizer.

    Raises:
        UserError: as ``load``; or the tokenizer is missing or knows ids that the model does not.
    """
    model, tokenizer = load(path, dtype), Tokenizer.load(Path(path))
    if tokenizer.vocab_size > model.config.vocab_size:
        ids = f"{tokenizer.vocab_size} ids and the model {model.config.vocab_size}"
        raise UserError(f"the tokenizer in {path} has {ids}; they do not belong together")
    return model, tokenizer


def save(model: Decoder | Encoder, folder: Path, tokenizer: Tokenizer | None, *, card: Mapping[str, Any]) -> None:
    """Write a directory that ``load`` and transformers read, replacing what was there once everything is written.

    Args:
        model: its parameters are written in the dtype they have; one with an adapter is merged first, in fp32.
        folder: where to.
        tokenizer: the model's; without it nobody can tell padding from text, so a reward model needs it.
        card: provenance for README.md, in the order to be shown (see ``card.model_card``).

    Raises:
        UserError: the shape has no Hugging Face counterpart, naming the option; or the disk is too full for it.
    """
    model = merged(model) if isinstance(model, Decoder) else model
    write_directory(model, model.state_dict(), model.embed.weight.dtype, folder, tokenizer, card=card)


def write_directory(
    model: Decoder | Encoder, state: Mapping[str, Tensor], dtype: torch.dtype, folder: Path,
    tokenizer: Tokenizer | None, *, card: Mapping[str, Any], also: Iterable[Path] = (),
) -> None:  # fmt: skip
    """``save`` for parameters that may still lie elsewhere and are read one after another.

    Args:
        model: says the shape; may be without memory.
        state: its parameters.
        dtype: of the parameters.
        folder: as for ``save``, like the rest.
        tokenizer: the model's.
        card: provenance.
        also: files to put beside the others.
    """
    config, head = model.config, model.head_kind
    family = family_of(config)
    ids = {f"{role}_token_id": getattr(tokenizer, role, None) for role in ("bos", "eos", "pad")}
    named = str(dtype).removeprefix("torch.")
    sizes = {name: tensor.numel() for name, tensor in model.state_dict().items() if not name.endswith(".scale")}
    n_parameters = sum(sizes.values())
    width = 1 if config.quantization == "int8" else dtype.itemsize
    free_space(Path(folder), n_parameters * width)
    with atomic_directory(Path(folder)) as beside:
        write_json(beside / CONFIG, {**hf_config(config, head), **ids, "dtype": named, "torch_dtype": named})
        write_json(beside / GENERATION, ids)
        write_weights(beside, theirs(state, entries_of(model, family, PACKED)))
        if tokenizer is not None:
            tokenizer.save(beside)
        with atomic_write(beside / CARD) as handle:
            handle.write(model_card(config, head, family, n_parameters, card))
        for file in also:
            shutil.copyfile(file, beside / file.name)


def export_directory(source: Path, out: Path) -> None:
    """Copy a model, whole or not at all, after reading it once to be sure that it can be read.

    Only files that belong to a model are copied: configuration, weights, tokenizer, card and licence.

    Raises:
        UserError: there is no model in ``source``, ``out`` exists already, or the disk is too full for it.
    """
    source, out = Path(source), Path(out)
    if out.exists():
        raise UserError(f"{out} exists; name a directory that does not")
    for _ in open_directory(source)[1].values():  # one after another: every tensor is there and belongs
        pass
    free_space(out, sum(file.stat().st_size for file in source.rglob("*") if file.is_file()))
    with atomic_directory(out) as beside:
        for file in (*weight_files(source), *(f for name in _MODEL_FILES for f in source.glob(name) if f.is_file())):
            shutil.copyfile(file, beside / file.name)


def model_hash(folder: Path) -> str:
    """Identity of a model: its shape, its weights and its tokenizer, wherever the directory lies."""
    folder = Path(folder)
    weights = sorted(path.name for path in folder.glob("*.safetensors"))
    return hash_paths(folder, (CONFIG, "tokenizer.json", "tokenizer_config.json", *weights))


def _as_stored(said: Described, files: TensorFiles) -> Described:
    """What was said, without layers for multi-token prediction that transformers counts and leaves out of the files."""
    first = said.family.layers.format(i=said.config.n_layers)
    if any(f"{first}eh_proj" in name for name in files.where):
        return said
    return said._replace(config=replace(said.config, n_mtp=0))


def _read_config(path: Path) -> Described:
    if not (path / CONFIG).is_file():
        raise UserError(f"no {CONFIG} in {path}; a model directory in the Hugging Face layout has one")
    try:
        data = read_json(path / CONFIG)
        if not isinstance(data, dict):
            raise ValueError("it holds no object")
        refuse_counts(data)
        return Described(*from_hf(data), quantization_format(data), fp8_block(data))
    except KeyError as error:
        raise UserError(f"{path / CONFIG}: key {error} is missing") from None
    except RecursionError:
        raise UserError(f"{path / CONFIG} is nested deeper than any configuration") from None
    except (UserError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{path / CONFIG}: {error}") from None
