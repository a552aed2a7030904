"""Thumbs and reasons are kept and forgotten as votes are; the list of judgements is whole, in pages and as CSV."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from danlu.align import ballots
from danlu.align.preferences import PreferenceStore
from danlu.errors import UserError
from danlu.records import Answer, Message

PROMPT = (Message("user", "greet"),)
GOOD, BAD = Answer("Hello", (1,), "m1", {}, 1), Answer("=HYPERLINK(1)", (2,), "m2", {}, 2)


@pytest.fixture
def store(tmp_path: Path) -> PreferenceStore:
    return PreferenceStore(tmp_path / "preferences.sqlite")


def test_a_thumb_is_a_judgement_on_one_answer_and_the_last_word_counts(store: PreferenceStore) -> None:
    alone = store.record(PROMPT, [GOOD])
    first = store.thumb(alone, True, "r")
    assert store.thumb(alone, True, "r", "friendly") == first, "the same again only adds why"
    assert [(t.up, t.reason, t.answer, t.prompt) for t in store.thumbs()] == [(True, "friendly", GOOD, PROMPT)]
    assert store.thumb(alone, False, "r", "rude") != first
    store.thumb(alone, True, "someone else")
    assert [(t.rater, t.up, t.reason) for t in store.thumbs()] == [("r", False, "rude"), ("someone else", True, "")]
    assert store.all() == [], "a thumb is no vote"


def test_thumbs_are_for_one_answer_and_votes_for_several(store: PreferenceStore) -> None:
    with pytest.raises(UserError, match="showed 2 answers; rank them"):
        store.thumb(store.record(PROMPT, [GOOD, BAD]), True, "r")
    with pytest.raises(UserError, match="a vote needs at least two"):
        store.vote(store.record(PROMPT, [GOOD]), (0,), "r")
    with pytest.raises(UserError, match="does not exist"):
        store.thumb("nothing", True, "r")


def test_what_was_called_good_or_bad_by_itself_is_exported_for_kto(store: PreferenceStore, tmp_path: Path) -> None:
    store.thumb(store.record(PROMPT, [GOOD]), True, "r")
    store.vote(store.record(PROMPT, [GOOD, BAD]), (), "r")
    store.vote(store.record(PROMPT, [GOOD, BAD]), (0, 1), "r")  # says nothing about good or bad
    assert store.export_kto(tmp_path / "kto.jsonl") == 3
    rows = [json.loads(line) for line in (tmp_path / "kto.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["completion"][0]["content"], row["label"]) for row in rows] == [
        ("Hello", True), ("Hello", False), ("=HYPERLINK(1)", False),
    ]  # fmt: skip
    assert rows[0]["prompt"] == [{"role": "user", "content": "greet"}]


def test_words_of_thumbs_and_reasons_go_with_their_conversation(tmp_path: Path) -> None:
    def on_disk() -> bytes:
        return b"".join(file.read_bytes() for file in tmp_path.iterdir())

    store = PreferenceStore(tmp_path / "preferences.sqlite")
    talk = store.start_conversation("r")
    store.thumb(store.record(PROMPT, [GOOD], talk), True, "r", "unforgettable-thumb")
    store.vote(store.record(PROMPT, [GOOD, BAD], talk), (0, 1), "r", "unforgettable-reason")
    assert b"unforgettable" in on_disk()
    assert ballots.count(store) == 2
    store.delete_conversation(talk)
    assert store.thumbs() == []
    assert ballots.page(store, 10) == []
    assert ballots.count(store) == 0
    store.close()
    assert b"unforgettable" not in on_disk()


def test_pages_hold_every_judgement_once_newest_first(store: PreferenceStore) -> None:
    pair, alone = store.record(PROMPT, [GOOD, BAD], display_order=(1, 0)), store.record(PROMPT, [GOOD])
    made = [store.vote(pair, (0, 1), f"v{i}", f"because {i}") for i in range(4)]
    made += [store.thumb(alone, bool(i % 2), f"t{i}") for i in range(3)]
    made += [store.vote(pair, (1, 0), "v0")]
    seen, before = [], ""
    while found := ballots.page(store, 3, before):
        seen += found
        before = found[-1].cursor
    assert [ballot.id for ballot in seen] == made[::-1]
    assert ballots.count(store) == 8
    oldest = seen[-1]
    assert (oldest.kind, oldest.reason, oldest.up) == ("vote", "because 0", None)
    assert [answer.text for answer in oldest.answers] == [BAD.text, GOOD.text], "as they stood on the screen"
    assert oldest.ranks == (1, 0)
    with pytest.raises(UserError, match="no place in the list"):
        ballots.page(store, 3, "yesterday")


def test_a_spreadsheet_runs_nothing_of_what_people_wrote(store: PreferenceStore) -> None:
    store.vote(store.record(PROMPT, [GOOD, BAD]), (0, 1), "@SUM(1)", "+1")
    rows = [*csv.DictReader(io.StringIO("".join(ballots.csv_lines(store))))]
    assert [(row["place"], row["rank"], row["model"], row["text"]) for row in rows] == [
        ("0", "0", "m1", "Hello"), ("1", "1", "m2", "'=HYPERLINK(1)"),
    ]  # fmt: skip
    assert {row["rater"] for row in rows} == {"'@SUM(1)"}
    assert {row["reason"] for row in rows} == {"'+1"}
    assert [ballots.inert(text) for text in ("-1", "\t=1", "a=1", "")] == ["'-1", "'\t=1", "a=1", ""]
