"""Judgements from elsewhere: every form is read, nothing twice, nothing half, and what is wrong is named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from danlu.align.foreign import judgement
from danlu.align.gate import duels_of
from danlu.align.intake import take_in
from danlu.align.preferences import PreferenceStore, split_of
from danlu.align.tables import Thumb
from danlu.errors import UserError
from danlu.records import Answer, Message, Preference

ASK = [{"role": "user", "content": "greet"}]
GOOD, BAD = [{"role": "assistant", "content": "Hello"}], [{"role": "assistant", "content": "Go away"}]
LONG = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Tell me:\n\none thing\n\nAssistant: "
HH = {"chosen": LONG + "Gladly.", "rejected": LONG + "No."}
SCORED = {
    "instruction": "greet",
    "completions": [
        {"response": "Hello", "model": "a", "fine-grained_score": 4.5, "overall_score": 1.0},
        {"response": "Hm", "model": "b", "annotations": {"honesty": {"Rating": "2"}, "truth": {"Rating": "N/A"}}},
        {"response": "Hi", "model": "c", "fine-grained_score": 4.5},
        {"response": "?", "model": "d", "overall_score": "N/A"},
        {"response": "Go", "model": "e", "overall_score": 1},
    ],
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "judgements.jsonl"


def write(file: Path, *rows: Any) -> Path:
    file.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "greet", "chosen": "Hello", "rejected": "Go away"},
        {"prompt": ASK, "chosen": GOOD, "rejected": BAD},
        {"chosen": ASK + GOOD, "rejected": ASK + BAD},
        {"prompt": "greet", "chosen": ASK + GOOD, "rejected": ASK + BAD, "score_chosen": 8.0},
    ],
    ids=["plain", "conversational", "implicit", "binarised"],
)
def test_every_pair_of_trl_says_the_same(row: dict[str, Any]) -> None:
    found = judgement(row)
    assert isinstance(found, Preference)
    assert found.prompt == (Message("user", "greet"),)
    assert ([a.text for a in found.answers], found.ranks, found.rater) == (["Hello", "Go away"], (0, 1), "import:trl")
    assert found.split == split_of(found.prompt)
    assert found.id == judgement({"prompt": "greet", "chosen": "Hello", "rejected": "Go away"}).id
    assert found.id != judgement(row, source="ours").id


def test_a_completion_with_a_label_is_a_thumb() -> None:
    found = judgement({"prompt": "greet", "completion": "Go away", "label": False})
    assert isinstance(found, Thumb)
    assert (found.prompt, found.answer.text, found.up) == ((Message("user", "greet"),), "Go away", False)


def test_a_transcript_is_cut_into_turns_and_only_the_last_one_is_judged() -> None:
    found = judgement(HH)
    assert isinstance(found, Preference)
    assert [m.role for m in found.prompt] == ["user", "assistant", "user"]
    assert found.prompt[2].content == "Tell me:\n\none thing"
    assert [a.text for a in found.answers] == ["Gladly.", "No."]


def test_completions_are_ranked_by_the_mean_of_their_aspects_and_equal_ones_tie() -> None:
    found = judgement(SCORED)
    assert isinstance(found, Preference)
    assert [a.model for a in found.answers] == ["a", "b", "c", "e"]
    assert found.ranks == (0, 1, 0, 2)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("[1]", "no JSON object"),
        ("{", "not JSON"),
        ({"a": 1}, "neither 'chosen' and 'rejected'"),
        ({"prompt": "greet", "chosen": "Hello", "rejected": " "}, "say something"),
        ({"prompt": "greet", "chosen": "Hello", "rejected": "Hello"}, "all answers are the same"),
        ({"prompt": "greet", "chosen": "Hello"}, "neither 'chosen' and 'rejected'"),
        ({"chosen": "Hello", "rejected": "Go"}, "no 'prompt'"),
        ({"prompt": "greet", "completion": "Hello", "label": 1}, "neither true nor false"),
        ({"chosen": HH["chosen"], "rejected": "\n\nHuman: Ho\n\nAssistant: No."}, "different prompts"),
        ({"instruction": "greet", "completions": SCORED["completions"][:1]}, "fewer than two"),
        ({"instruction": "greet", "completions": [{"response": "x"}]}, "fewer than two"),
        ({"prompt": "\ud800", "chosen": "Hello", "rejected": "Go"}, "surrogates not allowed"),
        ({"id": "x", "prompt": ASK, "answers": [{"text": "a"}, {"text": "b"}], "ranks": [0, -1]}, "ranks from 0"),
        ({"id": "x", "prompt": ASK, "answers": [{"text": "a"}], "ranks": [0]}, "at least two answers"),
        ({"id": "x", "prompt": ASK, "answers": [{}, {"text": "b"}], "ranks": [0, 1]}, "it has no 'text'"),
        ({"id": "x", "prompt": ASK, "answers": [{"text": "a"}, {"text": "b"}], "ranks": [0, 1], "time": "now"}, "now"),
    ],
)
def test_a_bad_line_is_named_and_the_others_are_stored(tmp_path: Path, file: Path, row: Any, why: str) -> None:
    store = PreferenceStore(tmp_path / "votes.sqlite")
    found = take_in(store, write(file, HH, row))
    assert (found.added, len(found.bad)) == (1, 1)
    assert f"{file}:2: " in found.bad[0]
    assert why in found.bad[0]
    with pytest.raises(UserError, match="holds no judgement in a form known here"):
        take_in(store, write(file, row))
    assert store.count() == 1


def test_the_same_file_twice_adds_nothing(store: PreferenceStore, file: Path) -> None:
    label = {"prompt": "greet", "completion": "Hello", "label": True}
    write(file, HH, HH, SCORED, label, {"chosen": HH["rejected"], "rejected": HH["chosen"]})
    first = take_in(store, file)
    assert (first.added, first.known, first.repeated, first.contradictory) == (4, 0, 1, 1)
    packed = file.with_suffix(".gz")
    packed.write_bytes(gzip.compress(file.read_bytes()))
    again = take_in(store, packed)
    assert (again.added, again.known, again.repeated) == (0, 4, 1)
    assert (store.count(), len(store.thumbs())) == (3, 1)


def test_a_file_that_breaks_off_leaves_nothing(store: PreferenceStore, file: Path) -> None:
    many = [{"prompt": f"greet {i}", "chosen": f"{i * 7919}" * 9, "rejected": "Go"} for i in range(700)]
    file.write_bytes(gzip.compress(write(file, *many).read_bytes())[:-100])
    with pytest.raises(UserError, match=r"breaks off after line [56]\d\d .* nothing of it was stored"):
        take_in(store, file)
    assert store.count() == 0


def test_what_was_exported_comes_back_whole(tmp_path: Path) -> None:
    one, other = PreferenceStore(tmp_path / "one.sqlite"), PreferenceStore(tmp_path / "other.sqlite")
    answers = [Answer("Hello", (1, 2), "m1", {"temperature": 0.7}, 2**60), Answer("Go", (3,), "m2", {}, 4)]
    comparison = one.record([Message("user", "greet")], answers, display_order=(1, 0))
    one.vote(comparison, (0, 1), "alice")
    one.vote(comparison, (), "bob")
    one.vote(comparison, (1, 1), "carol")
    assert one.export(tmp_path / "whole.jsonl") == 3
    assert take_in(other, tmp_path / "whole.jsonl").added == 3
    assert other.all() == one.all()
    assert take_in(one, tmp_path / "whole.jsonl").known == 3


def test_a_vote_out_of_a_file_teaches_and_decides_no_duel(tmp_path: Path) -> None:
    """It may be a last word, given after names were told. A store that is moved as a whole is no file of votes."""
    one, other = PreferenceStore(tmp_path / "one.sqlite"), PreferenceStore(tmp_path / "other.sqlite")
    turns, answers = [Message("user", "greet")], [Answer("Hello", model="champion"), Answer("Go", model="candidate")]
    shown = one.record(turns, answers)
    one.vote(shown, (0, 1), "alice")
    one.vote(shown, (1, 0), "alice")  # once she knew
    one.export(tmp_path / "votes.jsonl")
    take_in(other, tmp_path / "votes.jsonl")
    other.vote(other.record(turns, answers), (0, 1), "bob")
    one.close()  # which writes the log into the file
    moved = PreferenceStore((tmp_path / "one.sqlite").rename(tmp_path / "moved.sqlite"))
    assert [vote.rater for vote in other.all()] == ["alice", "bob"]
    for store, told in ((moved, [("alice", (0, 1))]), (other, [("bob", (0, 1))])):
        duels = duels_of(store.all(first=True), "champion", "candidate")
        assert [(vote.rater, vote.ranks) for vote in duels] == told
        store.close()


def test_trl_and_back_keeps_every_strict_pair(tmp_path: Path) -> None:
    one, other = PreferenceStore(tmp_path / "one.sqlite"), PreferenceStore(tmp_path / "other.sqlite")
    one.vote(one.record([Message("user", "greet")], [Answer("a"), Answer("b"), Answer("c")]), (1, 0, 2), "alice")
    one.export_trl(tmp_path / "pairs.jsonl")
    take_in(other, tmp_path / "pairs.jsonl", "trl", "ours")
    pairs = [tuple(a.text for a in p.answers) for p in other.all()]
    assert sorted(pairs) == [("a", "c"), ("b", "a"), ("b", "c")]
    assert {(p.prompt, p.rater) for p in other.all()} == {((Message("user", "greet"),), "import:ours")}
    other.export_trl(tmp_path / "again.jsonl")
    assert sorted((tmp_path / "again.jsonl").read_text().splitlines()) == sorted(
        (tmp_path / "pairs.jsonl").read_text().splitlines()
    )


def test_what_is_no_file_and_what_is_no_form(tmp_path: Path, file: Path) -> None:
    store = PreferenceStore(tmp_path / "votes.sqlite")
    write(file, HH)
    with pytest.raises(UserError, match=r"no file at .*; did you mean 'judgements.jsonl'"):
        take_in(store, tmp_path / "judgement.jsonl")
    with pytest.raises(UserError, match="unknown form 'hhh' in --format; did you mean 'hh'"):
        take_in(store, file, "hhh")
