"""config.json both ways: a ``ModelConfig`` and a head kind in, Hugging Face's keys out, and back.

In:  a configuration, or the JSON of a config.json.
Out: the other one; a shape that no Hugging Face architecture has is refused, naming the option.
Left out: tokens' ids (``directory`` adds them from the tokenizer).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.errors import UserError, unknown
from danlu.hub.families import FAMILIES, Family
from danlu.model.config import ModelConfig

HEADS = ("lm", "scalar", "mlm", "classes")
_INT8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True, "dynamic": False}
_INT8_FORMATS = ("pack-quantized", "int-quantized")
_COUNTS = (
    "num_hidden_layers", "n_layer", "num_experts", "num_local_experts", "n_routed_experts", "num_nextn_predict_layers",
    "num_mtp_layers", "max_window_layers", "first_k_dense_replace",
)  # fmt: skip
_MOST = 100_000  # layers or experts
_OWN = "danlu"  # the block of config.json for what only training needs to know and no Hugging Face key says


def family_of(config: ModelConfig) -> Family:
    """The architecture that has this shape.

    Raises:
        UserError: there is none; names the options that keep it out of the nearest one.
    """
    misfits = {name: family.misfits(config) for name, family in FAMILIES.items()}
    nearest = min(FAMILIES, key=lambda name: (len(FAMILIES[name].clashes(config)), len(misfits[name])))
    if misfits[nearest]:
        raise UserError(
            f"no Hugging Face architecture has this shape, so no other program could read it; "
            f"nearest is '{nearest}', which does not allow {', '.join(misfits[nearest])}"
        )
    return FAMILIES[nearest]


def check_counterpart(config: ModelConfig) -> None:
    """The check at recipe time that a language model of this shape can be written for other programs.

    Raises:
        UserError: no Hugging Face architecture has the shape, or transformers has no class for it.
    """
    hf_config(config, "lm")
    family = family_of(config)
    if family.foreign:
        raise UserError(
            f"transformers has no class for '{family.model_type}', so no other program could read the model"
        )


def hf_config(config: ModelConfig, head: str = "lm") -> dict[str, Any]:
    """The keys of config.json for a model.

    Args:
        config: the shape.
        head: ``"lm"`` or ``"scalar"``; of an encoder ``"mlm"`` or ``"classes"``.

    Raises:
        UserError: the shape or the head has no Hugging Face counterpart, naming the option.
    """
    if head not in HEADS:
        raise unknown("head", head, HEADS)
    family = family_of(config)
    if head not in family.architectures:
        raise unknown(f"head of '{family.model_type}'", head, family.architectures)
    data: dict[str, Any] = {"architectures": [family.architectures[head]], "model_type": family.model_type}
    data |= {key: getattr(config, name) for name, key in family.fields.items()}
    data |= family.extra(config)
    if head == "scalar":
        data |= {"num_labels": 1, "id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    if config.n_experts and "balance" not in family.fixed:
        data[_OWN] = {"balance": config.balance}
    if config.quantization == "int8":
        data["quantization_config"] = _quantization_block("lm_head" if head == "lm" else "score")
    return data


def from_hf(data: Mapping[str, Any]) -> tuple[ModelConfig, str, Family]:
    """Shape, head kind and architecture of a config.json.

    Raises:
        ValueError: an architecture or a variant of one that is not known here, or a missing key; says which.
        UserError: an unknown ``model_type``, naming the nearest.
    """
    kind = str(data.get("model_type"))
    if kind not in FAMILIES and "auto_map" in data:
        raise ValueError("auto_map asks for code from the directory to be run, which danlu never does")
    if kind not in FAMILIES:  # one that is known is read by our own tables, whatever code lies beside it
        raise unknown("model_type", kind, FAMILIES)
    family = FAMILIES[kind]
    known = {**family.defaults, **{key: value for key, value in data.items() if value is not None}}
    missing = [key for key in family.fields.values() if key not in known]
    if missing:
        raise ValueError(f"key '{missing[0]}' is missing")
    values = {name: known[key] for name, key in family.fields.items()}
    values |= {**family.fixed, **family.complete(known)}
    values.setdefault("balance", data.get(_OWN, {}).get("balance", "bias"))
    values |= {"quantization": "int8" if quantization_format(data) in _INT8_FORMATS else "none"}
    return ModelConfig.from_dict(values), _head_of(data, family), family


def refuse_counts(data: Mapping[str, Any]) -> None:
    """Refuse numbers of layers and experts that nobody has, before anything is done that many times.

    Raises:
        ValueError: there is one; naming its key.
    """
    for key in _COUNTS:
        value = data.get(key)
        if isinstance(value, (int, float)) and not 0 <= value <= _MOST:
            raise ValueError(f"{key} is {value}, and no model has more than {_MOST:,}")


def quantization_format(data: Mapping[str, Any]) -> str | None:
    """How a config.json says its linear layers are stored: None, ``"pack-quantized"``, ``"int-quantized"``, ``"fp8"``.

    Raises:
        ValueError: any other way.
    """
    block = data.get("quantization_config")
    if block is None:
        return None
    if block.get("quant_method") == "fp8":
        fp8_block(data)
        return "fp8"
    groups = list((block.get("config_groups") or {}).values())
    weights = (groups[0].get("weights") or {}) if len(groups) == 1 else {}
    plain = groups and not groups[0].get("input_activations") and not weights.get("actorder")
    if not plain or any(weights.get(key, False) != value for key, value in _INT8.items()):
        raise ValueError("quantization_config is not INT8 weights with one scale per channel (W8A16)")
    if block.get("quant_method") != "compressed-tensors" or block["format"] not in _INT8_FORMATS:
        raise ValueError(f"quantization format '{block.get('format')}' is neither pack-quantized nor int-quantized")
    return str(block["format"])


def fp8_block(data: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of an FP8 weight that share a factor, or None if no weight is FP8.

    Raises:
        ValueError: another kind of FP8 than DeepSeek-V3's.
    """
    block = data.get("quantization_config") or {}
    if block.get("quant_method") != "fp8":
        return None
    size = block.get("weight_block_size")
    if block.get("fmt", "e4m3") != "e4m3" or not (isinstance(size, list) and len(size) == 2 and min(size) > 0):
        raise ValueError("quantization_config is FP8, but not e4m3 with one factor per block (weight_block_size)")
    return int(size[0]), int(size[1])


def _head_of(data: Mapping[str, Any], family: Family) -> str:
    """Head kind from ``architectures``; a trunk alone or no name at all is a language model."""
    kinds = {name: head for head, name in family.architectures.items()}
    first = next(iter(kinds))
    name = (data.get("architectures") or [first])[0]
    if name == first.partition("For")[0].removesuffix("LMHeadModel") + "Model":
        name = first
    if name not in kinds:
        raise ValueError(f"architecture '{name}' is not known here; valid: {', '.join(kinds)}")
    labels = data.get("num_labels", len(data.get("id2label") or (0, 1)))
    if kinds[name] == "scalar" and labels != 1:
        raise ValueError(f"num_labels is {labels} and only 1 (a reward) is known here")
    return kinds[name]


def _quantization_block(dense: str) -> dict[str, Any]:
    """W8A16 in the compressed-tensors form that transformers and vLLM load, for all linear layers but ``dense``."""
    scheme = {
        "targets": ["Linear"],
        "weights": {**_INT8, "group_size": None, "observer": None},
        "input_activations": None,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": scheme},
        "ignore": [dense],
        "kv_cache_scheme": None,
    }
