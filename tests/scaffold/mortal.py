"""Processes that die: for tests of what a run leaves behind and how it goes on."""

from __future__ import annotations

from danlu.run import Metrics


class Killed(BaseException):
    """Stands for kill -9: nothing of ours catches it."""


class Mortal(Metrics):
    """Metrics whose process dies when the fourth iteration has been logged."""

    def log(self, step: int, **numbers: float | int | str | None) -> None:
        super().log(step, **numbers)
        if step == 4:
            raise Killed


def without_times(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """Rows of metrics.jsonl but what a clock said."""
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]
