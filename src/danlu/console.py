"""What a person sees while danlu works: progress on a terminal, parseable lines elsewhere.

In:  messages, and counts of work done.
Out: rich progress bars with rate and time left on a terminal; ``stage key=value`` lines when piped.
Left out: metrics (``run.Metrics``) and the report.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import rich.console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_EVERY_SECONDS = 10.0


class Task:
    """One piece of work that is under way; ``advance`` it as it goes."""

    def __init__(self, console: Console, name: str, total: int | None, unit: str) -> None:
        self._console, self._name, self._total, self._unit = console, name, total, unit
        self._done = self._earlier = 0
        self._units = 0.0
        self._started = self._told = time.monotonic()
        self._bar: Progress | None = None
        self._id: Any = None

    def __enter__(self) -> Task:
        if self._console.terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=28),
                TextColumn("{task.completed:,}/{task.total:,}" if self._total else "{task.completed:,}"),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self._console.rich, transient=True)
            self._bar.start()
            self._id = self._bar.add_task(self._name, total=self._total, note="")
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def resume(self, steps: int) -> None:
        """Say that ``steps`` were done by an earlier session: they count, and not for the rate."""
        self._done = self._earlier = steps

    def advance(self, steps: int = 1, units: float = 0.0, **numbers: float) -> None:
        """Say that ``steps`` more are done.

        Args:
            steps: how many of the total.
            units: how much of ``unit`` (tokens, documents) that was, for the rate.
            numbers: figures worth showing, such as ``loss=2.31``.
        """
        self._done += steps
        self._units += units or steps
        now = time.monotonic()
        rate = self._units / max(now - self._started, 1e-9)
        shown = " ".join(f"{key}={value:.4g}" for key, value in numbers.items())
        if self._bar is not None:
            self._bar.update(self._id, completed=self._done, note=f"{_shown(rate)} {self._unit}/s {shown}")
        elif now - self._told >= _EVERY_SECONDS:
            self._told = now
            here = self._done - self._earlier
            left = (self._total - self._done) * (now - self._started) / here if self._total and here else 0
            of = f"/{self._total}" if self._total else ""
            self._console.say(
                f"{self._name} done={self._done}{of} {self._unit}/s={_shown(rate)} left={left:.0f}s {shown}"
            )


def _shown(rate: float) -> str:
    """So many a second; of what takes seconds each, with two figures."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


class Console:
    """Where messages go. Standard error, so that a verb's result alone is on standard output."""

    def __init__(self, quiet: bool = False) -> None:
        self.rich = rich.console.Console(stderr=True, quiet=quiet, highlight=False)

    @property
    def terminal(self) -> bool:
        """Whether a person is watching."""
        return self.rich.is_terminal

    def say(self, message: str, style: str = "") -> None:
        """One line for a person."""
        self.rich.print(message, style=style or None, markup=False, soft_wrap=True)

    @contextmanager
    def task(self, name: str, total: int | None = None, unit: str = "steps") -> Iterator[Task]:
        """Work with progress: ``with console.task("encode", total=9, unit="tokens") as task: task.advance()``."""
        with Task(self, name, total, unit) as task:
            yield task
