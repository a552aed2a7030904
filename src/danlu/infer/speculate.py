"""Guesses at what comes next, so that one forward pass can confirm several tokens at once.

In:  answers under way.
Out: a few tokens for each, by looking for the same words earlier in the text, or by asking a smaller model.
Left out: judging the guesses (``engine``), which accepts a guess only where it is what would have been drawn anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch

from danlu.errors import UserError
from danlu.infer.answer import Answer
from danlu.infer.forward import Forward
from danlu.infer.sampler import Options, draw
from danlu.infer.storage import Slots
from danlu.model import Decoder

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

    Two models that agree about the distribution so draw the same token, whatever the temperature.

    Args:
        model: the smaller one, its weights in the dtype they are multiplied in.
        output_weight: (V, D) of it.
        dtype: of its cache.
        cache_bytes: what it may remember.

    Raises:
        UserError: the models do not have the same vocabulary.
    """

    def __init__(
        self, model: Decoder, output_weight: torch.Tensor, dtype: torch.dtype, vocab_size: int,
        cache_bytes: int = 1 << 28,
    ) -> None:  # fmt: skip
        if output_weight.shape[0] != vocab_size:
            raise UserError(
                f"the draft model has {output_weight.shape[0]} tokens and the model {vocab_size}; they must be the same"
            )
        self._context = model.config.max_seq_len
        self._forward = Forward(model, output_weight)
        self._storage = Slots(model, dtype, cache_bytes)
        self._rows: list[Answer] = []
        self._read: list[int] = []  # tokens of each row's answer that are in the cache

    def propose(self, answers: Sequence[Answer], most: int) -> list[list[int]]:
        """One token after another, all answers in step."""
        self._follow(answers)
        guesses: dict[Answer, list[int]] = {answer: [] for answer in self._rows}
        if not self._rows:
            return [[] for _ in answers]
        options = Options.of([answer.request.sampling for answer in self._rows], self._forward.device)
        for ahead in range(min(most, *(self._left(answer) for answer in self._rows))):
            tokens = self._next(guesses, options, ahead)
            for answer, token in zip(self._rows, tokens, strict=True):
                guesses[answer].append(token)
        return [guesses.get(answer, []) for answer in answers]

    def _left(self, answer: Answer) -> int:
        return min(answer.left - 1, self._context - len(answer.request.prompt) - len(answer.tokens))

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
            if answer not in self._rows and answer.need <= self._context and self._storage.fits(answer.need):
                self._storage.open(answer.need, answer.request.prompt, answer.request.salt)
                self._rows.append(answer)
                self._read.append(0)

    def _next(self, guesses: dict[Answer, list[int]], options: Options, ahead: int) -> list[int]:
        """Read what is new, draw the next token of every row."""
        rows = list(zip(self._rows, self._read, strict=True))
        unread = [guesses[answer][-1:] or answer.sequence()[read:] for answer, read in rows]
        places = [read + max(ahead - 1, 0) for read in self._read]
        needs = [answer.need for answer in self._rows]
        states = self._forward.states(self._storage, 0, unread, places, needs)
        ends = torch.tensor([len(row) - 1 for row in unread], device=states.device)
        logits = self._forward.logits(states[torch.arange(len(unread), device=states.device), ends])
        if ahead == 0:  # what was confirmed is in the cache; guesses are written again if they turn out right
            self._read = [len(answer.request.prompt) + len(answer.tokens) for answer in self._rows]
        numbers = torch.tensor([answer.uniform(ahead) for answer in self._rows], dtype=torch.float64)
        found: list[int] = draw(logits, options, numbers.to(logits.device))[0].tolist()
        return found
