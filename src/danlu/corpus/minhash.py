"""MinHash signatures of texts in Chinese and English alike, as array arithmetic over code points.

In:  texts.
Out: token hashes, shingle hashes, signatures of 112 values, and 64-bit keys of bands of them.
Left out: what is done with equal keys (``dedup``).

The bits are frozen by a golden test. Signatures of two versions must never be mixed, so whoever changes a line here
changes ``ALGORITHM`` too.

Source: one permutation hashing (Li, Owen, Zhang 2012) with random densification (Shrivastava 2017); banding as in
FineWeb (14 x 8 over shingles of five words).
"""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from danlu.corpus.langid import Kind, code_points, kinds

ALGORITHM = "oph-112-v1"
BINS = 112
EMPTY = 0xFFFFFFFF

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_STEP = 0xD6E8FEB86659FD93  # odd: the base of the polynomial in rolling hashes
_MASK = (1 << 64) - 1
_AWKWARD = 0xFFFFFFFF  # no code point
# Where characters with case, width or compatibility forms are: everywhere but in Han, Hangul and the high planes.
_FOLDING = ((0, 0x3400), (0xA000, 0xAC00), (0xE000, 0x20000), (0x2F800, 0x2FA20))


def token_hashes(texts: Sequence[str]) -> tuple[U64, I64]:
    """One hash per token, and where each text's tokens end.

    A token is one Han character or kana, or a run of other letters, marks and digits; everything else separates.
    Case and width do not count (NFKC, lower case). Numbers keep their digits: sums and dates that differ only in
    their numbers are different texts.
    """
    points, ends = _folded(texts)
    kind = kinds()[points]
    single = (kind == Kind.HAN) | (kind == Kind.KANA)
    run = (kind == Kind.LATIN) | (kind == Kind.LETTER) | (kind == Kind.DIGIT)
    start = single | (run & ~np.concatenate(([False], run[:-1])))
    starts = np.flatnonzero(start)
    counts = np.searchsorted(starts, ends)
    if not len(starts):
        return np.zeros(0, np.uint64), counts
    here = np.arange(len(points), dtype=np.uint64)
    place = here - np.maximum.accumulate(np.where(start, here, np.uint64(0)))  # of a character in its token
    spread = mix(points + place * np.uint64(_GOLDEN))
    spread *= single | run
    return mix(np.add.reduceat(spread, starts)), counts


def _folded(texts: Sequence[str]) -> tuple[NDArray[np.uint32], I64]:
    """Code points of the texts in lower case and NFKC, each text followed by a newline, and where each ends.

    Character by character through a table; a text with a character whose form depends on its neighbours, or becomes
    several, takes the long way.
    """
    points, ends = code_points([text + "\n" for text in texts])
    folded = _fold_table()[points]
    awkward = np.unique(np.searchsorted(ends, np.flatnonzero(folded == _AWKWARD), side="right"))
    if not len(awkward):
        return folded, ends
    plain = list(texts)
    for place in awkward.tolist():
        plain[place] = _fold(plain[place])
    points, ends = code_points([text + "\n" for text in plain])
    folded = _fold_table()[points]
    return np.where(folded == _AWKWARD, points, folded), ends


def _fold(text: str) -> str:
    """What case and width do not change: NFKC, lower case."""
    return unicodedata.normalize("NFKC", text).lower()


@functools.cache
def _fold_table() -> NDArray[np.uint32]:
    """What every code point folds to, or ``_AWKWARD``."""
    table = np.arange(0x110000, dtype=np.uint32)
    for point in itertools.chain.from_iterable(range(*span) for span in _FOLDING):
        character = chr(point)
        folded = _fold(character)
        composes = unicodedata.category(character)[0] == "M" or 0x1100 <= point < 0x1200 or 0xFF61 <= point < 0xFFDD
        table[point] = _AWKWARD if len(folded) != 1 or composes or character == "Σ" else ord(folded)
    table[ord("…")] = ord(" ")  # three characters in NFKC, but separators all
    return table


def rolling(values: U64, ends: I64, length: int) -> tuple[U64, I64]:
    """Hashes of every run of ``length`` neighbouring values within each text, and where each text's runs end."""
    sizes = np.maximum(np.diff(ends, prepend=0) - length + 1, 0)
    run_ends = np.cumsum(sizes)
    starts = np.concatenate(([0], ends[:-1]))
    first = np.repeat(starts - (run_ends - sizes), sizes) + np.arange(sizes.sum())
    hashes = np.zeros(max(len(values) - length + 1, 0), np.uint64)
    for offset in range(length):  # across the ends of texts too: slices are cheaper than picking
        hashes *= np.uint64(_STEP)
        hashes += values[offset : offset + len(hashes)]
    return mix(hashes[first]), run_ends


