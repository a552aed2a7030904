"""The gate: wealth by hand, an error rate that holds however often one looks, and every condition on its own."""

import itertools
import math

import numpy as np
import pytest
from pydantic import ValidationError

from danlu.align import gate
from danlu.align.betting import Tally, log_wealth, lower_bound, score_of
from danlu.align.gate import GateSettings, compare, paired_gain, votes_needed, within
from danlu.records import Answer, Message, Preference

STAKES = [0.8 * 0.6**k for k in range(8)]
SEEDS = itertools.count()
WIN, TIE, LOSS = (0, 1), (0, 0), (1, 0)


def duel(
    ranks, rater="r", ours="an answer", theirs="an answer", other="champion", swapped=False, seed=None
) -> Preference:
    """A vote on the candidate (first, unless swapped) against ``other``; on answers that nobody saw before."""
    seed = next(SEEDS) if seed is None else seed
    answers, seen = [Answer(ours, model="candidate", seed=seed), Answer(theirs, model=other, seed=seed)], list(ranks)
    if swapped:
        answers, seen = answers[::-1], seen[::-1]
    return Preference(
        id="v", prompt=(Message("user", "?"),), answers=tuple(answers), ranks=tuple(seen), rater=rater,
        display_order=(0, 1), split="train",
    )  # fmt: skip


def tally_of(wins=0, ties=0, losses=0) -> Tally:
    """Of pairs."""
    return Tally({score: count for score, count in ((1.0, wins), (0.5, ties), (0.0, losses)) if count})


def said(duels) -> Tally:
    return Tally.of(score_of(duel, "candidate") for duel in duels)


def wealth(votes, rate) -> float:
    """Bet by bet, as the definition says."""
    purses = [1.0] * len(STAKES)
    for vote in votes:
        purses = [purse * (1 + stake * (vote / rate - 1)) for purse, stake in zip(purses, STAKES, strict=True)]
    return sum(purses) / len(purses)


def test_wealth_is_what_one_wins_bet_by_bet_in_any_order():
    votes = [1.0] * 9 + [0.5] * 4 + [0.0] * 3
    for rate in (0.5, 0.4, 0.73):
        expected = wealth(np.random.default_rng(1).permutation(votes), rate)
        assert math.exp(log_wealth(tally_of(9, 4, 3), rate)) == pytest.approx(expected)
    assert math.exp(log_wealth(tally_of(1, 0, 0), 0.5)) == pytest.approx(1 + sum(STAKES) / 8)
    assert log_wealth(tally_of(0, 50, 0), 0.5) == pytest.approx(0.0), "ties say nothing against one half"


def test_looking_after_every_vote_promotes_no_more_equals_than_promised():
    """Ville's inequality, against an interval for a fixed number that is looked at as often."""
    rng = np.random.default_rng(0)
    votes = rng.choice([1.0, 0.5, 0.0], p=[0.4, 0.2, 0.4], size=(400, 500))
    logs = np.log1p(np.array(STAKES)[:, None, None] * (votes / 0.5 - 1)).cumsum(-1)
    paths = np.log(np.exp(logs).mean(0))
    assert paths[0, -1] == pytest.approx(
        log_wealth(tally_of(*(float((votes[0] == worth).sum()) for worth in (1.0, 0.5, 0.0))), 0.5)
    )
    promoted = (paths.max(1) >= math.log(20)).mean()
    assert promoted <= 0.05
    n = np.arange(1, 501)
    fixed = (votes.cumsum(1) / n - 1.645 * 0.5 / np.sqrt(n) > 0.5)[:, 10:].any(1).mean()
    assert fixed > 0.2, "looking often must be what breaks the other interval, or this test shows nothing"


def test_the_bound_is_where_the_claim_stops_being_refuted():
    tally = tally_of(30, 5, 10)
    bound = lower_bound(tally, 0.05)
    assert 0.5 < bound < 32.5 / 45
    assert log_wealth(tally, bound - 1e-6) > math.log(20) > log_wealth(tally, bound + 1e-6)
    assert lower_bound(tally_of(0, 0, 9), 0.05) == pytest.approx(0.0, abs=1e-9)
    assert lower_bound(Tally({}), 0.05) == pytest.approx(0.0, abs=1e-9)


