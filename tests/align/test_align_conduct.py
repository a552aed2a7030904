"""How raters behave, against counts worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

from danlu.align.conduct import FAST, conduct
from danlu.records import Answer, Message, Preference

PROMPT = (Message("user", "?"),)


def judged(words: str, ranks: Sequence[int], rater: str = "r", time: str = "") -> Preference:
    return Preference("id", PROMPT, tuple(map(Answer, words)), tuple(ranks), rater, time)


def test_repeated_and_contradictory_votes_are_those_of_one_rater_on_the_same_words():
    found = conduct([
        judged("ab", (0, 1)), judged("ba", (1, 0)),  # the same, the other way round
        judged("ab", (1, 0)),  # contradicts both
        judged("ab", (0, 0)),  # a tie does neither
        judged("ab", ()), judged("aa", (0, 1)), judged("cd", (0, 1)),
        judged("ab", (1, 0), "someone else"),
        judged("abc", (0, 1, 2)), judged("abc", (0, 2, 1)),
    ])  # fmt: skip
    assert (found.raters, found.duplicates, found.contradictions) == (2, 1, 3)
    assert [(one.rater, one.judgements, one.share) for one in found.most] == [("r", 9, 0.9), ("someone else", 1, 0.1)]


def test_who_votes_faster_than_anybody_can_read_is_flooding_and_a_file_is_not():
    def votes(rater: str, n: int, seconds: float) -> list[Preference]:
        times = [f"2026-01-01T00:{int(i * seconds) // 60:02}:{i * seconds % 60:09.6f}+00:00" for i in range(n)]
        return [judged("ab", (0, 1), rater, time) for time in times]

    fast, slow, edge = votes("fast", FAST + 1, 2.8), votes("slow", FAST * 3, 3.5), votes("edge", FAST + 1, 3.0)
    file = [judged("ab", (0, 1), "imported", "2026-01-01T00:00:00Z")] * 50
    found = conduct([*fast, *slow, *edge, *file])
    by_name = {one.rater: (one.busiest, one.flooding) for one in found.most}
    assert by_name == {"fast": (21, True), "slow": (18, False), "edge": (20, False), "imported": (1, False)}
    assert found.flooding == 1