def signatures(shingles: U64, ends: I64) -> NDArray[np.uint32]:
    """MinHash signatures, (texts, 112): the share of equal places estimates the Jaccard similarity of shingle sets.

    The top half of a shingle's hash chooses one bin, the bottom half competes for the minimum there. A text without
    shingles has ``EMPTY`` everywhere. A text's row does not depend on which texts it is hashed with.
    """
    rows = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
    bins = (((shingles >> np.uint64(32)) * np.uint64(BINS)) >> np.uint64(32)).astype(np.int64)
    table = np.full(len(ends) * BINS, EMPTY, np.uint32)
    np.minimum.at(table, rows * BINS + bins, shingles.astype(np.uint32))
    return _densify(table.reshape(len(ends), BINS))


def band_keys(table: NDArray[np.uint32], bands: int) -> U64:
    """Fold signatures into one 64-bit key per band: (texts, bands). Equal keys: all ``112 / bands`` values agree."""
    rows = table.reshape(len(table), bands, BINS // bands).astype(np.uint64)
    keys = np.zeros((len(table), bands), np.uint64)
    for place in range(BINS // bands):
        keys = keys * np.uint64(_STEP) + rows[:, :, place] + np.uint64(1)
    return mix(keys)


def hit_probability(jaccard: float, bands: int) -> float:
    """Chance that two texts of this similarity agree in at least one band: 1 - (1 - J^rows)^bands."""
    return float(1.0 - (1.0 - jaccard ** (BINS // bands)) ** bands)


def mix(values: U64) -> U64:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): every input bit moves every output bit."""
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(_MIX_1)
    values ^= values >> np.uint64(27)
    values *= np.uint64(_MIX_2)
    values ^= values >> np.uint64(31)
    return values


def _densify(table: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Fill each empty bin from a bin that was filled by a shingle, trying donors in a fixed random order."""
    filled = table != EMPTY
    rows = np.flatnonzero(filled.any(axis=1) & ~filled.all(axis=1))
    result = table.copy()
    row, empty = np.nonzero(~filled[rows])
    row = rows[row]
    attempt = 0
    while len(row):
        donor = _donors(attempt)[empty]
        found = filled[row, donor]
        result[row[found], empty[found]] = table[row[found], donor[found]]
        row, empty = row[~found], empty[~found]
        attempt += 1
    return result


def _donors(attempt: int) -> I64:
    """The bin that each empty bin asks at its n-th attempt, (112,)."""
    asked = np.arange(attempt * BINS, (attempt + 1) * BINS, dtype=np.uint64)
    return (mix((asked + np.uint64(1)) * np.uint64(_GOLDEN)) % np.uint64(BINS)).astype(np.int64)


# ---------------------------------------------------------------------------------------- plain reference


def signature_reference(text: str, length: int) -> list[int]:
    """The signature of one text in plain integers, character by character; what the fast path is compared with."""
    tokens = _tokens_reference(text)
    table = [EMPTY] * BINS
    for first in range(len(tokens) - length + 1):
        value = 0
        for token in tokens[first : first + length]:
            value = (value * _STEP + token) & _MASK
        value = _mix_reference(value)
        place = ((value >> 32) * BINS) >> 32
        table[place] = min(table[place], value & EMPTY)
    if all(value == EMPTY for value in table):
        return table
    return [value if value != EMPTY else _donated_reference(table, place) for place, value in enumerate(table)]


def _tokens_reference(text: str) -> list[int]:
    tokens: list[int] = []
    place = -1  # in the run that is open, if one is
    for character in _fold(text):
        kind = kinds()[ord(character)]
        if kind in (Kind.HAN, Kind.KANA):
            tokens.append(_mix_reference(ord(character)))
            place = -1
        elif kind in (Kind.LATIN, Kind.LETTER, Kind.DIGIT):
            if place < 0:
                tokens.append(0)
            place += 1
            tokens[-1] = (tokens[-1] + _mix_reference(ord(character) + place * _GOLDEN)) & _MASK
        else:
            place = -1
    return [_mix_reference(token) for token in tokens]


def _donated_reference(table: list[int], place: int) -> int:
    attempt = 0
    while True:
        donor = _mix_reference((attempt * BINS + place + 1) * _GOLDEN) % BINS
        if table[donor] != EMPTY:
            return table[donor]
        attempt += 1


def _mix_reference(value: int) -> int:
    value &= _MASK
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)
