"""Small models get stuck: what goes round in circles is cut, and blank space is tidied.

In:  an answer, piece by piece.
Out: the same, without the loop it ran into, and word that it was cut.
Left out: loops that change a little each time (counting up, say); sampling against them (``infer.penalties``).

A loop is a block of text that follows itself again and again. How often that is healthy depends on what is repeated:

    in prose                    8 times, or 5 if the block is 40 columns wide, or 4 if 120; at least 96 columns in all
    code, tables, no letters    256, 64 or 32 times; at least 4,096 columns in all: matrices and empty tables are none

A refrain comes back after a verse, so it never follows itself that often. Once a block has come a few times, its next
repetitions are held back until something else follows (then all of it is shown) or it counts as a loop (then none is):
what was shown is always what stays. A Chinese character is two columns.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from functools import lru_cache
from unicodedata import east_asian_width

import numpy as np

from danlu.infer import Completion, Token
from danlu.serve.engine import Answers
from danlu.serve.jobs import Finished, Piece

REPETITION = "repetition"
"""The finish reason of an answer that was cut."""

_LONGEST = 512  # characters of a block
_PERIODS = np.arange(1, _LONGEST + 1)
_FENCE_TICKS = 3
_BLANK = " \t\r\n"  # not the wide space that indents a Chinese paragraph


@dataclass(frozen=True)
class _Patience:
    """When a repetition is held back, and when it is a loop.

    Attributes:
        columns: it is at least this wide in all.
        repeats: (least width of the block, how many times it stands there), the widest that fits counts.
        kept: how many times it is shown, at least ...
        kept_columns: ... and how wide.
    """

    columns: int
    repeats: tuple[tuple[int, int], ...]
    kept: int
    kept_columns: int

    def needed(self, width: int) -> int:
        """Times that a block of ``width`` columns stands in a loop."""
        least = max(entry for entry in self.repeats if entry[0] <= width)[1]
        return max(least, -(-self.columns // width))

    def shown(self, width: int) -> int:
        """Times that it is shown before it is held back."""
        return max(self.kept, -(-self.kept_columns // width))


_PROSE = _Patience(96, ((0, 8), (40, 5), (120, 4)), kept=2, kept_columns=16)
_STRUCTURE = _Patience(4096, ((0, 256), (40, 64), (120, 32)), kept=16, kept_columns=256)


class Repairer:
    """Repairs one answer; the outcome does not depend on how it was cut into pieces.

    Attributes:
        text: what was shown so far.
        cut: whether a loop was found; nothing is shown any more.
    """

    def __init__(self) -> None:
        self.text, self.cut = "", False
        self._loops, self._blanks = _Loops(), _Blanks()

    def feed(self, text: str) -> str:
        """What may be shown now."""
        if self.cut:
            return ""
        passed = self._loops.feed(text)
        self.cut = self._loops.found
        shown = self._blanks.feed(passed)
        self.text += shown
        return shown

    def finish(self) -> str:
        """What was held back, now that nothing follows; blank space at the end is not shown."""
        shown = "" if self.cut else self._blanks.feed(self._loops.finish())
        self.text += shown
        return shown


class _Fence:
    """Whether a text is inside a fenced block of code just now."""

    def __init__(self) -> None:
        self.open, self._ticks = False, 0

    def feed(self, character: str) -> None:
        self._ticks = self._ticks + 1 if character == "`" else 0
        if self._ticks == _FENCE_TICKS:
            self.open = not self.open


class _Loops:
    """Holds back text that repeats itself, and stops at a loop.

    For every period p up to ``_LONGEST`` it counts for how many characters the text has been the same as p before.
    """

    def __init__(self) -> None:
        self.found = False
        self._fence = _Fence()
        self._held = ""
        self._recent = ""  # the last characters, held back or not, a longest block of them
        self._codes = np.zeros(_LONGEST, dtype=np.uint32)  # the same as code points, the last one first
        self._runs = np.zeros(_LONGEST, dtype=np.int64)

    def feed(self, text: str) -> str:
        shown = ""
        for character in text:
            held = self._step(character)
            # What was shown cannot be taken back, whatever another period says now.
            if held < len(self._held):
                cut = len(self._held) - held
                shown, self._held = shown + self._held[:cut], self._held[cut:]
            if self.found:
                break
        return shown

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held

    def _step(self, character: str) -> int:
        """One character on; returns how many of the last characters are to be held back."""
        self._fence.feed(character)
        self._runs = np.where(self._codes == ord(character), self._runs + 1, 0)
        self._codes[1:] = self._codes[:-1].copy()
        self._codes[0] = ord(character)
        self._recent = (self._recent + character)[-_LONGEST:]
        self._held += character
        return max((self._judge(*loop) for loop in self._repetitions()), default=0)

    def _repetitions(self) -> list[tuple[int, int]]:
        """What ends here and stands there twice at least: the length of the block, and of all its repetitions."""
        periods = _PERIODS[self._runs >= _PERIODS]
        lengths = self._runs[periods - 1] + periods
        found: list[tuple[int, int]] = []
        while len(periods):
            found.append((int(periods[0]), int(lengths[0])))
            # Two blocks taken as one, or three, are the same loop.
            others = (periods % periods[0] != 0) | (lengths > lengths[0])
            periods, lengths = periods[others], lengths[others]
        return found

    def _judge(self, period: int, length: int) -> int:
        """How many of the last characters are to be held back as far as this repetition goes."""
        block = self._recent[-period:]
        width = _width(block)
        structured = self._fence.open or "|" in block or not any(map(str.isalpha, block))
        patience = _STRUCTURE if structured else _PROSE
        self.found |= length >= patience.needed(width) * period
        return max(length - patience.shown(width) * period, 0)


class _Blanks:
    """Drops blank lines at the start, blank space at the end, and more than two blank lines on end outside of code."""

    def __init__(self) -> None:
        self._fence = _Fence()
        self._held, self._begun = "", False

    def feed(self, text: str) -> str:
        shown = ""
        for character in text:
            self._fence.feed(character)
            if character in _BLANK:
                self._held += character
            else:
                shown += self._settled() + character
                self._held, self._begun = "", True
        return shown

    def _settled(self) -> str:
        """The blank space before a character, as it should be."""
        indent = self._held.rpartition("\n")[2]
        if not self._begun:
            return indent if len(indent) > 1 else ""
        if self._fence.open or self._held.count("\n") <= 3:
            return self._held
        return "\n\n\n" + indent


async def repaired(events: AsyncIterator[Piece | Finished], answers: Answers) -> AsyncIterator[Piece | Finished]:
    """Answers with their loops cut: such a one ends there, with the finish reason ``REPETITION``.

    Args:
        events: pieces and completions of ``answers``, in the order in which they come.
        answers: is cancelled when nothing of it is wanted any more.
    """
    repairers = {index: Repairer() for index in range(len(answers.jobs))}
    said: dict[int, list[Token]] = {index: [] for index in repairers}
    async for event in events:
        repairer = repairers.get(event.index)
        if repairer is None:  # was cut, and is being written all the same as long as its neighbours are
            continue
        if isinstance(event, Finished):
            del repairers[event.index]
            if rest := repairer.finish():
                yield Piece(event.index, rest, ())
            yield Finished(event.index, replace(event.completion, text=repairer.text))
            continue
        said[event.index] += event.tokens
        shown = repairer.feed(event.text)
        if shown:
            yield Piece(event.index, shown, event.tokens)
        if repairer.cut:
            del repairers[event.index]
            tokens = said[event.index]
            yield Finished(event.index, _cut(tokens, repairer.text))
            if not repairers:
                answers.cancel()
                return


def _cut(tokens: list[Token], text: str) -> Completion:
    ids, logprobs, top = zip(*tokens, strict=True)
    return Completion(ids, text, logprobs, REPETITION, top if any(top) else ())


@lru_cache(maxsize=256)
def _width(text: str) -> int:
    """Columns of a terminal."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)