def test_a_better_candidate_is_found_and_a_worse_one_is_given_up():
    settings = GateSettings()
    good = compare([duel(WIN, f"{i}") for i in range(30)] + [duel(LOSS, f"{i}") for i in range(8)],
                   "champion", "candidate", settings)  # fmt: skip
    assert (good.met, good.hopeless, good.votes_needed) == (True, False, 0)
    bad = compare([duel(LOSS, f"{i}") for i in range(20)], "champion", "candidate", settings)
    assert (bad.met, bad.hopeless) == (False, True)
    even = compare([duel(WIN, f"{i}", swapped=i % 3 == 0) for i in range(2)], "champion", "candidate", settings)
    assert not even.met
    assert not even.hopeless
    spent = compare([duel(TIE, f"{i}") for i in range(12)], "champion", "candidate", GateSettings(max_votes=12))
    assert spent.hopeless


def test_the_votes_said_to_be_needed_are_those_that_decide():
    settings = GateSettings()
    for tally in (tally_of(12, 2, 7), tally_of(5, 0, 7), tally_of(10, 0, 10)):
        needed = votes_needed(tally, settings)
        n = tally.votes + 2
        shares = ((tally.wins + 1) / n, tally.ties / n, (tally.losses + 1) / n)

        def decided(more, tally=tally, shares=shares):
            ahead = tally_of(*(count + more * share for count, share in zip(
                (tally.wins, tally.ties, tally.losses), shares, strict=True)))  # fmt: skip
            up = log_wealth(ahead, 0.5) >= math.log(20)
            return up or log_wealth(ahead.reversed(), 0.4) >= math.log(5)

        assert decided(needed)
        assert not decided(needed - 1)


def test_only_blind_votes_on_these_two_count_and_nobody_counts_often():
    votes = [duel(LOSS, "flood") for _ in range(40)] + [duel(WIN, "a", swapped=True), duel((), "b"), duel(TIE, "c")]
    votes += [duel(WIN, "d", other="somebody else")]
    duels = gate.counted(gate.duels_of(votes, "champion", "candidate"), per_rater=5)
    assert said(duels) == tally_of(1, 2, 5)
    twice = [duel(WIN, "a", seed=-1), duel(LOSS, "a", seed=-1, swapped=True), duel(LOSS, "b", seed=-1)]
    duels = gate.duels_of(twice, "champion", "candidate")
    assert said(duels) == tally_of(1, 0, 1), "a second look of the same rater says nothing new"


def test_one_rater_alone_decides_nothing_and_comes_to_an_end():
    settings = GateSettings(max_votes=60, votes_per_rater=4, raters=1)
    votes = [duel(WIN if i % 2 else LOSS, "alone") for i in range(60)]
    found = compare(votes[:3], "champion", "candidate", settings)
    assert not found.used_up
    found = compare(votes[:20], "champion", "candidate", settings)
    assert (found.tally, found.hopeless, found.used_up) == (tally_of(2, 0, 2), False, True)
    assert found.votes_needed == 40, "those that do not count bring the end nearer"
    assert "other raters" in found.waits_for()
    assert not compare([*votes[:20], duel(WIN, "b")], "champion", "candidate", settings).used_up
    assert compare(votes, "champion", "candidate", settings).hopeless
    always = [duel(WIN, "alone") for _ in range(30)]
    found = compare(always, "champion", "candidate", GateSettings())
    assert [condition.met for condition in found.conditions] == [True, True, False]
    assert not found.met, "one person's taste"
    assert "one at least, of somebody else" in found.waits_for()
    assert compare(always, "champion", "candidate", GateSettings(raters=1)).met
    assert compare([*always, duel(LOSS, "another")], "champion", "candidate", GateSettings()).met


def test_a_flood_brings_no_end_and_few_who_vote_often_do():
    """Fifty of one person's votes count, and for the end no more than half of a thousand."""
    settings, flood = GateSettings(worthwhile=0.55), [duel(LOSS, "flood") for _ in range(1000)]
    liked = compare([*(duel(WIN, f"{i}") for i in range(70)), *flood], "champion", "candidate", settings)
    assert (liked.tally, liked.hopeless) == (tally_of(70, 0, 50), False)
    even = [duel(WIN, "b") for _ in range(60)]
    assert not compare([*flood, *even], "champion", "candidate", GateSettings(futility=0.001)).hopeless
    often = [duel(WIN if i % 2 else LOSS, rater) for i in range(600) for rater in ("a", "b")]
    assert compare([*often, duel(WIN, "c")], "champion", "candidate", settings).hopeless


