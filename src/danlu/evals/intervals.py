"""Confidence intervals for rates.

In:  how many of how many.
Out: the Wilson interval.
Left out: comparison of two models on the same prompts, which wants a paired test.
"""

from __future__ import annotations

import math


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a rate (Wilson 1927): sound near 0 and 1, where the normal interval is not.

    Args:
        hits: successes.
        n: trials; 0 gives the interval that knows nothing, (0, 1).
        z: normal quantile, 1.96 for 95 %.
    """
    if not 0 <= hits <= n:
        raise ValueError(f"{hits} of {n} is not a rate")
    if n == 0:
        return 0.0, 1.0
    rate, shrink = hits / n, 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
