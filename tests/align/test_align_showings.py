"""A comparison shown once more is the same comparison: votes land on it, in whatever order it stood."""

from __future__ import annotations

import pytest

from danlu.align import ballots, showings
from danlu.align.agreement import agree, steadiness
from danlu.align.preferences import PreferenceStore
from danlu.align.ratings import left_share
from danlu.errors import UserError
from danlu.records import Answer, Message, Preference

PROMPT = (Message("user", "写一首诗"),)
ANSWERS = (Answer("春", (1,), "m1", {}, 1), Answer("秋", (2,), "m2", {}, 2))
LATER = "9999"


@pytest.fixture
def judged(store: PreferenceStore) -> str:
    """A comparison of alice's in which the first answer won, from the left."""
    comparison = store.record(PROMPT, ANSWERS, store.start_conversation("alice"))
    store.vote(comparison, (0, 1), "alice")
    return comparison


def test_a_vote_by_another_person_lands_on_the_same_comparison(store: PreferenceStore, judged: str) -> None:
    talk = store.start_conversation("bob")
    again = store.show_again(judged, "bob", talk, (1, 0), own=False)
    assert [a.text for a in store.shown(again)] == ["秋", "春"]
    assert store.conversation_of(again) == talk
    vote = store.vote(again, (1, 0), "bob")  # the right one: the same answer as alice's
    assert store.vote(again, (1, 0), "bob") == vote, "a double click"
    alices, bobs = store.all()
    assert (bobs.ranks, bobs.answers, bobs.display_order) == ((0, 1), ANSWERS, (1, 0))
    assert alices.display_order == (0, 1)
    found = agree([alices, bobs])
    assert found is not None
    assert (found.comparisons, found.raters, found.same) == (1, 2, 1.0)
    assert left_share([alices, bobs])[:2] == (1, 2), "the same answer stood left once and right once"
    newest = ballots.page(store, 1)[0]
    assert ([a.text for a in newest.answers], newest.ranks) == (["秋", "春"], (1, 0))
    assert len(store.all()[1].pairs()) == 1, "it teaches like any other"


def test_what_is_worth_showing_to_another(store: PreferenceStore, judged: str) -> None:
    unjudged = store.record(PROMPT, ANSWERS, store.start_conversation("alice"))
    store.vote(store.record((Message("user", "other"),), ANSWERS), (0, 1), "alice")
    store.vote(store.record(PROMPT, ANSWERS), (0, 1), "")  # of nobody in particular
    assert [one.comparison for one in showings.of_others(store, PROMPT, "bob")] == [judged]
    assert showings.of_others(store, PROMPT, "alice") == []
    store.vote(unjudged, (0, 1), "carol")
    assert {one.comparison for one in showings.of_others(store, PROMPT, "bob")} == {judged, unjudged}
    assert showings.of_others(store, PROMPT, "alice") == [], "it was in a conversation of hers"
    store.show_again(judged, "bob", "", (0, 1), own=False)
    assert [one.comparison for one in showings.of_others(store, PROMPT, "bob")] == [unjudged], "he has seen the other"


def test_ones_own_again_measures_and_teaches_nothing(store: PreferenceStore, judged: str) -> None:
    (own,) = showings.of_oneself(store, PROMPT, "alice", LATER)
    assert (own.comparison, own.answers, own.display_order) == (judged, ANSWERS, (0, 1))
    assert showings.of_oneself(store, PROMPT, "alice", "2000") == [], "not so soon"
    assert showings.of_oneself(store, PROMPT, "bob", LATER) == []
    before = store.all()
    since = before[0].time
    again = store.show_again(judged, "alice", "", (1, 0), own=True)
    assert showings.of_oneself(store, PROMPT, "alice", LATER) == [], "once is enough"
    store.vote(again, (0, 1), "alice")  # the left one again, which is the other answer now
    assert store.all() == before
    assert (store.count(), store.count(since)) == (1, 0), "and starts no round of the flywheel"
    ((first, second),) = showings.repeats(store)
    assert (first.ranks, second.ranks, second.display_order) == ((0, 1), (1, 0), (1, 0))
    store.vote(again, (1, 0), "alice")
    ((_, second),) = showings.repeats(store)
    assert second.ranks == (0, 1), "the last word of the second time"


def test_how_steady_raters_are_by_hand() -> None:
    def pair(first: tuple[int, ...], again: tuple[int, ...]) -> tuple[Preference, Preference]:
        return (
            Preference("1", PROMPT, ANSWERS, first, "r", display_order=(0, 1)),
            Preference("2", PROMPT, ANSWERS, again, "r", display_order=(1, 0)),
        )

    found = steadiness([pair((0, 1), (0, 1)), pair((0, 1), (1, 0)), pair((1, 0), (0, 1)), pair((0, 1), (0, 0))])
    assert found is not None
    assert (found.comparisons, found.same, found.same_place) == (4, 1, 2)
    assert steadiness([]) is None


def test_a_conversation_that_is_deleted_takes_its_second_looks_along(store: PreferenceStore, judged: str) -> None:
    talk = store.start_conversation("bob")
    again = store.show_again(judged, "bob", talk, (1, 0), own=False)
    store.vote(again, (1, 0), "bob", "why")
    store.delete_conversation(talk)
    assert [p.rater for p in store.all()] == ["alice"]
    with pytest.raises(UserError, match="does not exist"):
        store.vote(again, (1, 0), "bob")
    later = store.show_again(judged, "bob", "", (1, 0), own=False)
    store.delete_conversation(store.conversation_of(judged))
    with pytest.raises(UserError, match="was deleted"):
        store.vote(later, (1, 0), "bob")
