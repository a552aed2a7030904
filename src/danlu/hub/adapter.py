"""Adapters on disk, as peft keeps them: ``adapter_config.json``, ``adapter_model.safetensors``, Hugging Face's names.

In:  a model with an adapter in it; or a directory that peft, or anything that writes its format, has made.
Out: the other of the two.
Left out: putting adapters into models (``lora``); adapters of other kinds than LoRA and DoRA; pickled ones.

Where a family keeps several of our layers in one (GPT-2: q, k and v), their adapters become one of the joint rank, with
a B that is zero outside of its blocks; the other way, each takes the whole A and its rows of B. The numbers are the
same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from danlu.errors import UserError, nearest
from danlu.files import atomic_directory, read_json, write_json
from danlu.hub.config import family_of
from danlu.hub.layout import CONV1D, FUSED_CONV1D
from danlu.hub.lora import LoRA, Parts, Size, fill, inject, parts_of, require_peft, shape_of, takes_adapter
from danlu.hub.rows import TABLES, rows_of, train_rows
from danlu.model import Decoder

CONFIG, TENSORS, BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"
_OUTER, _HEAD, _ROWS = "base_model.model.", "score.weight", ".token_adapter.trainable_tokens_delta"
_ENDS = {"a": ".lora_A.weight", "b": ".lora_B.weight", "m": ".lora_magnitude_vector"}
# What changes the numbers and is not computed here, with what it says when it is off.
_REFUSED = {
    "bias": "none", "lora_bias": False, "use_qalora": False, "alora_invocation_tokens": None, "arrow_config": None,
    "use_bdlora": None, "monteclora_config": None, "kasa_config": None, "layer_replication": None,
    "target_parameters": None,
}  # fmt: skip
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")


class Place(NamedTuple):
    """A linear layer of a Hugging Face model: our layers that it holds, and whether it is stored as (in, out)."""

    ours: tuple[str, ...]
    turned: bool


def write_adapter(model: Decoder, folder: Path, base: Path, identity: Mapping[str, Any]) -> None:
    """Write the adapter in a model, replacing what was there once everything is written.

    Args:
        model: with an adapter, and with a scalar head that was trained with it, if it has one.
        folder: where to.
        base: directory of the model under the adapter, which peft then loads by itself.
        identity: what the base is, for those who have to know that it is theirs (``base.json``).
    """
    lora, parts, tensors, sizes = shape_of(model), parts_of(model), dict[str, Tensor](), dict[str, Size]()
    turned = False
    for theirs, place in _places(model).items():
        if any(name in parts for name in place.ours):
            sizes[theirs], joint = _joined(model, place.ours, parts, lora)
            turned = turned or place.turned
            for part, tensor in joint._asdict().items():
                if tensor is not None:
                    tensors[_OUTER + theirs + _ENDS[part]] = tensor
    if model.head_kind == "scalar":
        tensors[_OUTER + _HEAD] = model.score.weight
    theirs_of, indices = {ours: theirs for theirs, ours in _tables(model).items()}, dict[str, list[int]]()
    for table, ids, rows in rows_of(model):
        tensors[_OUTER + theirs_of[table] + _ROWS] = rows
        indices[theirs_of[table].rpartition(".")[2]] = ids
    with atomic_directory(folder) as beside:
        save_file({k: t.detach().cpu().float().contiguous() for k, t in tensors.items()}, beside / TENSORS)
        write_json(beside / CONFIG, _config(model, lora, sizes, base, turned, indices))
        write_json(beside / BASE, dict(identity))


def read_identity(folder: Path) -> dict[str, Any]:
    """What ``write_adapter`` was told of the base; nothing if something else wrote the directory."""
    return dict(read_json(folder / BASE)) if (folder / BASE).is_file() else {}


def check_base(folder: Path, base: str) -> None:
    """Refuse a model that an adapter of ours was not trained on; of others nobody knows.

    Args:
        folder: the adapter.
        base: hash of the model that it is to go into.

    Raises:
        UserError: naming the model that it belongs to.
    """
    if (known := read_identity(folder).get("model")) and known != base:
        place = read_json(folder / CONFIG).get("base_model_name_or_path")
        raise UserError(f"{folder} was trained on another model; name {place}")


def with_adapter(model: Decoder, folder: Path) -> Decoder:
    """Put an adapter from disk into a model, in place, and return it; everything else is frozen then.

    Args:
        model: the base. If it has a scalar head, that is the adapter's, if the adapter has one.
        folder: in peft's format.

    Raises:
        UserError: it is no adapter that danlu computes, or one of another model; names what does not fit.
    """
    require_peft()
    if model.config.quantization != "none":
        raise UserError("the model is compressed, and an adapter belongs to what it was before; name that one")
    config, tensors = _read(folder)
    places, dora = _places(model), bool(config.get("use_dora"))
    layers: dict[str, Size] = {}
    parts: dict[str, Parts] = {}
    for theirs in dict.fromkeys(name.partition(".lora_")[0] for name in tensors if ".lora_" in name):
        if theirs not in places:
            raise UserError(f"{folder / TENSORS} adapts '{theirs}', where this model can have no adapter"
                            f"{nearest(theirs, places)}")  # fmt: skip
        for name, part in _split(folder, theirs, places[theirs].ours, tensors, model).items():
            if (part.m is None) is dora:
                raise UserError(f"{folder}: use_dora is {dora}, and what is kept of '{theirs}' says no; fetch it again")
            parts[name] = part
            layers[name] = Size(len(part.a), _scaling(config, theirs, len(part.a)) * len(part.a))
    if _HEAD in tensors and model.head_kind != "scalar":
        raise UserError(f"{folder} is a reward model's, and this model writes; the merged one lies beside it in model/")
    rows = _rows(folder, config, tensors, model)
    unused = [name for name in tensors if ".lora_" not in name and name != _HEAD and not name.endswith(_ROWS)]
    if unused or not layers:
        what = f"'{unused[0]}'" if unused else "nothing"
        raise UserError(f"{folder / TENSORS} holds {what}, and only LoRA and DoRA of linear layers are known here")
    inject(model, LoRA(layers, dora), seed=0)
    fill(model, parts)
    for table, (ids, values) in rows.items():
        train_rows(model, ids, [table], values)
    if model.head_kind == "scalar" and _HEAD in tensors:
        with torch.no_grad():
            model.score.weight.copy_(tensors[_HEAD])
    return model


def _places(model: Decoder) -> dict[str, Place]:
    """Hugging Face's name of every matrix of the blocks that an adapter can stand beside, and where it is here."""
    able = {name for name, module in model.blocks.named_modules(prefix="blocks") if takes_adapter(module)}
    found = {}
    for entry in family_of(model.config).entries(model.config):
        ours = tuple(name.removesuffix(".weight") for name in entry.ours)
        if len(entry.theirs) == 1 and able.issuperset(ours):
            theirs = entry.theirs[0].removesuffix(".weight")
            if theirs != entry.theirs[0]:
                found[theirs] = Place(ours, entry.layout in (CONV1D, FUSED_CONV1D))
    return found


