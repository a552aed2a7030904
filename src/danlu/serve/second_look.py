"""An earlier comparison in the place of a new one, now and then: so that it can be seen whether people agree.

In:  who asks what of which models, under which conditions.
Out: a comparison that was made under the same ones: somebody else's, with sides drawn anew, or one's own, with sides
exchanged; its answers as a stream that looks like any other.
Left out: finding such comparisons (``danlu.align.showings``), what the votes say (``danlu.align.agreement``).

One person's words are never shown to another. What is shown to others are answers to a prompt that the server itself
offers as a thing to try, asked with nothing before it: nothing of any person's is in them.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from danlu.align import showings
from danlu.align.preferences import PreferenceStore
from danlu.align.showings import Earlier
from danlu.records import Answer, Message

FORGET = timedelta(hours=1)  # before that, people remember what they chose
_PIECE = 8  # characters at a time
_PAUSE = 0.02  # seconds between pieces: an answer that is there at once would give itself away


@dataclass(frozen=True)
class Replay:
    """A comparison to be shown once more; ``order`` says which answer stands in which place."""

    earlier: Earlier
    order: tuple[int, ...]
    own: bool

    def answers(self) -> list[Answer]:
        """In the order of places."""
        return [self.earlier.answers[i] for i in self.order]

    def finish_reasons(self) -> list[str]:
        """Whether the answers ended or were cut off; what a gate cut off was never stored."""
        limits = [answer.sampling.get("max_new_tokens", 0) for answer in self.answers()]
        lengths = [len(answer.token_ids) for answer in self.answers()]
        return ["length" if 0 < limit <= length else "stop" for limit, length in zip(limits, lengths, strict=True)]

    async def pieces(self) -> AsyncIterator[tuple[int, str]]:
        """(place, text), a few characters at a time, the places in turn."""
        texts = [answer.text for answer in self.answers()]
        for start in range(0, max(map(len, texts)), _PIECE):
            for place, text in enumerate(texts):
                if text[start:]:
                    yield place, text[start : start + _PIECE]
            await asyncio.sleep(_PAUSE)


class SecondLooks:
    """Draws whether to show an earlier comparison.

    Args:
        store: where comparisons are.
        others: share of comparisons in whose place one of somebody else's is shown, if there is one.
        own: share in whose place one of the rater's own is shown.
        prompts: that the server offers to everybody.
        lot: draws.
    """

    def __init__(
        self, store: PreferenceStore, others: float, own: float, prompts: Collection[str],
        lot: random.Random | None = None,
    ) -> None:  # fmt: skip
        self._store, self._others, self._own, self._prompts = store, others, own, frozenset(prompts)
        self._lot = lot or secrets.SystemRandom()

    def draw(self, rater: str, turns: Sequence[Message], wanted: Sequence[Answer]) -> Replay | None:
        """An earlier comparison to show, or None for a new one.

        Args:
            rater: pseudonym; who has none is shown nothing twice.
            turns: what is asked.
            wanted: answers without words, as the new ones would be stored: by which models, drawn how.
        """
        dice = self._lot.random()
        if not rater or dice >= self._own + self._others:
            return None
        own = dice < self._own
        if own:
            before = (datetime.now(UTC) - FORGET).isoformat(timespec="microseconds")
            found = showings.of_oneself(self._store, turns, rater, before)
        else:
            found = showings.of_others(self._store, turns, rater) if self._offered(turns) else []
        alike = [one for one in found if _conditions(one.answers) == _conditions(wanted)]
        if not alike:
            return None
        chosen = self._lot.choice(alike)
        order = list(chosen.display_order)[::-1]
        if not own:
            self._lot.shuffle(order)
        return Replay(chosen, tuple(order), own)

    def note(self, replay: Replay, rater: str, conversation: str) -> str:
        """Remember that it was shown; returns the id to vote on."""
        return self._store.show_again(replay.earlier.comparison, rater, conversation, replay.order, replay.own)

    def _offered(self, turns: Sequence[Message]) -> bool:
        return len(turns) == 1 and turns[0].content in self._prompts


def _conditions(answers: Sequence[Answer]) -> list[str]:
    """By which models and how answers were drawn, whatever their order; as the store gives it, after JSON."""
    return sorted(json.dumps([answer.model, dict(answer.sampling)], sort_keys=True) for answer in answers)
