"""Processes of their own that need not import anything: torch and the rooms take longer than most tests of them do.

In:  a function of a module, its arguments, the environment that it shall see.
Out: a process, forked from one that has done the imports and nothing else; it can be made to die on the way.
Left out: the time and the order of imports, which only a Python of one's own shows (``person.danlu_from_cold``).
"""

import glob
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["danlu.pipeline", "danlu.report.pictures", "danlu.talk", "scipy.stats", "scipy.sparse.csgraph", "torch._dynamo"]
)


def start(
    work: Callable[..., object],
    *arguments: Any,
    dies_once: str | None = None,
    lines: int = 0,
    environment: Mapping[str, str] | None = None,
) -> BaseProcess:
    """Begin ``work(*arguments)``, here and with this process's environment, but for what is changed in it.

    Args:
        work: a function that a new process can import by its name; scaffold's can be.
        arguments: what it takes.
        dies_once: a pattern of paths; kill -9 ends the process as soon as one exists. It watches itself, since
            whoever watches from outside may be kept waiting until the work is over.
        lines: how many lines it must have by then.
        environment: what is changed.
    """
    seen = {**os.environ, **(environment or {})}
    process = _CONTEXT.Process(target=_work, args=(work, arguments, dies_once, lines, seen, os.getcwd()), daemon=True)
    process.start()
    return process


def _work(
    work: Callable[..., object], arguments: tuple[Any, ...], dies_once: str | None, lines: int, seen: dict[str, str],
    folder: str,
) -> None:  # fmt: skip
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(seen)
    if dies_once is not None:
        threading.Thread(target=_die_once, args=(dies_once, lines), daemon=True).start()
    work(*arguments)


def _die_once(pattern: str, lines: int) -> None:
    while not any(lines == 0 or _lines(path) >= lines for path in glob.glob(pattern)):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)


def _lines(path: str) -> int:
    with open(path, "rb") as file:
        return file.read().count(b"\n")
