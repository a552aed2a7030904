"""The native kernels, compiled by this machine for itself: once, at first use, into the cache.

In:  ``kernels.cpp`` and the C++ compiler that is there (``CXX``, or the first of c++, g++, clang++).
Out: a loaded library; or a sentence that says why there is none.
Left out: torch's headers, which take a compiler half a minute; the library sees pointers and sizes only. It shares
    torch's OpenMP, and so its threads: on Linux the name libgomp.so.1 is already loaded.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from danlu.corpus.cache import cache_root, cached
from danlu.device import cpu_flags
from danlu.errors import UserError
from danlu.files import hash_value

_SOURCE = Path(__file__).with_name("kernels.cpp")  # which includes the headers beside it
_FLAGS = (
    "-std=c++17", "-O2", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC",
)  # fmt: skip
_LIBRARY = "kernels.so"
_PATIENCE = 300  # seconds; five are usual


class Built(NamedTuple):
    """What came of building.

    Attributes:
        library: None where there is none.
        reason: what it was compiled with, or why it was not.
    """

    library: ctypes.CDLL | None
    reason: str


@functools.cache
def build() -> Built:
    """Compile and load the kernels, once per process; found in the cache if this machine has done so before."""
    if platform.system() != "Linux":
        return Built(None, "native kernels are for Linux")
    compiler = _compiler()
    if compiler is None:
        return Built(None, "there is no C++ compiler (looked for CXX, c++, g++, clang++)")
    sources = [path.read_text(encoding="utf-8") for path in (_SOURCE, *sorted(_SOURCE.parent.glob("*.h")))]
    place = cache_root() / "kernels" / hash_value([sources, _FLAGS, compiler, sorted(cpu_flags())])
    try:
        with _alone(place.with_name(f"{place.name}.lock")):
            cached(place, lambda beside: _compile(compiler, beside / _LIBRARY))
        return Built(ctypes.CDLL(str(place / _LIBRARY)), f"compiled by {Path(compiler).name} for this CPU")
    except (OSError, UserError, subprocess.SubprocessError) as error:
        return Built(None, f"{compiler} did not compile them ({_last_line(error)})")


def _compiler() -> str | None:
    named = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, [named] if named else ["c++", "g++", "clang++"])), None)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process at a time build; the others then find what it has built."""
    import fcntl  # not everywhere; where ``build`` gets so far it is

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _compile(compiler: str, out: Path) -> None:
    command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(out)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_PATIENCE)


def _last_line(error: Exception) -> str:
    said = (getattr(error, "stderr", None) or str(error)).strip()
    return said.splitlines()[-1] if said else type(error).__name__
