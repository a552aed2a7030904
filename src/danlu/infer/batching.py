"""What an engine is to whoever uses it: requests go in at any time, a step at a time brings what became of them.

In:  requests.
Out: events, completions, how busy the engine is.
Left out: the engines: ours (``engine``), vLLM (``vllm``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from danlu.infer.answer import Answer, Completion, Request, Token


class Event(NamedTuple):
    """A token of an answer, the text that it makes safe to show, and the completion if it is the last."""

    answer: Answer
    token: Token
    piece: str
    completion: Completion | None


class Use(NamedTuple):
    """What answers take of an engine's memory, and what earlier ones have spared them.

    Attributes:
        taken, total: tokens that have room reserved, and how many could have.
        queries, hits: blocks of prompts that were looked for, and found, since the start.
    """

    taken: int
    total: int
    queries: int = 0
    hits: int = 0


class Batching(Protocol):
    """Requests that come and go: what the server and ``answer_all`` need of an engine, ours or another.

    Whoever no longer waits for an answer sets its ``cancelled``; it is let go at the next step.
    """

    @property
    def running(self) -> int:
        """Answers under way."""

    @property
    def waiting(self) -> int:
        """Answers that are not yet."""

    def add(self, request: Request) -> Answer:
        """Queue a request that has been checked."""

    def step(self) -> list[Event]:
        """What has become of the answers since the last step."""

    def clear(self) -> None:
        """Let go of everything."""

    def use(self) -> Use:
        """Of its memory, now."""


def answer_all(
    engine: Batching, requests: Sequence[Request], told: Callable[[int], object] = lambda _: None
) -> list[Completion]:
    """Answer requests with an engine that has nothing else to do.

    Args:
        engine: is left empty, also where it fails.
        requests: all checked.
        told: is told how many more are answered, whenever some are.

    Returns:
        Completions in the order of the requests.
    """
    found: dict[int, Completion] = {}
    try:
        places = {engine.add(request): place for place, request in enumerate(requests)}
        while len(found) < len(requests):
            done = {places[e.answer]: e.completion for e in engine.step() if e.completion is not None}
            if done:
                found |= done
                told(len(done))
    except BaseException:
        engine.clear()
        raise
    return [found[place] for place in range(len(requests))]
