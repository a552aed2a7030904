"""Streams of random numbers, by address.

In:  what a number is for: the run's seed, a stage, an iteration, a row.
Out: a seed.
Left out: generators; whoever needs one makes it from the seed and throws it away.
"""

from __future__ import annotations

import hashlib


def stream_seed(*parts: object) -> int:
    """A 63-bit seed from any mixture of values: random streams are addressed, never carried along.

    A resumed run asks for the same address and gets the same numbers, so no generator state needs saving.
    """
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
