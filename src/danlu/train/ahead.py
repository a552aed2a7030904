"""The next step's batches, made while a GPU is busy with this one's.

In:  a task's batches, a pure function of the step.
Out: the same function, which has the answer at hand when asked for steps in a row.
Left out: CPUs, where whoever makes batches takes the time from whoever learns from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch


class Ahead:
    """Batches one step ahead; what the function raises is raised when that step is asked for.

    Args:
        batches: of a step.
        steps: how many there are. Behind the last one nothing is begun: some batches are put together on the GPU, and
            whatever follows training wants it for itself.
        device: where they are learnt from. Which GPU is "cuda" each thread has to be told; else it is the first.
    """

    def __init__(self, batches: Callable[[int], Sequence[Any]], steps: int, device: torch.device) -> None:
        self._batches, self._steps = batches, steps
        self._pool = ThreadPoolExecutor(1, "batches", _settle, (device,))
        self._next: tuple[int, Future[Sequence[Any]]] | None = None

    def __call__(self, step: int) -> Sequence[Any]:
        """The batches of ``step``; those of the step behind it are begun."""
        waiting = self._next if self._next is not None and self._next[0] == step else None
        found = self._batches(step) if waiting is None else waiting[1].result()
        self._next = None
        if step + 1 < self._steps:
            self._next = step + 1, self._pool.submit(self._batches, step + 1)
        return found


def _settle(device: torch.device) -> None:
    """Make ``device`` the GPU of this thread, if it is one."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
