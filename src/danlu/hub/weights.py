"""safetensors files of a directory, read one tensor at a time.

In:  a directory with ``model.safetensors``, or shards and their index.
Out: tensors by name; a damaged, missing or misshapen one is an error that names tensor and file.
Left out: every format that can run code when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from danlu.errors import UserError, nearest
from danlu.files import read_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


class TensorFiles:
    """The tensors of a model directory.

    Attributes:
        where: tensor name -> the file that holds it.
    """

    def __init__(self, folder: Path) -> None:
        """Read the files' headers.

        Raises:
            UserError: no weights, a damaged file, or an index that does not match its shards.
        """
        paths = _shards(folder)
        self._open: dict[Path, Any] = {path: _open(path) for path in paths}
        self.where = {name: path for path in paths for name in self._open[path].keys()}  # noqa: SIM118 (no mapping)
        if paths[0].name != WEIGHTS:
            index = folder / INDEX
            for name, file in read_json(index)["weight_map"].items():
                if self.where.get(name) != folder / file:
                    raise UserError(f"{index} says that '{name}' is in {file}, and it is not; fetch the files again")

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the file's header.

        Raises:
            UserError: there is no such tensor.
        """
        if name not in self.where:
            folder = next(iter(self._open)).parent
            raise UserError(f"tensor '{name}' is missing in the weights of {folder}{nearest(name, self.where)}")
        return tuple(self._open[self.where[name]].get_slice(name).get_shape())

    def read(self, name: str, shape: Iterable[int]) -> Tensor:
        """A tensor that must have ``shape``.

        Raises:
            UserError: it is missing or has another shape.
        """
        found, wanted = self.shape(name), tuple(shape)
        if found != wanted:
            raise UserError(f"tensor '{name}' in {self.where[name]} has shape {found}; config.json asks for {wanted}")
        tensor: Tensor = self._open[self.where[name]].get_tensor(name)
        return tensor


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
        names = sorted(set(read_json(index)["weight_map"].values()))
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{index} has no weight_map; fetch the files again") from None
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(f"{index} names the file '{name}', which is not in {folder}; fetch the files again")
    return [folder / name for name in names]


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); fetch or write it again") from None
