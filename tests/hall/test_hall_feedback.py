"""``danlu feedback`` and ``danlu reviews``: in, out, counted up, forgotten, with what hangs below."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from danlu.align.judgements import freeze_labels
from danlu.align.preferences import PreferenceStore
from danlu.cli import app
from danlu.errors import UserError
from danlu.files import hash_file, write_json
from danlu.pipeline import read_recipe, why
from danlu.places import labels_beside, snapshot_path, votes_path
from danlu.records import Answer, Message, read_preferences, write_preferences
from danlu.run import Run
from danlu.serve.reviews import ModerationEvent
from danlu.serve.store import ServeStore
from danlu.snapshots import read_by

PROMPT = [Message("user", "greet")]
PAIR = [Answer("Hello there", model="good", seed=1), Answer("Go", model="bad", seed=2)]


def danlu(*words: object) -> str:
    done = CliRunner().invoke(app, [*map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def learned_run(folder: Path, votes: str = "") -> Run:
    """A run whose reward model has read its votes: manifests and folders as the pipeline leaves them."""
    run = Run(folder)
    write_json(folder / "resolved.json", {"sections": {"run": {"votes": votes}}})
    store = PreferenceStore(votes or votes_path(folder))
    for i, rater in enumerate(("alice", "alice", "bob")):
        comparison = store.record([Message("user", f"{folder.name} {i}")], PAIR, store.start_conversation(rater))
        store.vote(comparison, (0, 1), rater, f"because of {rater}")
    store.snapshot(snapshot_path(folder))
    store.close()
    outside = {"votes": hash_file(snapshot_path(folder))}
    parents = {"sft": {}, "reward": {"sft": "1"}, "ppo": {"sft": "1", "reward": "2"}, "compress": {"ppo": "3"}}
    for stage, above in parents.items():
        facts = {"state": "done", "parents": above, "outside": outside if stage == "reward" else {}}
        write_json(folder / stage / "manifest.json", facts)
        (folder / stage / "model").mkdir()
    return run


def experiment(run: Run) -> Path:
    """An arm of the lab: its reward model is the run's, its policy its own."""
    arm = run.dir / "lab" / "methods" / "grpo"
    write_json(arm / "resolved.json", {})
    (arm / "reward").symlink_to("../../../reward")
    write_json(arm / "grpo" / "manifest.json", {"state": "done", "parents": {"reward": "2"}, "outside": {}})
    (arm / "grpo" / "model").mkdir()
    return arm


def test_forgetting_a_rater_says_what_learned_from_them_and_cleans_the_snapshot(tmp_path, monkeypatch):
    monkeypatch.setenv("DANLU_RUNS", str(tmp_path))
    one = learned_run(tmp_path / "one")
    other = learned_run(tmp_path / "other")  # has a store and a snapshot of its own
    arm = experiment(one)
    with one.locked(), pytest.raises(UserError, match="is being made of the votes of 'alice'; wait for it or stop it"):
        danlu("feedback", "forget", "alice", one.dir)
    said = danlu("feedback", "forget", "alice", one.dir)
    assert "2 votes, 2 reasons, 0 thumbs" in said
    assert "out of date: reward, ppo, compress; make them again: danlu run" in said
    models = [str(one.dir / stage / "model") for stage in ("reward", "ppo", "compress")]
    models.append(str(arm / "grpo" / "model"))
    assert f"models that learned from them: {', '.join(models)}" in said
    assert "sft/model" not in said
    assert [p.rater for p in read_preferences(snapshot_path(one.dir))] == ["bob"]
    assert [p.rater for p in read_preferences(snapshot_path(other.dir))] == ["alice", "alice", "bob"]
    left = b"".join(file.read_bytes() for file in (one.dir / "feedback").iterdir())
    assert b"alice" not in left
    assert b"one 0" in left, "conversations are kept unless --words is given"
    with pytest.raises(UserError, match="unknown rater 'alice'"):
        danlu("feedback", "forget", "alice", one.dir)


def test_a_store_outside_is_known_by_the_runs_that_name_it_and_what_was_set_aside_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("DANLU_RUNS", str(tmp_path / "runs"))
    store = tmp_path / "shared.sqlite"
    run = learned_run(tmp_path / "runs" / "one", str(store))
    run.set_aside("reward")
    said = danlu("feedback", "forget", "bob", store)
    assert f"{run.dir} had learned from 1 of them" in said
    assert str(run.dir / ".replaced" / "reward" / "model") in said
    assert "no run has learned from them" in danlu("feedback", "forget", "alice", votes_path(bystander(tmp_path)))