def test_where_length_alone_is_missing_no_number_of_votes_is_promised():
    votes = [duel(WIN, f"{i}", ours="a much longer answer", theirs="short", swapped=i % 2 == 0) for i in range(40)]
    votes += [duel(LOSS, f"{i}", ours="short", theirs="a much longer answer") for i in range(8)]
    found = compare(votes, "champion", "candidate", GateSettings(length_bar=0.99))
    assert [condition.met for condition in found.conditions] == [True, False, True]
    assert (found.votes_needed, found.hopeless) == (None, False)
    assert "not met yet: win rate at equal length" in found.waits_for()


def test_a_candidate_that_only_writes_more_wins_nothing_at_equal_length():
    """It wins where it is longer and loses where it is shorter: 70 % of votes, and half at equal length."""
    long, short = "a long answer indeed", "short"
    votes = [duel(WIN, f"{i}", ours=long, theirs=short, swapped=i % 2 == 0) for i in range(70)]
    votes += [duel(LOSS, f"{i}", ours=short, theirs=long) for i in range(30)]
    tally = said(votes)
    assert tally.wins / tally.votes == 0.7
    assert gate.equal_length_rate(votes, "champion", "candidate") == pytest.approx(0.5, abs=0.05)
    plain = [duel(WIN, f"{i}") for i in range(70)] + [duel(LOSS, f"{i}") for i in range(30)]
    assert gate.equal_length_rate(plain, "champion", "candidate") == pytest.approx(70.5 / 101, abs=0.01)
    assert gate.equal_length_rate([], "champion", "candidate") is None


def test_paired_gain_by_hand():
    gained = paired_gain("audit", [2.0, 1.0, 3.0, 0.0], [1.0, 1.0, 2.0, 0.0], 0.0)
    # Differences 1, 0, 1, 0: mean 0.5, deviation sqrt(1/3).
    assert gained.value == pytest.approx(0.5 - 1.645 * math.sqrt(1 / 3) / 2, abs=1e-4)
    assert gained.met
    assert not paired_gain("audit", [1.0, 2.0], [2.0, 1.0], 0.0).met
    assert not paired_gain("audit", [9.0], [0.0], 0.0).met, "one prompt tells nothing"
    for score in (math.nan, math.inf):
        broken = paired_gain("audit", [9.0, score, 9.0], [0.0, 0.0, 0.0], 0.0)
        assert (broken.value, broken.met) == (None, False)


def test_a_judge_that_beats_no_baseline_is_heard_and_decides_nothing():
    worse = paired_gain("audit", [1.0, 1.1, 0.9], [2.0, 2.0, 2.0], 0.0, proven=False)
    assert worse.value == pytest.approx(-1 - 1.645 * 0.1 / math.sqrt(3), abs=1e-4)
    assert (worse.met, worse.needed) == (True, "told only")
    assert "beats no baseline" in worse.note


def test_people_may_refute_a_reward_model_that_fits_what_was_simulated():
    figures = {
        "best_baseline": "length", "baselines": {"length": 0.55}, "accuracy_interval": [0.7, 0.8],
        "beats_baselines": True,
    }  # fmt: skip
    assert [condition.met for condition in gate.proven_reward(figures)] == [True]
    people = {"votes_heldout": 40, "votes_accuracy_interval": [0.3, 0.45]}
    assert [condition.met for condition in gate.proven_reward(figures | people)] == [True, False]
    few = {"votes_heldout": 5, "votes_accuracy_interval": [0.0, 0.45]}
    assert [condition.met for condition in gate.proven_reward(figures | few)] == [True]
    nothing = {"best_baseline": None, "accuracy_interval": [0.0, 1.0], "beats_baselines": False}
    assert [condition.met for condition in gate.proven_reward(nothing)] == [False]


def test_budgets_and_settings():
    assert within("kl", 9.9, 10).met
    assert not within("kl", 10.1, 10).met
    broken = within("kl", math.nan, 10)
    assert not broken.met
    assert broken.value is None
    with pytest.raises(ValidationError, match="above bar"):
        GateSettings(bar=0.6, worthwhile=0.6)
