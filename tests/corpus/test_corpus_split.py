"""The split: by hash, and never without anything on one side."""

import pytest

from danlu.corpus.split import fitting_share, is_heldout


@pytest.mark.parametrize("count", [2, 3, 5, 10])
@pytest.mark.parametrize("share", [1e-9, 0.1, 0.5, 1.0])
def test_one_is_held_out_and_one_is_left_whatever_the_luck(count, share):
    for trial in range(50):
        ids = [f"{trial}-{i}" for i in range(count)]
        fitted = fitting_share(ids, share)
        heldout = [is_heldout(one, fitted) for one in ids]
        assert any(heldout)
        assert not all(heldout)


def test_a_share_that_fits_stays_as_it_is():
    ids = [str(i) for i in range(1000)]
    assert fitting_share(ids, 0.1) == 0.1
    assert 60 < sum(is_heldout(one, 0.1) for one in ids) < 140
    assert fitting_share(["alone"], 0.1) == 0.1
