"""Rotary positions in config.json, both ways: ``rope_parameters`` as transformers 5 has it, ``rope_scaling`` as before.

In:  a ``ModelConfig``, or the keys of a config.json.
Out: the other of the two, as far as positions go.
Left out: ``dynamic`` and ``longrope``, whose angles depend on the length of the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.model.config import ModelConfig, RopeScaling

_COMMON = {"factor": "factor", "original_len": "original_max_position_embeddings"}
_KEYS = {  # ours -> theirs, for every kind of scaling
    "linear": {"factor": "factor"},
    "llama3": {**_COMMON, "low_freq": "low_freq_factor", "high_freq": "high_freq_factor"},
    "yarn": {
        **_COMMON,
        **{
            name: name
            for name in ("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor", "truncate")
        },
    },
}


def rope_keys(config: ModelConfig) -> dict[str, Any]:
    """The keys of config.json that say what ``config`` says of positions, for readers old and new."""
    scaling = _scaling_keys(config.rope_scaling)
    return {
        "rope_parameters": {"rope_type": "default", **(scaling or {}), "rope_theta": config.rope_theta},
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
    }


def read_rope(data: Mapping[str, Any]) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling`` of a config.json.

    Raises:
        ValueError: a kind of scaling that is not known here, or a key that it needs is missing.
    """
    rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    theta = float(rope.get("rope_theta", data.get("rope_theta", 10000.0)))
    if kind == "default":
        return {"rope_theta": theta, "rope_scaling": None}
    if kind not in _KEYS:
        raise ValueError(f"rope_type is '{kind}'; valid: default, {', '.join(_KEYS)}")
    given = {ours: rope[theirs] for ours, theirs in _KEYS[kind].items() if rope.get(theirs) is not None}
    reach = data["max_position_embeddings"]
    if kind != "linear":
        given.setdefault("original_len", reach)
        if not given["original_len"]:
            raise ValueError("original_max_position_embeddings must be positive")
    if kind == "yarn":
        given.setdefault("factor", reach / given["original_len"])
    if "factor" not in given:
        raise ValueError(f"rope_type '{kind}' needs the key 'factor'")
    return {"rope_theta": theta, "rope_scaling": RopeScaling(kind=kind, **given)}


def _scaling_keys(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    values = {theirs: getattr(scaling, ours) for ours, theirs in _KEYS[scaling.kind].items()}
    unset = {key for key in ("mscale", "mscale_all_dim", "attention_factor") if not values.get(key)}
    return {"rope_type": scaling.kind, **{key: value for key, value in values.items() if key not in unset}}
