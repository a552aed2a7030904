"""What a Hugging Face family is: a table of names and keys, and the few functions that a table cannot say.

In:  a ``ModelConfig``, or the keys of a config.json.
Out: ``Family``: the other of the two, an ``Entry`` for every tensor on disk, and what keeps a shape out.
Left out: the families themselves, beside this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from danlu.hub.layout import Entry, Row
from danlu.model.config import ModelConfig


@dataclass(frozen=True)
class Family:
    """One Hugging Face architecture.

    Attributes:
        model_type: as in config.json.
        architectures: class name per head kind.
        trunk: prefix of everything but the heads.
        layers: prefix of a layer within the trunk, with ``{i}``.
        outer: rows outside the layers, within the trunk.
        inner: rows of a layer.
        fixed: fields that can have one value only.
        fields: our field -> key of config.json, where both mean the same.
        defaults: what a config.json means by leaving a key out; other keys of ``fields`` must be there.
        extra: further keys of config.json from the configuration.
        complete: further fields from a config.json; ValueError for a variant that we do not compute.
        refuse: why a configuration whose ``fixed`` fields fit still has no counterpart, or None.
        ignored: endings of names on disk that hold no weights (buffers that old files keep).
    """

    model_type: str
    architectures: Mapping[str, str]
    trunk: str
    layers: str
    outer: tuple[Row, ...]
    inner: tuple[Row, ...]
    fixed: Mapping[str, Any]
    fields: Mapping[str, str]
    defaults: Mapping[str, Any]
    extra: Callable[[ModelConfig], dict[str, Any]]
    complete: Callable[[Mapping[str, Any]], dict[str, Any]]
    refuse: Callable[[ModelConfig], str | None]
    ignored: tuple[str, ...] = ()

    def clashes(self, config: ModelConfig) -> list[str]:
        """Sentences' tails on the fields in which ``config`` is of another kind than this family."""
        return [
            f"model.{name} '{getattr(config, name)}' (only '{value}')"
            for name, value in self.fixed.items()
            if getattr(config, name) != value
        ]

    def misfits(self, config: ModelConfig) -> list[str]:
        """The same, and if there are none what else keeps ``config`` out of this family; empty if it belongs."""
        clashes = self.clashes(config)
        reason = None if clashes else self.refuse(config)
        return [reason] if reason else clashes

    def entries(self, config: ModelConfig, trunk: str | None = None) -> Iterator[Entry]:
        """Every tensor that a model of this family may have; the model decides which exist.

        Args:
            config: how many layers and experts.
            trunk: prefix to use instead of the family's: files of a trunk alone have none.
        """
        trunk = self.trunk if trunk is None else trunk
        for row in self.outer:
            yield row.entry("", trunk, 0)
        for i in range(config.n_layers):
            for row in self.inner:
                yield row.entry(f"blocks.{i}.", trunk + self.layers.format(i=i), config.n_experts)
        yield Entry(("head.weight",), ("lm_head.weight",))
        yield Entry(("score.weight",), ("score.weight",))


def only(data: Mapping[str, Any], key: str, *valid: Any) -> None:
    """Refuse a config.json whose ``key`` says anything but what we compute; the first valid value is the default."""
    value = data.get(key, valid[0])
    if value not in valid:
        raise ValueError(f"{key} is '{value}' and only {' or '.join(repr(v) for v in valid)} is known here")
