"""A simulated crowd that talks to a server as people do: several raters, some noise, some who vote against their taste.

In:  a server's address, questions, a taste: (question, answer) -> score.
Out: votes in the server's store, through the same HTTP API as the page's.
Left out: what is made of the votes.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import httpx

Taste = Callable[[str, str], float]
_PATIENCE = 20  # tries of somebody whom the server puts off


@dataclass
class Crowd:
    """Some raters of one taste.

    Attributes:
        http: a client whose base URL is the server's.
        taste: the hidden metric.
        questions: what is asked, in turn.
        raters: how many.
        adversarial: share of them who vote for what they like less.
        noise: standard deviation of a rater's mood, added to every score.
        tie_width: scores closer than this tie.
        seed: of the moods.
        together: how many of them are there at the same time.
        met: hashes of the models whose answers were voted on, as the server told them after the vote, with how often.
    """

    http: httpx.Client
    taste: Taste
    questions: Sequence[str]
    raters: int = 20
    adversarial: float = 0.1
    noise: float = 0.15
    tie_width: float = 0.1
    seed: int = 0
    together: int = 1
    asked: int = field(default=0, init=False)
    met: Counter[str] = field(default_factory=Counter, init=False)

    def vote(self, count: int, model: str, answers: int = 2, **drawing: Any) -> int:
        """Look at ``count`` comparisons of a model with itself, or with whom the server puts in its place, and vote.

        Args:
            count: how many.
            model: its name.
            answers: side by side; more than two are ranked.
            drawing: how answers are drawn, as the API calls it.

        Returns:
            How many votes were taken; none is given where an answer was cut off by a gate.
        """
        numbers = range(self.asked, self.asked + count)
        self.asked += count
        with ThreadPoolExecutor(self.together) as people:
            told = [*people.map(partial(self._visit, model, answers, drawing), numbers)]
        self.met.update(one for hashes in told for one in hashes)
        return sum(map(bool, told))

    def _visit(self, model: str, answers: int, drawing: dict[str, Any], number: int) -> list[str]:
        """One rater asks, reads and votes; whose answers they were, none if there was nothing to vote on."""
        question, rater = self.questions[number % len(self.questions)], number % self.raters
        asked = {"models": [model], "messages": [{"role": "user", "content": question}], **drawing}
        texts, comparison = self._read(answers, asked | {"rater": f"rater-{rater}"})
        if not comparison:
            return []
        judged = self._judge(question, texts, rater, number)
        ballot = {"comparison": comparison, "rater": f"rater-{rater}", **judged}
        told = self.http.post("/api/vote", json=ballot).raise_for_status().json()["verdict"]
        return [one["model_hash"] for one in (told.values() if answers == 2 else told)]

    def _read(self, answers: int, asked: dict[str, Any]) -> tuple[list[str], str]:
        """The answers in the order in which they stand, and what to vote on; who is put off comes again."""
        path, more = ("/api/compare", {}) if answers == 2 else ("/api/rank", {"answers": answers})
        patience = _PATIENCE
        while True:
            patience -= 1
            with self.http.stream("POST", path, json=asked | more) as reply:
                if reply.status_code != 503 or not patience:
                    return self._told(answers, reply)
            time.sleep(float(reply.headers.get("retry-after", 1)))

    def _told(self, answers: int, reply: httpx.Response) -> tuple[list[str], str]:
        """What a reply says, piece by piece."""
        places, texts, comparison = {"left": 0, "right": 1}, [""] * answers, ""
        if reply.status_code != 200:
            raise RuntimeError(f"{reply.status_code}: {reply.read().decode()}")
        for line in reply.iter_lines():
            event = json.loads(line.removeprefix("data: ")) if line else {"type": ""}
            if event["type"] == "delta":
                texts[event.get("place", places.get(event.get("side"), 0))] += event["text"]
            comparison = event.get("comparison", comparison)
        return texts, comparison

    def _judge(self, question: str, texts: Sequence[str], rater: int, number: int) -> dict[str, Any]:
        """A choice between two answers, or ranks of more; who is close to the next better one ties with it."""
        mood = random.Random(f"{self.seed} {number}")
        sign = -1 if rater < round(self.adversarial * self.raters) else 1
        liked = [sign * (self.taste(question, text) + mood.gauss(0, self.noise)) for text in texts]
        order = sorted(range(len(texts)), key=lambda place: -liked[place])
        ranks, rank = [0] * len(texts), 0
        for better, worse in pairwise(order):
            rank += liked[better] - liked[worse] >= self.tie_width
            ranks[worse] = rank
        if len(texts) > 2:
            return {"ranks": ranks}
        return {"choice": "tie" if ranks[0] == ranks[1] else "left" if ranks[0] < ranks[1] else "right"}
