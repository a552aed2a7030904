import json
import math
import signal

import pytest
import torch
from pydantic import ValidationError

from danlu import hub
from danlu.corpus.split import is_heldout
from danlu.errors import UserError
from danlu.files import hash_file
from danlu.model import PRESETS, Decoder, preset
from danlu.records import Message, read_conversations
from danlu.tokens import chat, read_shards
from danlu.tokens.bpe import train_bpe
from danlu.tokens.tokenizer import Tokenizer
from danlu.train import PretrainSettings, pretrain, sft
from danlu.train.pretrain import new_model, with_vocabulary

WEIGHTS = "model/model.safetensors"
_WORDS = ["春眠不觉晓。one two three"]


@pytest.fixture(scope="module")
def base(tmp_path_factory, inputs, make_stage, pretrain_settings):
    """A base model, barely trained."""
    directory = tmp_path_factory.mktemp("base")
    figures = pretrain(make_stage(directory, pretrain_settings(), inputs))
    return directory, figures


def test_killed_and_resumed_runs_give_the_same_bytes(tmp_path, inputs, make_stage, start_process, pretrain_settings):
    settings = {
        name: pretrain_settings(optimizer=name, steps=30, save_every=4, eval_every=7) for name in ("adamw", "muon")
    }
    for step, name in ((8, "adamw"), (12, "muon")):
        process = start_process(tmp_path / name, settings[name], inputs, tmp_path / name / f"ckpt/{step:06d}")
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (tmp_path / name / WEIGHTS).exists()
    for name, options in settings.items():
        whole, resumed = tmp_path / f"{name}-whole", tmp_path / name
        figures = [pretrain(make_stage(place, options, inputs)) for place in (whole, resumed)]
        assert hash_file(whole / WEIGHTS) == hash_file(resumed / WEIGHTS)
        assert [f["val_loss"] for f in figures] == [figures[0]["val_loss"]] * 2
        logs = [make_stage(place, options).metrics.read() for place in (whole, resumed)]
        assert [(r["step"], r.get("loss")) for r in logs[0]] == [(r["step"], r.get("loss")) for r in logs[1]]


def test_pretraining_makes_a_model_that_foresees_better_than_chance(base, inputs, make_stage, pretrain_settings):
    directory, figures = base
    model, tokenizer = hub.load_pretrained(directory / "model")
    manifest = read_shards(inputs["tokens"] / "shards" / "val").manifest
    assert figures["parameters_total"] == sum(p.numel() for p in model.parameters())
    assert figures["steps"] == 8
    assert figures["tokens"] > 8 * 8 * 32
    assert figures["tokens_per_second"] > 0
    n_targets = manifest["tokens"] - manifest["documents"]
    assert figures["bpb"] == pytest.approx(figures["val_loss"] * n_targets / math.log(2) / manifest["bytes"], rel=1e-5)
    assert figures["val_loss"] < 5.5 < math.log(512)
    assert tokenizer.vocab_size == 512
    rows = make_stage(directory, pretrain_settings()).metrics.read()
    assert [row["step"] for row in rows if "bpb" in row and "val_loss" in row and row["sample"]] == [4, 8]


def test_a_finished_stage_that_is_run_again_only_writes_its_model_again(base, inputs, make_stage, pretrain_settings):
    directory, figures = base
    digest = hash_file(directory / WEIGHTS)
    again = pretrain(make_stage(directory, pretrain_settings(), inputs))
    assert again == figures
    assert hash_file(directory / WEIGHTS) == digest


def test_a_base_model_is_adopted_as_it_is(tmp_path, base, make_stage):
    directory, _ = base
    settings = PretrainSettings(base=str(directory / "model"))
    assert settings.reads() == {"base": directory / "model"}
    figures = pretrain(make_stage(tmp_path, settings))
    assert hash_file(tmp_path / WEIGHTS) == hash_file(directory / WEIGHTS)
    assert Tokenizer.load(tmp_path / "model").hash == Tokenizer.load(directory / "model").hash
    assert set(figures) == {"parameters_total", "parameters_active"}


