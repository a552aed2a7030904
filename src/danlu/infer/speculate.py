"""Guesses at what comes next, so that one forward pass can confirm several tokens at once.

In:  answers under way.
Out: a few tokens for each, by looking for the same words earlier in the text, or by asking a smaller model.
Left out: judging the guesses (``engine``), which accepts a guess only where it is what would have been drawn anyway;
    guesses by the model itself (``foresight``).
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch

from danlu.errors import UserError
from danlu.infer.answer import Answer
from danlu.infer.forward import Forward
from danlu.infer.sampler import Options, draw
from danlu.infer.storage import Storage

_LONGEST, _SHORTEST = 4, 2


class PromptLookup:
    """What followed when the last few tokens were said before (Saxena 2023, prompt lookup decoding).

    It costs nothing and helps where answers repeat their prompts: summaries, corrections, code.
    """

    def __init__(self) -> None:
        self._seen: WeakKeyDictionary[Answer, _Phrases] = WeakKeyDictionary()

    def propose(self, answers: Sequence[Answer], most: int) -> list[list[int]]:
        """The continuation of the latest earlier place with the same last four, three or two tokens."""
        return [self._seen.setdefault(answer, _Phrases()).continuation(answer.sequence(), most) for answer in answers]

    def heard(self, start: int, answers: Sequence[Answer], states: torch.Tensor, lengths: Sequence[int]) -> None:
        """Texts are enough."""


class _Phrases:
    """Where every phrase of a growing text has last ended, but for the one that ends the text."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}
        self._length = 0

    def continuation(self, tokens: list[int], most: int) -> list[int]:
        for end in range(max(self._length, _SHORTEST), len(tokens)):
            for size in range(_SHORTEST, min(_LONGEST, end) + 1):
                self._ends[tuple(tokens[end - size : end])] = end
        self._length = len(tokens)
        for size in range(min(_LONGEST, len(tokens)), _SHORTEST - 1, -1):
            phrase = tuple(tokens[-size:])
            if phrase in self._ends:
                end = self._ends[phrase]
                return tokens[end : end + most]
        return []


class DraftModel:
    """A smaller model with the same vocabulary says what it would draw, by the same uniform numbers.

    Two models that agree about the distribution so draw the same token, whatever the temperature. It reads prompts as
    the engine does, a chunk a step, and has nothing to say until it has read them.

    Args:
        forward: of the smaller one.
        storage: for what it remembers.
        vocab_size: of the model that it guesses for.
        chunk: tokens of a prompt that it reads in a step.

    Raises:
        UserError: the models do not have the same vocabulary.
    """

    def __init__(self, forward: Forward, storage: Storage, vocab_size: int, chunk: int = 128) -> None:
        if forward.vocab_size != vocab_size:
            raise UserError(
                f"the draft model has {forward.vocab_size} tokens and the model {vocab_size}; they must be the same"
            )
        self._forward, self._storage, self._chunk = forward, storage, chunk
        self._rows: list[Answer] = []
        self._read: list[int] = []  # tokens of each row's answer that are in the cache

    def heard(self, start: int, answers: Sequence[Answer], states: torch.Tensor, lengths: Sequence[int]) -> None:
        """It has states of its own."""

    def propose(self, answers: Sequence[Answer], most: int) -> list[list[int]]:
        """One token after another, all answers in step whose prompts are read."""
        self._follow(answers)
        ready = self._rows[: self._read_on(most + 1)]
        guesses: dict[Answer, list[int]] = {answer: [] for answer in ready}
        if ready:
            options = Options.of([answer.request.sampling for answer in ready], self._forward.device)
            for ahead in range(min(most, max(answer.left for answer in ready) - 1)):
                for answer, token in zip(ready, self._next(guesses, options, ahead), strict=True):
                    guesses[answer].append(token)
        return [guesses.get(answer, []) for answer in answers]

    def _follow(self, answers: Sequence[Answer]) -> None:
        """Rows for these answers and no others."""
        wanted = set(answers)
        for row in reversed(range(len(self._rows))):
            if self._rows[row] not in wanted:
                last = len(self._rows) - 1
                self._storage.move(last, row, self._read[last])
                self._rows[row], self._read[row] = self._rows[last], self._read[last]
                self._rows.pop()
                self._read.pop()
                self._storage.close()
        for answer in answers:
            fits = answer.need <= self._forward.context and self._storage.fits(answer.need)
            if answer not in self._rows and fits:
                self._storage.open(answer.need, answer.request.prompt, answer.request.salt)
                self._rows.append(answer)
                self._read.append(0)

    def _read_on(self, few: int) -> int:
        """Read a chunk for the first row that is behind by more than a few tokens; returns how many rows then are not.

        Rows behind one that is behind wait for it: forwards are over neighbours.
        """
        for row, answer in enumerate(self._rows):
            text, read = answer.sequence(), self._read[row]
            if len(text) - read > few:
                part = text[read:-1][: self._chunk]
                self._forward.states(self._storage, row, [part], [read], [answer.need])
                self._read[row] += len(part)
                break
        behind = (row for row, answer in enumerate(self._rows) if len(answer.sequence()) - self._read[row] > few)
        return next(behind, len(self._rows))

    def _next(self, guesses: dict[Answer, list[int]], options: Options, ahead: int) -> list[int]:
        """Read what is new of the first rows, draw the next token of each."""
        answers, reads = list(guesses), self._read[: len(guesses)]
        unread = [guesses[answer][-1:] or answer.sequence()[read:] for answer, read in zip(answers, reads, strict=True)]
        places = [read + max(ahead - 1, 0) for read in reads]
        logits = self._forward.decode(self._storage, unread, places, [answer.need for answer in answers]).logits
        ends = torch.tensor([len(row) - 1 for row in unread], device=logits.device)
        logits = logits[torch.arange(len(unread), device=logits.device), ends]
        if ahead == 0:  # what was confirmed is in the cache; guesses are written again if they turn out right
            self._read[: len(answers)] = [len(answer.sequence()) for answer in answers]
        numbers = torch.tensor([answer.uniform(ahead) for answer in answers], dtype=torch.float64)
        found: list[int] = draw(logits, options, numbers.to(logits.device))[0].tolist()
        return found