def test_what_was_called_good_or_bad_by_itself_is_forgotten_too(tmp_path, monkeypatch):
    monkeypatch.setenv("DANLU_RUNS", str(tmp_path))
    run = learned_run(tmp_path / "one")
    store = PreferenceStore(votes_path(run.dir))
    for rater, text in (("dora", "hers"), ("emil", "his")):
        store.thumb(store.record(PROMPT, [Answer(text)]), True, rater)
    labels = labels_beside(snapshot_path(run.dir))
    assert freeze_labels(store, labels) == 2
    facts = {"state": "done", "parents": {"sft": "1"}, "outside": {"labels": hash_file(labels)}}
    write_json(run.dir / "dpo" / "manifest.json", facts)
    frozen = run.dir / "flywheel" / "rounds" / "0002" / "votes.jsonl"
    store.snapshot(frozen)
    assert freeze_labels(store, labels_beside(frozen)) == 2
    for version, number in (("second", 2), ("third", 3)):
        write_json(run.dir / "versions" / version / "lineage.json", {"round": number})
    said = danlu("feedback", "forget", "dora", run.dir)
    assert str(run.dir / "versions" / "second") in said
    assert "versions/third" not in said, "that round froze nothing of hers"
    assert labels_beside(frozen).read_bytes() == labels.read_bytes()
    assert "had learned from 1 of them" in said
    assert "out of date: dpo; make" in said
    assert [json.loads(line)["answer"]["text"] for line in labels.read_text(encoding="utf-8").splitlines()] == ["his"]
    store.close()


def test_the_first_champion_is_named_by_the_votes_that_it_learnt_from(tmp_path, monkeypatch):
    """They are kept with the flywheel's rounds; the run freezes others in their place when it is made again."""
    monkeypatch.setenv("DANLU_RUNS", str(tmp_path))
    run = learned_run(tmp_path / "one")
    version, then = run.dir / "versions" / "first", run.dir / "flywheel" / "rounds" / "first" / "votes.jsonl"
    write_json(version / "lineage.json", {"round": 0})
    write_preferences(then, read_preferences(snapshot_path(run.dir)))
    store = PreferenceStore(votes_path(run.dir))
    store.vote(store.record(PROMPT, PAIR), (0, 1), "carol")
    write_preferences(snapshot_path(run.dir), [vote for vote in store.all() if vote.rater == "carol"])
    store.close()
    assert str(version) in danlu("feedback", "forget", "alice", run.dir)
    assert [vote.rater for vote in read_preferences(then)] == ["bob"]
    said = danlu("feedback", "forget", "carol", run.dir)
    assert "had learned from 1 of them" in said
    assert str(version) not in said, "it never saw her vote"


def test_what_was_asked_of_bad_answers_can_be_practised_on_and_is_forgotten_too(tmp_path, monkeypatch):
    """Votes that prefer nothing teach nothing; their prompts are people's all the same."""
    monkeypatch.setenv("DANLU_RUNS", str(tmp_path))
    run = learned_run(tmp_path / "one").dir
    asking, plain = read_recipe("tiny", ["ppo.prompts=votes"]), read_recipe("tiny")
    assert read_by("ppo", plain, run, None) == {}
    assert [*read_by("ppo", asking, run, None)] == ["votes"], "nothing else was asked, so that nothing changes"
    store = PreferenceStore(votes_path(run))
    for rater, ranks in (("alice", ()), ("bob", (0, 0))):
        store.vote(store.record([Message("user", f"{rater}'s")], PAIR, store.start_conversation(rater)), ranks, rater)
    store.close()
    files = read_by("ppo", asking, run, None)
    assert {name: len(read_preferences(file)) for name, file in files.items()} == {"votes": 3, "undecided_votes": 2}
    assert [*read_by("reward", asking, run, None)] == ["votes"]
    tied = read_recipe("tiny", ["ppo.prompts=votes", "reward.ties=davidson"])
    assert {name: len(read_preferences(file)) for name, file in read_by("ppo", tied, run, None).items()} == {
        "votes": 4, "undecided_votes": 1,
    }  # fmt: skip
    facts = {"state": "done", "parents": {"sft": "1"}, "outside": {"undecided_votes": "1"}}
    write_json(run / "ppo" / "manifest.json", facts)
    said = danlu("feedback", "forget", "alice", run)
    assert "had learned from 3 of them" in said
    assert "out of date: ppo, reward, compress" in said
    assert [read_preferences(file) for name, file in files.items() if name == "undecided_votes"] == [[]]


