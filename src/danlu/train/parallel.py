"""Data parallelism: several processes, each with a slice of every batch, take the step that one would take.

In:  the environment that ``torchrun`` sets (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT).
Out: ``World``, which sums gradients and figures over processes, and tells all what the first knows.
Left out: splitting one model over devices (FSDP2, tensor and expert parallelism).
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from danlu.errors import UserError

_PATIENCE = timedelta(days=30)  # for one that works alone
_STEP = timedelta(minutes=30)  # for one that takes the same step
_T = TypeVar("_T")
# What gloo and nccl say where a process has left.
_LEFT = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited")


@dataclass(frozen=True)
class World:
    """The processes that train together.

    Attributes:
        rank: this process, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0

    def describe(self) -> str:
        """What to add to a line about the machine; nothing for one process."""
        return f", {self.size} processes" if self.size > 1 else ""

    def deal(self, things: Sequence[_T]) -> Sequence[_T]:
        """This process's share of some things, which are dealt out one by one; none if there are too few."""
        return things if self.size == 1 else things[self.rank :: self.size]

    def gather(self, mine: Sequence[_T], patiently: bool = False) -> list[_T]:
        """The inverse of ``deal``: what all processes have made of their shares, in the order of the things.

        Args:
            mine: made of this one's; its tensors lie on the CPU.
            patiently: wait as long as it takes; otherwise as long as within a step.
        """
        if self.size == 1:
            return list(mine)
        shares: list[Sequence[_T]] = [()] * self.size
        with _others_there():
            dist.all_gather_object(shares, mine, group=_patient() if patiently else None)
        rounds = range(max(map(len, shares)))
        return [share[turn] for turn in rounds for share in shares if turn < len(share)]

    def sum_tensors(self, tensors: Sequence[Tensor]) -> None:
        """Add up each tensor over all processes, in place, in one message per dtype.

        Every process must pass the same shapes in the same order.

        Raises:
            UserError: another process has ended; likewise of all that wait for others here.
        """
        if self.size == 1:
            return
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            same = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in same])
            with _others_there():
                dist.all_reduce(flat)
            parts = torch.split(flat, [tensor.numel() for tensor in same])
            for tensor, part in zip(same, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def sum_numbers(self, numbers: Sequence[float], device: torch.device) -> list[float]:
        """Add up numbers over all processes, in float64."""
        if self.size == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64, device=device)
        with _others_there():
            dist.all_reduce(total)
        return [float(number) for number in total.tolist()]

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients over all processes, in place.

        A process that had no row to learn from has none where others have some: its own are zeros then.
        """
        if self.size == 1:
            return
        trained = list(parameters)
        there = self.sum_numbers([float(p.grad is not None) for p in trained], trained[0].device)
        for parameter, processes in zip(trained, there, strict=True):
            if processes and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.sum_tensors([p.grad for p in trained if p.grad is not None])

    def wait(self) -> None:
        """Return when every process has come here, as long as it takes."""
        if self.size > 1:
            with _others_there():
                dist.all_reduce(torch.zeros(1), group=_patient())

    def told(self, what: Any) -> Any:
        """What the first process gives here, which the others wait for, as long as it takes.

        Raises:
            UserError: the first process has ended instead.
        """
        if self.size == 1:
            return what
        message = [what]
        with _others_there():
            dist.broadcast_object_list(message, src=0, group=_patient())
        return message[0]

    def check_device(self, kind: str) -> None:
        """Refuse more processes on this machine than it has GPUs, if it is on those that they compute.

        Raises:
            UserError: two of them would share a GPU, which nccl does not do.
        """
        here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
        if kind == "cuda" and self.size > 1 and here > gpus:
            raise UserError(
                f"{here} processes on this machine need a GPU each and it has {gpus}; start {gpus} here "
                "(--nproc-per-node), or compute on the CPU (device=cpu in the section of every stage)"
            )


ALONE = World()


def _size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


@functools.cache
def _patient() -> dist.ProcessGroup:
    """All processes again, with more time to answer, on the CPU."""
    group: dist.ProcessGroup = dist.new_group(timeout=_PATIENCE, backend="gloo")
    return group


@contextlib.contextmanager
def _others_there() -> Iterator[None]:
    """Say in a sentence that somebody has left, whose own words would be lost among the waiting ones' tracebacks."""
    try:
        yield
    except RuntimeError as error:  # gloo and nccl raise nothing more telling
        if not any(sign in str(error) for sign in _LEFT):
            raise
        raise UserError("another process has ended, and has said why") from error


def refuse(what: str) -> None:
    """Refuse to do with several processes what is for one: each would do all of it, in one place.

    Raises:
        UserError: ``torchrun`` started several.
    """
    if (size := _size()) > 1:
        raise UserError(f"{what} is for one process and {size} were started; start it without torchrun")


def join() -> World:
    """The world this process was started in; alone unless ``torchrun`` started it.

    What lies on the CPU is summed by gloo, what lies on GPUs by nccl. Within a step processes wait half an hour for
    each other; elsewhere (``wait``, ``told``) as long as stages take in which one of them works alone.

    Raises:
        UserError: the environment speaks of several processes and does not say which one this is.
    """
    if _size() == 1:
        return ALONE
    if "RANK" not in os.environ:  # as batch systems do, for a program that they did not start
        raise UserError("WORLD_SIZE is set and RANK is not; start several processes with torchrun, or unset WORLD_SIZE")
    if not dist.is_initialized():
        gpus = torch.cuda.device_count()
        if gpus:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % gpus)
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=_STEP)
        _patient()  # while everybody is here: all have to make it
    return World(dist.get_rank(), dist.get_world_size())
