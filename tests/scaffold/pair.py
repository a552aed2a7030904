"""Two processes that train together, as ``torchrun`` starts them, forked: torch is imported once."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence

import torch
from torch.distributed import TCPStore

from danlu.train import parallel

PLAYED = 7  # the exit code of one whose scene went to its end


def meet() -> tuple[TCPStore, dict[str, str]]:
    """The store at which two processes meet, and the environment that tells them of it, but for their ranks.

    torchrun too holds one, so that nobody can take its port.
    """
    meeting = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    return meeting, {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(meeting.port), "OMP_NUM_THREADS": "1",
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip


def play(scene: Callable[[parallel.World], object], ends: Sequence[int] = (PLAYED, PLAYED)) -> None:
    """Let two processes go through a scene, on a machine without GPUs; fail where one of them ends otherwise."""
    meeting, told = meet()
    pair = [multiprocessing.get_context("fork").Process(target=_one, args=(told, rank, scene)) for rank in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join(60)
    for process in pair:
        process.kill()  # one that waits for the other for ever
        process.join()
    del meeting
    assert [process.exitcode for process in pair] == [*ends]


def _one(told: dict[str, str], rank: int, scene: Callable[[parallel.World], object]) -> None:
    os.environ |= told | {"RANK": str(rank)}
    torch.cuda.device_count = lambda: 0
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    scene(parallel.join())
    os._exit(PLAYED)
