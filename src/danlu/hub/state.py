"""The parameters of a model, read one by one from wherever they lie, or written the way somebody else wants them.

In:  a model without memory and tensors by name; or our parameters.
Out: our parameters by name, each read when it is asked for; or theirs, one at a time.
Left out: what files look like (``weights``, ``gguf``).

So a model passes from one format to another without ever being whole in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from danlu.errors import UserError
from danlu.hub.families import Family
from danlu.hub.layout import PACKED_INT8, PLAIN_INT8, SAME, Entry
from danlu.model import Decoder, Encoder, ModelConfig, build

PACKED = "pack-quantized"


class Stored(Protocol):
    """Tensors by name, in files."""

    where: dict[str, Path]

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape; UserError if there is none of that name."""

    def dtype(self, name: str) -> torch.dtype:
        """What it is best kept in."""

    def read(self, name: str) -> Tensor:
        """A tensor."""


def entries_of(
    model: Decoder | Encoder, family: Family, storage: str | None, trunk: str | None = None
) -> Iterator[Entry]:
    """The entries of a Hugging Face directory for the tensors that this very model has.

    Args:
        model: with or without memory.
        family: its architecture.
        storage: how its linear layers are stored, as ``config.quantization_format`` says.
        trunk: prefix of the names in files of a trunk alone.
    """
    names = model.state_dict().keys()
    for entry in family.entries(model.config, trunk):
        if entry.ours[0] in names:
            scale = entry.ours[0].removesuffix(".weight") + ".scale"
            yield _int8(entry, scale, storage) if scale in names else entry


def _int8(entry: Entry, scale: str, storage: str | None) -> Entry:
    """A quantized weight's entry: integers and scales in the compressed-tensors spelling."""
    assert entry.layout is SAME, "only plain linear layers are quantized"
    ours, name = (entry.ours[0], scale), entry.theirs[0]
    if storage == PACKED:
        return Entry(ours, (f"{name}_packed", f"{name}_scale", f"{name}_shape"), PACKED_INT8)
    return Entry(ours, (name, f"{name}_scale"), PLAIN_INT8)


class LazyState(Mapping[str, Tensor]):
    """A state dict whose tensors are read when they are asked for.

    Args:
        model: without memory; says which tensors there are and of which shape.
        entries: where they lie.
        files: what holds them.
        dtype: of the parameters; buffers, 8-bit weights and their scales are what they are.

    Raises:
        UserError: a tensor is missing or has another shape than the model wants; names it and its file.

    Attributes:
        dtype: of the parameters.
    """

    def __init__(self, model: Decoder | Encoder, entries: Iterable[Entry], files: Stored, dtype: torch.dtype) -> None:
        wanted, self.dtype = model.state_dict(), dtype
        entries = [entry for entry in entries if entry.ours[0] in wanted]
        self._shapes = {name: tensor.shape for name, tensor in wanted.items()}
        self._dtypes = {name: t.dtype for name, t in wanted.items()} | {n: dtype for n, _ in model.named_parameters()}
        self._files = files
        self._entries = {name: entry for entry in entries for name in entry.ours}
        self._last: tuple[Entry | None, dict[str, Tensor]] = None, {}
        self.used = {name for entry in entries for name in entry.theirs}
        assert self._entries.keys() == wanted.keys(), f"nowhere to read {min(wanted.keys() ^ self._entries.keys())}"
        for entry in entries:
            self._check(entry, entry.layout.write([wanted[name] for name in entry.ours]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, name: str) -> Tensor:
        """A tensor; its neighbours in the file are kept for the next call, which mostly asks for one of them."""
        entry = self._entries[name]
        if self._last[0] is not entry:
            self._last = entry, dict(zip(entry.ours, self._read(entry), strict=True))
        return self._last[1][name]

    def _check(self, entry: Entry, wanted: list[Tensor]) -> None:
        for name, tensor in zip(entry.theirs, wanted, strict=True):
            found = self._files.shape(name)
            if found != tuple(tensor.shape):
                where = self._files.where[name]
                raise UserError(f"tensor '{name}' in {where} has shape {found}; {tuple(tensor.shape)} was described")

    def _read(self, entry: Entry) -> list[Tensor]:
        parts = entry.layout.read([self._files.read(name) for name in entry.theirs])
        for name, part in zip(entry.ours, parts, strict=True):
            if part.shape != self._shapes[name] or part.is_floating_point() != self._dtypes[name].is_floating_point:
                found = f"{tuple(part.shape)} of {str(part.dtype).removeprefix('torch.')}"
                where = self._files.where[entry.theirs[0]]
                raise UserError(f"tensor '{entry.theirs[0]}' in {where} holds {found}, which does not belong there")
        return [
            part.to(self._dtypes[name], memory_format=torch.contiguous_format, copy=True)
            for name, part in zip(entry.ours, parts, strict=True)
        ]

    def refuse_rest(self, ignored: Iterable[str] = ()) -> None:
        """Refuse tensors in the files that nobody asked for.

        Args:
            ignored: names that may be there.

        Raises:
            UserError: there is one; naming it.
        """
        unused = self._files.where.keys() - self.used - set(ignored)
        if unused:
            name = min(unused)
            raise UserError(f"tensor '{name}' in {self._files.where[name]} belongs to nothing that the model describes")


def without_memory(config: ModelConfig, head: str, files: Stored, said: Path) -> Decoder | Encoder:
    """A model of this shape that takes no memory, if the files can be its: no count in a header is believed.

    Args:
        config: the shape.
        head: its head.
        files: what holds its tensors.
        said: the file that describes the shape.

    Raises:
        UserError: there are more layers than tensors, or a size that no tensor can have.
    """
    if config.n_layers + config.n_mtp > len(files.where):
        tensors = f"the files hold {len(files.where)} tensors"
        raise UserError(f"{said}: {config.n_layers} layers were described and {tensors}")
    try:
        with torch.device("meta"):
            return build(config, head)
    except (RuntimeError, OverflowError, TypeError) as error:
        raise UserError(f"{said}: such a shape cannot be ({str(error).splitlines()[0]})") from None


def theirs(state: Mapping[str, Tensor], entries: Iterable[Entry]) -> Iterator[tuple[str, Tensor]]:
    """Their tensors from ours, one after another.

    Args:
        state: our parameters.
        entries: all the places where they shall lie.
    """
    left = set(state)
    for entry in entries:
        parts = entry.layout.write([state[name].cpu() for name in entry.ours])
        if entry.layout is not SAME:  # rearranged tensors may share memory, which safetensors refuses
            parts = [part.clone() for part in parts]
        left -= set(entry.ours)
        yield from zip(entry.theirs, (part.contiguous() for part in parts), strict=True)
    assert not left, f"no name on disk for {min(left)}"
