"""Processes that die: for tests of what a run leaves behind and how it goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from danlu.run import Metrics, Stage


class Killed(BaseException):
    """Stands for kill -9: nothing of ours catches it."""


class Mortal(Metrics):
    """Metrics whose process dies when the fourth iteration has been logged."""

    def log(self, step: int, **numbers: float | int | str | None) -> None:
        super().log(step, **numbers)
        if step == 4:
            raise Killed


def whole_and_killed(
    run: Callable[[Stage], dict[str, Any]], begin: Callable[..., Stage]
) -> tuple[tuple[Stage, dict[str, Any]], tuple[Stage, dict[str, Any]]]:
    """A stage that ran in one go and the same one killed and gone on with, each with its figures.

    Args:
        run: the stage's function, which logs four times or more.
        begin: makes the stage, in the directory ``folder`` and with the class ``metrics``.
    """
    whole = begin(folder="whole")
    figures = run(whole)
    with pytest.raises(Killed):
        run(begin(folder="killed", metrics=Mortal))
    killed = begin(folder="killed")
    return (whole, figures), (killed, run(killed))


def without_times(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """Rows of metrics.jsonl but what a clock said."""
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]
