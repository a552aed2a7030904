"""A step's work is shared out among processes; that they take the steps of one is seen in ``test_align_processes``."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

import pytest
import torch
from pair import play
from torch import distributed

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


def one_leaves(world: World) -> None:
    """Whatever the first waits for is told in a sentence; a fault of ours keeps its traceback."""
    if not world.main:
        return
    waits = (
        world.wait, lambda: world.told("?"), lambda: world.sum_tensors([torch.ones(2)]),
        lambda: world.sum_numbers([1.0], torch.device("cpu")), lambda: world.gather([1]),
    )  # fmt: skip
    for wait in waits:
        with pytest.raises(UserError, match="another process has ended, and has said why"):
            wait()
    with pytest.raises(RuntimeError, match="shapes"), parallel._others_there():
        raise RuntimeError("shapes differ")


def what_is_dealt_comes_back(world: World) -> None:
    """In its order, also where there is less than a share for everybody; and a gradient that one has is everybody's."""
    for n in range(6):
        mine = [f"{thing}" for thing in world.deal(range(n))]
        assert world.gather(mine) == World().gather([f"{thing}" for thing in range(n)])
    both, one, none = parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    both.grad = torch.tensor([1.0, 2.0 + world.rank])
    if not world.main:
        one.grad = torch.tensor([4.0, 5.0])
    world.sum_gradients(parameters)
    assert both.grad.tolist() == [2.0, 5.0]
    assert one.grad.tolist() == [4.0, 5.0]
    assert none.grad is None  # nor would one process have one


def one_is_late(world: World) -> None:
    """It is waited for where somebody may work alone, and for less long where all take a step."""
    step = distributed.group.WORLD._get_backend(torch.device("cpu"))
    assert step.options._timeout == timedelta(minutes=30)
    distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=0.15))  # nobody has half an hour here
    time.sleep(0 if world.main else 0.25)
    world.wait()
    time.sleep(0 if world.main else 0.25)
    assert world.told(world.rank) == 0
    time.sleep(0 if world.main else 0.25)
    assert world.gather([world.rank], patiently=True) == [0, 1]
    if world.main:
        with pytest.raises(RuntimeError, match="Timed out"):
            world.sum_numbers([1.0], torch.device("cpu"))
    else:
        time.sleep(0.25)


@pytest.mark.parametrize("scene", [one_leaves, one_is_late, what_is_dealt_comes_back])
def test_two_processes_wait_for_each_other(scene: Callable[[World], None]) -> None:
    play(scene)


def test_two_processes_do_not_share_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes on this machine need a GPU each and it has 1; start 1 here"):
        World(0, 4).check_device("cuda")
    World(0, 4).check_device("cpu")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # on each of four machines
    World(0, 4).check_device("cuda")
