"""An answer on its way: what was told of it, and what waits until every scanner is content.

In:  pieces of one answer, scanners.
Out: ``Held``: what is found in it, and the pieces that may be told.
Left out: what is done about findings (``gates``).
"""

from __future__ import annotations

from collections.abc import Sequence

from danlu.infer import Completion
from danlu.serve.jobs import Finished, Piece
from danlu.serve.safety.scanners import Finding, Scanner

FILTERED = "content_filter"
_LONGEST_WORD = 40


class Held:
    """One answer.

    Args:
        index: which of the answers.
        scanners: all of which must be content with a piece before it is told.

    Attributes:
        text: all of the answer that was written so far, told or not.
        over: nothing more will be told.
    """

    def __init__(self, index: int, scanners: Sequence[Scanner]) -> None:
        self.text, self.over = "", False
        self._index, self._scanners = index, scanners
        self._waiting: list[Piece] = []
        self._told: list[Piece] = []
        self._length = 0  # of what was told
        self._end: Finished | None = None
        self._content = [0] * len(scanners)  # how far each lets the answer be told
        self._looked = [0] * len(scanners)  # how long the answer was when it looked
        self._known: set[Finding] = set()

    def add(self, event: Piece | Finished) -> list[Finding]:
        """Take in what the engine wrote; what is found that was not found before."""
        if isinstance(event, Finished):
            self._end = event
        else:
            self._waiting.append(event)
            self.text += event.text
        new: list[Finding] = []
        for i, scanner in enumerate(self._scanners):
            grown = len(self.text) - self._looked[i]
            due = grown >= scanner.stride if self._end is None else self._content[i] < len(self.text)
            if due and self.text:
                new += [found for found in self._look(i, scanner) if found not in self._known]
        self._known.update(new)
        return new

    def release(self) -> list[Piece | Finished]:
        """What may be told now: whole pieces, and the end when it has come."""
        limit = min(self._content) if self._end is None else len(self.text)
        ready: list[Piece | Finished] = []
        while self._waiting and self._length + len(self._waiting[0].text) <= limit:
            piece = self._waiting.pop(0)
            self._length += len(piece.text)
            self._told.append(piece)
            ready.append(piece)
        if self._end is not None:
            self.over = True
            ready.append(self._end)
        return ready

    def stop(self) -> Finished:
        """End the answer with what was told of it."""
        self.over = True
        return Finished(self._index, filtered(self._told))

    def _look(self, i: int, scanner: Scanner) -> list[Finding]:
        start = self._word_start(self._length - scanner.reach)
        found, content = scanner.look(self.text[start:], "answer", self._length - start, self._end is None)
        self._content[i], self._looked[i] = start + content, len(self.text)
        return found

    def _word_start(self, place: int) -> int:
        """``place``, or the beginning of the word that it is in: half a word may be another one."""
        for start in range(place, max(0, place - _LONGEST_WORD), -1):
            if not (self.text[start].isalnum() and self.text[start - 1].isalnum()):
                return start
        return max(0, place)


def filtered(told: Sequence[Piece] = ()) -> Completion:
    """An answer that was stopped after some pieces, or before the first."""
    tokens = [token for piece in told for token in piece.tokens]
    return Completion(
        tokens=tuple(token.id for token in tokens), text="".join(piece.text for piece in told),
        logprobs=tuple(token.logprob for token in tokens), finish_reason=FILTERED,
        top=tuple(token.top for token in tokens),
    )  # fmt: skip
