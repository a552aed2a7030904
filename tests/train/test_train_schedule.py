from itertools import pairwise

import pytest

from danlu.train.schedule import learning_rate
from danlu.train.task import LoopSettings


def rates(**settings):
    loop = LoopSettings(lr=1.0, **settings)
    return [learning_rate(step, loop) for step in range(1, loop.steps + 1)]


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "linear"])
def test_warms_up_to_the_peak_and_ends_at_the_floor(schedule):
    found = rates(steps=100, warmup=10, schedule=schedule, min_lr_ratio=0.1)
    assert found[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert found[9] == max(found) == pytest.approx(1.0)
    assert found[-1] == pytest.approx(0.1)
    assert all(later <= earlier for earlier, later in pairwise(found[9:]))


def test_shapes_at_the_middle_of_the_fall():
    middle = 55  # halfway between step 10 and step 100
    assert rates(steps=100, warmup=10, schedule="cosine", min_lr_ratio=0.0)[middle - 1] == pytest.approx(0.5)
    assert rates(steps=100, warmup=10, schedule="linear", min_lr_ratio=0.0)[middle - 1] == pytest.approx(0.5)
    wsd = rates(steps=100, warmup=10, schedule="wsd", min_lr_ratio=0.0, decay_share=0.2)
    assert wsd[79] == 1.0
    assert wsd[80] == pytest.approx(0.95)
    assert wsd[89] == pytest.approx(0.5)


def test_short_runs_still_reach_the_peak():
    assert max(rates(steps=4, warmup=50)) == 1.0
    assert rates(steps=1, warmup=0, min_lr_ratio=0.1) == pytest.approx([0.1])
