"""What a Hugging Face family is: a table of names and keys, and the few functions that a table cannot say.

In:  a ``ModelConfig``, or the keys of a config.json.
Out: ``Family``: the other of the two, an ``Entry`` for every tensor on disk, and what keeps a shape out.
Left out: the families themselves, beside this file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from danlu.hub.layout import Entry, Row
from danlu.model.config import ModelConfig

_SHARED = ("embed_tokens.weight", "shared_head.head.weight")  # copies of the model's own in layers that foresee


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
        heads: rows outside the trunk.
        tied: a second name for the table of tokens where the head is the table.
        foresight: rows of a layer for multi-token prediction besides those of ``inner``; such layers come after the
            last. Empty where there are none.
        foreign: transformers has no class for it. danlu reads and writes its files, and trains none from nothing.
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
    heads: tuple[Row, ...] = (Row(("head.weight",), ("lm_head.weight",)), Row(("score.weight",), ("score.weight",)))
    tied: str = "lm_head.weight"
    foresight: tuple[Row, ...] = ()
    foreign: bool = False

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

    def superfluous(self, config: ModelConfig, names: Iterable[str]) -> list[str]:
        """Those names of tensors on disk that a model of this shape has no use for."""
        layer = re.compile(re.escape(self.trunk + self.layers).replace(re.escape("{i}"), r"(\d+)"))
        found = []
        for name in names:
            place = layer.match(name)
            beyond = bool(self.foresight) and place is not None and int(place[1]) >= config.n_layers
            if name.endswith(self.ignored) or (beyond and (not config.n_mtp or name.endswith(_SHARED))):
                found.append(name)
        return found

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
        for k in range(config.n_mtp):
            theirs = trunk + self.layers.format(i=config.n_layers + k)
            for row in self.inner:
                yield row.entry(f"mtp.{k}.block.", theirs, config.n_experts)
            for row in self.foresight:
                yield row.entry(f"mtp.{k}.", theirs, 0)
        for row in self.heads:
            yield row.entry("", "", 0)


def only(data: Mapping[str, Any], key: str, *valid: Any) -> None:
    """Refuse a config.json whose ``key`` says anything but what we compute; the first valid value is the default."""
    value = data.get(key, valid[0])
    if value not in valid:
        raise ValueError(f"{key} is '{value}' and only {' or '.join(repr(v) for v in valid)} is known here")
