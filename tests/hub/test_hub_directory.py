"""The model directory: what is written is read back, and what is wrong with one is said by name."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from danlu import hub
from danlu.errors import UserError
from danlu.hub.config import from_hf
from danlu.hub.layout import PACKED_INT8, PLAIN_INT8
from danlu.model import PRESETS, Decoder, ModelConfig, preset
from danlu.model.config import RopeScaling
from danlu.tokens.bpe import train_bpe
from danlu.tokens.chat import SPECIALS, TOKENIZER_CONFIG
from danlu.tokens.tokenizer import Tokenizer

TINY = ("gpt2-tiny", "llama-tiny", "deepseek-tiny")
CARD = {"title": "A test", "stage": "sft", "licence": "MIT", "odd": "a|b\nc"}


@pytest.fixture(scope="session")
def tokenizer():
    backend = train_bpe(["一二三 one two"], vocab_size=320, han_run=1, min_frequency=2, specials=SPECIALS)
    return Tokenizer(backend, TOKENIZER_CONFIG)


def random_model(name, head="lm", **changes):
    torch.manual_seed(1)
    model = Decoder(preset(name, vocab_size=320, **changes), head)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor))
            else:
                tensor.random_(-127, 128)
    return model


@pytest.fixture
def folder(tmp_path, tokenizer):
    """A small Llama to break."""
    hub.save(random_model("llama-tiny"), tmp_path / "model", tokenizer, card=CARD)
    return tmp_path / "model"


def same(one, other):
    return one.dtype == other.dtype and torch.equal(one, other)


def read_fields(config):
    """Latent attention does not look at two fields, and no config.json holds them."""
    return replace(config, n_kv_heads=config.n_heads, head_dim=64) if config.attention == "mla" else config


def edit_config(folder, **changes):
    path = folder / "config.json"
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))


def edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False}, {"quantization": "int8"}])
@pytest.mark.parametrize("head", ["lm", "scalar"])
@pytest.mark.parametrize("name", TINY)
def test_round_trip_tensor_by_tensor(name, head, changes, tokenizer, tmp_path):
    if changes.get("quantization") and name != "llama-tiny":
        with pytest.raises(UserError, match=r"model\.quantization 'int8'"):
            hub.hf_config(preset(name, vocab_size=320, **changes), head)
        return
    model = random_model(name, head, **changes)
    hub.save(model, tmp_path / "model", tokenizer, card=CARD)
    again, their_tokenizer = hub.load_pretrained(tmp_path / "model")
    assert (again.config, again.head_kind) == (read_fields(model.config), head)
    assert their_tokenizer.hash == tokenizer.hash
    state = again.state_dict()
    assert state.keys() == model.state_dict().keys()
    for key, tensor in model.state_dict().items():
        assert same(state[key], tensor), key
    assert all(parameter.requires_grad for parameter in again.parameters())


def test_same_model_same_bytes(tokenizer, tmp_path):
    for name in ("a", "b"):
        hub.save(random_model("deepseek-tiny"), tmp_path / name, tokenizer, card=CARD)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert {"config.json", "generation_config.json", "model.safetensors", "README.md", "tokenizer.json"} <= set(files)
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert hub.model_hash(tmp_path / "a") == hub.model_hash(tmp_path / "b")
    hub.save(random_model("deepseek-tiny", routed_scale=1.5), tmp_path / "b", tokenizer, card=CARD)  # replaces
    assert hub.model_hash(tmp_path / "a") != hub.model_hash(tmp_path / "b")


def test_bfloat16_in_memory_and_on_disk(tokenizer, tmp_path):
    model = random_model("deepseek-tiny").to(torch.bfloat16)
    hub.save(model, tmp_path / "model", tokenizer, card=CARD)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "bfloat16"
    wide, narrow = hub.load(tmp_path / "model"), hub.load(tmp_path / "model", torch.bfloat16)
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.float32}
    for key, tensor in model.state_dict().items():
        assert same(narrow.state_dict()[key], tensor)
        assert same(wide.state_dict()[key], tensor.float())
    assert narrow.blocks[1].ffn.router.bias.dtype == torch.float32


def test_packed_and_plain_integers_are_the_same_model(tokenizer, tmp_path):
    model = random_model("llama-tiny", quantization="int8", d_ff=94)
    hub.save(model, tmp_path, tokenizer, card=CARD)

    def unpack(tensors):
        for name in [name.removesuffix("_packed") for name in tensors if name.endswith("_packed")]:
            parts = [tensors.pop(f"{name}_{part}") for part in ("packed", "scale", "shape")]
            tensors[name], tensors[f"{name}_scale"] = PLAIN_INT8.write(PACKED_INT8.read(parts))

    edit_weights(tmp_path, unpack)
    block = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    edit_config(tmp_path, quantization_config={**block, "format": "int-quantized"})
    again = hub.load(tmp_path)
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in model.state_dict().items())
    block["config_groups"]["group_0"]["weights"]["num_bits"] = 4
    edit_config(tmp_path, quantization_config=block)
    with pytest.raises(UserError, match="not INT8 weights"):
        hub.load(tmp_path)


def test_card_says_where_the_model_comes_from(folder):
    text = (folder / "README.md").read_text()
    for line in ("license: MIT", "# A test", "| stage | sft |", "| odd | a\\|b c |"):
        assert f"\n{line}\n" in text


def test_old_spelling_of_rope_is_read(folder):
    edit_config(folder, rope_parameters=..., rope_theta=123.0)
    assert hub.load(folder).config.rope_theta == 123.0
    edit_config(folder, rope_scaling={"type": "linear", "factor": 2.0})
    assert hub.load(folder).config.rope_scaling == RopeScaling(kind="linear", factor=2.0)
    edit_config(folder, rope_scaling={"type": "dynamic", "factor": 2.0})
    with pytest.raises(UserError, match="rope_type is 'dynamic'; valid: default, linear, llama3, yarn"):
        hub.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "lama"}, r"unknown model_type 'lama'; did you mean 'llama'"),
        ({"model_type": ...}, "unknown model_type"),
        ({"model_type": "evil", "auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"num_hidden_layers": 99_999}, "99999 layers were described and the files hold"),
        ({"num_attention_heads": 0}, "config.json: "),
        ({"hidden_size": 64.5}, "model.d_model must be a whole number"),
        ({"hidden_size": 2**62}, "such a shape cannot be"),
        ({"rms_norm_eps": "small"}, "model.norm_eps must be a number"),
        ({"rope_parameters": "yarn"}, "config.json: "),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0}},
            "must be positive",
        ),
        ({"quantization_config": "fp8"}, "config.json: "),
        ({"hidden_size": ...}, "'hidden_size' is missing"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"architectures": ["LlamaForTokenClassification"]}, "LlamaForTokenClassification"),
        ({"architectures": ["LlamaForSequenceClassification"], "num_labels": 3}, "num_labels is 3"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config"),
        ({"num_attention_heads": 3}, "multiple of n_kv_heads"),
    ],
)
def test_config_faults_are_named(folder, changes, message):
    edit_config(folder, **changes)
    with pytest.raises(UserError, match=message) as error:
        hub.load(folder)
    assert str(folder / "config.json") in str(error.value)


def test_weight_faults_name_tensor_and_file(folder):
    name = "model.layers.1.mlp.up_proj.weight"
    path = str(folder / "model.safetensors")
    whole = (folder / "model.safetensors").read_bytes()

    def expect(*words):
        with pytest.raises(UserError) as error:
            hub.load(folder)
        assert all(word in str(error.value) for word in words), error.value

    edit_weights(folder, lambda tensors: tensors.pop(name))
    expect(name, "missing", str(folder))
    edit_weights(folder, lambda tensors: tensors.update({name: torch.zeros(3, 3)}))
    expect(name, path, "(3, 3)", "(160, 64)")
    (folder / "model.safetensors").write_bytes(whole)
    edit_weights(folder, lambda tensors: tensors.update({"model.extra.weight": torch.zeros(1)}))
    expect("model.extra.weight", path)
    (folder / "model.safetensors").write_bytes(whole)
    edit_weights(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}))
    expect("lm_head.weight", path)
    for length in (len(whole) - 100, 50, 4, 0):
        (folder / "model.safetensors").write_bytes(whole[:length])
        expect(path, "not a whole safetensors file")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    expect(str(folder), "pytorch_model.bin", "may run code")


@pytest.mark.parametrize("text", ["[]", "[" * 100_000, '"x"', "{"])
def test_what_is_no_configuration(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        hub.load(folder)


def test_contents_that_contradict_their_shapes_are_named(folder, tokenizer, tmp_path):
    hub.save(random_model("llama-tiny", quantization="int8"), tmp_path / "int8", tokenizer, card=CARD)
    name = "model.layers.0.mlp.up_proj.weight"

    def shorten(tensors):
        tensors[f"{name}_shape"][1] = 3

    edit_weights(tmp_path / "int8", shorten)
    with pytest.raises(UserError, match=rf"'{name}_packed' .* holds .* which does not belong there"):
        hub.load(tmp_path / "int8")
    edit_weights(folder, lambda tensors: tensors.update({name: tensors[name].long()}))
    with pytest.raises(UserError, match=rf"'{name}' .* of int64, which does not belong there"):
        hub.load(folder)


def test_an_import_keeps_what_belongs_to_a_model(folder, tmp_path):
    (folder / "reward.json").write_text("{}")
    (folder / "LICENSE").write_text("free")
    hub.import_model(folder, tmp_path / "imported")
    assert {"reward.json", "LICENSE"} <= {path.name for path in (tmp_path / "imported").iterdir()}


def test_index_faults_are_named(folder):
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        names = list(file.keys())
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = folder / "model.safetensors.index.json"
    whole = dict.fromkeys(names, "model-00001-of-00001.safetensors")
    index.write_text(json.dumps({"weight_map": whole}))
    hub.load(folder)
    for weights, message in (
        ({}, "no weight_map"),
        ({"a": 5}, "no weight_map"),
        ({**whole, "ghost": "model-00001-of-00001.safetensors"}, "ghost"),
        (dict.fromkeys(names, "../elsewhere.safetensors"), "elsewhere"),
    ):
        index.write_text(json.dumps({"weight_map": weights}))
        with pytest.raises(UserError, match=message):
            hub.load(folder)


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        hub.load(tmp_path)


def test_tokenizer_of_another_model_is_refused(folder, tokenizer, tmp_path):
    small = Decoder(preset("llama-tiny", vocab_size=64))
    hub.save(small, tmp_path / "small", tokenizer, card=CARD)
    with pytest.raises(UserError, match="320 ids and the model 64"):
        hub.load_pretrained(tmp_path / "small")


def test_export_copies_whole_models_only(folder, tmp_path):
    hub.export_directory(folder, tmp_path / "out")
    assert hub.model_hash(tmp_path / "out") == hub.model_hash(folder)
    with pytest.raises(UserError, match="exists"):
        hub.export_directory(folder, tmp_path / "out")
    edit_weights(folder, lambda tensors: tensors.popitem())
    with pytest.raises(UserError, match="missing"):
        hub.export_directory(folder, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("sharded", [False, True])
def test_export_hands_on_a_model_and_nothing_else(folder, tmp_path, sharded):
    if sharded:
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            shards = dict.fromkeys(file.keys(), "model-00001-of-00001.safetensors")
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    for name in ("LICENSE", "NOTICE.txt", "reward.json", "chat_template.jinja"):
        (folder / name).write_text("{}")
    belongs = {path.name for path in folder.iterdir()}
    (folder / "feedback").mkdir()
    for name in ("feedback/preferences.db", "preferences.db", "notes.txt", "optimizer.safetensors", ".env"):
        (folder / name).write_text("people's words")
    hub.export_directory(folder, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == belongs
    assert all((tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes() for name in belongs)


def test_a_model_that_does_not_fit_on_the_disk_leaves_the_old_one(folder, tokenizer, tmp_path, monkeypatch):
    before, usage = hub.model_hash(folder), shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    with pytest.raises(UserError, match=r"has 0 MB free and this needs \d"):
        hub.save(random_model("llama-tiny", d_ff=94), folder, tokenizer, card=CARD)
    with pytest.raises(UserError, match="free some space"):
        hub.export_directory(folder, tmp_path / "out")
    assert hub.model_hash(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", sorted(PRESETS.keys() - {"gpt3-13b"}))  # 40 heads of 128 do not make 5,140
def test_every_preset_has_a_counterpart(name):
    config = preset(name, **({} if "vocab_size" in PRESETS[name] else {"vocab_size": 320}))
    heads = {"bert-base": ("mlm",), "bert-large": ("mlm",), "grok-1": ("lm",)}
    for head in heads.get(name, ("lm", "scalar")):
        data = hub.hf_config(config, head)
        assert from_hf(json.loads(json.dumps(data)))[:2] == (read_fields(config), head)


GPT2 = {"norm": "layer", "positions": "learned", "feedforward": "mlp", "activation": "gelu_tanh"}
BIASES = {"qkv_bias": True, "out_bias": True, "ffn_bias": True}
SIZES = {
    "vocab_size": 64, "n_layers": 2, "d_model": 64, "max_seq_len": 64, "n_heads": 4, "n_kv_heads": 4, "head_dim": 16,
    "d_ff": 96,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"positions": "learned"}, r"model\.positions 'learned'"),
        ({**GPT2, **BIASES, "feedforward": "gated"}, r"model\.feedforward 'gated'"),
        (GPT2, r"model\.qkv_bias 'False'"),
        ({**GPT2, **BIASES, "n_kv_heads": 2}, r"model\.n_kv_heads 2"),
        ({**GPT2, **BIASES, "head_dim": 32}, r"model\.head_dim 32"),
        ({"rope_layout": "interleaved"}, r"model\.rope_layout 'interleaved'"),
        ({"out_bias": True}, r"model\.out_bias True"),
        ({"d_model": 66, "head_dim": 16}, r"model\.n_heads 4"),
        ({"n_experts": 4, "top_k": 2, "d_expert": 32}, r"model\.n_experts '4'"),
    ],
)
def test_shapes_without_a_counterpart_are_refused_by_option(changes, option):
    with pytest.raises(UserError, match=option):
        hub.hf_config(ModelConfig(**{**SIZES, **changes}), "lm")


def test_unknown_head_is_refused():
    with pytest.raises(UserError, match="unknown head 'vector'"):
        hub.hf_config(ModelConfig(**SIZES), "vector")
