"""The tensors of a GGUF file, one at a time, their blocks of 2 to 8 bits turned into numbers.

In:  a file.
Out: metadata, and tensors by name as ``hub.weights.TensorFiles`` gives those of safetensors.
Left out: arithmetic on blocks: what is read is dense.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor

from danlu.errors import UserError, nearest
from danlu.hub.gguf.header import Place, read_header

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BLOCKS = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS",
)  # fmt: skip


class GGUFTensors:
    """The tensors of one file.

    Attributes:
        path: the file.
        metadata: everything the file says about its model.
        where: tensor name -> the file.
    """

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raises:
            UserError: the file is missing or damaged, is one part of several, or uses a type that is not known here.
        """
        if not path.is_file():
            raise UserError(f"no file at {path}")
        header = read_header(path)
        self.path, self.metadata, self._places = path, header.metadata, header.tensors
        self.where = dict.fromkeys(header.tensors, path)
        if header.metadata.get("split.count", 1) not in (0, 1):
            raise UserError(f"{path} is one part of several; join them first: llama-gguf-split --merge")
        for name, place in header.tensors.items():
            if place.kind.name not in (*_PLAIN, *_BLOCKS):
                raise UserError(f"tensor '{name}' in {path} has type {place.kind.name}; {_known()}")
        self._data = np.memmap(path, np.uint8, "r")

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape.

        Raises:
            UserError: there is no such tensor.
        """
        return self._place(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """What a tensor is best kept in: its own dtype, or float16 for blocks, whose factors are float16."""
        return _PLAIN.get(self._place(name).kind.name, torch.float16)

    def read(self, name: str) -> Tensor:
        """A tensor; blocks become float32.

        Raises:
            UserError: it is missing.
        """
        place = self._place(name)
        raw = self._data[place.start : place.start + place.size]
        if place.kind.name in _PLAIN:
            return torch.frombuffer(bytearray(raw), dtype=_PLAIN[place.kind.name]).view(place.shape)
        rows = raw.reshape(*place.shape[:-1], -1)
        return torch.from_numpy(gguf.quants.dequantize(rows, place.kind)).view(place.shape)

    def _place(self, name: str) -> Place:
        if name not in self._places:
            raise UserError(f"tensor '{name}' is missing in {self.path}{nearest(name, self._places)}")
        return self._places[name]


def _known() -> str:
    return f"valid: {', '.join((*_PLAIN, *_BLOCKS))}"
