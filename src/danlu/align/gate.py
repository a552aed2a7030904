"""Whether a candidate may take the champion's place: statistics alone, every condition a row.

In:  votes on the two of them, pairs or rankings, paired scores of their answers, figures and budgets.
Out: ``Condition``s, each with its value, what is needed and whether it is met; ``compare``, the sequential test.
Left out: where the figures come from (``trial``), who decides and when (``danlu.flywheel``).

The win rate is tested by betting (``betting``), which holds however often somebody looks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from pydantic import Field, model_validator

from danlu.align.betting import Tally, log_wealth, lower_bound, score_of
from danlu.align.ratings import POINTS, rate
from danlu.recipe import Settings
from danlu.records import Preference

PROOF = ("error", "bar", "length_bar", "votes_per_rater", "raters")
"""Settings that hold for a round as they were when people were first asked: changed between looks, they void it."""
_FAR = 1 << 20  # votes; whoever needs more will not get them
_Z = 1.645  # one-sided, 95 %
_PEOPLE = "people whose votes count"
_TELLING = 20  # held-out votes from which on they may refute a reward model


class GateSettings(Settings):
    """What a candidate has to show."""

    error: float = Field(0.05, gt=0, lt=0.5)
    """How often a candidate that is no better may be promoted, at most, however often one looks."""
    futility: float = Field(0.2, gt=0, lt=0.5)
    """How often a candidate that is as good as ``worthwhile`` may be given up, at most."""
    bar: float = Field(0.5, gt=0, lt=1)
    """Blind win rate against the champion, ties half, which the lower bound has to exceed."""
    worthwhile: float = Field(0.6, gt=0, lt=1)
    """Win rate that one would not like to miss: a candidate that is clearly below it is given up early."""
    max_votes: int = Field(1000, ge=1)
    """Votes on the two after which an undecided candidate is given up; those that do not count any more are among them,
    but of one person no more than a share of 1 / ``raters``."""
    votes_per_rater: int = Field(50, ge=1)
    """Of one rater only so many votes count, the first ones."""
    raters: int = Field(2, ge=1)
    """People whose votes count that there have to be: nobody decides alone, unless they are alone and say so with 1."""
    length_bar: float = Field(0.5, ge=0, lt=1)
    """Win rate at equal length that has to be exceeded."""
    audit: bool = True
    """Whether the reward model that was kept apart (reward.audit_share) has to find the answers better. One that beats
    no baseline on held-out comparisons is heard and decides nothing."""
    audit_gain: float = 0.0
    """Audit reward that a candidate has to gain on the champion; the lower 95 % bound has to exceed it."""
    kl_budget: float = Field(10.0, gt=0)
    """Nats per answer that a candidate may be away from the SFT model."""
    bpb_budget: float = Field(0.1, ge=0)
    """Bits per byte of held-out text that it may need more than the SFT model, as a share. The SFT model never moves,
    so that small losses do not add up over the rounds."""

    @model_validator(mode="after")
    def _in_order(self) -> GateSettings:
        if self.worthwhile <= self.bar:
            raise ValueError(f"worthwhile ({self.worthwhile:g}) must be above bar ({self.bar:g})")
        return self


@dataclass(frozen=True)
class Condition:
    """One thing that has to be so before a candidate is promoted.

    Attributes:
        what: in words.
        value: what was found; None if there is nothing to tell it from.
        needed: what it has to be, in words.
        met: whether it is.
        note: what a reader should know besides.
    """

    what: str
    value: float | None
    needed: str
    met: bool
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """What the votes say so far.

    Attributes:
        tally: the votes that count.
        conditions: on the win rate, on the win rate at equal length, and on how many people voted.
        met: whether all of them are met.
        hopeless: whether the candidate should be given up.
        votes_needed: about so many votes more if they go on as they went; None if it is far, or if more votes alone do
            not settle what is missing.
        used_up: whether nobody who has voted so far has a vote left that counts.
    """

    tally: Tally
    conditions: tuple[Condition, ...]
    met: bool
    hopeless: bool
    votes_needed: int | None
    used_up: bool = False

    def waits_for(self) -> str:
        """What is still needed, in words."""
        needed = "more than can be foreseen" if self.votes_needed is None else f"about {self.votes_needed} more"
        missing = [condition.what for condition in self.conditions if not condition.met]
        if missing == [_PEOPLE]:
            needed = "one at least, of somebody else"
        others = ", of other raters: those who voted have no votes left that count" if self.used_up else ""
        return f"votes on the candidate: {needed}{others}; not met yet: {', '.join(missing)}"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        found = {name: int(getattr(self.tally, name)) for name in ("wins", "ties", "losses")}
        return {
            **found, "rate": round(self.tally.rate(), 4), "votes_needed": self.votes_needed, "hopeless": self.hopeless,
            "used_up": self.used_up,
        }  # fmt: skip


def compare(preferences: Sequence[Preference], champion: str, candidate: str, settings: GateSettings) -> Comparison:
    """Candidate against champion by people's blind votes.

    Args:
        preferences: first votes, since who has voted has been told names, in the order of their time; those on other
            pairs of models are passed over.
        champion, candidate: hashes of the models.
        settings: what is needed.
    """
    cast = duels_of(preferences, champion, candidate)
    duels = counted(cast, settings.votes_per_rater)
    tally = Tally.of(score_of(duel, candidate) for duel in duels)
    raters = Counter(duel.rater for duel in cast)
    used_up = bool(raters) and min(raters.values()) >= settings.votes_per_rater
    patience = _patience(raters, settings)
    lower = lower_bound(tally, settings.error)
    equal = equal_length_rate(duels, champion, candidate)
    conditions = (
        Condition(
            "blind win rate, lower bound", round(lower, 4), f"> {settings.bar:g}",
            log_wealth(tally, settings.bar) >= -math.log(settings.error),
            f"{tally.wins:g} wins, {tally.ties:g} ties, {tally.losses:g} losses, mean score {tally.rate():.1%}; at "
            f"most {settings.error:.0%} of candidates that are no better get past it",
        ),
        Condition(
            "win rate at equal length", None if equal is None else round(equal, 4), f"> {settings.length_bar:g}",
            equal is not None and equal > settings.length_bar,
        ),
        Condition(_PEOPLE, len(raters), f">= {settings.raters}", len(raters) >= settings.raters),
    )  # fmt: skip
    met = all(condition.met for condition in conditions)
    spent = patience >= settings.max_votes
    hopeless = not met and (spent or _log_futility(tally, settings) >= -math.log(settings.futility))
    further = patience - len(duels)
    needed = 0 if met or hopeless else None if conditions[0].met else votes_needed(tally, settings, further)
    return Comparison(tally, conditions, met, hopeless, needed, used_up)


def duels_of(preferences: Sequence[Preference], champion: str, candidate: str) -> list[Preference]:
    """The votes on answers of these two models and of nobody else, two answers or more.

    Who is shown the same answers a second time says nothing new with it, whatever they say: the first look counts.
    """
    looked: set[Hashable] = set()
    duels = []
    for preference in preferences:
        answers = frozenset((answer.model, answer.seed, answer.text) for answer in preference.answers)
        look = (preference.rater, preference.prompt, answers)
        two = {answer.model for answer in preference.answers} == {champion, candidate}
        if two and look not in looked:
            looked.add(look)
            duels.append(preference)
    return duels


def counted(duels: Sequence[Preference], per_rater: int) -> list[Preference]:
    """Of every rater the first ``per_rater`` votes."""
    votes: Counter[str] = Counter()
    kept = []
    for duel in duels:
        votes[duel.rater] += 1
        if votes[duel.rater] <= per_rater:
            kept.append(duel)
    return kept


def votes_needed(tally: Tally, settings: GateSettings, uncounted: int = 0) -> int | None:
    """How many votes more decide it, one way or the other, if they fall as those so far (and one win, one loss) did.

    Args:
        tally: votes that count.
        settings: what is needed.
        uncounted: votes that were cast besides and only bring ``max_votes`` nearer.
    """
    like = tally.smoothed()

    def decided(more: int) -> bool:
        ahead = tally.ahead(more, like)
        return (
            ahead.votes + uncounted >= settings.max_votes
            or log_wealth(ahead, settings.bar) >= -math.log(settings.error)
            or _log_futility(ahead, settings) >= -math.log(settings.futility)
        )

    return _first(decided)


def equal_length_rate(duels: Sequence[Preference], champion: str, candidate: str) -> float | None:
    """Win rate that the candidate would have if both answers were equally long; None without votes.

    A logistic regression on the difference of lengths, whose part is then left out, as length-controlled AlpacaEval
    does it (arXiv 2404.04475, section 3; without its term for the difficulty of a prompt, which two models share).
    """
    table = rate(duels, anchor=champion, rounds=1)  # its intervals are not asked for
    points = next((r.at_equal_length for r in table.ratings if r.model == candidate), None) if table else None
    return None if points is None else 1 / (1 + math.exp(-points / POINTS))


def proven_reward(figures: Mapping[str, Any]) -> list[Condition]:
    """Whether a reward model is known to hear what people like, by the figures of its stage.

    Its held-out accuracy has to be clearly above the best baseline's. Most of what is held out may be simulated, so
    accuracy on people's votes, if there are some, must not be clearly below a half.
    """
    best = figures["best_baseline"]
    needed = f"> {figures['baselines'][best]} ({best})" if best else "> the best baseline's"
    conditions = [
        Condition(
            "held-out accuracy of the reward model, lower bound", figures["accuracy_interval"][0], needed,
            bool(figures["beats_baselines"]),
        )
    ]  # fmt: skip
    if figures.get("votes_heldout", 0) >= _TELLING:
        most = figures["votes_accuracy_interval"][1]
        conditions.append(Condition("the same on people's votes, upper bound", most, ">= 0.5", most >= 0.5))
    return conditions


def paired_gain(
    what: str, candidate: Sequence[float], champion: Sequence[float], needed: float, proven: bool = True
) -> Condition:
    """Whether scores of answers to the same prompts have risen: the lower 95 % bound of the mean difference.

    Args:
        what: in words.
        candidate, champion: (N,) scores, prompt by prompt.
        needed: what the bound has to exceed.
        proven: whether whoever scored is known to hear what people like. What others say is told and decides nothing:
            a mean of a thousand wrong answers has a narrow interval too.
    """
    differences = [ours - theirs for ours, theirs in zip(candidate, champion, strict=True)]
    if len(differences) < 2:
        return Condition(what, None, f"> {needed:g}", False, "fewer than two prompts")
    if not all(map(math.isfinite, differences)):
        return Condition(what, None, f"> {needed:g}", False, "a score is no number")
    mean = fmean(differences)
    bound = mean - _Z * stdev(differences) / math.sqrt(len(differences))
    note = f"{mean:+.4f} on average over {len(differences)} prompts"
    if not proven:
        note += f"; not held to > {needed:g}, since whoever scored beats no baseline on held-out comparisons"
        return Condition(f"{what}, lower bound", round(bound, 4), "told only", True, note)
    return Condition(f"{what}, lower bound", round(bound, 4), f"> {needed:g}", bound > needed, note)


def within(what: str, value: float, budget: float, note: str = "") -> Condition:
    """Whether a figure keeps to its budget; one that is no number does not."""
    return Condition(what, round(value, 4) if math.isfinite(value) else None, f"<= {budget:g}", value <= budget, note)


def as_rows(conditions: Sequence[Condition]) -> list[dict[str, Any]]:
    """Conditions as plain data."""
    return [asdict(condition) for condition in conditions]


def _log_futility(tally: Tally, settings: GateSettings) -> float:
    """Log of what betting against "the candidate is worthwhile" has won."""
    return log_wealth(tally.reversed(), 1 - settings.worthwhile)


def _patience(raters: Mapping[str, int], settings: GateSettings) -> int:
    """Votes as ``max_votes`` counts them: few raters come to an end too, and a flood of one brings none."""
    most = max(settings.votes_per_rater, math.ceil(settings.max_votes / settings.raters))
    return sum(min(votes, most) for votes in raters.values())


def _first(holds: Callable[[int], bool]) -> int | None:
    """The least number from which on something holds; None if it is beyond ``_FAR``."""
    high = 1
    while not holds(high):
        high *= 2
        if high > _FAR:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
