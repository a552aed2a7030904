"""The loader: a pure function of the step, whatever the number of ranks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from danlu.errors import UserError
from danlu.tokens import Batch, Loader, PackIndex, Shards, one_pass, pack
from danlu.tokens.loader import IGNORE, permute

LENGTHS = [3, 18, 2, 7, 7, 11, 5, 1, 40, 6, 9, 4, 13, 8, 2, 21]
FIELDS = ("tokens", "targets", "positions", "documents")


@pytest.fixture(params=["bestfit", "stream"])
def packed(make_shards: Callable[..., Shards], request: pytest.FixtureRequest) -> tuple[Shards, PackIndex]:
    shards = make_shards(LENGTHS)
    return shards, pack(shards, 8, request.param)


def same(a: Batch, b: Batch) -> bool:
    return a.n_tokens == b.n_tokens and all(torch.equal(getattr(a, name), getattr(b, name)) for name in FIELDS)


def test_batch_by_hand(make_shards: Callable[..., Shards]) -> None:
    shards = make_shards([3, 4], masks=[[0, 1, 1], [1, 0, 1, 1]])
    a, b = shards.tokens[:3].tolist(), shards.tokens[3:].tolist()
    (batch,) = one_pass(shards, pack(shards, 6), batch_size=4)
    assert batch.tokens.tolist() == [[b[0], b[1], b[2], a[0], a[1], shards.manifest["pad"]]]
    assert batch.targets.tolist() == [[IGNORE, b[2], b[3], a[1], a[2], IGNORE]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 0]]
    assert batch.documents.tolist() == [[0, 0, 0, 1, 1, -1]]
    assert batch.n_tokens == 5
    assert [getattr(batch, name).dtype for name in FIELDS] == [torch.int64] * 3 + [torch.int32]


def test_targets_are_the_next_token_of_the_same_document(packed: tuple[Shards, PackIndex]) -> None:
    shards, index = packed
    next_of = dict(zip(shards.tokens[:-1].tolist(), shards.tokens[1:].tolist(), strict=True))
    starts = {0, *shards.ends.tolist()}
    seen = 0
    for row, (start, end) in enumerate(zip(index.rows[:-1], index.rows[1:], strict=True)):
        batch = Loader(shards, index, 1, seed=0)
        (only,) = (b for i, b in enumerate(one_pass(shards, index, 1)) if i == row)
        column = 0
        for piece in range(start, end):
            at, n = int(index.starts[piece]), int(index.lengths[piece])
            assert only.tokens[0, column : column + n].tolist() == shards.tokens[at : at + n].tolist()
            assert only.targets[0, column : column + n].tolist() == shards.tokens[at + 1 : at + n + 1].tolist()
            assert not starts & set(range(at + 1, at + n + 1))
            column += n
            seen += n
        assert (only.targets[0, column:] == IGNORE).all()
        assert (only.documents[0, column:] == -1).all()
        assert batch.steps_per_epoch == index.n_rows
    assert seen == index.n_tokens == sum(LENGTHS) - len(LENGTHS)
    assert next_of


@pytest.mark.parametrize("world", [1, 2, 4])
def test_global_batch_does_not_depend_on_ranks(packed: tuple[Shards, PackIndex], world: int) -> None:
    alone = Loader(*packed, batch_size=4, seed=3)
    ranks = [Loader(*packed, batch_size=4, seed=3, rank=rank, world=world) for rank in range(world)]
    for step in range(30):
        parts = [loader.batch(step) for loader in ranks]
        whole = alone.batch(step)
        for name in FIELDS:
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
        assert sum(part.n_tokens for part in parts) == whole.n_tokens


def test_each_row_once_per_epoch_and_epochs_differ(packed: tuple[Shards, PackIndex]) -> None:
    shards, index = packed
    loader = Loader(shards, index, batch_size=3, seed=5)
    n = index.n_rows
    assert n > 10
    rows = np.concatenate([loader.rows(step) for step in range(3 * n)])
    epochs = rows[: 9 * n].reshape(9, n)  # batches straddle epochs; rows do not
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 9
    assert Loader(shards, index, batch_size=3, seed=6).rows(0).tolist() != rows[:3].tolist()


def test_stop_and_resume_at_any_step(packed: tuple[Shards, PackIndex]) -> None:
    batches = [Loader(*packed, batch_size=2, seed=1).batch(step) for step in range(20)]
    for stop in range(20):
        resumed = Loader(*packed, batch_size=2, seed=1)
        assert same(resumed.batch(stop), batches[stop])
        assert same(resumed.batch(19), batches[19])


def test_one_pass_sees_every_row_once(packed: tuple[Shards, PackIndex]) -> None:
    shards, index = packed
    batches = list(one_pass(shards, index, 4))
    assert [len(batch.tokens) for batch in batches] == [4] * (index.n_rows // 4) + [index.n_rows % 4] * (
        index.n_rows % 4 > 0
    )
    assert sum(batch.n_tokens for batch in batches) == index.n_tokens


@pytest.mark.parametrize("n", [1, 2, 3, 16, 17, 1000, 65_537])
def test_permute_is_a_permutation(n: int) -> None:
    everything = np.arange(n)
    sent = permute(everything, n, key=11)
    assert sorted(sent.tolist()) == everything.tolist()
    assert permute(everything[n // 2 :], n, key=11).tolist() == sent[n // 2 :].tolist()
    if n >= 16:
        other = permute(everything, n, key=12)
        assert (sent == other).mean() < 0.3
        assert (sent == everything).mean() < 0.3


def test_permute_is_frozen() -> None:
    """A checkpoint's step means the same rows for ever."""
    assert permute(np.arange(8), 8, key=0).tolist() == [2, 1, 6, 0, 4, 7, 3, 5]
    assert permute(np.arange(3), 10**9, key=7).tolist() == [156815817, 932333225, 840502931]


def test_permute_mixes() -> None:
    """Neighbours are sent apart: the mean distance is that of random numbers, a third of n."""
    n = 100_003
    sent = permute(np.arange(n), n, key=1)
    assert abs(np.abs(np.diff(sent)).mean() / n - 1 / 3) < 0.01


def test_fingerprint_names_the_batches(packed: tuple[Shards, PackIndex]) -> None:
    base = Loader(*packed, batch_size=4, seed=3)
    assert base.fingerprint == Loader(*packed, batch_size=4, seed=3, rank=1, world=2).fingerprint
    assert base.fingerprint != Loader(*packed, batch_size=4, seed=4).fingerprint
    assert base.fingerprint != Loader(*packed, batch_size=2, seed=3).fingerprint


def test_wrong_combinations_are_refused(packed: tuple[Shards, PackIndex], make_shards: Callable[..., Shards]) -> None:
    shards, index = packed
    with pytest.raises(UserError, match="divided among 4 processes"):
        Loader(shards, index, batch_size=6, seed=0, world=4)
    with pytest.raises(ValueError, match="other shards"):
        Loader(make_shards([9, 9]), index, batch_size=2, seed=0)