def test_a_base_model_without_turns_gets_tokens_for_them(tmp_path, base, make_stage):
    backend = train_bpe(_WORDS, vocab_size=320, han_run=1, min_frequency=2, specials=("<|endoftext|>",))
    plain = Tokenizer(backend, {"eos_token": "<|endoftext|>"})
    assert not chat.knows_turns(plain)
    torch.manual_seed(3)
    model = Decoder(preset("gpt2-tiny", vocab_size=plain.vocab_size, tie_embeddings=False))
    hub.save(model, tmp_path / "plain", plain, card={"title": "plain"})
    pretrain(make_stage(tmp_path, PretrainSettings(base=str(tmp_path / "plain"))))
    adopted, tokenizer = hub.load_pretrained(tmp_path / "model")
    assert adopted.config.vocab_size == tokenizer.vocab_size == plain.vocab_size + len(chat.SPECIALS)
    assert tokenizer.encode("春眠 one") == plain.encode("春眠 one")
    assert tokenizer.decode([tokenizer.eos]) == ""
    assert tokenizer.eos != plain.eos
    asked = chat.encode_prompt(tokenizer, [Message("user", "one")])
    tokens = torch.tensor([plain.encode("two three")])
    with torch.no_grad():
        torch.testing.assert_close(adopted(tokens)[..., : plain.vocab_size], model(tokens), rtol=0, atol=1e-6)
        assert adopted(torch.tensor([asked])).isfinite().all()
    rows = adopted.embed.weight[plain.vocab_size :]
    assert len(rows.unique(dim=0)) == len(chat.SPECIALS)  # a turn of the user's is not one of the assistant's
    wide = with_vocabulary(adopted, 64, seed=0)
    assert wide is adopted  # a table with rows to spare is left alone


def test_a_shape_is_spelled_out_so_that_a_preset_that_changes_is_noticed(monkeypatch):
    before = PretrainSettings(model={"preset": "llama-tang", "rope_theta": "1e6"}, seq_len=64)
    assert before.model["rope_theta"] == 1e6  # YAML calls it a string
    assert before.model["n_heads"] == 4
    monkeypatch.setitem(PRESETS, "llama-tang", {**PRESETS["llama-tang"], "n_heads": 2, "n_kv_heads": 2})
    after = PretrainSettings(model={"preset": "llama-tang", "rope_theta": "1e6"}, seq_len=64)
    assert after.model_dump() != before.model_dump()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"preset": "lama-tang"}, "unknown preset 'lama-tang'.*did you mean 'llama-tang'"),
        ({"n_layer": 2}, "pretrain.model.n_layer.*did you mean 'n_layers'"),
        ({"vocab_size": 100}, "unknown key 'pretrain.model.vocab_size'"),
        ({"n_heads": 3, "n_kv_heads": 2}, "multiple of n_kv_heads"),
        ({"norm": "layer"}, "norm"),  # a Llama with LayerNorm: no Hugging Face class has that
        ({"max_seq_len": 16}, "more than model.max_seq_len"),
        ({"n_kv_heads": 0}, "n_kv_heads must be positive"),
        ({"rope_theta": "far"}, "pretrain.model.rope_theta: Input should be a valid number"),
    ],
)
def test_a_shape_that_cannot_be_is_refused_when_the_recipe_is_read(model, message):
    with pytest.raises(UserError, match=message):
        PretrainSettings(model=model, seq_len=128)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, base, inputs, make_stage, sft_settings):
    """The stage ``sft`` on poems: its directory, figures and the lines of its log."""
    places = {"pretrain": base[0], "corpus": inputs["corpus"]}
    stage = make_stage(tmp_path_factory.mktemp("sft"), sft_settings(steps=0, epochs=0.3), places, "sft")
    return stage.dir, sft(stage), stage.metrics.read()


