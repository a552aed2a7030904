"""The guard: it learns planted harm, draws its line where it was told, and is honest about baselines."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pair import play

from danlu import hub
from danlu.align.guard import Guard, GuardSettings, guard, windows
from danlu.align.heads import with_scalar_head
from danlu.align.labelled import Example, read_examples, split
from danlu.align.verdicts import auc, clearly_above, threshold_at, verdict
from danlu.console import Console
from danlu.errors import UserError
from danlu.hub.adapter import with_adapter
from danlu.model.decoder import Decoder
from danlu.pipeline import execute, read_recipe, stages_of
from danlu.run import Metrics, Stage
from danlu.tokens.tokenizer import Tokenizer

QUIET = Console(quiet=True)
SETTINGS = {"batch_size": 16, "lr": 3e-3, "warmup": 2, "seq_len": 32, "steps": 60, "dtype": "float32", "save_every": 30,
            "eval_every": 30, "false_positive_rate": 0.05}  # fmt: skip


def planted(n: int, seed: int = 0) -> list[Example]:
    """Texts in which 花 beside 风 is harm and either alone is not: no single word tells."""
    chance, result = random.Random(seed), []
    for _ in range(n):
        letters = [chance.choice("春夏秋冬山水月云") for _ in range(12)]
        kind = chance.randrange(2)
        place = chance.randrange(11)
        if kind == 0:
            letters[place : place + 2] = "花风"
        else:
            letters[place] = chance.choice("花风")
        result.append(Example("".join(letters), "S9" if kind == 0 else "safe"))
    return result


def write_jsonl(path: Path, examples: list[Example]) -> Path:
    path.write_text("".join(json.dumps({"text": e.text, "label": e.label}) + "\n" for e in examples), encoding="utf-8")
    return path


@pytest.fixture
def stage(tmp_path: Path, make_model: Callable[..., Decoder], tokenizer: Tokenizer, make_stage: Callable[..., Stage]):
    hub.save(make_model(), tmp_path / "pretrain" / "model", tokenizer, card={"stage": "pretrain"})

    def make(examples: list[Example], **changes: object) -> Stage:
        data = write_jsonl(tmp_path / "labels.jsonl", examples)
        settings = GuardSettings.model_validate({**SETTINGS, "data": str(data), **changes})
        return make_stage("guard", settings, {"pretrain": tmp_path / "pretrain"})

    return make


def test_planted_harm_is_learnt_and_beats_the_baselines(stage: Callable[..., Stage]) -> None:
    made = stage(planted(500), steps=70)
    figures = guard(made)
    assert figures["beats_baselines"]
    assert figures["accuracy"] > max(figures["baselines"].values()) + 0.2
    assert figures["auc"] > 0.97
    assert figures["recall"] > 0.7
    assert figures["false_positive_rate"] < 0.12
    assert figures["baselines"].keys() == {"majority", "rules"}
    assert 0.4 < figures["baselines"]["majority"] < 0.62
    json.dumps(figures, allow_nan=False)

    watchman = Guard.load(made.dir / "model")
    safe, unsafe = watchman.scores(["山水月云春夏秋冬山水月云", "山水月云春花风冬山水月云"])
    assert safe < watchman.threshold < unsafe
    buried = "山水月云春夏秋冬" * 15 + "山花风水" + "山水月云春夏秋冬" * 15  # longer than it reads at once
    watchman = replace(watchman, seq_len=14)
    assert watchman.score(buried) > watchman.threshold > watchman.score("山水月云春夏秋冬" * 30)


def test_two_processes_share_a_batch_that_is_not_cut(stage: Callable[..., Stage]) -> None:
    alone = stage(planted(200), steps=2, log_every=1)
    shared = replace(alone, dir=alone.dir / "two", metrics=Metrics(alone.dir / "two" / "metrics.jsonl"))
    guard(alone)
    play(lambda _: guard(shared))
    first, second = ([row for row in one.metrics.read() if "loss" in row] for one in (alone, shared))
    assert [row["loss"] for row in second] == pytest.approx([row["loss"] for row in first], abs=1e-5)
    assert len(second) == 2


def test_labels_that_mean_nothing_beat_nothing(stage: Callable[..., Stage]) -> None:
    chance = random.Random(1)
    examples = [Example(e.text, chance.choice(["safe", "S1"])) for e in planted(300, seed=2)]
    figures = guard(stage(examples, steps=12))
    assert not figures["beats_baselines"]


def test_a_guard_directory_is_a_sequence_classifier_of_transformers(stage: Callable[..., Stage]) -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    made = stage(planted(200), steps=4)
    guard(made)
    watchman = Guard.load(made.dir / "model")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(made.dir / "model", dtype=torch.float32)
    ids = windows(watchman.tokenizer, "山水花风", 32)
    with torch.no_grad():
        found = theirs(torch.tensor(ids)).logits[0, 0].item()
    assert watchman.score("山水花风") == pytest.approx(found, abs=0.05)  # bf16 on some machines
    assert "A guard" in (made.dir / "model" / "README.md").read_text(encoding="utf-8")


def test_long_texts_are_read_to_their_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("山水月云" * 25)
    parts = windows(tokenizer, "山水月云" * 25, 16)
    assert all(len(part) <= 16 and part[0] == tokenizer.bos and part[-1] == tokenizer.eos for part in parts)
    assert parts[0][1:-1] == ids[:14]
    assert parts[-1][1:-1] == ids[-len(parts[-1]) + 2 :]
    assert windows(tokenizer, "", 16) == [[tokenizer.bos, tokenizer.eos]]


def test_figures_by_hand() -> None:
    unsafe = [True, True, False, False, False]
    assert auc([0.9, 0.2, 0.1, 0.2, 0.3], unsafe) == pytest.approx((3 + 1.5) / 6)
    assert auc([1.0], [True]) is None
    assert verdict([True, False, True, False, False], unsafe) == {
        "accuracy": 0.6, "precision": 0.5, "recall": 0.5, "false_positive_rate": 0.3333,
    }  # fmt: skip
    assert verdict([False] * 5, unsafe)["precision"] is None
    assert clearly_above([True] * 50, [True] * 50, 0.9)
    assert not clearly_above([True] * 5, [True] * 5, 0.9)


def test_the_threshold_keeps_to_its_rate() -> None:
    scores = [float(i) for i in range(100)]
    for rate in (0.01, 0.05, 0.2):
        line = threshold_at(scores, [False] * 100, rate)
        assert sum(score >= line for score in scores) == max(math.floor(rate * 101) - 1, 0)
    chance, above = random.Random(3), 0
    for _ in range(400):  # new safe texts are above it as often as was allowed, over many calibrations
        line = threshold_at([chance.gauss(0, 1) for _ in range(60)], [False] * 60, 0.1)
        above += sum(chance.gauss(0, 1) >= line for _ in range(25))
    assert 0.06 < above / 10_000 <= 0.11


def test_a_text_labelled_twice_keeps_its_last_label(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "labels.jsonl", [Example("a  b", "S1"), Example("c", "safe"), Example("a b", "safe")])
    assert read_examples(str(path), [], {}, [], QUIET) == [Example("a b", "safe"), Example("c", "safe")]


def test_dialogues_and_folders_are_read(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two\u2028three"}]
    (tmp_path / "x.jsonl").write_text(json.dumps({"messages": turns, "label": "S2"}, ensure_ascii=False), "utf-8")
    assert read_examples(str(tmp_path / "x.jsonl"), [], {}, [], QUIET) == [Example("one\ntwo\u2028three", "S2")]
    for folder, text in (("mails/good", "head\n\nhello"), ("mails/bad", "head\n\nbuy"), ("mails/other", "head\n\n?")):
        (tmp_path / "f" / folder).mkdir(parents=True)
        (tmp_path / "f" / folder / "1.txt").write_text(text, "utf-8")
    named = {"*/good": "safe", "*/bad": "spam"}
    found = read_examples(str(tmp_path / "f"), [], named, [r"\A[^\n]*\n\n"], QUIET)
    assert sorted(found, key=lambda e: e.label) == [Example("hello", "safe"), Example("buy", "spam")]
    assert {e.label for e in read_examples(str(tmp_path / "f"), [], {}, [], QUIET)} == {"good", "bad", "other"}


def test_parts_depend_on_the_text_alone() -> None:
    examples = planted(1000)
    parts = split(examples, 0.3)
    assert sorted(e.text for part in parts.values() for e in part) == sorted(e.text for e in examples)
    assert 0.25 < 1 - len(parts["train"]) / len(examples) < 0.35
    again = split(examples[:500], 0.3)
    assert set(again["test"]) <= set(parts["test"])


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("not json", r"labels.jsonl:2 is not a labelled text .*write \{\"text\""),
        ('{"text": "x"}', "has no 'label'"),
        ('{"label": "safe"}', "has no 'text'"),
        ('{"text": 3, "label": "safe"}', "must be words"),
        ('{"text": "x", "label": ""}', "must be words"),
        ("[1]", "no JSON object"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text('{"text": "x", "label": "safe"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=complaint):
        read_examples(str(path), [], {}, [], QUIET)


def test_too_few_of_a_kind_is_said(stage: Callable[..., Stage]) -> None:
    with pytest.raises(UserError, match=r"guard\.data has 0 unsafe texts for train and 5 are the least"):
        guard(stage([Example(e.text, "safe") for e in planted(200)]))


def test_the_recipe_runs_what_the_guard_needs_and_nothing_else(
    tmp_path: Path, make_model: Callable[..., Decoder], tokenizer: Tokenizer
) -> None:
    hub.save(make_model(), tmp_path / "base", tokenizer, card={"stage": "sft"})
    data = write_jsonl(tmp_path / "labels.jsonl", planted(200))
    asked = [f"base={tmp_path / 'base'}", f"guard.data={data}", "guard.steps=3", "guard.seq_len=32"]
    recipe = read_recipe("guard", asked)
    assert [spec.name for spec in stages_of(recipe)] == ["pretrain", "guard"]
    run = execute(recipe, tmp_path / "run", QUIET)
    assert run.finished("guard")
    with pytest.raises(UserError, match=r"guard\.data is not given"):
        execute(read_recipe("guard", asked[:1]), tmp_path / "other", QUIET)
    with pytest.raises(UserError, match=r"guard.data: .*lables.jsonl does not exist; did you mean 'labels.jsonl'"):
        execute(read_recipe("guard", [asked[0], f"guard.data={tmp_path / 'lables.jsonl'}"]), tmp_path / "other", QUIET)
    assert "guard" not in [spec.name for spec in stages_of(read_recipe("tiny"))]
    assert [spec.name for spec in stages_of(read_recipe("tiny", [f"guard.data={data}"]))][-1] == "guard"


def test_a_guard_may_be_an_adapter_that_peft_reads(stage: Callable[..., Stage]) -> None:
    pytest.importorskip("peft")
    made = stage(planted(200), steps=4, adapter={"kind": "lora", "rank": 4, "base_bits": 16}, lr=1e-2)
    guard(made)
    whole = Guard.load(made.dir / "model")
    base, _ = hub.load_pretrained(made.inputs["pretrain"] / "model")
    small = with_adapter(with_scalar_head(base, seed=0), made.dir / "adapter")
    texts = ["山水月云春夏秋冬", "山水花风"]
    scores = replace(whole, model=small).scores(texts)
    assert scores == pytest.approx(whole.scores(texts), abs=1e-1)  # on 32 bits: near
