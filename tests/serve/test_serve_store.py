"""The server's store, on both databases: what was acknowledged stays, what is somebody else's is not there."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from postgres import Place

from danlu.align.preferences import PreferenceStore
from danlu.errors import UserError
from danlu.records import Answer, Message
from danlu.serve import people, tables
from danlu.serve.dialogues import Generation, Way, Written, title_of
from danlu.serve.notes import Note
from danlu.serve.store import ModerationEvent, ServeStore

HELLO = Message("user", "hello 你好")
GENERATION = Generation("m", "h" * 64, {"temperature": 0.7, "stop": ["x"]}, 2**62 + 1, "stop", 5, 3, 0.25)
FOUND = ModerationEvent("prompt", "review", "S1", "rules", 0.9, "terrible words", "alice", "c", "m")


@pytest.fixture
def store(place: Place) -> Iterator[ServeStore]:
    preferences = PreferenceStore(place)  # the two live in one database
    yield ServeStore(preferences.database)
    preferences.close()


def test_a_tree_is_read_as_it_was_written(store: ServeStore, place: Place) -> None:
    talks = store.dialogues
    talk = talks.start("alice", "T", "Be kind.")
    root = talks.append("alice", talk, None, HELLO)
    one = talks.append("alice", talk, root, Message("assistant", "a\0b"), GENERATION)
    two = talks.append("alice", talk, root, Message("assistant", "other"))
    assert talks.path("alice", talk, two) == Way("Be kind.", (root, two), (HELLO, Message("assistant", "other")))
    told = talks.read("alice", talk)
    assert [(m["id"], m["parent"], m["content"]) for m in told["messages"]] == [
        (root, None, HELLO.content), (one, root, ("a\0b", "a\ufffdb")[isinstance(place, str)]), (two, root, "other"),
    ]  # fmt: skip
    assert told["messages"][1]["seed"] == 2**62 + 1
    assert told["messages"][1]["sampling"] == GENERATION.sampling
    assert told["messages"][1]["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    assert "model" not in told["messages"][2]


def test_an_answer_is_told_with_all_that_is_known_of_it(store: ServeStore) -> None:
    talks = store.dialogues
    talk = talks.start("alice", "T", "Be kind.")
    root = talks.append("alice", talk, None, HELLO)
    first = talks.append("alice", talk, root, Message("assistant", "hi"))
    again = talks.append("alice", talk, first, HELLO)
    how = replace(GENERATION, tokens=(3, 1), system="Be brief.", left_out=1, note=first)
    last = talks.append("alice", talk, again, Message("assistant", "ho"), how, "chosen")
    assert last == "chosen"
    note, other = Note(first, "They greeted.", 2, 0), Note(root, "One greeted.", 1, 0)
    store.notes.keep(note, GENERATION.model_hash)
    store.notes.keep(other, GENERATION.model_hash)
    store.notes.keep(Note(again, "of another model", 3, 0), "other")
    way = Way("Be kind.", (root, first, again), (HELLO, Message("assistant", "hi"), HELLO))
    assert store.notes.newest(way.ids, GENERATION.model_hash) == note
    assert store.notes.newest(way.ids[:1], GENERATION.model_hash) == other
    assert store.notes.newest(way.ids, "nobody") is None
    assert talks.answer("alice", talk, last) == Written(way, "ho", "", how, note)
    assert talks.link("alice", talk, last, "c1") == talks.link("alice", talk, last, "c2") == "c1"
    assert talks.answer("alice", talk, last).comparison == "c1"
    conversation, told = talks.message("alice", last)
    assert (conversation, told) == (talk, talks.read("alice", talk)["messages"][3])
    assert told["note"] == {"text": "They greeted.", "messages": 2}
    with pytest.raises(UserError, match="is no answer"):
        talks.answer("alice", talk, again)


def test_every_question_is_asked_for_an_owner(store: ServeStore) -> None:
    talks = store.dialogues
    talk = talks.start("alice", "T")
    root = talks.append("alice", talk, None, HELLO)
    own = talks.start("bob")
    for trespass in (
        lambda: talks.read("bob", talk),
        lambda: talks.path("bob", talk, root),
        lambda: talks.change("bob", talk, title="mine"),
        lambda: talks.append("bob", talk, root, HELLO),
        lambda: talks.append("bob", own, root, HELLO),
        lambda: talks.path("bob", own, root),
        lambda: talks.message("bob", root),
        lambda: talks.answer("bob", talk, root),
        lambda: talks.answer("bob", own, root),
        lambda: talks.link("bob", talk, root, "c"),
        lambda: talks.link("bob", own, root, "c"),
        lambda: talks.delete("bob", talk),
    ):
        with pytest.raises(UserError, match="does not exist"):
            trespass()
    assert talks.listing("bob", search="hello") == ([], False)
    assert [row["id"] for row in talks.listing("bob")[0]] == [own]
    assert not talks.owns("bob", talk)
    assert len(talks.read("alice", talk)["messages"]) == 1


def test_what_no_database_can_hold_is_not_there(store: ServeStore) -> None:
    with pytest.raises(UserError, match=r"does not exist|no such thing"):
        store.dialogues.read("alice", "x\0")


def test_a_deleted_conversation_takes_what_moderation_noted_of_it(store: ServeStore, tmp_path: Path) -> None:
    talk = store.dialogues.start("alice", "unmistakable title")
    user = store.dialogues.append("alice", talk, None, Message("user", "unmistakable words"))
    answer = store.dialogues.append("alice", talk, user, Message("assistant", "unmistakable answer"), GENERATION)
    store.notes.keep(Note(answer, "unmistakable summary", 2, 0), GENERATION.model_hash)
    store.note_moderation(ModerationEvent(**vars(FOUND) | {"conversation": talk, "text": "unmistakable find"}))
    store.dialogues.delete("alice", talk)
    assert [event["text"] for event in store.moderation_queue()] == [""]
    for file in (tmp_path / "store").glob("*"):
        assert b"unmistakable" not in file.read_bytes()


def test_what_moderation_found_is_looked_at_once(store: ServeStore) -> None:
    first, second = store.note_moderation(FOUND), store.note_moderation(FOUND)
    assert [event["id"] for event in store.moderation_queue()] == [first, second]
    store.label_moderation(first, "label", "S2", "op")
    store.label_moderation(second, "redact", "", "op")
    assert store.moderation_queue() == []
    (labelled,), (redacted,) = store.moderation_queue("labelled"), store.moderation_queue("redacted")
    assert (labelled["label"], labelled["operator"], labelled["text"]) == ("S2", "op", "terrible words")
    assert redacted["text"] == ""
    assert [row["action"] for row in store.audited()] == ["moderation.redact", "moderation.label"]
    with pytest.raises(UserError, match="did you mean 'open'"):
        store.moderation_queue("opn")
    with pytest.raises(UserError, match="does not exist"):
        store.label_moderation("nothing", "approve", "", "op")


def test_keys_and_passwords_are_not_in_the_database(store: ServeStore, place: Place, tmp_path: Path) -> None:
    identity, key = store.people.add_key("alice", "laptop")
    secret = key.removeprefix(f"danlu-{identity}-")  # which may have dashes of its own
    assert len(secret) > 40
    store.people.add_user("bob", "correct horse")
    cookie = store.people.log_in("bob", "correct horse")
    assert cookie is not None
    for file in (tmp_path / "store").glob("*"):
        held = file.read_bytes()
        assert not any(said.encode() in held for said in (key, secret, "correct horse", cookie))
    assert [row["id"] for row in store.people.list_keys()] == [identity]
    assert not any(key in str(row) for row in store.people.list_keys())


def test_a_key_is_good_until_it_is_revoked(store: ServeStore) -> None:
    known = store.people
    assert not known.any()
    identity, key = known.add_key("alice", scopes=("operator", "chat"), requests=7)
    assert known.any()
    assert known.by_key(key) == people.Caller("alice", frozenset({"chat", "operator"}), identity, 7, None)
    for other in ("", "danlu", key[:-1], key.upper(), f"{key}x", key.replace(identity, "0" * 16), "\ud800"):
        assert known.by_key(other) is None
    cookie = known.log_in_by_key(key)
    assert cookie is not None
    assert known.by_cookie(cookie) == known.by_key(key)
    known.revoke_key(identity)
    assert known.by_key(key) is known.by_cookie(cookie) is known.log_in_by_key(key) is None
    assert not known.any()


def test_a_removed_user_is_out_and_the_name_is_not_given_again(store: ServeStore) -> None:
    known = store.people
    known.add_user("bob", "correct horse")
    key = known.add_key("bob")[1]
    cookie = known.log_in("bob", "correct horse")
    assert cookie is not None
    assert known.by_cookie(cookie) == people.Caller("bob", frozenset({"chat"}))
    assert known.log_in("bob", "wrong horse") is known.log_in("nobody", "correct horse") is None
    known.remove_user("bob")
    assert known.by_cookie(cookie) is known.by_key(key) is known.log_in("bob", "correct horse") is None
    with pytest.raises(UserError, match="was removed, and what it said is not for others"):
        known.add_user("bob", "another horse")
    with pytest.raises(UserError, match="was removed"):
        known.add_key("bob")
    for name, password, why in (("a b", "correct horse", "no name"), ("eve", "short", "has 8 to")):
        with pytest.raises(UserError, match=why):
            known.add_user(name, password)


def test_a_cookie_ends(store: ServeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.people.add_user("bob", "correct horse")
    cookie = store.people.log_in("bob", "correct horse")
    assert cookie is not None
    monkeypatch.setattr(people, "now", lambda: "2999-01-01T00:00:00.000000Z")
    assert store.people.by_cookie(cookie) is None


def test_what_was_said_before_accounts_can_be_given_to_somebody(store: ServeStore) -> None:
    talk = store.dialogues.start("")
    assert store.dialogues.adopt("alice") == 1
    assert store.dialogues.owns("alice", talk)


def test_what_the_migrations_make_is_what_the_rows_say(store: ServeStore) -> None:
    known = tables.Base.metadata.tables
    ours = {"version_table": "serve_version", "include_name": lambda name, kind, _: kind != "table" or name in known}
    with store.database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts=ours), tables.Base.metadata) == []


def test_a_title_is_the_first_words() -> None:
    assert title_of("  write\na poem ") == "write a poem"
    assert title_of("春" * 100) == "春" * 59 + "…"


def say_and_vote(place: Place, told: int) -> None:
    preferences = PreferenceStore(place)
    store = ServeStore(preferences.database)
    talk = store.dialogues.start("alice")
    preferences.ensure_conversation(talk, "alice")
    while True:
        message = store.dialogues.append("alice", talk, None, HELLO)
        os.write(told, f"message {message}\n".encode())
        shown = preferences.record([HELLO], [Answer("a"), Answer("b")], talk)
        os.write(told, f"vote {preferences.vote(shown, (0, 1), 'alice')}\n".encode())


def test_every_acknowledged_message_and_vote_survives_kill_9(place: Place) -> None:
    hears, says = os.pipe()
    writer = multiprocessing.get_context("fork").Process(target=say_and_vote, args=(place, says))
    writer.start()
    os.close(says)
    with open(hears, encoding="ascii") as lines:
        told = [lines.readline() for _ in range(20)]
        time.sleep(0.05)
        writer.kill()
        told += lines.readlines()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    whole = {line.strip() for line in told if line.endswith("\n")}
    preferences = PreferenceStore(place)
    store = ServeStore(preferences.database)
    (talk,) = store.dialogues.listing("alice")[0]
    kept = {f"message {message['id']}" for message in store.dialogues.read("alice", talk["id"])["messages"]}
    kept |= {f"vote {vote.id}" for vote in preferences.all()}
    assert kept >= whole
    assert len(kept) <= len(whole) + 1
    preferences.close()
