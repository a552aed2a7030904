"""Two answers, sides drawn by lot and names hidden, and the vote that teaches the next model.

In:  a dialogue and one or two models; a vote on what was shown.
Out: both answers as a stream; rows of the preference store; after the vote, who wrote which.
Left out: what becomes of the votes (``align``), accounts: a rater is a pseudonym that the page makes up.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from anyio.to_thread import run_sync

from danlu.align.preferences import PreferenceStore
from danlu.infer import Completion
from danlu.records import Answer, Message
from danlu.serve.engine import Engine, Finished, Job, Piece
from danlu.serve.models import Models, Served
from danlu.serve.problems import Refusal
from danlu.serve.safety import FILTERED, Origin, Safety
from danlu.serve.sse import EventStream
from danlu.serve.wire import CompareRequest, VoteRequest

SIDES = ("left", "right")
RANKS = {"left": (0, 1), "right": (1, 0), "tie": (0, 0), "both_bad": ()}


@dataclass(frozen=True)
class _Contest:
    """One comparison under way; both answer ``turns``, and ``served[i]`` and ``jobs[i]`` are what stands on side i."""

    asked: CompareRequest
    turns: Sequence[Message]
    served: tuple[Served, ...]
    jobs: tuple[Job, ...]

    def origin(self) -> Origin:
        """Whose words the gates look at."""
        names = tuple(one.name for one in self.served)
        return Origin(conversation=self.asked.conversation or "", models=names)

    def answer(self, side: int, completion: Completion) -> Answer:
        """What was shown on a side; with the tokenizer's hash, so that its very tokens can be trained on."""
        job, served = self.jobs[side], self.served[side]
        sampling = {**asdict(job.sampling), "tokenizer": served.tokenizer.hash}
        return Answer(completion.text, completion.tokens, served.hash, sampling, job.seed)


class Feedback:
    """Comparisons and votes, kept in a preference store.

    Answers are stored in the order in which they stand on the screen: which model stands where was drawn by lot before,
    and each answer carries its model's hash, so nothing is lost by it.
    """

    def __init__(self, models: Models, engine: Engine, store: PreferenceStore, safety: Safety) -> None:
        self._models, self._engine, self._store, self._safety = models, engine, store, safety

    async def compare(self, asked: CompareRequest) -> EventStream:
        """Show two answers; the last event carries the id to vote on.

        Raises:
            Refusal: unknown model, two answers that cannot differ, too long, queue full.
        """
        served = [self._models.get(name) for name in asked.models]
        if len(set(asked.models)) == 1 and asked.temperature == 0:
            raise Refusal(
                400, "at temperature 0 a model always gives the same answer; raise it or choose two models",
                "nothing_to_compare", "temperature",
            )  # fmt: skip
        contestants = [served[0], served[-1]]
        secrets.SystemRandom().shuffle(contestants)
        seed = asked.first_seed()
        turns: Sequence[Message] = asked.turns()
        for one in contestants:  # the smaller context decides: answers to different dialogues cannot be compared
            turns = await one.fit(asked, turns)
        jobs = [await one.job(asked, turns, seed + i) for i, one in enumerate(contestants)]
        contest = _Contest(asked, turns, tuple(contestants), tuple(jobs))
        answers, events, _ = await self._safety.submit(self._engine, jobs, asked.turns(), contest.origin())
        return EventStream(answers, self._events(contest, events))

    async def vote(self, ballot: VoteRequest) -> dict[str, Any]:
        """Store a vote and tell, by side, who wrote what; the store knows it, so a restarted server does too.

        Raises:
            UserError: the comparison does not exist or was deleted.
        """
        # The store syncs to disk: not on the event loop.
        await run_sync(self._store.vote, ballot.comparison, RANKS[ballot.choice], ballot.rater)
        shown = await run_sync(self._store.shown, ballot.comparison)
        return {side: self._identity(answer) for side, answer in zip(SIDES, shown, strict=True)}

    async def forget(self, conversation: str) -> None:
        """Delete a conversation's words and votes.

        Raises:
            UserError: there is no such conversation.
        """
        await run_sync(self._store.delete_conversation, conversation)

    async def _events(
        self, contest: _Contest, answers: AsyncIterator[Piece | Finished]
    ) -> AsyncIterator[dict[str, Any]]:
        conversation = contest.asked.conversation
        if not conversation:
            conversation = await run_sync(self._store.start_conversation, contest.asked.rater)
        yield {"type": "start", "conversation": conversation, **contest.asked.left_out(contest.turns)}
        finished: dict[int, Completion] = {}
        async for event in answers:
            side = SIDES[event.index]
            if isinstance(event, Finished):
                finished[event.index] = event.completion
                yield {"type": "finish", "side": side, "finish_reason": event.completion.finish_reason}
            else:
                yield {"type": "delta", "side": side, "text": event.text}
        whole = [one for one in finished.values() if one.finish_reason != FILTERED]
        if len(whole) == len(SIDES):  # half an answer is no match for a whole one
            yield {"type": "end", "comparison": await self._record(contest, conversation, finished)}

    async def _record(self, contest: _Contest, conversation: str, completions: Mapping[int, Completion]) -> str:
        shown = [contest.answer(side, completions[side]) for side in range(len(SIDES))]
        return await run_sync(self._store.record, contest.turns, shown, conversation)

    def _identity(self, answer: Answer) -> dict[str, Any]:
        """Who wrote an answer; a model that is no longer served is called by its hash."""
        names = {served.hash: served.name for served in self._models.all()}
        return {
            "model": names.get(answer.model, answer.model[:12]),
            "model_hash": answer.model,
            "temperature": answer.sampling.get("temperature"),
            "top_p": answer.sampling.get("top_p"),
            "seed": answer.seed,
        }
