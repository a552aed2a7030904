"""What an architecture of llama.cpp is: a table of keys and names, and the few functions that a table cannot say.

In:  a ``ModelConfig``, or the metadata of a GGUF file and the names of its tensors.
Out: ``Architecture``: the other of the two, and an ``Entry`` for every tensor.
Left out: the architectures themselves, beside this file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from danlu.hub.families import FAMILIES
from danlu.hub.layout import Entry, Layout, Row, modules
from danlu.model.config import ModelConfig

SIZES = {
    "n_layers": "block_count", "max_seq_len": "context_length", "d_model": "embedding_length",
    "d_ff": "feed_forward_length", "n_heads": "attention.head_count",
}  # fmt: skip
ROTARY = {**SIZES, "norm_eps": "attention.layer_norm_rms_epsilon"}
EXPERTS = {"n_experts": "expert_count", "top_k": "expert_used_count"}
OUTER = modules({"embed": "token_embd", "positions": "position_embd", "norm": "output_norm", "head": "output"})
NORMS = modules({"norm1": "attn_norm", "norm2": "ffn_norm"})
FFN = modules({f"ffn.{part}": f"ffn_{part}" for part in ("gate", "up", "down")})
_HALVES = Layout(read=lambda t: [torch.cat(t, 1)], write=lambda t: list(t[0].chunk(2, 1)))  # (E, 2I, D), gates first
MIXTURE = (
    Row(("ffn.router.weight",), ("ffn_gate_inp.weight",)),
    Row(("ffn.gate_up",), ("ffn_gate_exps.weight", "ffn_up_exps.weight"), _HALVES),
    Row(("ffn.down",), ("ffn_down_exps.weight",)),
)
_SILENT = {"n_experts": 0, "top_k": 0, "n_shared_experts": 0, "n_dense_layers": 0, "routed_scale": 1.0}


@dataclass(frozen=True)
class Metadata:
    """What a file says about its model, the name of the architecture taken off the keys."""

    values: Mapping[str, Any]
    tensors: Collection[str]
    name: str

    def get(self, key: str, default: Any = None) -> Any:
        """A number, or ``default`` where the file is silent.

        Raises:
            ValueError: it differs from layer to layer.
        """
        value = self.values.get(f"{self.name}.{key}", default)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise ValueError(f"{self.name}.{key} differs from layer to layer, and all are alike here")
            value = value[0]
        # Stored as float32: 1e-6 comes back as 9.999999974752427e-07.
        return float(f"{value:.7g}") if isinstance(value, float) else value

    def need(self, key: str) -> Any:
        """A number that must be there.

        Raises:
            ValueError: it is not.
        """
        value = self.get(key)
        if value is None:
            raise ValueError(f"key '{self.name}.{key}' is missing")
        return value


@dataclass(frozen=True)
class Architecture:
    """One architecture of llama.cpp.

    Attributes:
        name: as in ``general.architecture``.
        families: Hugging Face families that are stored this way.
        fields: our field -> key of the metadata, where both mean the same.
        family: which of the families a file holds.
        complete: further fields from the metadata.
        extra: further keys from the configuration.
        rows: of a layer.
        refuse: why a configuration of the families still cannot be stored, or None.
    """

    name: str
    families: tuple[str, ...]
    fields: Mapping[str, str]
    family: Callable[[Metadata], str]
    complete: Callable[[Metadata], dict[str, Any]]
    extra: Callable[[ModelConfig], dict[str, Any]]
    rows: Callable[[ModelConfig, Collection[str]], tuple[Row, ...]]
    refuse: Callable[[ModelConfig], str | None] = lambda config: None

    def config(self, metadata: Metadata, vocab_size: int) -> ModelConfig:
        """The shape that a file describes.

        Raises:
            ValueError: a key is missing or says what is not known here.
        """
        fixed = FAMILIES[self.family(metadata)].fixed
        values = {
            field: metadata.get(key, _SILENT[field]) if field in _SILENT else metadata.need(key)
            for field, key in self.fields.items()
            if field != "d_expert" or metadata.get("expert_count")
        }
        tied = "output.weight" not in metadata.tensors
        values |= {**fixed, "vocab_size": vocab_size, "tie_embeddings": tied, **self.complete(metadata)}
        return ModelConfig.from_dict(values)

    def metadata(self, config: ModelConfig) -> dict[str, Any]:
        """The keys that say what ``config`` says."""
        used = {k: v for k, v in self.fields.items() if config.n_experts or not v.startswith(("expert", "leading"))}
        values = {key: getattr(config, field) for field, key in used.items()}
        values |= {"vocab_size": config.vocab_size, **self.extra(config)}
        return {f"{self.name}.{key}": value for key, value in values.items() if value is not None}

    def entries(self, config: ModelConfig, tensors: Collection[str]) -> Iterator[Entry]:
        """Every tensor that a model of this shape may have; the model decides which exist.

        Args:
            config: the shape.
            tensors: names in the file, which decide between an old and a new way to store latent attention.
        """
        rows = self.rows(config, tensors)
        for row in OUTER:
            yield row.entry("", "", 0)
        for i in range(config.n_layers):
            for row in rows:
                yield row.entry(f"blocks.{i}.", f"blk.{i}.", 0)
