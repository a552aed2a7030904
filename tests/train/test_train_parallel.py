"""A step's work is shared out among processes; that they take the steps of one is seen in ``test_align_processes``."""

from __future__ import annotations

import multiprocessing
import os

import pytest
import torch
from torch.distributed import TCPStore

from danlu.errors import UserError
from danlu.train import parallel
from danlu.train.parallel import World
from danlu.train.task import Task


def test_micro_batches_are_shared_out_and_none_goes_without():
    task = Task(lambda step: [(step, part) for part in range(5)], lambda *_: None, lambda _: {})
    shares = [task.shared(World(rank, 2), "reward").batches(7) for rank in range(2)]
    assert shares == [[(7, 0), (7, 2), (7, 4)], [(7, 1), (7, 3)]]
    assert task.shared(World(), "reward") is task
    with pytest.raises(UserError, match=r"6 processes cannot share the 5 micro-batches .* reward.batch_size larger"):
        task.shared(World(0, 6), "reward").batches(0)


def meet(told: dict[str, str], rank: int) -> None:
    """Two processes join; the second leaves, and whatever the first waits for then is told in a sentence."""
    os.environ |= told | {"RANK": str(rank)}
    torch.cuda.device_count = lambda: 0
    world = parallel.join()
    world.wait()
    if rank:
        os._exit(0)
    waits = (
        world.wait, lambda: world.told("?"), lambda: world.sum_tensors([torch.ones(2)]),
        lambda: world.sum_numbers([1.0], torch.device("cpu")),
    )  # fmt: skip
    for wait in waits:
        with pytest.raises(UserError, match="another process has ended, and has said why"):
            wait()
    with pytest.raises(RuntimeError), parallel._others_there():  # a fault of ours keeps its traceback
        raise RuntimeError("shapes differ")
    os._exit(7)


def test_who_waits_for_one_that_has_left_says_so_in_a_sentence():
    meeting = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    told = {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(meeting.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip
    fork = multiprocessing.get_context("fork")  # torch is imported once
    pair = [fork.Process(target=meet, args=(told, rank)) for rank in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join(60)
    assert [process.exitcode for process in pair] == [7, 0]