def _tables(model: Decoder) -> dict[str, str]:
    """Hugging Face's name of the embedding, and of the head if it is another table; and ours."""
    entries = (e for e in family_of(model.config).entries(model.config) if len(e.ours) == len(e.theirs) == 1)
    ours = {f"{name}.weight": name for name in TABLES if hasattr(model, name)}
    return {e.theirs[0].removesuffix(".weight"): ours[e.ours[0]] for e in entries if e.ours[0] in ours}


def _rows(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], model: Decoder
) -> dict[str, tuple[list[int], Tensor]]:
    """Which rows of which of our tables an adapter replaces, and by what.

    Raises:
        UserError: it does not say which, or the model has no such rows.
    """
    indices, tables = config.get("trainable_token_indices") or {}, _tables(model)
    if isinstance(indices, list):  # of the embedding alone, whatever that is called
        indices = {theirs.rpartition(".")[2]: indices for theirs, ours in tables.items() if ours == TABLES[0]}
    found = {}
    for name in (name.removesuffix(_ROWS) for name in tensors if name.endswith(_ROWS)):
        ids, rows = indices.get(name.rpartition(".")[2], []), tensors[name + _ROWS]
        fits = name in tables and rows.shape == (len(ids), model.config.d_model)
        if not fits or not 0 <= min(ids, default=-1) <= max(ids) < model.config.vocab_size:
            raise UserError(f"{folder / TENSORS} replaces rows of '{name}' which this model does not have; it belongs "
                            "to another model")  # fmt: skip
        found[tables[name]] = list(ids), rows
    if any(indices.values()) and not found:
        raise UserError(f"{folder} is to replace rows of tables and {TENSORS} holds none; it is not whole")
    return found


def _joined(model: Decoder, names: Sequence[str], parts: Mapping[str, Parts], lora: LoRA) -> tuple[Size, Parts]:
    """The adapters of some layers of ours as one of the layer that holds them all."""
    if len(names) == 1:
        return lora.layers[names[0]], parts[names[0]]
    present = [name for name in names if name in parts]
    scale = lora.layers[present[0]].alpha / lora.layers[present[0]].rank
    rank = sum(lora.layers[name].rank for name in present)
    rows, lengths, left = [], [], 0
    for name in names:
        layer: Any = model.get_submodule(name)
        block = torch.zeros(layer.out_features, rank, device=parts[present[0]].b.device)
        if name in parts:
            size = lora.layers[name]
            block[:, left : left + size.rank] = parts[name].b.detach() * (size.alpha / size.rank / scale)
            left += size.rank
        rows.append(block)
        if lora.dora:
            learnt = parts[name].m if name in parts else torch.linalg.norm(layer.dense(torch.float32), dim=1)
            lengths.append(learnt)
    m = torch.cat([length for length in lengths if length is not None]) if lora.dora else None
    return Size(rank, scale * rank), Parts(torch.cat([parts[name].a for name in present]), torch.cat(rows), m)


