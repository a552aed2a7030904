"""The machine: which device and dtype to compute in and why, threads, the allocator, determinism.

In:  a preference ("auto", "cpu", "cuda", "float32", "bfloat16").
Out: a ``Device`` that says what was chosen and for what reason.
Left out: how models are split over machines (``train.parallel``).
"""

from __future__ import annotations

import ctypes
import functools
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from danlu.errors import UserError, unknown
from danlu.recipe import Settings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@dataclass(frozen=True)
class Device:
    """Where to compute.

    Attributes:
        kind: ``"cpu"`` or ``"cuda"``.
        compute_dtype: dtype of matrix products; weights stay fp32 masters.
        reason: why that dtype, in one phrase for the log.
        threads: CPU threads in use.
    """

    kind: str
    compute_dtype: torch.dtype
    reason: str
    threads: int

    def describe(self) -> str:
        """One line for a person."""
        name = str(self.compute_dtype).removeprefix("torch.")
        return f"{self.kind}, {self.threads} threads, computing in {name} ({self.reason})"


class ComputeSettings(Settings):
    """What every section of a recipe that computes with models can say about the machine."""

    device: str = "auto"
    """auto, cpu or cuda."""
    dtype: str = "auto"
    """Dtype of matrix products: auto, float32 or bfloat16. Weights are float32 always."""

    def machine(self) -> Device:
        """The device that these settings mean here."""
        return choose(self.device, self.dtype)


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Instruction-set flags of this CPU as Linux names them; empty where /proc/cpuinfo is not to be had."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def choose(device: str = "auto", dtype: str = "auto") -> Device:
    """Pick device and compute dtype from facts about the machine, and prepare it.

    bf16 is 4-5 times fp32 where the CPU multiplies it natively and slower than fp32 where it is emulated, so the
    choice is by CPU flag, never by "device is cpu".

    Raises:
        UserError: a device or dtype that does not exist here.
    """
    kind = device
    if device == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind not in ("cpu", "cuda"):
        raise unknown("device", device, ("auto", "cpu", "cuda"))
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("device 'cuda' was asked for and this machine has no CUDA GPU; use device 'cpu' or 'auto'")
    compute, reason = _compute_dtype(kind, dtype)
    return Device(kind, compute, reason, _prepare())


def _compute_dtype(kind: str, dtype: str) -> tuple[torch.dtype, str]:
    if dtype in DTYPES:
        return DTYPES[dtype], "asked for"
    if dtype != "auto":
        raise unknown("dtype", dtype, ("auto", *DTYPES))
    if kind == "cuda":
        if torch.cuda.is_bf16_supported():
            return torch.bfloat16, "the GPU has bf16 tensor cores"
        return torch.float32, "the GPU has no bf16 tensor cores"
    native = {"avx512_bf16", "amx_bf16", "bf16"} & cpu_flags()
    if native:
        return torch.bfloat16, f"the CPU has {min(native)}"
    return torch.float32, "the CPU has no native bf16"


@functools.cache
def _prepare() -> int:
    """Threads, denormals and the allocator, once per process; returns the thread count."""
    threads = int(os.environ.get("OMP_NUM_THREADS", "0")) or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    _keep_memory()
    return threads


def _keep_memory() -> None:
    """Ask glibc not to hand big blocks back: fresh pages are dear on virtual machines (1.3-1.6 times at 124M)."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(ctypes.c_int(_M_MMAP_THRESHOLD), ctypes.c_int(1 << 30))
        libc.mallopt(ctypes.c_int(_M_TRIM_THRESHOLD), ctypes.c_int((1 << 31) - 1))
    except (OSError, AttributeError):  # not glibc: nothing to tune
        return


def send(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``x`` on ``device``, without waiting for what a GPU is still busy with.

    A copy from ordinary memory waits until everything asked of the GPU before is done, and leaves it idle until it is
    asked for more; from page-locked memory it takes its place in the queue.
    """
    if device.type != "cuda" or x.is_cuda:
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def matmul_flops(dtype: torch.dtype, kind: str, seconds: float = 0.3) -> float:
    """Measured FLOP/s of a square matrix product, the fastest of several: the ceiling that training is compared with.

    Whatever else runs on the machine makes the others slower and not this one.

    Args:
        dtype: of both factors.
        kind: the device that multiplies, ``"cpu"`` or ``"cuda"``.
        seconds: how long to measure, after a warm-up.
    """
    size = 4096 if kind == "cuda" else 1024  # a product that fills the device, and ends soon on it
    a, b = (torch.randn(size, size, device=kind).to(dtype) for _ in range(2))
    for _ in range(3):
        _multiply(a, b)
    best, until = float("inf"), time.perf_counter() + seconds
    while (started := time.perf_counter()) < until:
        _multiply(a, b)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _multiply(a: torch.Tensor, b: torch.Tensor) -> None:
    """One product, waited for: a GPU only notes what it is asked, and the clock would time the asking."""
    a @ b
    if a.is_cuda:
        torch.cuda.synchronize()
