"""Token shards: a folder with every token of a set of documents, one after the other.

In:  sequences of ids (with a loss mask, for conversations), and the tokenizer that made them.
Out: ``tokens.bin`` (flat little-endian uint16, or uint32 above 65,536 ids), ``tokens.idx`` (uint64 document ends),
     ``tokens.mask`` (uint8, only with masks), ``manifest.json``; ``Shards``, which maps them into memory.
Left out: rows of a fixed length (``pack``), batches (``loader``), compression: ids are read at random places.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from danlu.errors import UserError
from danlu.files import atomic_directory, hash_file, hash_value, read_json, write_json
from danlu.tokens.tokenizer import Tokenizer

FORMAT, VERSION = "danlu-tokens", 1
_MANIFEST, _BIN, _IDX, _MASK = "manifest.json", "tokens.bin", "tokens.idx", "tokens.mask"
_CHUNK = 1024

Masked = tuple[Sequence[int], Sequence[int] | None]
"""One sequence: its ids, and 0/1 for each of them (or None: learn all)."""


@dataclass(frozen=True)
class Shards:
    """A folder of tokens, mapped into memory.

    Attributes:
        tokens: every document's ids, back to back, (n_tokens,) uint16 or uint32.
        ends: where each document ends, (n_documents,) uint64.
        mask: 1 where a token is to be learnt, (n_tokens,) uint8; None means all of them.
        manifest: counts (``tokens``, ``documents``, and ``bytes``: UTF-8 bytes of the text that is to be learnt),
            ``pad``, ``tokenizer`` (its hash), ``sha256`` of each file.
    """

    tokens: npt.NDArray[Any]
    ends: npt.NDArray[np.uint64]
    mask: npt.NDArray[np.uint8] | None
    manifest: dict[str, Any]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Identity of the content; packs and loaders are bound to it."""
        return hash_value(self.manifest["sha256"])


def write_shards(
    folder: Path, sequences: Iterable[Masked], tokenizer: Tokenizer, n_bytes: int | None = None
) -> dict[str, Any]:
    """Write sequences as one folder, atomically.

    Args:
        folder: the place; what is there is replaced.
        sequences: (ids, mask) each; the mask is given for all of them or for none.
        tokenizer: whose ids they are.
        n_bytes: UTF-8 bytes of the text that is to be learnt. Counted from the tokens when not given, which is exact
            unless a foreign tokenizer normalises.

    Returns:
        The manifest.

    Raises:
        ValueError: an id that the tokenizer does not have, or a mask that is missing or of another length.
    """
    with atomic_directory(folder) as beside:
        lengths, counted, masked = _write_tokens(beside, sequences, tokenizer)
        np.cumsum(lengths).astype("<u8").tofile(beside / _IDX)
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "dtype": _dtype(tokenizer).name,
            "tokens": int(lengths.sum()),
            "documents": len(lengths),
            "bytes": counted if n_bytes is None else n_bytes,
            "masked": masked,
            "vocab_size": tokenizer.vocab_size,
            "pad": tokenizer.pad,
            "tokenizer": tokenizer.hash,
            "sha256": {file.name: hash_file(file) for file in sorted(beside.iterdir())},
        }
        write_json(beside / _MANIFEST, manifest)
    return manifest


def read_shards(folder: Path, tokenizer: Tokenizer | None = None, verify: bool = False) -> Shards:
    """Map a folder of tokens into memory.

    Args:
        folder: what ``write_shards`` wrote.
        tokenizer: if given, the shards must have been made with it.
        verify: also read every byte and compare checksums; sizes are always compared.

    Raises:
        UserError: the folder is missing, damaged, of another version, or made with another tokenizer.
    """
    manifest = read_json(folder / _MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        raise UserError(f"{folder / _MANIFEST} does not describe token shards of version {VERSION}; make them again")
    if tokenizer is not None and manifest["tokenizer"] != tokenizer.hash:
        raise UserError(f"{folder} was made with another tokenizer; run the tokens stage again with this one")
    count = manifest["tokens"]
    tokens = _map(folder / _BIN, np.dtype(manifest["dtype"]).newbyteorder("<"), count)
    ends = _map(folder / _IDX, np.dtype("<u8"), manifest["documents"])
    mask = _map(folder / _MASK, np.dtype("u1"), count) if manifest["masked"] else None
    if len(ends) and ends[-1] != count:
        raise _damaged(folder / _IDX, "the last document does not end where the tokens do")
    if verify:
        for name, digest in manifest["sha256"].items():
            if hash_file(folder / name) != digest:
                raise _damaged(folder / name, "its bytes are not the ones that were written")
    return Shards(tokens, ends, mask, manifest)


def _write_tokens(
    folder: Path, sequences: Iterable[Masked], tokenizer: Tokenizer
) -> tuple[npt.NDArray[np.int64], int, bool]:
    """Write ids and masks; returns the length of each sequence, bytes of text, and whether there were masks."""
    dtype = _dtype(tokenizer)
    lengths: list[int] = []
    n_bytes = 0
    with open(folder / _BIN, "wb") as ids_file, open(folder / _MASK, "wb") as mask_file:
        for chunk in _chunks(sequences):
            ids = _flat([ids for ids, _ in chunk])
            if len(ids) and not 0 <= ids.min() <= ids.max() < tokenizer.vocab_size:
                raise ValueError(f"ids {ids.min()} to {ids.max()} in a vocabulary of {tokenizer.vocab_size}")
            ids.astype(dtype).tofile(ids_file)
            spelt = tokenizer.byte_lengths[ids]
            learnt = _learnt(chunk)
            if learnt is not None:
                learnt.tofile(mask_file)
            n_bytes += int(spelt.sum() if learnt is None else spelt @ learnt)
            lengths += [len(ids) for ids, _ in chunk]
        masked = mask_file.tell() > 0
    total = np.array(lengths, dtype=np.int64)
    if not masked:
        (folder / _MASK).unlink()
    elif (folder / _MASK).stat().st_size != total.sum():
        raise ValueError("every sequence needs a mask, or none of them has one")
    return total, n_bytes, masked


def _learnt(chunk: Sequence[Masked]) -> npt.NDArray[np.uint8] | None:
    masks = [mask for _, mask in chunk if mask is not None]
    if not masks:
        return None
    if [len(mask) for mask in masks] != [len(ids) for ids, _ in chunk]:
        raise ValueError("every sequence needs a mask of its own length, or none of them has one")
    return _flat(masks).astype(np.uint8)


def _dtype(tokenizer: Tokenizer) -> np.dtype[Any]:
    return np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")


def _flat(lists: Iterable[Sequence[int]]) -> npt.NDArray[np.int64]:
    return np.fromiter(itertools.chain.from_iterable(lists), dtype=np.int64)


def _chunks(sequences: Iterable[Masked]) -> Iterator[list[Masked]]:
    iterator = iter(sequences)
    while chunk := list(itertools.islice(iterator, _CHUNK)):
        yield chunk


def _map(path: Path, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
    """Map ``count`` numbers; an empty file cannot be mapped and is an empty array."""
    if not path.is_file():
        raise _damaged(path, "it is missing")
    size = path.stat().st_size
    if size != count * dtype.itemsize:
        raise _damaged(path, f"it has {size} bytes and should have {count * dtype.itemsize}")
    return np.memmap(path, dtype=dtype, mode="r") if count else np.empty(0, dtype)


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"token shard {path} is damaged ({why}); delete {path.parent} and run the stage again")
