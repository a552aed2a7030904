"""The stage ``compress`` on a small model that has really learnt."""

from __future__ import annotations

import shutil

import pytest
import torch

from danlu import hub
from danlu.compress import CompressSettings, compress
from danlu.compress.report import decode_speeds, notes
from danlu.compress.stage import calibration
from danlu.errors import UserError
from danlu.files import read_json
from danlu.infer.generate import Generator
from danlu.model import Decoder, preset
from danlu.records import read_conversations
from danlu.tokens import Tokenizer, chat
from danlu.tokens.shards import read_shards

SETTINGS = CompressSettings(
    judge="poems", prompts=8, sequences=48, seq_len=64, max_new_tokens=24, bpb_tokens=10_000, speed_tokens=4,
    dtype="float32",
)  # fmt: skip


@pytest.fixture(scope="module")
def result(tmp_path_factory, make_stage, finished):
    stage = make_stage(tmp_path_factory.mktemp("compress"), SETTINGS, finished)
    return stage, compress(stage)


def test_int8_is_free_and_sparsegpt_beats_magnitude(result):
    _, figures = result
    dense = figures["bpb_dense"]
    assert figures["bpb_int8"] < 1.01 * dense
    assert figures["bytes_int8"] < 0.6 * figures["bytes_dense"]
    assert dense < figures["bpb_sparsegpt"] < figures["bpb_magnitude"]


def test_the_table_says_what_was_measured(result):
    stage, figures = result
    table = read_json(stage.dir / "table.json")
    assert [row["variant"] for row in table["rows"]] == ["dense", "int8", "magnitude", "sparsegpt"]
    for row in table["rows"]:
        assert row["bpb"] == figures[f"bpb_{row['variant']}"]
        assert row["tokens_per_second"] > 0
        low, high = table["intervals"][row["variant"]]["form_rate"]
        assert low <= row["form_rate"] <= high
    assert [row["zeros"] for row in table["rows"][2:]] == pytest.approx([0.5, 0.5], abs=1e-4)
    assert sum("as much space as dense" in note for note in table["notes"]) == 2


def test_every_variant_loads_and_the_kept_one_is_a_copy(result):
    stage, figures = result
    assert figures["kept"] == "int8"
    assert hub.model_hash(stage.dir / "model") == hub.model_hash(stage.dir / "int8")
    for name in ("int8", "magnitude", "sparsegpt", "model"):
        model, _ = hub.load_pretrained(stage.dir / name)
        assert model.config.quantization == ("int8" if name in ("int8", "model") else "none")


def test_an_interrupted_run_keeps_what_is_finished_and_makes_the_rest_the_same(result, tmp_path, make_stage, finished):
    stage, _ = result
    shutil.copytree(stage.dir / "magnitude", tmp_path / "magnitude")
    before = (tmp_path / "magnitude" / "model.safetensors").stat().st_mtime_ns
    compress(make_stage(tmp_path, SETTINGS.model_copy(update={"keep": "sparsegpt"}), finished))
    assert (tmp_path / "magnitude" / "model.safetensors").stat().st_mtime_ns == before
    for name in ("int8", "magnitude", "sparsegpt"):
        assert hub.model_hash(tmp_path / name) == hub.model_hash(stage.dir / name)
    assert hub.model_hash(tmp_path / "model") == hub.model_hash(stage.dir / "sparsegpt")


def test_nothing_held_out_is_calibrated_on(tmp_path, make_stage, finished):
    tokenizer = Tokenizer.load(finished["aligned"] / "model")
    batches = calibration(make_stage(tmp_path, SETTINGS, finished), SETTINGS, tokenizer, 256)
    assert sum(len(batch.tokens) for batch in batches) == pytest.approx(SETTINGS.sequences, abs=8)
    used = {tuple(ids) for ids in documents(tmp_path / "calibration")}
    val = {tuple(ids) for ids in documents(finished["tokens"] / "shards" / "val")}
    # Poems put together from one bank of lines can give the same couplet task twice: such a one is in both parts.
    train, heldout = (
        {tuple(chat.encode_conversation(tokenizer, c)[0]) for c in read_conversations(folder / f"{part}.jsonl")[0]}
        for folder in [finished["sft"] / "conversations"]
        for part in ("train", "heldout")
    )
    assert used
    assert heldout - train
    assert not used & (val | (heldout - train))


def documents(folder):
    shards = read_shards(folder)
    starts = [0, *shards.ends[:-1].tolist()]
    return [shards.tokens[start:end].tolist() for start, end in zip(starts, shards.ends.tolist(), strict=True)]


def test_an_architecture_without_int8_keeps_the_dense_model_and_says_so(tmp_path, make_stage, finished):
    tokenizer = Tokenizer.load(finished["aligned"] / "model")
    torch.manual_seed(0)
    model = Decoder(preset("gpt2-tiny", vocab_size=tokenizer.vocab_size))
    hub.save(model, tmp_path / "ppo" / "model", tokenizer, card={"title": "gpt2"})
    inputs = {"sft": finished["sft"], "aligned": tmp_path / "ppo"}  # and without token shards, as for an adopted base
    with pytest.raises(UserError, match="keep 'dense' or 'auto'"):
        compress(make_stage(tmp_path / "int8", SETTINGS.model_copy(update={"keep": "int8"}), inputs))
    stage = make_stage(tmp_path / "auto", SETTINGS, inputs)
    assert compress(stage)["kept"] == "dense"
    assert hub.model_hash(stage.dir / "model") == hub.model_hash(tmp_path / "ppo" / "model")
    assert "There is no int8 variant" in read_json(stage.dir / "table.json")["notes"][-1]


def test_decode_speed_ignores_stop_tokens_and_leaves_the_generator_as_it_was(finished):
    model, tokenizer = hub.load_pretrained(finished["aligned"] / "model")
    generator = Generator(model, tokenizer)
    stop = generator.stop_ids
    assert decode_speeds({"dense": generator}, [tokenizer.bos], 4)["dense"] > 0
    assert generator.stop_ids == stop
    assert stop


def test_a_variant_that_is_slower_is_called_slower():
    dense = {"variant": "dense", "bytes": 100, "zeros": 0.0, "tokens_per_second": 200.0}
    slow = {"variant": "int8", "bytes": 30, "zeros": 0.0, "tokens_per_second": 150.0}
    noise = {"variant": "int8", "bytes": 30, "zeros": 0.0, "tokens_per_second": 196.0}
    assert notes([dense, slow]) == ["int8 is slower than dense on this machine: 150 instead of 200 tokens per second."]
    assert notes([dense, noise]) == []