def _config(
    model: Decoder, lora: LoRA, sizes: Mapping[str, Size], base: Path, turned: bool, rows: Mapping[str, list[int]]
) -> dict[str, Any]:  # fmt: skip
    """adapter_config.json, by peft; sets in order, so that equal adapters are equal files."""
    from peft import LoraConfig

    first = next(iter(sizes.values()))
    scalar = model.head_kind == "scalar"
    config = LoraConfig(
        task_type="SEQ_CLS" if scalar else "CAUSAL_LM", base_model_name_or_path=str(Path(base).resolve()),
        r=first.rank, lora_alpha=_whole(first.alpha), lora_dropout=lora.dropout,  # type: ignore[arg-type]
        use_dora=lora.dora, inference_mode=True,
        target_modules=sorted({name.rpartition(".")[2] for name in sizes}), fan_in_fan_out=turned,
        rank_pattern={name: size.rank for name, size in sizes.items() if size.rank != first.rank},
        alpha_pattern={name: _whole(size.alpha) for name, size in sizes.items() if size.alpha != first.alpha},
        modules_to_save=["score"] if scalar else None, trainable_token_indices=dict(rows) or None,
    )  # fmt: skip
    said: dict[str, Any] = config.to_dict()  # type: ignore[no-untyped-call]
    return {key: sorted(value) if isinstance(value, set) else value for key, value in said.items()}


def _whole(alpha: float) -> float:
    """The same number, an integer if it is one: some readers of the format know no other."""
    return int(alpha) if float(alpha).is_integer() else alpha


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration, refused if it asks for what is not computed here; and the tensors, without peft's prefix."""
    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            raise UserError(f"no {name} in {folder}; an adapter in peft's format has one")
    config = dict(read_json(folder / CONFIG))
    if config.get("peft_type") != "LORA":
        raise UserError(f"{folder / CONFIG}: peft_type is '{config.get('peft_type')}' and only LORA is known here")
    for key, off in _REFUSED.items():
        if config.get(key, off) not in (off, None, False):
            raise UserError(f"{folder / CONFIG}: {key} is '{config[key]}' and only {off!r} is known here")
    began = str(config.get("init_lora_weights"))
    if began.startswith(_CHANGES_BASE):
        raise UserError(f"{folder / CONFIG}: init_lora_weights '{began}' changes the base model; save it as plain LoRA")
    try:
        tensors = load_file(folder / TENSORS)
    except SafetensorError as error:
        raise UserError(f"{folder / TENSORS} is not a whole safetensors file ({error}); fetch it again") from None
    return config, {name.removeprefix(_OUTER): tensor for name, tensor in tensors.items()}


def _split(
    folder: Path, theirs: str, ours: Sequence[str], tensors: Mapping[str, Tensor], model: Decoder
) -> dict[str, Parts]:
    """What the adapter of one of their layers is for each of our layers in it.

    Raises:
        UserError: a tensor is missing, or has another shape than the model wants.
    """
    layers: list[Any] = [model.get_submodule(name) for name in ours]
    heights, width = [layer.out_features for layer in layers], layers[0].in_features
    a, b = (tensors.get(theirs + _ENDS[part]) for part in "ab")
    if a is None or b is None:
        raise UserError(f"{folder / TENSORS} lacks half of the adapter of '{theirs}'; fetch it again")
    m = tensors.get(theirs + _ENDS["m"], tensors.get(theirs + _ENDS["m"] + ".weight"))
    thin = a.ndim == b.ndim == 2 and len(a) > 0 and a.shape[1] == width and b.shape == (sum(heights), len(a))
    if not thin or (m is not None and m.numel() != sum(heights)):
        found = f"{tuple(b.shape)} times {tuple(a.shape)}"
        raise UserError(f"{folder / TENSORS}: the adapter of '{theirs}' is {found} and the model's layer is "
                        f"{(sum(heights), width)}; it belongs to another model")  # fmt: skip
    lengths: Sequence[Tensor | None] = [None] * len(ours) if m is None else torch.split(m.flatten(), heights)
    rows = torch.split(b, heights)
    return {name: Parts(a, block, length) for name, block, length in zip(ours, rows, lengths, strict=True)}


def _scaling(config: Mapping[str, Any], name: str, rank: int) -> float:
    """What an adapter's product is multiplied by; patterns are the ends of names, as peft reads them."""
    patterns = config.get("alpha_pattern") or {}
    alpha = next((v for key, v in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), config.get("lora_alpha", 8))
    alpha = 8 if alpha is None else alpha  # peft's default
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
