"""Stage dpo: every loss learns planted taste, a killed run goes on to the same bytes, KTO hears thumbs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mortal import Killed, Mortal
from pair import play
from safetensors.torch import load_file
from workshop import flowers

from danlu import hub
from danlu.align import likelihoods, paired, unpaired
from danlu.align.comparisons import encode
from danlu.align.direct import DPOSettings, dpo
from danlu.align.judgements import Label, freeze_labels, labels_of, write_labels
from danlu.align.preferences import PreferenceStore
from danlu.align.unpaired import Labelled, encode_labels, kto_loss
from danlu.errors import UserError
from danlu.model.decoder import Decoder
from danlu.pipeline import STAGES, _outside, read_recipe
from danlu.places import votes_path
from danlu.records import Answer, Message, Preference, write_preferences
from danlu.run import Run, Stage
from danlu.tokens.tokenizer import Tokenizer

SETTINGS = DPOSettings(
    batch_size=8, micro_batch=8, lr=5e-3, warmup=2, steps=12, eval_every=4, save_every=12, log_every=1,
    probe_prompts=4, max_new_tokens=4, dtype="float32",
)  # fmt: skip


@pytest.fixture
def inputs(tmp_path: Path, sft_dir: Path) -> dict[str, Path]:
    write_preferences(tmp_path / "rankings" / "preferences.jsonl", flowers(32))
    return {"sft": sft_dir, "rankings": tmp_path / "rankings"}


def with_loss(loss: str) -> DPOSettings:
    return SETTINGS.model_copy(update={"loss": loss})


@pytest.mark.parametrize("loss", ["dpo", "ipo", "kto", "orpo", "simpo"])
def test_every_loss_learns_planted_taste(loss: str, inputs: dict[str, Path], make_stage: Callable[..., Stage]) -> None:
    stage = make_stage("dpo", with_loss(loss), inputs)
    figures = dpo(stage)
    rows = [row for row in stage.metrics.read() if "val_accuracy" in row]
    assert figures["val_accuracy"] > 0.9
    assert figures["val_margin"] > 0
    assert figures["val_loss"] == rows[-1]["val_loss"] < rows[0]["val_loss"]
    assert figures["after"]["kl"] != 0  # its own samples say so, with a sign that few of them do not settle
    assert figures["heldout"] == 8
    assert figures["answers" if loss == "kto" else "comparisons"] == (48 if loss == "kto" else 24)
    assert hub.load(stage.dir / "model").head_kind == "lm"


def test_two_processes_share_a_step_of_one_micro_batch(
    inputs: dict[str, Path], make_stage: Callable[..., Stage]
) -> None:  # fmt: skip
    settings = SETTINGS.model_copy(update={"steps": 2, "probe_prompts": 1})
    alone, shared = make_stage("dpo", settings, inputs), make_stage("dpo", settings, inputs, folder="two")
    figures = dpo(alone)
    play(lambda _: dpo(shared))
    first, second = ([row for row in one.metrics.read() if "loss" in row] for one in (alone, shared))
    assert [row["loss"] for row in second] == pytest.approx([row["loss"] for row in first], abs=1e-5)
    assert shared.metrics.read()[-1]["val_loss"] == pytest.approx(figures["val_loss"], abs=1e-5)


def test_at_first_policy_and_reference_agree(inputs: dict[str, Path], make_stage: Callable[..., Stage]) -> None:
    stage = make_stage("dpo", SETTINGS.model_copy(update={"steps": 1}), inputs)
    dpo(stage)
    first = stage.metrics.read()[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["chosen"] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_a_killed_run_goes_on_to_the_same_bytes_and_asks_the_reference_once(
    loss: str, inputs: dict[str, Path], make_stage: Callable[..., Stage]
) -> None:
    settings = with_loss(loss).model_copy(update={"steps": 6, "save_every": 2, "eval_every": 6, "micro_batch": 4})
    whole = make_stage("dpo", settings, inputs, folder="whole")
    dpo(whole)
    with pytest.raises(Killed):
        dpo(make_stage("dpo", settings, inputs, folder="killed", metrics=Mortal))
    killed = make_stage("dpo", settings, inputs, folder="killed")
    asked = {file: file.stat().st_mtime_ns for file in (killed.dir / "reference").iterdir()}
    dpo(killed)
    assert asked == {file: file.stat().st_mtime_ns for file in (killed.dir / "reference").iterdir()}
    for file in ("model/model.safetensors", "ckpt/000006/tensors.safetensors"):
        assert (whole.dir / file).read_bytes() == (killed.dir / file).read_bytes()


def test_cutting_a_batch_up_changes_nothing_for_kto(make_model: Callable[..., Decoder], tokenizer: Tokenizer) -> None:
    labels = [(label, 1.0) for preference in flowers(6) for label in labels_of(preference)]
    examples = encode_labels(labels, tokenizer, 64, seed=1)
    policy, reference = make_model(seed=1), make_model()
    known = unpaired._logprobs(reference, examples, tokenizer.pad)
    lessons, found = Labelled(examples, known["answers"], known["foreign"]), []
    for size in (12, 5):
        batches = lessons.batches(range(12), size, tokenizer.pad, "cpu")
        outputs = [kto_loss(policy, batch, 0.1, (1.0, 2.0)) for batch in batches]
        found.append(torch.stack([output.loss_sum for output in outputs]).sum())
        baselines = {output.sums["baseline"] / output.n for output in outputs}
        assert len({round(value, 5) for value in baselines}) == 1
    torch.testing.assert_close(found[0], found[1])


def test_a_foreign_answer_belongs_to_another_prompt(tokenizer: Tokenizer) -> None:
    preferences = [replace(p, answers=tuple(Answer(f"{a.text}{p.id}") for a in p.answers)) for p in flowers(8)]
    labels = [label for preference in preferences for label in labels_of(preference)]
    examples = encode_labels([(label, 1.0) for label in labels], tokenizer, 64, seed=1)
    for label, example in zip(labels, examples, strict=True):
        own = {a.text for p in preferences if p.prompt == label.prompt for a in p.answers}
        foreign = tokenizer.decode(example.foreign_response).removesuffix("<|end|>")
        assert foreign not in own
        assert foreign in {a.text for p in preferences for a in p.answers}


def test_the_best_of_an_order_need_not_have_rank_0(make_model: Callable[..., Decoder], tokenizer: Tokenizer) -> None:
    answers = (Answer("花月"), Answer("山水"), Answer("春"))
    told = []
    for ranks in ((0, 1, 2), (3, 5, 9)):
        ranking = encode(Preference("1", (Message("user", "写：春"),), answers, ranks), tokenizer, 64)
        batch = likelihoods.lay_out([ranking], tokenizer.pad, "cpu", torch.zeros(1, 3))
        told.append(paired.measure(make_model(), [batch], paired.Objective("ipo", 0.1)))
    assert told[0] == told[1]


def test_an_order_calls_good_what_beats_more_than_beat_it() -> None:
    preference = replace(flowers(1)[0], ranks=(0, 1, 2))
    assert [label.good for label in labels_of(preference)] == [True, False]
    assert [label.good for label in labels_of(replace(preference, ranks=(0, 0, 1)))] == [True, True, False]
    assert not [*labels_of(replace(preference, ranks=(0, 0, 0)))]


def test_kto_hears_thumbs_and_all_bad(
    tmp_path: Path, inputs: dict[str, Path], make_stage: Callable[..., Stage]
) -> None:
    store, turns = PreferenceStore(tmp_path / "votes.db"), (Message("user", "写：春"),)
    store.thumb(store.record(turns, [Answer("花花")]), True, "ann")
    store.vote(store.record(turns, [Answer("山"), Answer("水")]), [], "ann")
    store.vote(store.record(turns, [Answer("花"), Answer("山")]), [0, 1], "ann")
    assert freeze_labels(store, tmp_path / "labels.jsonl") == 3
    first = (tmp_path / "labels.jsonl").read_bytes()
    freeze_labels(store, tmp_path / "labels.jsonl")
    assert (tmp_path / "labels.jsonl").read_bytes() == first
    store.close()
    settings = with_loss("kto").model_copy(update={"steps": 1, "batch_size": 64, "eval_every": 1})
    figures = dpo(make_stage("dpo", settings, inputs, {"labels": tmp_path / "labels.jsonl"}))
    assert figures["answers"] == 48 + 3


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_votes_weigh_what_they_weigh_for_the_reward_model(
    loss: str, tmp_path: Path, inputs: dict[str, Path], make_stage: Callable[..., Stage]
) -> None:
    """At the first step every loss is the same, so their mean tells the weights."""
    turns, flower, thumbs = (Message("user", "写：春"),), Answer("花"), []
    votes = [
        Preference(f"{rater}{i}", turns, (flower, Answer("山" * (i + 1))), (0, 1), rater)
        for rater, n in (("busy", 8), ("x", 1), ("y", 1))
        for i in range(n)
    ]
    write_preferences(tmp_path / "votes.jsonl", votes)
    for rater, n in (("loud", 4), ("x", 1), ("y", 1)):
        thumbs += [Label(turns, flower, True, "train", rater)] * n
    write_labels(tmp_path / "labels.jsonl", thumbs)
    outside = {"votes": tmp_path / "votes.jsonl", "labels": tmp_path / "labels.jsonl"}
    n = 24 + 10 if loss == "dpo" else 48 + 20 + 6
    update = {"steps": 1, "batch_size": n, "vote_weight": 3.0, "rater_share": 0.5}
    stage = make_stage("dpo", with_loss(loss).model_copy(update=update), inputs, outside)
    figures = dpo(stage)
    of_votes = 3.0 * (8 * 2 / 8 + 1 + 1)  # the busy one is held to two votes
    of_thumbs = 3.0 * (4 * 2 / 4 + 1 + 1)
    expected = math.log(2) * (24 + of_votes) if loss == "dpo" else 0.5 * (48 + 2 * of_votes + of_thumbs)
    assert stage.metrics.read()[0]["loss"] == pytest.approx(expected / n, abs=1e-4)
    assert figures["raters_held_back"] == (1 if loss == "dpo" else 2)


def test_a_run_freezes_labels_for_kto_alone(tmp_path: Path) -> None:
    run = Run(tmp_path)
    store = PreferenceStore(votes_path(run.dir))
    store.thumb(store.record((Message("user", "写：春"),), [Answer("花花")]), True, "ann")
    store.close()
    spec = next(spec for spec in STAGES if spec.name == "dpo")
    for loss, frozen in (("dpo", set()), ("kto", {"labels"})):
        recipe = read_recipe("tiny", ["run.goal=dpo", f"dpo.loss={loss}"])
        assert _outside(run, spec, recipe, {}).keys() == frozen


def test_what_no_step_reads_is_not_asked_of_the_reference(
    inputs: dict[str, Path], make_stage: Callable[..., Stage]
) -> None:
    stage = make_stage("dpo", SETTINGS.model_copy(update={"steps": 2}), inputs)
    assert dpo(stage)["comparisons"] == 16
    assert load_file(stage.dir / "reference" / "train.safetensors")["answers"].shape == (16, 3)


def test_kto_needs_both_kinds(tmp_path: Path, inputs: dict[str, Path], make_stage: Callable[..., Stage]) -> None:
    write_preferences(inputs["rankings"] / "preferences.jsonl", [replace(p, ranks=(0, 0, 0)) for p in flowers(8)])
    with pytest.raises(UserError, match=r"kto needs good and bad answers and has 0 good and 0 bad"):
        dpo(make_stage("dpo", with_loss("kto"), inputs))
    with pytest.raises(UserError, match="no comparison prefers one answer to another"):
        dpo(make_stage("dpo", SETTINGS, inputs))


def test_a_damaged_label_is_named(tmp_path: Path, inputs: dict[str, Path], make_stage: Callable[..., Stage]) -> None:
    good = Label((Message("user", "写：春"),), Answer("花"), True, "train").to_json()
    (tmp_path / "labels.jsonl").write_text(f'{{"prompt": []}}\n{good}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"labels.jsonl:1 is not a label"):
        dpo(make_stage("dpo", with_loss("kto"), inputs, {"labels": tmp_path / "labels.jsonl"}))


def test_a_setting_of_another_loss_is_an_error() -> None:
    with pytest.raises(ValueError, match="gamma is for loss 'simpo' and loss is 'dpo'"):
        DPOSettings(gamma=0.5)
    assert DPOSettings(loss="simpo", gamma=0.5).objective().beta == 2.0
