"""The book-keeping of cached blocks: which are free, who uses them, which prefix each one holds.

In:  token ids and a salt.
Out: block numbers.
Left out: what is in the blocks (``storage``).

A block is ``size`` tokens in a row. A full block is known by the hash of everything up to its end, so two prompts share
exactly the blocks that they have in common. The hash is SHA-256 and begins with the asker's salt: a collision would
show one person another's words, and a cache that all share can be probed by timing.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

SIZE = 16


def digests(tokens: Sequence[int], salt: str, size: int = SIZE) -> list[bytes]:
    """The names of all full blocks of a sequence, each made of the one before it and its own tokens."""
    found, last = [], hashlib.sha256(salt.encode()).digest()
    raw = np.asarray(tokens, dtype="<u4")
    for end in range(size, len(tokens) + 1, size):
        last = hashlib.sha256(last + raw[end - size : end].tobytes()).digest()
        found.append(last)
    return found


class BlockManager:
    """Blocks by number, with reference counts; a block that nobody uses is kept while it is known and not needed.

    Args:
        n_blocks: how many there are.
    """

    def __init__(self, n_blocks: int) -> None:
        self.n_blocks = n_blocks
        self.queries = self.hits = 0  # of blocks
        self._free = list(range(n_blocks - 1, -1, -1))
        self._users = [0] * n_blocks
        self._name: dict[int, bytes] = {}  # of published blocks
        self._place: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # published, used by nobody; the first goes first

    @property
    def available(self) -> int:
        """Blocks that ``take`` could give."""
        return len(self._free) + len(self._idle)

    @property
    def used(self) -> int:
        """Blocks that somebody uses."""
        return self.n_blocks - self.available

    def match(self, names: Sequence[bytes]) -> list[int]:
        """The blocks of the longest known beginning of ``names``; they are the caller's until ``release``."""
        found: list[int] = []
        self.queries += len(names)
        for name in names:
            if name not in self._place:
                break
            found.append(self._place[name])
        for block in found:
            self.use(block)
        self.hits += len(found)
        return found

    def use(self, block: int) -> None:
        """One more user of a block that is known or already used."""
        self._idle.pop(block, None)
        self._users[block] += 1

    def take(self, count: int) -> list[int]:
        """Blocks with nothing in them, the caller's until ``release``.

        Raises:
            MemoryError: there are fewer than ``count``; nothing is taken.
        """
        if count > self.available:
            raise MemoryError(f"{count} blocks wanted, {self.available} left")
        return [self._take() for _ in range(count)]

    def _take(self) -> int:
        if not self._free:
            block, _ = self._idle.popitem(last=False)
            del self._place[self._name.pop(block)]
            self._free.append(block)
        block = self._free.pop()
        self._users[block] = 1
        return block

    def publish(self, block: int, name: bytes) -> bool:
        """Say what a full block holds; returns False if another block is known to hold it already."""
        if name in self._place:
            return self._place[name] == block
        self._name[block], self._place[name] = name, block
        return True

    def knows(self, name: bytes) -> bool:
        """Whether a block of this name is there."""
        return name in self._place

    def release(self, blocks: Sequence[int]) -> None:
        """A sequence of blocks has one user less; its end is the first to be given away: beginnings are shared more."""
        for block in reversed(blocks):
            assert self._users[block] > 0, f"block {block} was released too often"
            self._users[block] -= 1
            if self._users[block]:
                continue
            if block in self._name:
                self._idle[block] = None
            else:
                self._free.append(block)
