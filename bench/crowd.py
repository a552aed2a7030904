"""A simulated crowd that talks to a server as people do: several raters, some noise, some who vote against their taste.

In:  a server's address, questions, a taste: (question, answer) -> score.
Out: votes in the server's store, through the same HTTP API as the page's.
Left out: what is made of the votes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

Taste = Callable[[str, str], float]


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
    """

    http: httpx.Client
    taste: Taste
    questions: Sequence[str]
    raters: int = 20
    adversarial: float = 0.1
    noise: float = 0.15
    tie_width: float = 0.1
    seed: int = 0
    asked: int = field(default=0, init=False)

    def vote(self, count: int, model: str, **drawing: Any) -> int:
        """Look at ``count`` comparisons of a model with itself, or with whom the server puts in its place, and vote.

        Returns:
            How many votes were taken; none is given where an answer was cut off by a gate.
        """
        given = 0
        for _ in range(count):
            question = self.questions[self.asked % len(self.questions)]
            rater = self.asked % self.raters
            self.asked += 1
            left, right, comparison = self._compare(question, model, f"rater-{rater}", drawing)
            if comparison:
                choice = self._choose(question, left, right, rater)
                ballot = {"comparison": comparison, "choice": choice, "rater": f"rater-{rater}"}
                self.http.post("/api/vote", json=ballot).raise_for_status()
                given += 1
        return given

    def _compare(self, question: str, model: str, rater: str, drawing: dict[str, Any]) -> tuple[str, str, str]:
        asked = {"models": [model], "messages": [{"role": "user", "content": question}], "rater": rater, **drawing}
        texts, comparison = {"left": "", "right": ""}, ""
        with self.http.stream("POST", "/api/compare", json=asked) as answer:
            if answer.status_code != 200:
                raise RuntimeError(f"{answer.status_code}: {answer.read().decode()}")
            for line in answer.iter_lines():
                event = json.loads(line.removeprefix("data: ")) if line else {"type": ""}
                if event["type"] == "delta":
                    texts[event["side"]] += event["text"]
                comparison = event.get("comparison", comparison)
        return texts["left"], texts["right"], comparison

    def _choose(self, question: str, left: str, right: str, rater: int) -> str:
        mood = random.Random(f"{self.seed} {self.asked}")
        liked, other = (self.taste(question, text) + mood.gauss(0, self.noise) for text in (left, right))
        if abs(liked - other) < self.tie_width:
            return "tie"
        against = rater < round(self.adversarial * self.raters)
        return "left" if (liked > other) != against else "right"