def test_sft_learns_answers_and_keeps_the_held_out_ones_apart(tuned):
    directory, figures, rows = tuned
    for part, count in (("train", "conversations"), ("heldout", "heldout")):
        conversations = [
            json.loads(line) for line in (directory / "conversations" / f"{part}.jsonl").read_text().splitlines()
        ]
        assert len(conversations) == figures[count] > 0
        for conversation in conversations:
            assert is_heldout(conversation["source"].split(":")[2], 0.1) == (part == "heldout")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == figures["steps"] >= 5
    assert losses[-1] < losses[0]
    assert figures["val_loss"] < math.log(512)
    hub.load(directory / "model")


def test_sft_trains_the_assistants_words_and_stop_token_only(tuned):
    directory = tuned[0]
    shards, tokenizer = read_shards(directory / "shards" / "train"), Tokenizer.load(directory / "model")
    conversations, _ = read_conversations(directory / "conversations" / "train.jsonl")
    start = 0
    for end, conversation in zip(shards.ends, conversations, strict=True):
        learnt = shards.tokens[start:end][shards.mask[start:end] == 1].tolist()
        assert learnt == [*tokenizer.encode(conversation.messages[-1].content), chat.stop_ids(tokenizer)[0]]
        start = end


def test_sft_resumes_to_the_same_bytes(tmp_path, base, inputs, make_stage, sft_settings):
    places = {"pretrain": base[0], "corpus": inputs["corpus"]}
    sft(make_stage(tmp_path / "whole", sft_settings(), places, "sft"))
    sft(make_stage(tmp_path / "cut", sft_settings(steps=6), places, "sft"))
    (tmp_path / "cut" / "ckpt" / "000006" / "tensors.safetensors").write_bytes(b"half")  # the disk was full
    sft(make_stage(tmp_path / "cut", sft_settings(), places, "sft"))
    assert hash_file(tmp_path / "whole" / WEIGHTS) == hash_file(tmp_path / "cut" / WEIGHTS)


def write_lines(path, rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def test_sft_reads_the_users_own_file_whatever_its_form(tmp_path, base, make_stage, sft_settings):
    answer, reply = {"role": "assistant", "content": "答"}, {"from": "gpt", "value": "好"}
    openai = [{"messages": [{"role": "user", "content": f"问{i}"}, answer]} for i in range(20)]
    sharegpt = [{"conversations": [{"from": "human", "value": f"说{i}"}, reply]} for i in range(20)]
    alpaca = [{"instruction": f"做{i}", "input": "快", "output": "是"} for i in range(20)]
    long = {"instruction": "长", "output": "很" * 500}
    source = write_lines(tmp_path / "mine.jsonl", [*openai, *sharegpt, *alpaca, "{broken", long])
    settings = sft_settings(source=source, heldout=0.3, steps=2)
    assert settings.reads() == {"source": tmp_path / "mine.jsonl"}
    figures = sft(make_stage(tmp_path / "sft", settings, {"pretrain": base[0]}, "sft"))
    assert figures["conversations"] + figures["heldout"] == 60  # the broken and the too long line are left out
    assert figures["heldout"] >= 8


def test_sft_says_what_is_wrong_with_its_source(tmp_path, base, inputs, make_stage, sft_settings):
    def run(name, places=None, **changes):
        places = {"pretrain": base[0]} | (places or {})
        sft(make_stage(tmp_path / name, sft_settings(**changes), places, "sft"))

    with pytest.raises(ValidationError, match="unknown source 'poem'; did you mean 'poems'"):
        run("0", source="poem")
    with pytest.raises(UserError, match="no conversation file at"):
        run("a", source=str(tmp_path / "missing.jsonl"))
    one = write_lines(tmp_path / "one.jsonl", [{"instruction": "a", "output": "b"}])
    with pytest.raises(UserError, match="gives no conversation for"):
        run("b", source=one)
    with pytest.raises(UserError, match=r"sft.seq_len \(500\) is more than the base model can read \(128\)"):
        run("c", seq_len=500)
    with pytest.raises(UserError, match=r"fits in sft.seq_len"):
        run("d", {"corpus": inputs["corpus"]}, seq_len=8)


def test_weights_depend_on_the_seed_alone(tiny_config):
    first, second, other = (new_model(tiny_config, seed).output_weight for seed in (3, 3, 4))
    assert first.equal(second)
    assert not first.equal(other)
