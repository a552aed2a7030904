"""The preference store: nothing is lost, nothing comes twice, what was deleted is gone."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import IO

import pytest
from full_disk import full_disk
from postgres import Place

from danlu.align.preferences import PreferenceStore, StoreError, split_of
from danlu.errors import UserError
from danlu.records import Answer, Message, Preference, read_preferences

PROMPT = (Message("user", "写一首题为《春》的五言绝句。"),)
ANSWERS = (
    Answer("春眠不觉晓", (5, 6, 7), "abc123", {"temperature": 0.7}, seed=2**62 + 1),
    Answer("处处闻啼鸟", (8, 9), "abc123", {"temperature": 1.0}, seed=4),
)


def test_a_vote_becomes_a_preference_with_all_that_was_shown(store: PreferenceStore) -> None:
    conversation = store.start_conversation("rater-1")
    comparison = store.record(PROMPT, ANSWERS, conversation, display_order=(1, 0))
    vote = store.vote(comparison, (1, 0), "rater-1")
    (preference,) = store.all()
    assert preference.id == vote
    assert preference.prompt == PROMPT
    assert preference.answers == ANSWERS
    assert preference.ranks == (1, 0)
    assert preference.display_order == (1, 0)
    assert preference.rater == "rater-1"
    assert preference.split == split_of(PROMPT)


def test_a_double_click_is_one_vote_and_of_changed_minds_the_last_word_counts(store: PreferenceStore) -> None:
    comparison = store.record(PROMPT, ANSWERS)
    first = store.vote(comparison, (0, 1), "r")
    assert store.vote(comparison, (0, 1), "r") == first
    assert store.vote(comparison, (1, 0), "r") != first
    store.vote(comparison, (0, 1), "someone else")
    assert [(p.rater, p.ranks) for p in store.all()] == [("r", (1, 0)), ("someone else", (0, 1))]
    assert store.count() == 2
    store.vote(comparison, (0, 1), "r")
    assert [(p.rater, p.ranks) for p in store.all()] == [("someone else", (0, 1)), ("r", (0, 1))]


def test_ties_and_all_bad_are_kept(store: PreferenceStore) -> None:
    comparison = store.record(PROMPT, ANSWERS)
    store.vote(comparison, (0, 0), "a")
    store.vote(comparison, (), "b")
    assert [p.ranks for p in store.all()] == [(0, 0), ()]
    assert all(p.pairs() == [] for p in store.all())


@pytest.mark.parametrize("ranks", [(0,), (0, 1, 2), (0, -1)])
def test_a_vote_that_does_not_fit_its_answers_is_refused(store: PreferenceStore, ranks: tuple[int, ...]) -> None:
    comparison = store.record(PROMPT, ANSWERS)
    with pytest.raises(UserError, match="must give each of its 2 answers a rank"):
        store.vote(comparison, ranks, "r")
    assert store.count() == 0


def test_a_vote_on_nothing_names_what_is_missing(store: PreferenceStore) -> None:
    with pytest.raises(UserError, match="comparison 'nope' does not exist"):
        store.vote("nope", (0, 1), "r")
    with pytest.raises(UserError, match="conversation 'nope' does not exist"):
        store.record(PROMPT, ANSWERS, "nope")
    lonely = store.record(PROMPT, ANSWERS[:1])
    with pytest.raises(UserError, match="at least two"):
        store.vote(lonely, (0,), "r")


def test_a_deleted_conversation_loses_its_words_and_its_votes(store: PreferenceStore) -> None:
    conversation = store.start_conversation("r")
    comparison = store.record(PROMPT, ANSWERS, conversation)
    kept = store.record(PROMPT, ANSWERS)
    store.vote(comparison, (0, 1), "r")
    store.vote(kept, (0, 1), "r")
    store.delete_conversation(conversation)
    assert store.count() == len(store.all()) == 1
    with pytest.raises(UserError, match=f"comparison '{comparison}' was deleted"):
        store.vote(comparison, (1, 0), "r")
    with pytest.raises(UserError, match=f"conversation '{conversation}' was deleted"):
        store.record(PROMPT, ANSWERS, conversation)
    store.delete_conversation(conversation)
    store.close()


def test_deleted_words_are_not_left_in_the_file_or_its_log(tmp_path: Path) -> None:
    path = tmp_path / "p.sqlite"
    store, reader = PreferenceStore(path), PreferenceStore(path)
    conversation = store.start_conversation("r")
    store.record(PROMPT, (Answer("unmistakable-secret"), Answer("other")), conversation)
    assert reader.count() == 0
    log = tmp_path / "p.sqlite-wal"
    assert b"unmistakable-secret" in log.read_bytes()
    store.delete_conversation(conversation)
    assert not any(b"unmistakable-secret" in file.read_bytes() for file in tmp_path.iterdir())
    assert log.stat().st_size == 0


def test_a_deletion_that_was_killed_before_the_log_was_cut_is_finished_at_the_next_opening(tmp_path: Path) -> None:
    path = tmp_path / "p.sqlite"
    store = PreferenceStore(path)
    conversation = store.start_conversation("r")
    store.record(PROMPT, (Answer("unmistakable-secret"), Answer("other")), conversation)
    store.database.erase = lambda: None  # type: ignore[method-assign]
    store.delete_conversation(conversation)
    assert b"unmistakable-secret" in (tmp_path / "p.sqlite-wal").read_bytes()
    PreferenceStore(path)
    assert not any(b"unmistakable-secret" in file.read_bytes() for file in tmp_path.iterdir())


def test_a_model_that_writes_the_character_nul_can_be_voted_on(store: PreferenceStore, place: Place) -> None:
    comparison = store.record(PROMPT, (Answer("a\0b"), Answer("c")))
    assert [answer.text for answer in store.shown(comparison)] == [("a\0b", "a\ufffdb")[isinstance(place, str)], "c"]


def test_a_snapshot_holds_ties_where_they_teach_and_never_all_bad(store: PreferenceStore, tmp_path: Path) -> None:
    for ranks in ((0, 1), (1, 1), ()):
        store.vote(store.record(PROMPT, ANSWERS), ranks, "r")
    for ties, kept in ((False, [(0, 1)]), (True, [(0, 1), (1, 1)])):
        assert store.snapshot(tmp_path / "votes.jsonl", ties) == len(kept)
        assert sorted(p.ranks for p in read_preferences(tmp_path / "votes.jsonl")) == kept


def test_add_is_idempotent_and_a_snapshot_survives_the_round_trip(store: PreferenceStore, tmp_path: Path) -> None:
    made = [
        Preference(f"p{i}", PROMPT, ANSWERS, (0, 1), "r", f"2026-01-0{3 - i}T00:00:00Z", (0, 1), "train")
        for i in range(3)
    ]
    assert [store.add(p) for p in made] == [True] * 3
    assert [store.add(p) for p in made] == [False] * 3
    assert store.snapshot(tmp_path / "a.jsonl") == 3
    assert read_preferences(tmp_path / "a.jsonl") == made[::-1]
    copy = PreferenceStore(f"sqlite:///{tmp_path}/copy.sqlite")
    for preference in made:
        copy.add(preference)
    copy.snapshot(tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_ties_are_kept_and_frozen_nowhere(store: PreferenceStore, tmp_path: Path) -> None:
    store.vote(store.record(PROMPT, ANSWERS), (0, 0), "r")
    assert store.snapshot(tmp_path / "none.jsonl") == 0
    store.vote(store.record(PROMPT, ANSWERS), (0, 1), "r")
    assert store.snapshot(tmp_path / "one.jsonl") == 1


def test_trl_export_has_a_line_for_every_strict_pair(store: PreferenceStore, tmp_path: Path) -> None:
    three = (*ANSWERS, Answer("夜来风雨声"))
    store.vote(store.record(PROMPT, three), (1, 0, 1), "r")
    assert store.export_trl(tmp_path / "trl.jsonl") == 2
    rows = [json.loads(line) for line in (tmp_path / "trl.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows[0] == {
        "prompt": [{"role": "user", "content": PROMPT[0].content}],
        "chosen": [{"role": "assistant", "content": "处处闻啼鸟"}],
        "rejected": [{"role": "assistant", "content": "春眠不觉晓"}],
    }
    assert [row["rejected"][0]["content"] for row in rows] == ["春眠不觉晓", "夜来风雨声"]


def test_the_split_is_the_prompts_and_about_a_tenth() -> None:
    splits = [split_of((Message("user", f"prompt {i}"),)) for i in range(2000)]
    assert 150 < splits.count("heldout") < 250
    assert split_of(PROMPT) == split_of([Message("user", PROMPT[0].content)])


def test_a_file_that_is_no_database_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "p.sqlite").write_text("not a database, whatever its name says" * 50)
    with pytest.raises(UserError, match="cannot be opened"):
        PreferenceStore(tmp_path / "p.sqlite")


def test_a_full_disk_is_one_sentence_and_leaves_no_trace(tmp_path: Path) -> None:
    store = PreferenceStore(tmp_path / "p.sqlite")
    comparison = store.record(PROMPT, ANSWERS)
    with full_disk(store):
        with pytest.raises(StoreError, match=r"cannot be written .*full.*see to .*p\.sqlite"):
            store.record((Message("user", "x" * 100_000),), ANSWERS)
        assert store.shown(comparison) == [*ANSWERS]
    store.vote(comparison, (0, 1), "r")
    assert store.count() == 1


def write_votes(place: Place, name: str, votes: int, told: int) -> None:
    """Says every vote's id on ``told`` as soon as it is acknowledged."""
    store = PreferenceStore(place)
    for i in range(votes):
        shown = store.record([Message("user", f"{name} {i}")], [Answer("a"), Answer("b")])
        os.write(told, f"{store.vote(shown, (0, 1), name)}\n".encode())


