"""safetensors files of a directory, read and written one tensor at a time.

In:  a directory with ``model.safetensors``, or shards and their index; or tensors one after another.
Out: tensors by name, a damaged, missing or misshapen one is an error that names tensor and file; or the files.
Left out: every format that can run code when it is read; writing FP8.

Weights in FP8 with one factor per block (DeepSeek-V3, arXiv 2412.19437, section 3.3) are multiplied out when read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from danlu.errors import UserError, nearest
from danlu.files import read_json, write_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000  # what Hugging Face calls too large for one file
_INVERSE = "_scale_inv"  # factors of a weight in FP8; called inverse because they undo what was divided by
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.bfloat16,
}  # fmt: skip


class TensorFiles:
    """The tensors of a model directory.

    Args:
        folder: the directory.
        block: rows and columns that share a factor, where weights may be in FP8.

    Attributes:
        where: tensor name -> the file that holds it; factors of FP8 weights belong to these.
    """

    def __init__(self, folder: Path, block: tuple[int, int] | None = None) -> None:
        """Read the files' headers.

        Raises:
            UserError: no weights, a damaged file, or an index that does not match its shards.
        """
        paths = _shards(folder)
        self._open: dict[Path, Any] = {path: _open(path) for path in paths}
        self._block = block
        self.where = {name: path for path in paths for name in self._open[path].keys()}  # noqa: SIM118 (no mapping)
        if paths[0].name != WEIGHTS:
            index = folder / INDEX
            for name, file in read_json(index)["weight_map"].items():
                if self.where.get(name) != folder / file:
                    raise UserError(f"{index} says that '{name}' is in {file}, and it is not; fetch the files again")
        scaled = {name + _INVERSE for name in self.where if name + _INVERSE in self.where} if block else set()
        self._factors = {name: self.where.pop(name) for name in sorted(scaled)}

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the file's header.

        Raises:
            UserError: there is no such tensor.
        """
        if name not in self.where:
            folder = next(iter(self._open)).parent
            raise UserError(f"tensor '{name}' is missing in the weights of {folder}{nearest(name, self.where)}")
        return tuple(self._open[self.where[name]].get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        """A tensor; FP8 with its factors multiplied out.

        Raises:
            UserError: it is missing, or FP8 without factors.
        """
        self.shape(name)
        tensor: Tensor = self._open[self.where[name]].get_tensor(name)
        if name + _INVERSE in self._factors:
            return self._multiplied_out(name, tensor)
        if tensor.dtype == torch.float8_e4m3fn:
            raise UserError(f"tensor '{name}' in {self.where[name]} is FP8 and has no factors; fetch the files again")
        return tensor

    def dtype(self, name: str) -> torch.dtype:
        """What a tensor is best kept in: its own dtype; bfloat16 for FP8.

        Raises:
            UserError: it is missing, or not made of numbers with a point.
        """
        self.shape(name)
        stored = str(self._open[self.where[name]].get_slice(name).get_dtype())
        if stored not in _DTYPES:
            raise UserError(f"tensor '{name}' in {self.where[name]} has dtype {stored}; valid: {', '.join(_DTYPES)}")
        return _DTYPES[stored]

    def _multiplied_out(self, name: str, weight: Tensor) -> Tensor:
        """A weight (R, C) in FP8 times the factor of each block; blocks at the edges may be smaller."""
        assert self._block is not None, "factors are looked for where there are blocks only"
        factors: Tensor = self._open[self._factors[name + _INVERSE]].get_tensor(name + _INVERSE).float()
        needed = tuple(-(-size // block) for size, block in zip(weight.shape, self._block, strict=True))
        if factors.shape != needed:
            file = self._factors[name + _INVERSE]
            raise UserError(f"tensor '{name}{_INVERSE}' in {file} has shape {tuple(factors.shape)} and not {needed}")
        tall = factors.repeat_interleave(self._block[0], 0)[: weight.shape[0]]
        wide = tall.repeat_interleave(self._block[1], 1)[:, : weight.shape[1]]
        product: Tensor = weight.float() * wide
        return product.bfloat16()


def write_weights(folder: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int = SHARD_BYTES) -> None:
    """Write tensors as they come: one file, or shards of at most ``shard_bytes`` and their index.

    Args:
        folder: an empty directory.
        tensors: names and tensors; only those of one file are in memory at a time.
        shard_bytes: a single larger tensor makes a file of its own.
    """
    shards: list[list[str]] = []
    kept: dict[str, Tensor] = {}
    total = size = 0
    for name, tensor in tensors:
        if kept and size + tensor.nbytes > shard_bytes:
            _write_shard(folder, shards, kept)
            kept, size = {}, 0
        kept[name] = tensor
        size, total = size + tensor.nbytes, total + tensor.nbytes
    _write_shard(folder, shards, kept)
    if len(shards) == 1:
        (folder / _part(1)).rename(folder / WEIGHTS)
        return
    files = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    for n, file in enumerate(files, 1):
        (folder / _part(n)).rename(folder / file)
    where = {name: file for names, file in zip(shards, files, strict=True) for name in names}
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))})


def _write_shard(folder: Path, shards: list[list[str]], tensors: dict[str, Tensor]) -> None:
    shards.append(list(tensors))
    save_file(tensors, folder / _part(len(shards)), metadata={"format": "pt"})


def _part(number: int) -> str:
    """A shard's name before it is known how many there are."""
    return f"part-{number}.safetensors"


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's tensors, and their index if there are several.

    Raises:
        UserError: no weights, or an index that names files that are not there.
    """
    shards = _shards(folder)
    return shards if shards[0].name == WEIGHTS else [*shards, folder / INDEX]


def _shards(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not index.is_file():
        others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        hint = f"; {others[0]} may run code when it is read, so convert it to safetensors first" if others else ""
        raise UserError(f"no {WEIGHTS} in {folder}{hint}")
    try:
        names = sorted({file + "" for file in read_json(index)["weight_map"].values()})  # texts, or a TypeError
    except (KeyError, TypeError, AttributeError, RecursionError):
        names = []
    if not names:
        raise UserError(f"{index} has no weight_map that says which tensor is in which file; fetch the files again")
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(f"{index} names the file '{name}', which is not in {folder}; fetch the files again")
    return [folder / name for name in names]


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); fetch or write it again") from None
