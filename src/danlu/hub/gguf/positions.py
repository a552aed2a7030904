"""Rotary positions that reach further, as GGUF stores them: keys for two kinds of scaling, a tensor for the third.

In:  a ``ModelConfig``, or a file's keys and tensors.
Out: the other of the two, as far as the scaling goes.
Left out: long-context factors of other models (``longrope``).

Llama 3's scaling is kept as one divisor per frequency. Which parameters made them is found by trying the published
ones, and proved by making the divisors again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from danlu.errors import UserError
from danlu.model.config import ModelConfig, RopeScaling
from danlu.model.positions import frequencies

FREQUENCIES = "rope_freqs.weight"
_LLAMA3_LEN = 8192  # of every released Llama 3 before its context was stretched


def scaling_keys(config: ModelConfig) -> dict[str, Any]:
    """Keys for ``linear`` and ``yarn``; none for ``llama3``, which ``divisors`` writes."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind == "llama3":
        return {}
    keys = {"rope.scaling.type": scaling.kind, "rope.scaling.factor": scaling.factor}
    if scaling.kind == "yarn":
        keys |= {"rope.scaling.original_context_length": scaling.original_len}
        if scaling.mscale_all_dim:
            keys |= {"rope.scaling.yarn_log_multiplier": 0.1 * scaling.mscale_all_dim}
        if (scaling.beta_fast, scaling.beta_slow) != (32.0, 1.0):
            keys |= {"rope.scaling.yarn_beta_fast": scaling.beta_fast, "rope.scaling.yarn_beta_slow": scaling.beta_slow}
    return keys


def refuse_scaling(config: ModelConfig) -> str | None:
    """Why a scaling has no keys, or None."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "yarn":
        return None
    if scaling.mscale_all_dim and config.attention != "mla":
        return "YaRN with DeepSeek's temperatures outside latent attention"
    if scaling.attention_factor or scaling.mscale != scaling.mscale_all_dim or not scaling.truncate:
        return "YaRN with a temperature or borders of its own"
    return None


def read_scaling(get: Callable[..., Any], tensors: Collection[str]) -> RopeScaling | None:
    """The scaling that a file's keys describe; one that stands in ``FREQUENCIES`` is found by ``from_divisors``.

    Args:
        get: key without the architecture's name -> value.
        tensors: names in the file.

    Raises:
        ValueError: a kind that is not known here.
    """
    kind = get("rope.scaling.type", "linear")  # llama.cpp takes a silent file so
    factor = float(get("rope.scaling.factor", get("rope.scale_linear", 1.0)))
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return None
    if kind == "linear":
        return RopeScaling(kind="linear", factor=factor)
    if kind != "yarn":
        raise ValueError(f"rope.scaling.type is '{kind}'; valid: none, linear, yarn")
    mscale = round(10 * float(get("rope.scaling.yarn_log_multiplier", 0.0)), 6)
    return RopeScaling(
        kind="yarn", factor=factor, original_len=get("rope.scaling.original_context_length", 0),
        mscale=mscale, mscale_all_dim=mscale,
        beta_fast=float(get("rope.scaling.yarn_beta_fast", 32.0)),
        beta_slow=float(get("rope.scaling.yarn_beta_slow", 1.0)),
    )  # fmt: skip


def divisors(config: ModelConfig) -> Tensor | None:
    """(D / 2,) what each frequency is divided by, for ``llama3``; None otherwise."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "llama3":
        return None
    plain, scaled = (frequencies(config.head_dim, config.rope_theta, s) for s in (None, scaling))
    return plain / scaled


def from_divisors(values: Mapping[str, Any], found: Tensor) -> RopeScaling:
    """The scaling behind the divisors of a file.

    Args:
        values: ``head_dim`` and ``rope_theta``.
        found: (D / 2,) the divisors.

    Raises:
        UserError: no published parameters give them.
    """
    scaling = RopeScaling(kind="llama3", factor=max(1.0, float(found.max())), original_len=_LLAMA3_LEN)
    plain, scaled = (frequencies(values["head_dim"], values["rope_theta"], s) for s in (None, scaling))
    if found.shape != plain.shape or not torch.allclose(plain / scaled, found.float(), rtol=1e-3):
        raise UserError(f"tensor '{FREQUENCIES}' stretches positions in a way that is not known here")
    return scaling