def test_a_run_whose_last_votes_were_forgotten_says_why_it_is_made_again():
    then = {"fingerprint": "a", "state": "done", "settings": {}, "parents": {}, "outside": {"votes": "1"}, "seed": 0}
    wanted = {"fingerprint": "b", "settings": {}, "parents": {}, "outside": {}, "seed": 0}
    assert why(then, wanted) == "votes are gone"


def bystander(tmp_path: Path) -> Path:
    """A run that has votes and no snapshot of them."""
    run = learned_run(tmp_path / "runs" / "two")
    snapshot_path(run.dir).unlink()
    return run.dir


def test_with_words_a_persons_conversations_are_gone_from_the_page_too(tmp_path, monkeypatch):
    monkeypatch.setenv("DANLU_RUNS", str(tmp_path))
    place = tmp_path / "votes.sqlite"
    store = PreferenceStore(place)
    kept = ServeStore(store.database)
    talk = kept.dialogues.start("", "unmistakable-title")
    kept.dialogues.append("", talk, None, Message("user", "unmistakable-words"))
    named = kept.dialogues.start("alice", "unmistakable-other")
    stays = kept.dialogues.start("bob", "stays")
    kept.note_moderation(ModerationEvent("prompt", "review", "x", "rules", 1.0, "unmistakable-finding", "alice"))
    store.ensure_conversation(talk, "alice")
    store.vote(store.record(PROMPT, PAIR, talk), (0, 1), "alice")
    assert "2 conversations" in danlu("feedback", "forget", "alice", place, "--words")
    assert not kept.dialogues.exists(talk)
    assert not kept.dialogues.exists(named)
    assert kept.dialogues.exists(stays)
    store.close()
    left = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"unmistakable" not in left
    assert b"alice" not in left


def test_what_is_imported_is_rated_and_exported(tmp_path, monkeypatch):
    monkeypatch.setenv("DANLU_RUNS", str(tmp_path))
    run = learned_run(tmp_path / "run").dir
    file = tmp_path / "more.jsonl"
    row = {"prompt": "greet", "chosen": "Hello", "rejected": "Go"}
    file.write_text(f"{json.dumps(row)}\n{{\n{json.dumps(row)}\n")
    said = danlu("feedback", "import", file, run)
    assert "1 judgements added" in said
    assert "1 repeated, 0 contradict another, 1 lines left out" in said
    assert "more.jsonl:2: not JSON" in said
    store = PreferenceStore(votes_path(run))
    store.vote(store.record(PROMPT, PAIR), (1, 0), "carol")
    store.close()
    rated = danlu("feedback", "rate", votes_path(run))
    assert "4 votes by 3 raters, and 1 imported judgements" in rated
    worst = next(line for line in rated.splitlines() if line.startswith("bad"))
    assert worst.split()[-5:] == ["1", "0", "3", "4", "undecided"]
    assert worst.split()[2] == "-", "four judgements are too few for an interval"
    figures = json.loads(danlu("feedback", "rate", votes_path(run), "--json"))
    assert {model["model"]: model["wins"] for model in figures["models"]} == {"good": 3, "bad": 1}
    assert figures["conduct"]["most"][0]["rater"] == "alice"
    danlu("feedback", "export", run, tmp_path / "whole.jsonl", "--form", "danlu")
    assert len(read_preferences(tmp_path / "whole.jsonl")) == 5
    with pytest.raises(UserError, match="nowhere does not exist"):
        danlu("feedback", "import", file, tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_what_operators_decided_teaches_a_guard(tmp_path):
    place = tmp_path / "votes.sqlite"
    kept = ServeStore(place)
    ids = [
        kept.note_moderation(ModerationEvent("prompt", "review", "x", "rules", 1.0, text))
        for text in ("fine", "bad", "secret", "open")
    ]
    for identity, decision, label in zip(ids, ("approve", "label", "redact"), ("", "S1", ""), strict=False):
        kept.label_moderation(identity, decision, label, "operator")
    kept.close()
    out = tmp_path / "labels.jsonl"
    assert "2 labels written" in danlu("reviews", "export", out, "--db", place)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows == [{"text": "fine", "label": "safe"}, {"text": "bad", "label": "S1"}]
