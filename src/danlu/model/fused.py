"""Small operations made one kernel, where a GPU and its compiler are there; elsewhere they run as they are written.

In:  a function of tensors, without side effects.
Out: the same function; on a GPU its element-wise passes read and write memory once instead of once each.
Left out: whole blocks, which ``train`` compiles; CPUs, where the functions below are not used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch.utils._triton import has_triton

P = ParamSpec("P")
R = TypeVar("R")


@functools.cache
def compiles(kind: str) -> bool:
    """Whether torch can make kernels for a device of this kind ("cuda") here: it needs Triton for that."""
    return kind == "cuda" and torch.cuda.is_available() and has_triton()


def fused(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, compiled at its first call if its first argument lies on a GPU that can have it."""

    @functools.cache
    def compiled() -> Callable[P, R]:
        return torch.compile(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        first = args[0]
        assert isinstance(first, torch.Tensor), "a fused function is given a tensor first"
        return (compiled() if compiles(first.device.type) else function)(*args, **kwargs)

    return call
