"""Ratings and agreement against figures worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from danlu.align.agreement import agree
from danlu.align.ratings import ENOUGH, POINTS, left_share, rate
from danlu.records import Answer, Message, Preference

PROMPT = (Message("user", "?"),)


def judged(models: str, ranks: Sequence[int], rater: str = "r", seed: int = 0, texts: Sequence[str] = ()) -> Preference:
    """A judgement on one answer of each model, which are called by a letter each."""
    words = texts or ["word"] * len(models)
    answers = tuple(Answer(text, model=model, seed=seed) for model, text in zip(models, words, strict=True))
    return Preference("id", PROMPT, answers, tuple(ranks), rater)


def wins(models: str, n: int) -> list[Preference]:
    """The first of two models wins so often, half of the times from the right."""
    return [judged(models, (0, 1)) if i % 2 else judged(models[::-1], (1, 0)) for i in range(n)]


def test_two_models_differ_by_the_log_odds_of_their_wins_with_a_half_on_each():
    table = rate([*wins("ab", 7), *wins("ba", 2), judged("ab", (0, 0))], anchor="b")
    best, anchor = table.ratings
    assert (best.model, best.wins, best.ties, best.losses, best.judgements) == ("a", 7, 1, 2, 10)
    odds = (7 + 0.5 + 0.5) / (2 + 0.5 + 0.5)
    assert best.points == pytest.approx(400 * math.log10(odds), abs=0.06)
    assert best.share == pytest.approx(odds / (1 + odds), abs=1e-3)
    assert (anchor.model, anchor.points, anchor.low, anchor.high, anchor.share) == ("b", 0.0, 0.0, 0.0, 0.5)


def test_a_model_is_rated_through_others_that_it_met():
    votes = [*wins("ab", 3), *wins("ba", 1), *wins("bc", 3), *wins("cb", 1)]
    step = 400 * math.log10(3.5 / 1.5)
    rated = {rating.model: rating.points for rating in rate(votes, anchor="c").ratings}
    assert rated == {"a": pytest.approx(2 * step, abs=0.1), "b": pytest.approx(step, abs=0.1), "c": 0.0}


def test_who_never_met_the_anchor_even_through_others_has_no_rating():
    table = rate([*wins("ab", 4), *wins("cd", 4)], anchor="a")
    assert {rating.model: rating.points is None for rating in table.ratings} == {
        "a": False, "b": False, "c": True, "d": True,
    }  # fmt: skip
    assert not any(rating.decided for rating in table.ratings if rating.model in "cd")


def test_a_ranking_counts_every_pair_and_once_for_its_interval():
    three = rate([judged("abc", (0, 1, 1))], anchor="c")
    a = three.ratings[0]
    assert (a.model, a.wins, a.ties, a.losses, a.judgements) == ("a", 2, 0, 0, 1)
    assert a.low == a.high == a.points, "one judgement can only be drawn as itself"
    assert not a.decided


def test_nothing_is_decided_by_few_votes_or_by_an_interval_that_holds_zero():
    def first(votes):
        return rate(votes, anchor="b").ratings[0]

    assert not first(wins("ab", ENOUGH - 1)).decided
    assert first(wins("ab", ENOUGH)).decided
    close = first([*wins("ab", 11), *wins("ba", 9)])
    assert close.low < 0 < close.points < close.high
    assert not close.decided
    clear = first([*wins("ab", 80), *wins("ba", 20)])
    assert clear.decided
    assert 0 < clear.low < clear.points < clear.high


def test_the_interval_is_as_wide_as_the_binomial_says():
    clear = rate([*wins("ab", 60), *wins("ba", 40)], anchor="b", rounds=1000).ratings[0]
    error = POINTS / math.sqrt(100 * 0.6 * 0.4)  # of the log odds, by the delta method
    assert clear.high - clear.low == pytest.approx(2 * 1.96 * error, rel=0.12)


def test_a_model_that_only_writes_longer_is_no_better_at_equal_length():
    draw = np.random.default_rng(0)
    votes = []
    for _ in range(400):  # the longer one wins three times of four, whoever wrote it; a is longer more often
        long = draw.random() < 0.8
        texts = ("w" * 30, "w" * 10) if long else ("w" * 10, "w" * 30)
        first = (draw.random() < 0.75) == long
        votes.append(judged("ab", (0, 1) if first else (1, 0), texts=texts))
    table = rate(votes, anchor="b", rounds=30)
    a = next(rating for rating in table.ratings if rating.model == "a")
    assert a.points > 60
    assert abs(a.at_equal_length) < 45
    assert table.length == pytest.approx(math.log(3), rel=0.25)
    assert 0 < table.length_interval[0] < table.length < table.length_interval[1]


def test_answers_of_one_model_and_of_bad_lots_say_nothing_about_models():
    assert rate([judged("aa", (0, 1)), judged("ab", ())]) is None
    assert rate([]) is None


def test_the_anchor_is_the_model_most_often_judged_unless_one_is_named():
    votes = [*wins("ab", 2), *wins("bc", 2)]
    assert rate(votes, rounds=1).anchor == "b"
    assert rate(votes, anchor="nobody", rounds=1).anchor == "b"
    assert rate(votes, anchor="c", rounds=1).anchor == "c"


def test_whether_the_left_one_wins_is_told_apart_from_who_wrote_it():
    votes = [judged("aa", (0, 1))] * 3 + [judged("ab", (1, 0)), judged("ab", (0, 0)), judged("abc", (0, 1, 2))]
    times, n, low, high = left_share(votes)
    assert (times, n) == (3, 4)
    assert low < 0.5 < high


def test_agreement_by_hand():
    # Four pairs, two raters: wins and losses, three alike and one opposite.
    votes = []
    for seed, (one, other) in enumerate([((0, 1), (0, 1)), ((0, 1), (0, 1)), ((1, 0), (1, 0)), ((0, 1), (1, 0))]):
        votes += [judged("ab", one, "x", seed), judged("ab", other, "y", seed)]
    found = agree(votes)
    assert (found.comparisons, found.raters) == (4, 2)
    assert found.same == 0.75
    # Coincidences: (-1,-1) 4, (1,1) 2, (-1,1) and (1,-1) 1 each; of 8 values 5 are -1 and 3 are 1.
    assert found.alpha == pytest.approx(1 - (8 - 1) * (2 * 1 * 4) / (2 * 5 * 3 * 4))
    assert found.same_interval[0] <= 0.75 <= found.same_interval[1]


def test_a_tie_is_half_a_disagreement_with_three_raters():
    votes = [judged("ab", ranks, rater, 1) for rater, ranks in (("x", (0, 1)), ("y", (0, 1)), ("z", ()))]
    votes += [judged("ab", (1, 0), rater, 2) for rater in ("x", "y")]
    found = agree(votes)
    assert found.raters == 3
    # First pair: m = 3 adds a half for each ordered pair: (-1,-1) 1, (-1,0) 1, (0,-1) 1; second: (1,1) 2.
    assert found.same == pytest.approx(3 / 5)
    values = {-1: 2, 0: 1, 1: 2}
    expected = sum(values[a] * values[b] * (a - b) ** 2 for a in values for b in values) / 4
    assert found.alpha == pytest.approx(1 - 2 / expected)


def test_a_ranking_is_judged_pair_by_pair():
    found = agree([judged("abc", (0, 1, 2), "x"), judged("abc", (0, 2, 1), "y")])
    assert found.same == pytest.approx(2 / 3)


def test_no_comparison_with_two_raters_is_no_agreement():
    assert agree([judged("ab", (0, 1), "x", 1), judged("ab", (0, 1), "y", 2)]) is None
    same = agree([judged("ab", (0, 1), "x"), judged("ab", (0, 1), "y")])
    assert same.same == 1
    assert same.alpha is None
    assert same.alpha_interval is None
