"""The stage ``eval`` on a run whose models have learnt nothing."""

from __future__ import annotations

import json
import math
import time

import pytest
import torch
from pair import play

from danlu import hub
from danlu.errors import UserError
from danlu.evals import EvalSettings, bits_per_byte, evaluate, heldout_prompts, heldout_text, judge, judged, measure
from danlu.evals.perplexity import heldout_answers, text_bits_per_byte
from danlu.files import read_json
from danlu.tokens.shards import read_shards
from danlu.train.parallel import World

SETTINGS = EvalSettings(
    judge="poems", prompts=12, max_new_tokens=24, showcase=("续写成一首五言绝句：春眠不觉晓，",), dtype="float32"
)
LIVES = ["base", "sft", "ppo", "compress"]


@pytest.fixture(scope="module")
def result(tmp_path_factory, make_stage, finished):
    stage = make_stage(tmp_path_factory.mktemp("eval"), SETTINGS, finished)
    return stage, evaluate(stage)


def test_every_metric_is_there_for_every_stage_of_life(result):
    stage, figures = result
    written = read_json(stage.dir / "figures.json")
    for metric in ("bpb", "form_rate", "rhyme_rate", "copy_rate", "distinct_2", "score", "repetition", "length"):
        assert list(written[metric]) == LIVES
    assert written["prompts"] == figures["prompts"] == 12
    low, high = written["intervals"]["form_rate"]["ppo"]
    assert low <= written["form_rate"]["ppo"] <= high
    assert figures["form_rate_ppo"] == written["form_rate"]["ppo"]


def test_every_answer_is_kept_with_its_scores(result):
    stage, _ = result
    rows = [json.loads(line) for line in (stage.dir / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 4 * 12
    assert [row["prompt"] for row in rows[:12]] == [row["prompt"] for row in rows[12:24]]
    assert len({row["prompt"] for row in rows}) == 12
    assert all(judge("poems").score(row["prompt"], row["answer"]) == row["scores"] for row in rows)


def test_the_showcase_is_answered_at_every_stage_of_life(result):
    stage, _ = result
    (row,) = read_json(stage.dir / "answers.json")["prompts"]
    assert row["prompt"] == SETTINGS.showcase[0]
    assert list(row["answers"]) == LIVES


def test_the_same_run_gives_the_same_bytes(result, tmp_path, make_stage, finished):
    stage, _ = result
    evaluate(make_stage(tmp_path, SETTINGS, finished))
    for name in ("figures.json", "answers.json", "samples.jsonl"):
        assert (tmp_path / name).read_bytes() == (stage.dir / name).read_bytes()


def test_a_run_that_adopted_its_base_model_needs_no_corpus(tmp_path, make_stage, finished):
    inputs = {name: finished[name] for name in ("pretrain", "sft", "aligned", "compress")}
    evaluate(make_stage(tmp_path, SETTINGS, inputs))
    assert set(read_json(tmp_path / "figures.json")["bpb"]) == set(LIVES)


def test_bits_per_byte_is_the_loss_over_the_very_bytes(tmp_path, make_stage, finished):
    model, tokenizer = hub.load_pretrained(finished["sft"] / "model")
    stage = make_stage(tmp_path, SETTINGS, finished)
    text = heldout_text(stage, tokenizer, model.config.max_seq_len, n_tokens=10**9)
    whole = read_shards(finished["tokens"] / "shards" / "val").manifest
    assert (text.shards.manifest["tokens"], text.shards.manifest["bytes"]) == (whole["tokens"], whole["bytes"])
    nats = 0.0
    with torch.no_grad():
        for start, end in zip([0, *text.shards.ends[:-1].tolist()], text.shards.ends.tolist(), strict=True):
            ids = torch.from_numpy(text.shards.tokens[start:end].astype("int64"))[None]
            nats += float(torch.nn.functional.cross_entropy(model(ids)[0, :-1], ids[0, 1:], reduction="sum"))
    assert bits_per_byte(model, text) == pytest.approx(nats / math.log(2) / whole["bytes"], rel=1e-5)


def test_held_out_text_is_cut_down_evenly(tmp_path, make_stage, finished):
    _, tokenizer = hub.load_pretrained(finished["sft"] / "model")
    stage = make_stage(tmp_path, SETTINGS, finished)
    whole = heldout_text(stage, tokenizer, 128, 10**9).shards.manifest
    part = heldout_text(stage, tokenizer, 128, whole["tokens"] // 3).shards.manifest
    assert part["tokens"] == pytest.approx(whole["tokens"] / 3, rel=0.2)


def test_little_held_out_text_is_one_conversation(tmp_path, make_stage, finished):
    model, tokenizer = hub.load_pretrained(finished["sft"] / "model")
    stage = make_stage(tmp_path, SETTINGS, finished)
    text = heldout_answers(stage, tokenizer, 128, n_tokens=1)
    assert len(text.shards.ends) == 1
    assert bits_per_byte(model, text) > 0


def test_of_several_processes_one_writes_held_out_answers_and_all_read_them(tmp_path, make_stage, finished):
    _, tokenizer = hub.load_pretrained(finished["sft"] / "model")
    stage = make_stage(tmp_path, SETTINGS, finished)

    def both(world: World) -> None:
        if world.main:
            time.sleep(0.3)
            assert not (stage.dir / "answers").exists()
        assert len(heldout_answers(stage, tokenizer, 128, 1, world).shards.ends) == 1

    play(both)


def test_bits_per_byte_of_a_text(finished):
    model, tokenizer = hub.load_pretrained(finished["sft"] / "model")
    figures = text_bits_per_byte(model, tokenizer, "春眠不觉晓，处处闻啼鸟。" * 30)
    assert figures["bytes"] == 36 * 30
    assert 0 < figures["bpb"] < 40
    with pytest.raises(UserError, match="empty"):
        text_bits_per_byte(model, tokenizer, "")


def test_prompts_are_held_out_different_and_judgeable(finished):
    path, poems = finished["sft"] / "conversations" / "heldout.jsonl", judge("poems")
    _, tokenizer = hub.load_pretrained(finished["sft"] / "model")
    prompts = heldout_prompts(path, poems, tokenizer, 100, 1000, seed=0)
    assert len(set(prompts)) == len(prompts)
    assert all(poems.accepts(turns[-1].content) for turns in prompts)
    assert heldout_prompts(path, poems, tokenizer, 100, 5, seed=0) == prompts[:5]
    with pytest.raises(UserError, match="no prompt of at most 2 tokens"):
        heldout_prompts(path, poems, tokenizer, 2, 5, seed=0)


def test_measures_of_a_set_of_answers(finished):
    by = judge("prose")
    _, tokenizer = hub.load_pretrained(finished["sft"] / "model")
    path = finished["sft"] / "conversations" / "heldout.jsonl"
    prompts = heldout_prompts(path, by, tokenizer, 100, 2, seed=0)
    figures = measure(by, judged(by, prompts, ["花开花落，又是一年春天来到。", "花"]))
    assert figures["ended_rate"] == figures["sound_rate"] == 0.5
    assert figures["length"] == 7.5
    assert "copy_rate" not in figures
    assert figures["intervals"]["ended_rate"][0] < 0.5 < figures["intervals"]["ended_rate"][1]
