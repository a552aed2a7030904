"""Guesses by the model's own layer for the token after the next (multi-token prediction, ``model.mtp``).

In:  answers under way, and the states that the model has of every token that it reads.
Out: a token or two for each answer, which the next forward confirms (``engine``).
Left out: further depths, which no released model has: the second guess is the first depth again, on its own state.

The layer attends to what it made of earlier tokens. Its keys and values lie in one more layer of the answers' own
storage, so they are moved, shared and found again together with the others. Of a token at a border, where somebody
else's text went on in another way, what is found may be slightly wrong: a worse guess, and no other answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from danlu.infer.answer import Answer
from danlu.infer.forward import Forward
from danlu.infer.sampler import Options, draw
from danlu.infer.storage import Storage

_MOST = 2  # guesses; nobody has taught the layer to go further by itself, and each costs the model a row more to read
_UNREAD = 64  # states that may wait for a guess; more are read at once, so that those of a long text do not pile up


class _Unread(NamedTuple):
    """States (N, D) that the layer has not read, of the tokens from ``place`` on; the last are of guesses, perhaps."""

    place: int
    states: Tensor


class ForesightDrafter:
    """The model guesses for itself (DeepSeek-V3, arXiv 2412.19437, section 5.4.3: 85 to 90 % are right).

    Args:
        forward: the engine's own, of a model with ``n_mtp``.
        storage: likewise, with ``foresight``.
    """

    def __init__(self, forward: Forward, storage: Storage) -> None:
        self._forward, self._storage = forward, storage
        self._unread: WeakKeyDictionary[Answer, _Unread] = WeakKeyDictionary()

    def heard(self, start: int, answers: Sequence[Answer], states: Tensor, lengths: Sequence[int]) -> None:
        """Keep states until the token behind each is known."""
        for row, (answer, length) in enumerate(zip(answers, lengths, strict=True)):
            fresh, old = states[row, :length].clone(), self._unread.get(answer)
            if old is None:
                self._unread[answer] = _Unread(answer.read, fresh)
            else:
                kept = old.states[: answer.read - old.place]  # the others are of guesses that were wrong
                self._unread[answer] = _Unread(old.place, torch.cat([kept, fresh]))
            if not answer.tokens or len(self._unread[answer].states) > _UNREAD:  # what is read of a prompt is shared
                self._catch_up(start + row, answer)

    def propose(self, answers: Sequence[Answer], most: int) -> list[list[int]]:
        """One token after another, all answers in step, drawn by the numbers that will decide."""
        texts, needs = [answer.sequence() for answer in answers], [answer.need for answer in answers]
        unread = [self._waiting(answer) for answer in answers]
        rows = [text[one.place + 1 :] for text, one in zip(texts, unread, strict=True)]
        padded = pad_sequence([one.states for one in unread], batch_first=True)  # R, T, D
        states = self._forward.foresee(self._storage, 0, rows, padded, [one.place for one in unread], needs)
        ends = torch.tensor([len(row) - 1 for row in rows], device=states.device)
        states = states[torch.arange(len(rows), device=states.device), ends]  # R, D
        for answer in answers:
            self._unread[answer] = _Unread(answer.read, states[:0])
        options = Options.of([answer.request.sampling for answer in answers], self._forward.device)
        guesses = [self._draw(answers, states, options, 0)]
        for ahead in range(1, min(most, _MOST)):
            places = [answer.read - 1 + ahead for answer in answers]
            last = [[guess] for guess in guesses[-1]]
            states = self._forward.foresee(self._storage, 0, last, states[:, None], places, needs)[:, 0]
            guesses.append(self._draw(answers, states, options, ahead))
        return [list(row) for row in zip(*guesses, strict=True)]

    def _waiting(self, answer: Answer) -> _Unread:
        """What the layer has to read before it guesses; nothing is known of the last token of a twin's prompt."""
        found = self._unread.get(answer)
        if found is None:
            return _Unread(answer.read - 1, self._forward.blank)
        return _Unread(found.place, found.states[: answer.read - found.place])

    def _draw(self, answers: Sequence[Answer], states: Tensor, options: Options, ahead: int) -> list[int]:
        numbers = torch.tensor([answer.uniform(ahead) for answer in answers], dtype=torch.float64)
        found: list[int] = draw(self._forward.logits(states), options, numbers.to(states.device))[0].tolist()
        return found

    def _catch_up(self, row: int, answer: Answer) -> None:
        """Read the states behind which a token is known."""
        place, states = self._unread[answer]
        known = answer.sequence()[place + 1 : place + 1 + len(states)]
        if known:
            self._forward.foresee(self._storage, row, [known], states[None, : len(known)], [place], [answer.need])
            self._unread[answer] = _Unread(place + len(known), states[len(known) :])
