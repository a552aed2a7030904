"""Packing: nothing is lost, nothing is twice, little is wasted, no row is empty."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.errors import UserError
from danlu.tokens import PackIndex, Shards, pack
from danlu.tokens.pack import MODES, best_fit_decreasing

modes = pytest.mark.parametrize("mode", MODES)


def fake(lengths: list[int], mask: list[int] | None = None) -> Shards:
    """Shards of given lengths in memory; packing looks at nothing else."""
    total = sum(lengths)
    learnt = None if mask is None else np.array(mask, np.uint8)
    return Shards(np.zeros(total, np.uint16), np.cumsum(lengths).astype(np.uint64), learnt, {"sha256": {}})


def pairs(index: PackIndex) -> Counter[int]:
    """How often each token of the shards is the input of a pair."""
    return Counter(
        at for s, n in zip(index.starts.tolist(), index.lengths.tolist(), strict=True) for at in range(s, s + n)
    )


def row_lengths(index: PackIndex) -> np.ndarray:
    return np.add.reduceat(index.lengths, index.rows[:-1])


@modes
@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60), seq_len=st.integers(1, 12), seed=st.integers(0, 9)
)
def test_every_pair_once(mode: str, lengths: list[int], seq_len: int, seed: int) -> None:
    last = set((np.cumsum(lengths) - 1).tolist())
    expected = Counter(at for at in range(sum(lengths)) if at not in last)
    if not expected:
        with pytest.raises(UserError, match="nothing to learn"):
            pack(fake(lengths), seq_len, mode, seed)
        return
    index = pack(fake(lengths), seq_len, mode, seed)
    assert pairs(index) == expected
    assert index.rows[0] == 0
    assert index.rows[-1] == len(index.starts)
    assert 1 <= row_lengths(index).min() <= row_lengths(index).max() <= seq_len
    if mode == "stream":
        assert sum(row_lengths(index) < seq_len) <= 1


@modes
@settings(max_examples=100, deadline=None)
@given(data=st.data(), seq_len=st.integers(1, 8))
def test_masked_rows_all_have_something_to_learn(mode: str, data: st.DataObject, seq_len: int) -> None:
    lengths = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=20))
    mask = data.draw(st.lists(st.sampled_from([0, 0, 0, 1]), min_size=sum(lengths), max_size=sum(lengths)))
    first = {0, *np.cumsum(lengths).tolist()}
    learnt = {at - 1 for at, one in enumerate(mask) if one and at not in first}
    if not learnt:
        with pytest.raises(UserError, match="nothing to learn"):
            pack(fake(lengths, mask), seq_len, mode)
        return
    index = pack(fake(lengths, mask), seq_len, mode)
    seen = pairs(index)
    assert learnt <= set(seen)
    assert max(seen.values()) == 1
    for row in range(index.n_rows):
        of_row = slice(index.rows[row], index.rows[row + 1])
        inside = [
            at for s, n in zip(index.starts[of_row], index.lengths[of_row], strict=True) for at in range(s, s + n)
        ]
        assert learnt & set(inside)


def naive_best_fit(lengths: list[int], capacity: int) -> int:
    rows: list[int] = []
    for size in sorted(lengths, reverse=True):
        fitting = [room for room in rows if room >= size]
        if fitting:
            rows[rows.index(min(fitting))] -= size
        else:
            rows.append(capacity - size)
    return len(rows)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), capacity=st.integers(1, 30))
def test_is_best_fit_decreasing(data: st.DataObject, capacity: int) -> None:
    lengths = data.draw(st.lists(st.integers(1, capacity), min_size=1, max_size=80))
    row_of = best_fit_decreasing(np.array(lengths), capacity)
    assert np.bincount(row_of, lengths).max() <= capacity
    assert row_of.max() + 1 == naive_best_fit(lengths, capacity)
    assert len(set(row_of.tolist())) == row_of.max() + 1


@pytest.mark.parametrize(("mean", "spread", "seq_len"), [(60, 0.6, 256), (400, 1.0, 1024), (1800, 1.1, 2048)])
def test_waste_is_small(mean: float, spread: float, seq_len: int) -> None:
    """Poems, short articles, web pages: lengths are close to log-normal."""
    lengths = np.random.default_rng(1).lognormal(np.log(mean), spread, 20_000).astype(int) + 3
    index = pack(fake(lengths.tolist()), seq_len)
    assert index.waste <= 0.01
    assert index.n_tokens == (lengths - 1).sum()


@modes
def test_the_seed_decides(mode: str) -> None:
    shards = fake([5, 9, 5, 5, 9, 7] * 20)
    first, again, other = (pack(shards, 16, mode, seed) for seed in (1, 1, 2))
    assert first.starts.tolist() == again.starts.tolist()
    assert first.starts.tolist() != other.starts.tolist()
    assert first.fingerprint == again.fingerprint != other.fingerprint


@modes
def test_the_first_rows_are_a_fair_sample(mode: str) -> None:
    """Evaluation may read only some rows; sorted by length they would hold nothing but long documents."""
    lengths = np.random.default_rng(1).integers(2, 65, 4000)
    index = pack(fake(lengths.tolist()), 64, mode)
    some = index.rows[index.n_rows // 5]
    assert index.lengths[:some].mean() == pytest.approx(index.lengths.mean(), rel=0.1)


@modes
def test_save_and_load(make_shards: Callable[..., Shards], tmp_path: Path, mode: str) -> None:
    index = pack(make_shards([5, 30, 2, 8]), 8, mode)
    index.save(tmp_path / "pack")
    again = PackIndex.load(tmp_path / "pack")
    for name in ("starts", "lengths", "rows"):
        assert getattr(again, name).tolist() == getattr(index, name).tolist()
    assert again.manifest == index.manifest
    path = tmp_path / "pack" / "starts.npy"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="damaged"):
        PackIndex.load(tmp_path / "pack")


def test_unknown_mode() -> None:
    with pytest.raises(UserError, match="did you mean 'bestfit'"):
        pack(fake([3]), 4, "best_fit")
