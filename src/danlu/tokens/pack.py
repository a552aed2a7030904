"""Packing: which pieces of which documents make up a row of T tokens. Decided once, before training.

In:  token shards, T, a mode and a seed.
Out: ``PackIndex``: for every row its pieces (where they start, how long they are); saved as .npy files.
Left out: the tokens themselves; cropping documents to fit (nanochat's way, which drops a third of the text).

A piece of length n is n pairs (token, next token), so it reads n + 1 tokens. A document of m tokens has m - 1 pairs;
its last token is only ever predicted and takes no place in a row. Each pair that is to be learnt is in exactly one
row, and each row has at least one: a row with nothing to learn would make a mean over zero tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from danlu.errors import UserError, unknown
from danlu.files import atomic_directory, hash_value, read_json, write_json
from danlu.streams import stream_seed
from danlu.tokens.shards import Shards

MODES = ("bestfit", "stream")
VERSION = 1
"""Raised when the same seed lays out other rows, so that no checkpoint goes on with rows it has not seen."""
_ARRAYS = ("starts", "lengths", "rows")
_MANIFEST = "pack.json"

Ints = npt.NDArray[np.int64]
_Pieces = tuple[Ints, Ints]  # starts, lengths
_Laid = tuple[Ints, Ints, Ints]  # starts, lengths, the row of each


@dataclass(frozen=True)
class PackIndex:
    """Rows of pieces.

    Attributes:
        starts: first token of each piece in the shards, (n_pieces,).
        lengths: pairs in each piece, 1 to T, (n_pieces,).
        rows: row r holds pieces ``rows[r]`` to ``rows[r + 1] - 1``, (n_rows + 1,).
        manifest: ``seq_len`` (T), ``mode``, ``seed``, and the ``shards`` it belongs to.
    """

    starts: Ints
    lengths: Ints
    rows: Ints
    manifest: dict[str, Any]

    @property
    def seq_len(self) -> int:
        """T, the length of every row."""
        return int(self.manifest["seq_len"])

    @property
    def n_rows(self) -> int:
        """How many rows an epoch has."""
        return len(self.rows) - 1

    @property
    def n_tokens(self) -> int:
        """Tokens of an epoch, padding excluded."""
        return int(self.lengths.sum())

    @property
    def waste(self) -> float:
        """Share of all places that is padding."""
        return 1.0 - self.n_tokens / (self.n_rows * self.seq_len)

    @property
    def fingerprint(self) -> str:
        """Identity of the rows; they follow from the manifest."""
        return hash_value(self.manifest)

    def save(self, folder: Path) -> None:
        """Write the index as a folder, atomically."""
        with atomic_directory(folder) as beside:
            for name in _ARRAYS:
                np.save(beside / f"{name}.npy", getattr(self, name), allow_pickle=False)
            write_json(beside / _MANIFEST, self.manifest)

    @staticmethod
    def load(folder: Path) -> PackIndex:
        """Read what ``save`` wrote.

        Raises:
            UserError: the folder is missing or damaged.
        """
        manifest = read_json(folder / _MANIFEST)
        try:
            starts, lengths, rows = (np.load(folder / f"{name}.npy", allow_pickle=False) for name in _ARRAYS)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"pack index {folder} is damaged ({error}); delete it and run again") from None
        return PackIndex(starts, lengths, rows, manifest)


def pack(shards: Shards, seq_len: int, mode: str = "bestfit", seed: int = 0) -> PackIndex:
    """Lay out the rows of an epoch.

    Args:
        shards: the tokens.
        seq_len: T, tokens in a row.
        mode: ``"bestfit"`` keeps documents whole where they fit (longer ones are cut at T) and pads the rest;
            ``"stream"`` joins them in random order and cuts every T, with padding in the last row only.
        seed: decides between documents of equal length or the order of the stream, and the order of rows.

    Raises:
        UserError: an unknown mode, or nothing to learn in the shards.
    """
    if mode not in MODES:
        raise unknown("packing mode", mode, MODES)
    starts, lengths = _documents(shards)
    if not _targets(shards, starts, lengths).any():
        raise UserError("there is nothing to learn in these tokens: no document has a token to predict")
    rng = np.random.default_rng(stream_seed(seed, "pack", mode))
    order = rng.permutation(len(starts))
    lay_out = _best_fit if mode == "bestfit" else _stream
    starts, lengths, row_of = lay_out(shards, (starts[order], lengths[order]), seq_len)
    row_of = rng.permutation(row_of.max() + 1)[row_of]  # so that the first rows are a fair sample of all
    order = np.argsort(row_of, kind="stable")
    rows = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(row_of), dtype=np.int64)])
    manifest = {"version": VERSION, "seq_len": seq_len, "mode": mode, "seed": seed, "shards": shards.fingerprint}
    return PackIndex(starts[order], lengths[order], rows, manifest)


def _documents(shards: Shards) -> _Pieces:
    """Every document as one piece; those with a single token have no pair and are left out."""
    ends = shards.ends.astype(np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]]) if len(ends) else ends
    lengths = ends - starts - 1
    return starts[lengths > 0], lengths[lengths > 0]


def _best_fit(shards: Shards, documents: _Pieces, seq_len: int) -> _Laid:
    starts, lengths = _cut(documents, seq_len)
    kept = _targets(shards, starts, lengths) > 0
    starts, lengths = starts[kept], lengths[kept]
    return starts, lengths, best_fit_decreasing(lengths, seq_len)


def _stream(shards: Shards, documents: _Pieces, seq_len: int) -> _Laid:
    starts, lengths = documents
    ends = np.cumsum(lengths)  # in the stream, not in the shards
    cuts = np.union1d(ends, np.arange(seq_len, ends[-1], seq_len))  # where a piece ends
    begins = np.concatenate([np.zeros(1, np.int64), cuts[:-1]])
    document = np.searchsorted(ends, begins, side="right")
    starts = starts[document] + begins - (ends - lengths)[document]
    lengths, row_of = cuts - begins, begins // seq_len
    alive = np.bincount(row_of, _targets(shards, starts, lengths)) > 0
    kept = alive[row_of]
    return starts[kept], lengths[kept], np.cumsum(alive)[row_of[kept]] - 1


def _cut(pieces: _Pieces, seq_len: int) -> _Pieces:
    """Cut what is longer than T into pieces of T and a rest."""
    starts, lengths = pieces
    parts = -(-lengths // seq_len)
    offset = ramp(parts) * seq_len
    return np.repeat(starts, parts) + offset, np.minimum(np.repeat(lengths, parts) - offset, seq_len)


def _targets(shards: Shards, starts: Ints, lengths: Ints) -> Ints:
    """How many tokens of each piece are to be learnt."""
    if shards.mask is None:
        return lengths
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(shards.mask, dtype=np.int64)])
    targets: Ints = before[starts + lengths + 1] - before[starts + 1]
    return targets


def ramp(counts: Ints) -> Ints:
    """0 .. n-1 for each n of ``counts``, joined: (3, 2) gives 0 1 2 0 1."""
    return np.arange(counts.sum(), dtype=np.int64) - np.repeat(np.cumsum(counts) - counts, counts)


def best_fit_decreasing(lengths: Ints, capacity: int) -> Ints:
    """Put pieces into as few rows as best-fit-decreasing finds: longest first, each into the fullest row that has room.

    Pieces of equal length are placed together, so the cost depends on ``capacity`` and hardly on their number
    (Ding et al. 2024, "Fewer Truncations Improve Language Modeling", section 3.2, without their segment tree).

    Args:
        lengths: 1 to ``capacity`` each, (n,).
        capacity: the length of a row.

    Returns:
        The row of each piece, (n,); rows are numbered from 0 in the order in which they were opened.
    """
    order = np.argsort(-lengths, kind="stable")
    sizes, first = np.unique(-lengths[order], return_index=True)
    row_of = np.empty(len(lengths), np.int64)
    rows_with: list[list[Ints]] = [[] for _ in range(capacity + 1)]  # room left -> groups of rows
    has_rows = np.zeros(capacity + 1, bool)
    n_rows = 0

    def release(rows: Ints, room: int) -> None:
        if len(rows) and room:
            rows_with[room].append(rows)
            has_rows[room] = True

    for size, pieces in zip((-sizes).tolist(), np.split(order, first[1:]), strict=True):
        while len(pieces):
            room = size + int(has_rows[size:].argmax())  # the fullest that will do
            if has_rows[room]:
                rows = rows_with[room].pop()
                has_rows[room] = bool(rows_with[room])
            else:
                room = capacity
                rows = np.arange(n_rows, n_rows + -(-len(pieces) // (capacity // size)))
                n_rows += len(rows)
            # A row that has taken one of these is now the fullest that will do, so it takes as many as fit.
            fit = room // size
            used, unused = np.split(rows, [-(-len(pieces) // fit)])
            placed, pieces = np.split(pieces, [len(used) * fit])
            row_of[placed] = np.repeat(used, fit)[: len(placed)]
            release(unused, room)
            release(used[:-1], room - fit * size)
            release(used[-1:], room - (len(placed) - (len(used) - 1) * fit) * size)
    return row_of
