"""What is learnt from: simulated rankings and people's votes, looked through, weighted and counted.

In:  the rankings and a snapshot of the votes.
Out: ``Lessons``: preferences with a weight each, and how many were left out and why.
Left out: token ids (``comparisons``), training (``reward``, ``direct``), who may vote (the preference store).

People vote as people do. The same vote twice counts once. Who contradicts an earlier vote of theirs is taken at the
last word; two raters who contradict each other both stay, and the reward model becomes less sure. Nothing is learnt
from an answer without words. Whoever votes day and night can be held to a share of all votes' weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from pydantic import Field

from danlu.align.splits import is_person, place
from danlu.files import hash_value
from danlu.recipe import Settings
from danlu.records import Message, Preference, read_preferences


class VoteSettings(Settings):
    """What every stage can be told that learns from people's votes beside simulated rankings."""

    vote_weight: float = Field(1.0, ge=0)
    """What a person's vote counts for beside a simulated ranking."""
    rater_share: float = Field(1.0, gt=0, le=1)
    """Largest share that one rater's votes may have in the weight of all votes; 1 is no limit."""


class Judged(Protocol):
    """A vote, a thumb, or one answer of a comparison."""

    @property
    def rater(self) -> str:
        """Who judged."""

    @property
    def split(self) -> str:
        """ "train" or "heldout"."""


@dataclass(frozen=True)
class Lessons:
    """Comparisons to learn from.

    Attributes:
        preferences: those that say something, rankings first.
        weights: what each counts for.
        votes: how many votes were read.
        left_out: of the votes, by reason: ``repeated``, ``taken_back``, ``same_answers``, ``empty_answers`` (answers,
            not votes), ``undecided``.
        held_back: raters whose votes count for less, because there are so many of them.
    """

    preferences: tuple[Preference, ...]
    weights: tuple[float, ...]
    votes: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    held_back: frozenset[str] = frozenset()

    def split(self, name: str) -> list[tuple[Preference, float]]:
        """Those of "train" or "heldout"."""
        pairs = zip(self.preferences, self.weights, strict=True)
        return [(preference, weight) for preference, weight in pairs if preference.split == name]


def read(
    rankings: Path, votes: Path | None = None, *, ties: bool = False, vote_weight: float = 1.0, rater_share: float = 1.0
) -> Lessons:
    """Read and look through what there is.

    Args:
        rankings: simulated ones, JSONL; taken as they are.
        votes: people's, JSONL, oldest first.
        ties: whether a comparison in which nothing is better than anything says something.
        vote_weight: of a person's vote, where a ranking weighs 1.
        rater_share: largest share of the weight of all votes to learn from that one rater's may have.

    Raises:
        UserError: a file is missing or a line damaged, naming it.
    """
    simulated = [one for one in read_preferences(rankings) if decided(one, ties)]
    given = read_preferences(votes) if votes is not None else []
    kept, left_out = look_through(given, ties)
    weights, held_back = weigh(kept, vote_weight, rater_share)
    return Lessons((*simulated, *kept), (*[1.0] * len(simulated), *weights), len(given), left_out, held_back)


def weigh(judged: Sequence[Judged], vote_weight: float, rater_share: float) -> tuple[list[float], frozenset[str]]:
    """What each judgement counts for, and the raters whose count for less because there are so many of them.

    Args:
        judged: by people, or in a file that does not say by whom, which makes them no one rater's.
        vote_weight: of one, where a simulated ranking weighs 1.
        rater_share: largest share of the weight of all to learn from that one rater's may have.
    """
    counted = Counter(one.rater for one in judged if is_person(one.rater) and one.split == "train")
    limit = most_votes(counted.values(), rater_share)
    weights = [vote_weight * min(1.0, limit / max(counted[one.rater], 1)) for one in judged]  # 0 is a file's count
    return weights, frozenset(rater for rater, n in counted.items() if n > limit)


def look_through(votes: Sequence[Preference], ties: bool) -> tuple[list[Preference], dict[str, int]]:
    """The votes to learn from, and how many were left out by reason; reasons that never applied are left out too."""
    left_out: Counter[str] = Counter()
    last: dict[str, Preference] = {}
    for vote in votes:
        key = _judged(vote) if is_person(vote.rater) else vote.id  # two unnamed raters, or rows of a file, may be two
        if key in last:
            left_out["repeated" if _order(last.pop(key)) == _order(vote) else "taken_back"] += 1
        last[key] = vote
    kept = []
    for vote in last.values():
        worded = _worded(vote)
        left_out["empty_answers"] += len(vote.answers) - len(worded.answers)
        if len({answer.text for answer in worded.answers}) < 2:
            left_out["same_answers"] += 1
        elif not decided(worded, ties):
            left_out["undecided"] += 1
        else:
            kept.append(worded)
    return kept, {reason: n for reason, n in left_out.items() if n}


def most_votes(counts: Iterable[int], share: float) -> float:
    """How many votes of one rater may count, so that nobody's are more than ``share`` of what counts.

    The largest c with ``c <= share * sum of min(n, c)``. With too few raters for that, all count as much as the one
    with the fewest.

    Args:
        counts: votes of every rater.
        share: above 0; 1 is no limit.
    """
    ordered = sorted(counts, reverse=True)
    if not ordered or share >= 1:
        return float("inf")
    rest = float(sum(ordered))
    for capped, n in enumerate(ordered):
        # Of the raters, ``capped`` are held at c, and the others have ``rest`` votes: c = share (capped c + rest).
        free = 1 - share * capped
        if free <= 0:
            break
        c = share * rest / free
        if n <= c:
            return c
        rest -= n
    return float(ordered[-1])


def decided(preference: Preference, ties: bool) -> bool:
    """Whether something is better than something; or, if ties count, whether it was said that nothing is."""
    return bool(preference.pairs()) or (ties and bool(preference.ranks))


def place_of(prompt: Sequence[Message], purpose: str) -> float:
    """A number from 0 to 1 that belongs to a prompt, another one for every purpose: it never moves."""
    return place([purpose, [[message.role, message.content] for message in prompt]])


def _judged(vote: Preference) -> str:
    """What tells one vote from another: who judged which answers to what, in whatever order they stood."""
    prompt = [[message.role, message.content] for message in vote.prompt]
    return hash_value([vote.rater, prompt, sorted(answer.text for answer in vote.answers)])


def _order(vote: Preference) -> list[tuple[int, str]]:
    """What was said, in whatever order the answers stood; empty for "all bad"."""
    answers = vote.answers if vote.ranks else ()
    return sorted((rank, answer.text) for rank, answer in zip(_from_0(vote.ranks), answers, strict=True))


def _from_0(ranks: Sequence[int]) -> tuple[int, ...]:
    """Ranks that say the same, without gaps: 0 the best, equal ones tie."""
    places = sorted({*ranks})
    return tuple(map(places.index, ranks))


def _worded(vote: Preference) -> Preference:
    """The vote without answers that say nothing."""
    there = [place for place, answer in enumerate(vote.answers) if answer.text.strip()]
    if len(there) == len(vote.answers):
        return vote
    ranks = _from_0([vote.ranks[place] for place in there] if vote.ranks else [])
    return replace(vote, answers=tuple(vote.answers[place] for place in there), ranks=ranks, display_order=())
