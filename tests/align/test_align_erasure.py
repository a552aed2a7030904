"""A rater who is forgotten leaves nothing: no vote, no word, no name, not even in the file's free pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from danlu.align.preferences import PreferenceStore
from danlu.align.splits import is_person, split_of_rater
from danlu.errors import UserError
from danlu.records import Answer, Message, Preference

PROMPT = (Message("user", "greet"),)
ANSWERS = (Answer("Hello"), Answer("Go away"))


def test_everything_of_one_rater_goes_and_everything_of_others_stays(store: PreferenceStore) -> None:
    talk = store.start_conversation("doomed")
    both = store.record(PROMPT, ANSWERS, talk)
    store.vote(both, (0, 1), "doomed", "because")
    store.vote(both, (1, 0), "kept", "why not")
    alone = store.record(PROMPT, ANSWERS[:1], talk)
    store.thumb(alone, True, "doomed")
    store.thumb(alone, False, "kept")
    store.add(Preference("from a file", PROMPT, ANSWERS, (0, 1), "doomed"))
    gone = store.forget("doomed")
    assert (gone.votes, gone.reasons, gone.thumbs, gone.comparisons) == (2, 1, 1, 1)
    assert [(p.rater, p.ranks) for p in store.all()] == [("kept", (1, 0))]
    assert [thumb.rater for thumb in store.thumbs()] == ["kept"]
    assert store.conversations_of("doomed") == []
    assert store.shown(both) == [*ANSWERS], "the conversation itself was not to be erased"
    with pytest.raises(UserError, match="unknown rater 'doomed'"):
        store.forget("doomed")
    with pytest.raises(UserError, match="did you mean 'kept'"):
        store.forget("kep")


def test_with_words_the_conversations_go_too(store: PreferenceStore) -> None:
    talk = store.start_conversation("doomed")
    comparison = store.record(PROMPT, ANSWERS, talk)
    store.vote(comparison, (0, 1), "doomed")
    store.forget("doomed", words=True)
    with pytest.raises(UserError, match="was deleted"):
        store.shown(comparison)
    assert store.count() == 0


@pytest.mark.parametrize("words", [False, True])
def test_no_byte_of_them_is_left_on_the_disk(tmp_path: Path, words: bool) -> None:
    path = tmp_path / "votes.sqlite"
    store, reader = PreferenceStore(path), PreferenceStore(path)
    for i in range(12):  # several pages
        talk = store.start_conversation("unmistakable-name")
        comparison = store.record((Message("user", f"question {i}"),), ANSWERS, talk)
        store.vote(comparison, (0, 1), "unmistakable-name", f"unmistakable-reason {i}" * 40)
        store.show_again(comparison, "unmistakable-name", talk, (1, 0), own=True)
        store.vote(comparison, (0, 1), "someone else")
    store.add(Preference("p", (Message("user", "unmistakable-import"),), ANSWERS, (0, 1), "unmistakable-name"))
    assert reader.count() == 25
    assert any(b"unmistakable" in file.read_bytes() for file in tmp_path.iterdir())
    store.forget("unmistakable-name", words)
    assert not any(b"unmistakable" in file.read_bytes() for file in tmp_path.iterdir())
    assert store.count() == (0 if words else 12)


def test_raters_are_held_out_whole_and_only_from_now_on(store: PreferenceStore) -> None:
    names = [f"rater-{i}" for i in range(2000)]
    held = [name for name in names if split_of_rater(name, 0.1) == "heldout"]
    assert 150 < len(held) < 250
    assert {split_of_rater(name, 0.3) for name in held} == {"heldout"}, "a larger share holds the same ones out"
    assert [is_person(name) for name in ("rater-1", "", "import:hh", "judge:poems")] == [True, False, False, False]
    assert split_of_rater("import:hh", 1.0) == "train"

    comparison = store.record((Message("user", "in train"),), ANSWERS)
    store.vote(comparison, (0, 1), held[0])
    store.heldout_raters = 0.1
    assert [p.split for p in store.all()] == ["train"], "a row keeps the split that it was given"
    again = store.record((Message("user", "in train"),), ANSWERS)
    kept = next(name for name in names if name not in held)
    for rater in (held[0], kept):
        store.vote(again, (0, 1), rater)
        store.thumb(store.record((Message("user", "in train"),), ANSWERS[:1]), True, rater)
    assert [p.split for p in store.all()] == ["train", "heldout", "train"]
    assert [thumb.split for thumb in store.thumbs()] == ["heldout", "train"]
