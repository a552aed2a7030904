"""The desk: the one way from a dialogue to its answers, whoever asks in whatever form.

In:  jobs, and the dialogue that they answer.
Out: answers under way and their events: metered, looked at by the gates, counted, and cut where they go in circles.
Left out: how answers are written (``engine``), how they are told (``chat``, ``completions``, ``talk``, ``feedback``).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from danlu.records import Message
from danlu.serve.accounts import current_caller
from danlu.serve.engine import Answers
from danlu.serve.jobs import Finished, Job, Piece
from danlu.serve.metrics import Metrics
from danlu.serve.rates import Metered
from danlu.serve.repair import repaired
from danlu.serve.safety import Origin, Passage, Safety


class Desk:
    """Takes jobs.

    Args:
        engine: writes, and knows what whoever asks may ask.
        metrics: count.
        safety: the gates before and after the models.
    """

    def __init__(self, engine: Metered, metrics: Metrics, safety: Safety) -> None:
        self._engine, self._metrics, self._safety = engine, metrics, safety

    async def write(
        self, jobs: Sequence[Job], messages: Sequence[Message], conversation: str = "", repair: bool = False,
        new: int = 1,
    ) -> Passage:  # fmt: skip
        """Have answers written.

        Args:
            jobs: one per answer.
            messages: what they answer, as the client sent it.
            conversation: whose turn it is, if it is stored.
            repair: whether to cut what repeats itself.
            new: how many of the last messages nobody has looked at yet.

        Raises:
            Refusal: too much for this minute, or the queue is full.
        """
        self._engine.admit(jobs)  # before the gates think about it
        owner = current_caller().owner
        salted = [replace(job, salt=owner) for job in jobs]  # what is cached of one person's words is for that person

        def events(answers: Answers) -> AsyncIterator[Piece | Finished]:
            counted = self._metrics.watch(answers)
            return repaired(counted, answers) if repair else counted

        origin = Origin(owner, conversation, tuple(job.model for job in jobs))
        return await self._safety.submit(self._engine, salted, messages, origin, events, new)
