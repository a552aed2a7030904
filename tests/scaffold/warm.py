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
    environment: Mapping[str, str] | None = None,
) -> BaseProcess:
    """Begin ``work(*arguments)``, here and with this process's environment, but for what is changed in it.

    Args:
        work: a function that a new process can import by its name; scaffold's can be.
        arguments: what it takes.
        dies_once: a pattern of paths; kill -9 ends the process as soon as one exists. It watches itself, since
            whoever watches from outside may be kept waiting until the work is over.
        environment: what is changed.
    """
    seen = {**os.environ, **(environment or {})}
    process = _CONTEXT.Process(target=_work, args=(work, arguments, dies_once, seen, os.getcwd()), daemon=True)
    process.start()
    return process


def _work(
    work: Callable[..., object], arguments: tuple[Any, ...], dies_once: str | None, seen: dict[str, str], folder: str
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(seen)
    if dies_once is not None:
        threading.Thread(target=_die_once, args=(dies_once,), daemon=True).start()
    work(*arguments)


def _die_once(pattern: str) -> None:
    while not glob.glob(pattern):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)
