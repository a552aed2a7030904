"""The header of a GGUF file, read as one reads a stranger's letter: no length is believed before it is checked.

In:  a file.
Out: its metadata and where each tensor lies, every one inside the file and none over another.
Left out: byte orders other than little-endian, arrays of arrays (no model needs them), files in several parts.

The package ``gguf`` has a reader too. It is not used, because it believes counts and lengths: an array that claims
2^60 numbers makes it allocate until the machine stops, and an array of arrays ends in a recursion error.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from danlu.errors import UserError

MAGIC, VERSIONS = b"GGUF", (2, 3)
_ALIGNMENT = 32
_MAX_DIMS, _LONGEST_NAME = 4, 1024
_SMALLEST_PAIR = 8 + 4 + 1  # an empty key, its type, one byte
_SMALLEST_TENSOR = 8 + 4 + 8 + 4 + 8  # an empty name, a number of dimensions, one of them, a type, an offset
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class Place:
    """A tensor in a file.

    Attributes:
        shape: outermost dimension first, as torch has it; the file writes it the other way round.
        kind: how its numbers are stored.
        start: first byte, from the beginning of the file.
        size: bytes.
    """

    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    start: int
    size: int


@dataclass(frozen=True)
class Header:
    """What stands before the numbers.

    Attributes:
        metadata: key -> number, text, or list of either.
        tensors: name -> place.
    """

    metadata: dict[str, Any]
    tensors: dict[str, Place]


def read_header(path: Path) -> Header:
    """Read and check everything but the numbers themselves.

    Raises:
        UserError: it is no GGUF file, or one that is cut short, contradicts itself or asks for the impossible.
    """
    with open(path, "rb") as handle:
        if handle.read(4) != MAGIC:
            raise UserError(f"{path} is not a GGUF file; its first four bytes are not 'GGUF'")
        with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
            cursor = _Cursor(data, path)
            return _header(cursor)


class _Cursor:
    """A place in a file that only moves over bytes that are there."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.at = data, path, len(MAGIC)

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def fault(self, what: str) -> UserError:
        return UserError(f"{self.path} is not a sound GGUF file: {what}; fetch it again")

    def claim(self, count: int, smallest: int, what: str) -> int:
        """``count`` things of at least ``smallest`` bytes each, if so many can be there."""
        if count * smallest > self.left:
            raise self.fault(f"it claims {count} {what} and only {self.left} bytes are left")
        return count

    def scalar(self, code: str) -> Any:
        size = struct.calcsize(code)
        self.claim(1, size, "numbers")
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += size
        return value

    def text(self, longest: int | None = None) -> str:
        size = self.claim(self.scalar("Q"), 1, "bytes of text")
        if longest is not None and size > longest:
            raise self.fault(f"a name of {size} bytes")
        raw = self.data[self.at : self.at + size]
        self.at += size
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.fault("a text that is not UTF-8") from None

    def value(self) -> Any:
        kind = self.scalar("I")
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise self.fault(f"a value of unknown type {kind}")
        return self.scalar(_SCALARS[kind])

    def _array(self) -> list[Any]:
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind == _STRING:
            return [self.text() for _ in range(self.claim(count, 8, "texts"))]
        if kind not in _SCALARS:
            raise self.fault("an array of arrays" if kind == _ARRAY else f"an array of unknown type {kind}")
        code = np.dtype(_SCALARS[kind]).newbyteorder("<")
        self.claim(count, code.itemsize, "numbers")
        numbers = np.frombuffer(self.data, code, count, self.at).tolist()
        self.at += count * code.itemsize
        return list(numbers)


def _header(cursor: _Cursor) -> Header:
    version = cursor.scalar("I")
    if version not in VERSIONS:
        raise cursor.fault(f"its version is {version} and {' and '.join(map(str, VERSIONS))} are known here")
    n_tensors, n_pairs = cursor.scalar("Q"), cursor.scalar("Q")
    cursor.claim(n_pairs, _SMALLEST_PAIR, "keys")
    metadata = dict(_once(cursor, n_pairs, "key", cursor.value))
    cursor.claim(n_tensors, _SMALLEST_TENSOR, "tensors")
    places = dict(_once(cursor, n_tensors, "tensor", lambda: _place(cursor)))
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 8 or alignment % 8:
        raise cursor.fault(f"its alignment is {alignment}")
    start = -(-cursor.at // alignment) * alignment
    tensors = {name: Place(place.shape, place.kind, start + place.start, place.size) for name, place in places.items()}
    _check_places(cursor, tensors, alignment)
    return Header(metadata, tensors)


def _once(cursor: _Cursor, count: int, what: str, read: Callable[[], Any]) -> Iterator[tuple[str, Any]]:
    """Names and what ``read`` finds after each; no name twice."""
    seen = set()
    for _ in range(count):
        name = cursor.text(_LONGEST_NAME)
        if name in seen:
            raise cursor.fault(f"{what} '{name}' stands in it twice")
        seen.add(name)
        yield name, read()


def _place(cursor: _Cursor) -> Place:
    """What the header says of a tensor, its start still counted from where the numbers begin."""
    n_dims = cursor.scalar("I")
    if not 0 < n_dims <= _MAX_DIMS:
        raise cursor.fault(f"a tensor of {n_dims} dimensions")
    shape = tuple(reversed([cursor.scalar("Q") for _ in range(n_dims)]))
    number, start = cursor.scalar("I"), cursor.scalar("Q")
    try:
        kind = gguf.GGMLQuantizationType(number)
    except ValueError:
        raise cursor.fault(f"a tensor of unknown type {number}") from None
    block, size = gguf.GGML_QUANT_SIZES[kind]
    if 0 in shape or shape[-1] % block:
        raise cursor.fault(f"a tensor of shape {shape} in blocks of {block}")
    return Place(shape, kind, start, math.prod(shape) // block * size)


def _check_places(cursor: _Cursor, tensors: dict[str, Place], alignment: int) -> None:
    """Every tensor is inside the file, aligned, and shares no byte with another."""
    end = 0
    for name, place in sorted(tensors.items(), key=lambda item: item[1].start):
        if place.start + place.size > len(cursor.data):
            raise cursor.fault(f"tensor '{name}' ends {place.start + place.size - len(cursor.data)} bytes behind it")
        if place.start % alignment or place.start < end:
            raise cursor.fault(f"tensor '{name}' does not begin where it could")
        end = place.start + place.size
