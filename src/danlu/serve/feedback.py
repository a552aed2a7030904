"""Some answers, places drawn by lot and names hidden, and the vote that teaches the next model.

In:  a dialogue and one or more models; a vote on what was shown.
Out: all answers as a stream; rows of the preference store; after the vote, who wrote which.
Left out: what becomes of the votes (``align``), who may vote and in which conversation (``conversations``).
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from typing import Any

from anyio.to_thread import run_sync

from danlu.align.preferences import PreferenceStore
from danlu.infer import Completion
from danlu.records import Answer, Message
from danlu.serve.desk import Desk
from danlu.serve.engine import Answers
from danlu.serve.jobs import Finished, Job, Piece
from danlu.serve.models import Models, Served
from danlu.serve.problems import Refusal
from danlu.serve.safety import FILTERED
from danlu.serve.second_look import Replay, SecondLooks
from danlu.serve.sse import EventStream
from danlu.serve.votes import RankRequest, VoteRequest
from danlu.serve.wire import CompareRequest

SIDES = ("left", "right")
RANKS = {"left": (0, 1), "right": (1, 0), "tie": (0, 0), "both_bad": ()}


@dataclass(frozen=True)
class _Contest:
    """One comparison under way; all answer ``turns``; ``served[i]`` and ``jobs[i]`` stand where ``marks[i]`` says."""

    asked: CompareRequest | RankRequest
    marks: Sequence[Mapping[str, Any]]
    turns: Sequence[Message]
    served: tuple[Served, ...]
    jobs: tuple[Job, ...]

    def answer(self, place: int, completion: Completion) -> Answer:
        """What was shown in a place."""
        return replace(self.blanks()[place], text=completion.text, token_ids=completion.tokens)

    def blanks(self) -> list[Answer]:
        """The answers yet to be written; with the tokenizer's hash, so that their very tokens can be trained on."""
        return [
            Answer("", (), served.hash, {**asdict(job.sampling), "tokenizer": served.tokenizer.hash}, job.seed)
            for job, served in zip(self.jobs, self.served, strict=True)
        ]

    def start(self) -> dict[str, Any]:
        """The first event."""
        said = self.asked.turns()
        return {
            "type": "start",
            "conversation": self.asked.conversation or "",
            **self.asked.left_out(said, self.turns),
        }


