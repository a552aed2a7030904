"""Betting on rankings: one judgement each, worth what its pairs say, and no more promotions of equals than promised."""

import itertools
import math

import numpy as np
import pytest

from danlu.align import gate
from danlu.align.betting import STAKES, Tally, log_wealth, lower_bound, score_of
from danlu.align.gate import GateSettings
from danlu.records import Answer, Message, Preference

SEEDS = itertools.count()
OURS, THEIRS = "candidate", "champion"


def ranking(models, ranks, rater="r") -> Preference:
    answers = tuple(Answer("an answer", model=model, seed=next(SEEDS)) for model in models)
    return Preference(id="v", prompt=(Message("user", "?"),), answers=answers, ranks=tuple(ranks), rater=rater,
                      display_order=tuple(range(len(models))), split="train")  # fmt: skip


@pytest.mark.parametrize(
    ("models", "ranks", "score"),
    [
        # Ours are first and third: better than both, and better than one of two.
        ((OURS, THEIRS, OURS, THEIRS), (0, 1, 2, 3), 3 / 4),
        ((THEIRS, OURS, THEIRS, OURS), (0, 1, 2, 3), 1 / 4),
        # 0 ties with 0 and beats 1; 1 loses to 0 and ties with 1: a half, one, none, a half.
        ((OURS, THEIRS, OURS, THEIRS), (0, 0, 1, 1), 2 / 4),
        ((OURS, THEIRS, OURS, THEIRS), (0, 1, 0, 1), 1.0),
        ((OURS, THEIRS, OURS, THEIRS), (), 0.5),
        # One of ours between two of theirs, and level with the better one.
        ((THEIRS, OURS, THEIRS), (0, 1, 2), 1 / 2),
        ((THEIRS, OURS, THEIRS), (0, 0, 1), 3 / 4),
        ((OURS, THEIRS), (0, 1), 1.0),
        ((OURS, THEIRS), (0, 0), 0.5),
        ((OURS, THEIRS), (1, 0), 0.0),
    ],
)
def test_the_score_of_a_ranking_is_the_mean_over_its_pairs(models, ranks, score):
    assert score_of(ranking(models, ranks), OURS) == score
    assert score_of(ranking(models, ranks), THEIRS) == 1 - score


def test_wealth_of_rankings_by_hand():
    """One score of 3/4 against one half wins c/2 for a stake c, and 1/4 loses as much."""
    assert math.exp(log_wealth(Tally({0.75: 1}), 0.5)) == pytest.approx(1 + sum(STAKES) / 2 / 8)
    both = sum((1 + c / 2) * (1 - c / 2) for c in STAKES) / 8
    assert math.exp(log_wealth(Tally.of([0.75, 0.25]), 0.5)) == pytest.approx(both)
    # Against 0.6: 0.75 / 0.6 - 1 = 0.25.
    assert math.exp(log_wealth(Tally({0.75: 1}), 0.6)) == pytest.approx(1 + sum(STAKES) / 4 / 8)
    mixed = Tally({1.0: 2, 0.75: 3, 0.5: 1, 0.25: 1, 0.0: 1})
    assert (mixed.wins, mixed.ties, mixed.losses, mixed.votes) == (5, 1, 2, 8)
    assert mixed.rate() == (2 + 2.25 + 0.5 + 0.25) / 8
    assert mixed.reversed().reversed() == mixed


def ranked(rng, gain, shape, k=4):
    """Scores of rankings by a crowd: a prompt's own level, a spread between samples, a tie where they are close."""
    liked = rng.normal(size=(*shape, k)) + rng.normal(size=(*shape, 1))
    liked[..., ::2] += gain
    ours, theirs = liked[..., ::2, None], liked[..., None, 1::2]
    return (0.5 + 0.5 * np.sign(ours - theirs) * (abs(ours - theirs) > 0.15)).mean((-1, -2))


def paths(scores, rate=0.5):
    """Log wealth after every judgement, bet by bet: (N, T)."""
    logs = [np.log1p(c * (scores / rate - 1)).cumsum(-1) for c in STAKES]
    return np.logaddexp.reduce(logs) - math.log(len(STAKES))


def test_rankings_promote_no_more_equals_than_promised_and_find_the_better_in_half_the_votes():
    rng = np.random.default_rng(0)
    equal = ranked(rng, 0.0, (500, 400))
    walked = paths(equal)
    assert walked[0, -1] == pytest.approx(log_wealth(Tally.of(equal[0].tolist()), 0.5))
    assert (walked.max(1) >= math.log(20)).mean() <= 0.05
    # Pairs that are counted as if each were somebody's own judgement promise too much; one ranking is one.
    pairs = np.repeat(equal, 4, axis=1)
    assert (paths(pairs).max(1) >= math.log(20)).mean() > 0.05
    found = {k: paths(ranked(rng, 0.3, (150, 500), k)) >= math.log(20) for k in (2, 4)}
    votes = {k: np.median(np.where(hit.any(1), hit.argmax(1), 500)) for k, hit in found.items()}
    assert votes[4] < 0.55 * votes[2]


def test_pairs_and_rankings_count_together_and_a_stranger_among_the_answers_does_not():
    both = [ranking((OURS, THEIRS, THEIRS, OURS), (0, 1, 2, 3)), ranking((THEIRS, OURS), (1, 0))]
    others = [ranking((OURS, THEIRS, "sft", OURS), (0, 1, 2, 3)), ranking((THEIRS,) * 4, (0, 1, 2, 3))]
    found = gate.compare(both + others, THEIRS, OURS, GateSettings())
    assert found.tally == Tally({0.5: 1, 1.0: 1})
    assert found.to_json()["rate"] == 0.75
    many = [ranking((OURS, THEIRS, OURS, THEIRS), (0, 2, 1, 3) if i % 3 else (1, 0, 3, 2), f"{i}") for i in range(30)]
    found = gate.compare(many, THEIRS, OURS, GateSettings())
    assert found.met
    assert found.conditions[0].value == round(lower_bound(Tally({1.0: 20, 0.25: 10}), 0.05), 4)
