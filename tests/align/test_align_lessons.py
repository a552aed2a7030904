"""Votes as people cast them: repeated, taken back, empty, too many. What is learnt from them, and what is counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from danlu.align.lessons import look_through, most_votes, place_of, read
from danlu.records import Answer, Message, Preference, write_preferences

PROMPT = (Message("user", "写：春"),)


def vote(identity: str, ranks: tuple[int, ...], *texts: str, rater: str = "a", split: str = "train") -> Preference:
    answers = tuple(map(Answer, texts or ("山水", "花月")))
    return Preference(identity, PROMPT, answers, ranks, rater, split=split)


def test_the_same_vote_twice_is_one_and_of_two_that_differ_the_last_counts() -> None:
    given = [
        vote("1", (0, 1)), vote("2", (1, 0), "花月", "山水"),  # the same, said the other way round
        vote("3", (0, 1), rater="b"), vote("4", (1, 0), rater="b"), vote("5", (0, 1), rater="c"),
    ]  # fmt: skip
    kept, left_out = look_through(given, ties=False)
    assert [one.id for one in kept] == ["2", "4", "5"]
    assert left_out == {"repeated": 1, "taken_back": 1}
    assert kept[1].ranks == (1, 0)
    assert kept[2].ranks == (0, 1), "another rater may disagree"


def test_nobody_knows_whether_two_unnamed_raters_are_one() -> None:
    for rater in ("", "import:hh"):  # nor whether two rows of a file are
        kept, left_out = look_through([vote("1", (0, 1), rater=rater), vote("2", (1, 0), rater=rater)], ties=False)
        assert len(kept) == 2
        assert not left_out


def test_answers_that_say_nothing_are_left_out_of_their_comparison() -> None:
    given = [vote("1", (2, 0, 1), " \n", "山水", "花月"), vote("2", (0, 1), "山水", ""), vote("3", (0, 1), "山", "山")]
    given.append(vote("4", (0, 1, 2), "", "山水", "花月", rater="b"))
    kept, left_out = look_through(given, ties=False)
    assert [(one.id, one.ranks, len(one.answers)) for one in kept] == [("1", (0, 1), 2), ("4", (0, 1), 2)]
    assert left_out == {"empty_answers": 3, "same_answers": 2}


def test_a_tie_says_something_only_where_ties_count_and_all_bad_never_does() -> None:
    given = [vote("1", (0, 0)), vote("2", (), rater="b"), vote("3", (0, 0, 1), "山", "水", "花", rater="c")]
    for ties, ids in ((False, ["3"]), (True, ["1", "3"])):
        kept, left_out = look_through(given, ties)
        assert [one.id for one in kept] == ids
        assert left_out == {"undecided": 3 - len(ids)}


@pytest.mark.parametrize(
    ("counts", "share", "limit"),
    [
        ([10, 1, 1, 1], 0.5, 3.0),  # 3 of 3 + 1 + 1 + 1
        ([10, 6, 2, 2], 0.4, 20 / 3),  # 40 % of 20/3 + 6 + 2 + 2
        ([5, 5, 5], 0.3, 5.0),  # three cannot have less than a third each
        ([7, 2], 0.25, 2.0),
        ([4, 4, 2], 0.5, 5.0),  # nobody has too many
    ],
)
def test_a_rater_has_no_more_than_a_share(counts: list[int], share: float, limit: float) -> None:
    assert most_votes(counts, share) == pytest.approx(limit)


def test_weights_are_of_votes_and_not_of_rankings(tmp_path: Path) -> None:
    write_preferences(tmp_path / "rankings", [vote("r", (0, 1), rater="judge:poems")])
    busy = [vote(f"{i}", (0, 1), "山", "水" * (i + 1), rater="busy") for i in range(8)]
    held = [vote(f"h{i}", (0, 1), "山", "风" * (i + 1), rater="busy", split="heldout") for i in range(5)]
    others = [vote("x", (0, 1), rater="x"), vote("y", (0, 1), rater="y")]
    write_preferences(tmp_path / "votes", [*busy, *held, *others])
    lessons = read(tmp_path / "rankings", tmp_path / "votes", vote_weight=3.0, rater_share=0.5)
    assert lessons.votes == 15
    assert lessons.held_back == {"busy"}
    weights = [weight for _, weight in lessons.split("train")]
    assert weights == [1.0] + [3.0 * 2 / 8] * 8 + [3.0, 3.0]
    assert sum(weights[1:9]) == pytest.approx(0.5 * sum(weights[1:]))


def test_a_prompts_place_depends_on_what_for() -> None:
    prompts = [(Message("user", f"写{i}"),) for i in range(2000)]
    audits, folds = ([place_of(prompt, purpose) for prompt in prompts] for purpose in ("audit", "fold"))
    assert 0.27 < sum(place < 0.3 for place in audits) / 2000 < 0.33
    assert sum(a < 0.3 and f < 0.5 for a, f in zip(audits, folds, strict=True)) / 2000 == pytest.approx(0.15, abs=0.03)


def test_words_may_hold_any_line_separator(tmp_path: Path) -> None:
    given = [vote("1", (0, 1), "山\u2028水", "花\x85月"), vote("2", (1, 0), "春\u2029", "秋\x0b")]
    write_preferences(tmp_path / "votes.jsonl", given)
    write_preferences(tmp_path / "none.jsonl", [])
    assert list(read(tmp_path / "none.jsonl", tmp_path / "votes.jsonl").preferences) == given