class Feedback:
    """Comparisons and votes, kept in a preference store.

    Answers are stored in the order in which they stand on the screen: which model stands where was drawn by lot before,
    and each answer carries its model's hash, so nothing is lost by it. What is shown a second time keeps the order in
    which it was stored, and the store knows how it stood this time.
    """

    def __init__(self, models: Models, desk: Desk, store: PreferenceStore, looks: SecondLooks) -> None:
        self._models, self._desk, self._store, self._looks = models, desk, store, looks

    async def compare(self, asked: CompareRequest) -> EventStream:
        """Show two answers; the last event carries the id to vote on.

        Raises:
            Refusal: unknown model, two answers that cannot differ, too long, queue full.
        """
        first, last = asked.models[0], asked.models[-1]
        return await self._show(asked, [first, last], [{"side": side} for side in SIDES])

    async def rank(self, asked: RankRequest) -> EventStream:
        """Show several answers, the models taking turns; the last event carries the id to vote on.

        Raises:
            Refusal: unknown model, answers that cannot differ, too long, queue full.
        """
        names = [*islice(cycle(asked.models), asked.answers)]
        return await self._show(asked, names, [{"place": place} for place in range(len(names))])

    async def vote(self, ballot: VoteRequest) -> dict[str, Any] | list[dict[str, Any]]:
        """Store a vote and tell who wrote what, by side or in the order of places; a restarted server knows it too.

        Raises:
            UserError: the comparison does not exist or was deleted.
            Refusal: another number of answers was shown than this vote is about.
        """
        # The store syncs to disk: not on the event loop.
        shown = await run_sync(self._store.shown, ballot.comparison)
        _check(ballot, len(shown))
        await run_sync(self._store_vote, ballot)
        verdict = [self._identity(answer) for answer in shown]
        return dict(zip(SIDES, verdict, strict=True)) if ballot.choice else verdict

    async def _show(
        self, asked: CompareRequest | RankRequest, names: Sequence[str], marks: Sequence[Mapping[str, Any]]
    ) -> EventStream:
        """One answer of each model named, in an order drawn by lot, as a stream."""
        contestants = [self._models.get(name) for name in names]
        if len(set(names)) == 1:  # every second seat, so that as many answers as can be are of either
            tried = self._models.opposite(contestants[0], secrets.SystemRandom().random())
            contestants[1::2] = [tried] * (len(names) // 2)
        if len(set(names)) < len(names) and asked.temperature == 0:
            raise Refusal(
                400, "at temperature 0 a model always gives the same answer; raise it or choose more models",
                "nothing_to_compare", "temperature",
            )  # fmt: skip
        secrets.SystemRandom().shuffle(contestants)
        seed = asked.first_seed()
        turns: Sequence[Message] = asked.turns()
        for one in contestants:  # the smallest context decides: answers to different dialogues cannot be compared
            turns = await one.fit(asked, turns)
        jobs = [await one.job(asked, turns, seed + i) for i, one in enumerate(contestants)]
        contest = _Contest(asked, marks, turns, tuple(contestants), tuple(jobs))
        if asked.seed is None:  # whoever names a seed wants that very answer
            replay = await run_sync(self._looks.draw, asked.rater, turns, contest.blanks())
            if replay is not None:
                nobody = Answers(())
                return EventStream(nobody, self._again(contest, replay, nobody))
        answers, events, _ = await self._desk.write(jobs, asked.turns(), asked.conversation or "")
        return EventStream(answers, self._events(contest, events))

    async def _events(
        self, contest: _Contest, events: AsyncIterator[Piece | Finished]
    ) -> AsyncIterator[dict[str, Any]]:
        conversation = contest.asked.conversation or ""
        yield contest.start()
        finished: dict[int, Completion] = {}
        async for event in events:
            mark = contest.marks[event.index]
            if isinstance(event, Finished):
                finished[event.index] = event.completion
                yield {"type": "finish", **mark, "finish_reason": event.completion.finish_reason}
            else:
                yield {"type": "delta", **mark, "text": event.text}
        filtered = any(completion.finish_reason == FILTERED for completion in finished.values())
        if len(finished) == len(contest.jobs) and not filtered:  # what was cut off by a gate cannot be judged
            yield {"type": "end", "comparison": await self._record(contest, conversation, finished)}

    async def _again(self, contest: _Contest, replay: Replay, writing: Answers) -> AsyncIterator[dict[str, Any]]:
        """The events of an earlier comparison, which nobody has to write."""
        asked = contest.asked
        yield contest.start()
        async for place, text in replay.pieces():
            yield {"type": "delta", **contest.marks[place], "text": text}
        for mark, reason in zip(contest.marks, replay.finish_reasons(), strict=True):
            yield {"type": "finish", **mark, "finish_reason": reason}
        if not writing.cancelled:  # somebody is still there
            noted = await run_sync(self._looks.note, replay, asked.rater, asked.conversation or "")
            yield {"type": "end", "comparison": noted}

    async def _record(self, contest: _Contest, conversation: str, completions: Mapping[int, Completion]) -> str:
        shown = [contest.answer(place, completions[place]) for place in range(len(contest.jobs))]
        return await run_sync(self._store.record, contest.turns, shown, conversation)

    def _store_vote(self, ballot: VoteRequest) -> None:
        if ballot.thumb:
            self._store.thumb(ballot.comparison, ballot.thumb == "up", ballot.rater, ballot.reason)
        else:
            ranks = RANKS[ballot.choice] if ballot.choice else ballot.ranks or ()
            self._store.vote(ballot.comparison, ranks, ballot.rater, ballot.reason)

    def _identity(self, answer: Answer) -> dict[str, Any]:
        """Who wrote an answer."""
        return {
            "model": self._models.name_of(answer.model),
            "model_hash": answer.model,
            "temperature": answer.sampling.get("temperature"),
            "top_p": answer.sampling.get("top_p"),
            "seed": answer.seed,
        }


def _check(ballot: VoteRequest, shown: int) -> None:
    """Refuse a vote that is about another number of answers than were shown."""
    if ballot.thumb:
        field, fits, mend = "thumb", shown == 1, "rank them instead"
    elif ballot.choice:
        field, fits, mend = "choice", shown == len(SIDES), "send 'ranks', or a 'thumb' if it is one answer"
    else:
        ranks = ballot.ranks or []
        fits = shown > 1 and len(ranks) in (0, shown)
        field, mend = "ranks", "give one rank for each, or none at all if all are bad; one by itself takes a 'thumb'"
    if not fits:
        message = f"comparison '{ballot.comparison}' showed {shown} answer{'s'[: shown != 1]}; {mend}"
        raise Refusal(400, message, "vote_does_not_fit", field)
