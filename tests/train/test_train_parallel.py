"""A step's work is shared out among processes; that they take the steps of one is seen in ``test_align_processes``."""

import pytest

from danlu.errors import UserError
from danlu.train.parallel import World
from danlu.train.task import Task


def test_micro_batches_are_shared_out_and_none_goes_without():
    task = Task(lambda step: [(step, part) for part in range(5)], lambda *_: None, lambda _: {})
    shares = [task.shared(World(rank, 2), "reward").batches(7) for rank in range(2)]
    assert shares == [[(7, 0), (7, 2), (7, 4)], [(7, 1), (7, 3)]]
    assert task.shared(World(), "reward") is task
    with pytest.raises(UserError, match=r"6 processes cannot share the 5 micro-batches .* reward.batch_size larger"):
        task.shared(World(0, 6), "reward").batches(0)
