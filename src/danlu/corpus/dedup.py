"""Which documents say the same: exact copies by hash, near-copies by MinHash and an exact check.

In:  batches of texts, in document order.
Out: for each document the one that it is a copy of, and how similar the two are.
Left out: more documents than their band keys fit in memory (300 bytes each); matching against an earlier corpus.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from danlu.console import Console
from danlu.corpus import minhash
from danlu.corpus.minhash import I64, U64

_TELL = 1000  # pairs between two signs of life
LENGTH = 5  # tokens per shingle; a document's size is the number of these that it has


@dataclass(frozen=True)
class Scheme:
    """How documents of one size range are compared.

    The ranges overlap by a factor of two, so two documents with a Jaccard similarity above one half, whose sizes cannot
    differ by more than that, always share a range.

    Attributes:
        length: tokens per shingle.
        bands: bands of the signature; few rows per band find what is less similar.
        fewest: smallest size (shingles of ``LENGTH`` tokens) that is compared this way.
        below: sizes from here on are not.
    """

    length: int
    bands: int
    fewest: int
    below: float


LONG = Scheme(length=LENGTH, bands=14, fewest=32, below=float("inf"))
# A poem of 20 characters has 16 shingles of five, and one variant character spoils five of them; of its 19 pairs of
# characters it spoils two. Pairs of distinct poems hardly ever agree in pairs of characters, so 4 rows are enough.
SHORT = Scheme(length=2, bands=28, fewest=0, below=64)


@dataclass
class Copies:
    """The outcome, one entry per document.

    Attributes:
        of: ordinal of the document that stays; its own where a document stays itself.
        exact: whether it equals the one that stays, or another copy of it, up to case and white space.
        similarity: exact Jaccard similarity to its most similar relative, 1 for exact copies.
        limit: the threshold that this similarity reached, 1 for exact copies.
    """

    of: I64
    exact: NDArray[np.bool_]
    similarity: NDArray[np.float64]
    limit: NDArray[np.float64]

    @staticmethod
    def none(n: int) -> Copies:
        """Every one of ``n`` documents stays."""
        return Copies(np.arange(n), np.zeros(n, np.bool_), np.ones(n), np.ones(n))

    def cluster_sizes(self) -> I64:
        """How many documents each surviving document stands for, itself included; 0 for the others."""
        return np.bincount(self.of, minlength=len(self.of))


@dataclass
class _Index:
    """Band keys of the documents that one scheme compares, batch by batch."""

    ordinals: list[I64] = field(default_factory=list)
    keys: list[U64] = field(default_factory=list)


class Finder:
    """Collects fingerprints of documents in order, then finds the copies.

    Args:
        tokens: a file for the documents' token hashes (8 bytes per token); overwritten.
        thresholds: Jaccard limit of each scheme; none to look for exact copies only.
    """

    def __init__(self, tokens: Path, thresholds: dict[Scheme, float]) -> None:
        self._path = tokens
        tokens.write_bytes(b"")
        self._thresholds = thresholds
        self._digests: list[bytes] = []
        self._ends: list[I64] = [np.zeros(1, np.int64)]
        self._indexes = {scheme: _Index() for scheme in thresholds}

    def add(self, texts: Sequence[str]) -> None:
        """Fingerprint the next documents."""
        first = len(self._digests)
        self._digests += [_digest(text) for text in texts]
        if not self._thresholds:
            return
        tokens, ends = minhash.token_hashes(texts)
        with open(self._path, "ab") as file:
            file.write(tokens.tobytes())
        self._ends.append(ends + self._ends[-1][-1])
        sizes = np.maximum(np.diff(ends, prepend=0) - LENGTH + 1, 0)
        for scheme, index in self._indexes.items():
            chosen = np.flatnonzero((sizes >= scheme.fewest) & (sizes < scheme.below))
            shingles, shingle_ends = minhash.rolling(*_rows(tokens, ends, chosen), scheme.length)
            index.ordinals.append(chosen + first)
            index.keys.append(minhash.band_keys(minhash.signatures(shingles, shingle_ends), scheme.bands))

    def find(self, lengths: I64, console: Console) -> Copies:
        """Find the copies among all documents added.

        Args:
            lengths: characters of each document: of a family, the longest stays, and of equals the first.
            console: where progress goes.
        """
        n = len(self._digests)
        result = Copies.none(n)
        rank = np.empty(n, np.int64)  # 0 for the document that would stay against all others
        rank[np.lexsort((np.arange(n), -lengths))] = np.arange(n)
        first = _best_of_groups(np.unique(np.array(self._digests, "S16"), return_inverse=True)[1], rank)
        result.exact = first != result.of
        pairs, similarity, limit = self._near(~result.exact, console)
        relatives = pairs.ravel()  # least similar first: the most similar pair of a document is written last
        result.similarity[relatives], result.limit[relatives] = np.repeat(similarity, 2), np.repeat(limit, 2)
        result.of = _best_of_groups(_components(pairs, n)[first], rank)
        return result

    def _near(self, alone: NDArray[np.bool_], console: Console) -> tuple[I64, NDArray[np.float64], NDArray[np.float64]]:
        """Pairs of documents that are similar enough, (pairs, 2), least similar first; their similarities; limits."""
        ends = np.concatenate(self._ends[1:]) if len(self._ends) > 1 else np.zeros(0, np.int64)
        tokens = np.memmap(self._path, np.uint64, "r") if len(ends) and ends[-1] else np.zeros(0, np.uint64)
        found, values, limits = [np.zeros((0, 2), np.int64)], [np.zeros(0)], [np.zeros(0)]
        for scheme, threshold in self._thresholds.items():
            index = self._indexes[scheme]
            pairs = _candidates(np.concatenate(index.ordinals), np.concatenate(index.keys), alone)
            jaccard = _jaccard(tokens, ends, pairs, scheme.length, console)
            found.append(pairs[jaccard >= threshold])
            values.append(jaccard[jaccard >= threshold])
            limits.append(np.full(len(values[-1]), threshold))
        order = np.argsort(np.concatenate(values), kind="stable")
        return np.concatenate(found)[order], np.concatenate(values)[order], np.concatenate(limits)[order]


def _digest(text: str) -> bytes:
    """Hash of a text up to case and white space, 16 bytes, the last of them never zero (numpy strips zeros)."""
    return hashlib.blake2b(" ".join(text.lower().split()).encode(), digest_size=15).digest() + b"."


def _rows(values: U64, ends: I64, chosen: I64) -> tuple[U64, I64]:
    """The chosen rows of a ragged array."""
    sizes = np.diff(ends, prepend=0)
    mask = np.zeros(len(ends), np.bool_)
    mask[chosen] = True
    return values[np.repeat(mask, sizes)], np.cumsum(sizes[chosen])


def _components(pairs: I64, n: int) -> I64:
    """(n,) the group of relatives that each document belongs to, by way of others or directly."""
    from scipy.sparse import coo_array  # a third of a second, and most verbs have no copies to find
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    groups: I64 = connected_components(graph, directed=False)[1].astype(np.int64)
    return groups


def _best_of_groups(groups: I64, rank: I64) -> I64:
    """For each document, the ordinal of the best ranked one of its group."""
    best = np.full(groups.max() + 1 if len(groups) else 0, len(rank), np.int64)
    np.minimum.at(best, groups, rank)
    return np.argsort(rank)[best[groups]]


def _candidates(ordinals: I64, keys: U64, alone: NDArray[np.bool_]) -> I64:
    """Pairs of documents with an equal band key, (pairs, 2), each once, smaller ordinal first.

    Each document is paired with the first of its group and with its neighbour there, so that the work stays linear
    in the size of a group however large.
    """
    keep = alone[ordinals]
    ordinals, keys = ordinals[keep], keys[keep]
    codes = [np.zeros(0, np.int64)]
    for band in range(keys.shape[1]):
        order = np.argsort(keys[:, band], kind="stable")
        sorted_keys = keys[order, band]
        same = np.concatenate(([False], sorted_keys[1:] == sorted_keys[:-1]))
        head = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
        later = np.flatnonzero(same)
        for earlier in (head[later], later - 1):
            codes.append(order[earlier] * len(ordinals) + order[later])
    code = np.unique(np.concatenate(codes))
    return np.stack([ordinals[code // max(len(ordinals), 1)], ordinals[code % max(len(ordinals), 1)]], axis=1)


def _jaccard(tokens: U64, ends: I64, pairs: I64, length: int, console: Console) -> NDArray[np.float64]:
    """Exact Jaccard similarity of the shingle sets of each pair."""

    @functools.lru_cache(maxsize=4096)
    def shingles(ordinal: int) -> U64:
        own = tokens[ends[ordinal - 1] if ordinal else 0 : ends[ordinal]]
        return np.unique(minhash.rolling(own, np.array([len(own)]), length)[0])

    result = np.zeros(len(pairs))
    with console.task("compare", total=len(pairs), unit="pairs") as task:
        for place, (one, other) in enumerate(pairs.tolist()):
            a, b = shingles(one), shingles(other)
            both = len(a) + len(b) - len(np.unique(np.concatenate((a, b))))
            result[place] = both / max(len(a) + len(b) - both, 1)
            if place % _TELL == _TELL - 1:
                task.advance(_TELL)
    return result
