"""Batches as a pure function of the step.

In:  token shards, a pack index, a batch size and a seed; which rank of how many asks.
Out: ``Batch``: tokens, targets, positions and documents of the rows of a step.
Left out: state. The n-th row of training is a keyed permutation of n, so a loader resumes at any step, at once, and
the global batch is the same whatever the number of ranks. Prefetching too: a batch costs far less than a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from danlu.errors import UserError
from danlu.files import hash_value
from danlu.streams import stream_seed
from danlu.tokens.pack import PackIndex, ramp
from danlu.tokens.shards import Shards

IGNORE = -100
_ROUNDS = 6

Words = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Batch:
    """Rows of packed documents.

    Attributes:
        tokens: (B, T) int64; the tokenizer's pad where a row is not full.
        targets: (B, T) int64, the next token; -100 where nothing is learnt (padding, masked). A target is never a
            token of another document, because a document's last token is not among ``tokens``.
        positions: (B, T) int64, 0, 1, 2 ... from the start of each piece; 0 on padding.
        documents: (B, T) int32, which piece of the row; -1 on padding. Attention never crosses.
        n_tokens: places that are not padding.
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor
    documents: torch.Tensor
    n_tokens: int


class Loader:
    """Batches for training, without end: epoch after epoch, each in an order of its own.

    Attributes:
        batch_size: rows of the global batch; a rank gets ``batch_size / world`` of them.
    """

    def __init__(
        self, shards: Shards, pack: PackIndex, batch_size: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        """Bind a loader to its tokens.

        Raises:
            UserError: the batch cannot be divided among the ranks.
            ValueError: the pack index belongs to other shards.
        """
        if batch_size < 1 or batch_size % world:
            raise UserError(
                f"batch_size is {batch_size} rows, which cannot be divided among {world} processes; make it a multiple"
            )
        if pack.manifest["shards"] != shards.fingerprint:
            raise ValueError("the pack index belongs to other shards")
        self.batch_size = batch_size
        self._shards, self._pack, self._seed = shards, pack, seed
        self._share = batch_size // world
        self._first = rank * self._share

    @property
    def fingerprint(self) -> str:
        """Identity of the sequence of global batches; a checkpoint keeps it beside the step."""
        return hash_value([self._pack.fingerprint, self.batch_size, self._seed])

    @property
    def steps_per_epoch(self) -> float:
        """Steps until every row has been seen once."""
        return self._pack.n_rows / self.batch_size

    def rows(self, step: int) -> npt.NDArray[np.int64]:
        """Which rows of the pack this rank gets at a step, (batch_size / world,)."""
        seen = step * self.batch_size + self._first
        ordinal = np.arange(seen, seen + self._share)
        epochs, places = np.divmod(ordinal, self._pack.n_rows)
        rows = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            key = stream_seed(self._seed, "rows", int(epoch))
            rows[here] = permute(places[here], self._pack.n_rows, key)
        return rows

    def batch(self, step: int) -> Batch:
        """The batch of a step, 0 the first; the same whenever and however often it is asked for."""
        return collate(self._shards, self._pack, self.rows(step))


def one_pass(shards: Shards, pack: PackIndex, batch_size: int) -> Iterator[Batch]:
    """Every row once, in order, the last batch perhaps smaller: for evaluation."""
    for first in range(0, pack.n_rows, batch_size):
        yield collate(shards, pack, np.arange(first, min(first + batch_size, pack.n_rows)))


def collate(shards: Shards, pack: PackIndex, rows: npt.NDArray[np.int64]) -> Batch:
    """Gather rows of the pack as one batch, with one look-up for all of their tokens."""
    counts = pack.rows[rows + 1] - pack.rows[rows]
    pieces = np.repeat(pack.rows[rows], counts) + ramp(counts)
    lengths = pack.lengths[pieces]
    positions = ramp(lengths)
    source = np.repeat(pack.starts[pieces], lengths) + positions  # where each token stands in the shards
    row_lengths = np.add.reduceat(lengths, np.cumsum(counts) - counts)
    place = np.repeat(np.arange(len(rows)) * pack.seq_len, row_lengths) + ramp(row_lengths)  # and where in the batch

    def lay(values: npt.NDArray[np.generic], fill: int, dtype: type[np.integer]) -> torch.Tensor:
        grid = np.full(len(rows) * pack.seq_len, fill, dtype)
        grid[place] = values
        return torch.from_numpy(grid.reshape(len(rows), pack.seq_len))

    targets = shards.tokens[source + 1].astype(np.int64)
    if shards.mask is not None:
        targets[shards.mask[source + 1] == 0] = IGNORE
    return Batch(
        tokens=lay(shards.tokens[source], shards.manifest["pad"], np.int64),
        targets=lay(targets, IGNORE, np.int64),
        positions=lay(positions, 0, np.int64),
        documents=lay(np.repeat(ramp(counts), lengths), -1, np.int32),
        n_tokens=len(source),
    )


def permute(index: npt.NDArray[np.int64], n: int, key: int) -> npt.NDArray[np.int64]:
    """Where a keyed permutation of 0 .. n-1 sends ``index``; no array of size n is made.

    A Feistel network permutes the next power of four at or above n; what lands at n or beyond is sent through again
    until it lands below (cycle walking), which keeps it a permutation.

    Args:
        index: numbers below n, (k,).
        n: size of the domain.
        key: another key, another permutation.
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    keys = np.array([stream_seed(key, round_) for round_ in range(_ROUNDS)], np.uint64)
    result = _feistel(index.astype(np.uint64), half, keys)
    while len(out := np.flatnonzero(result >= n)):
        result[out] = _feistel(result[out], half, keys)
    return result.astype(np.int64)


def _feistel(value: Words, half: int, keys: Words) -> Words:
    bits, low = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = value >> bits, value & low
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & low)
    return (left << bits) | right


def _mix(word: Words) -> Words:
    """The 64-bit finaliser of MurmurHash3: every input bit reaches every output bit."""
    word = (word ^ (word >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    word = (word ^ (word >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return word ^ (word >> np.uint64(33))