def start_writer(place: Place, name: str, votes: int) -> tuple[ForkProcess, IO[str]]:
    """A process of its own, which has not to import everything again."""
    hears, says = os.pipe()
    writer = multiprocessing.get_context("fork").Process(target=write_votes, args=(place, name, votes, says))
    writer.start()
    os.close(says)
    return writer, open(hears, encoding="ascii")


def test_writers_in_several_processes_lose_nothing(place: Place) -> None:
    writers = [
        start_writer(place, f"writer-{i}", 25) for i in range(3)
    ]  # all make the tables, or wait for whoever does
    told = [line for _, hears in writers for line in hears.read().split()]
    for writer, _ in writers:
        writer.join()
    assert [writer.exitcode for writer, _ in writers] == [0, 0, 0]
    assert len(told) == 75
    assert {p.id for p in PreferenceStore(place).all()} == set(told)


def test_every_acknowledged_vote_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "p.sqlite"
    writer, hears = start_writer(path, "doomed", 1_000_000)
    told = [hears.readline().strip() for _ in range(20)]
    time.sleep(0.05)
    writer.kill()
    told += hears.read().split("\n")[:-1]
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    store = PreferenceStore(path)
    stored = store.all()
    assert {p.id for p in stored} >= {line for line in told if len(line) == 32}
    assert all(len(p.answers) == 2 for p in stored)
    store.vote(store.record(PROMPT, ANSWERS), (0, 1), "r")
    assert store.count() == len(stored) + 1
