"""GGUF files: read back tensor by tensor, read by transformers, and refused when they lie."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from danlu import hub
from danlu.errors import UserError
from danlu.hub.gguf import TYPES, header, open_gguf
from danlu.hub.gguf.architectures import architecture_of
from danlu.hub.gguf.positions import read_scaling
from danlu.model import Decoder, ModelConfig, preset
from danlu.tokens.bpe import train_bpe
from danlu.tokens.chat import SPECIALS, TOKENIZER_CONFIG
from danlu.tokens.tokenizer import Tokenizer

MIXTURE: dict[str, Any] = {
    "n_experts": 4, "top_k": 2, "router_score": "softmax", "group_score": "max", "balance": "none", "norm_topk": True,
}  # fmt: skip
LINEAR = {"kind": "linear", "factor": 2.0}
LLAMA3 = {"kind": "llama3", "factor": 8.0, "original_len": 8192}
V2 = {**MIXTURE, "norm_topk": False, "router_groups": 1, "router_groups_kept": 1, "n_experts": 8}
YARN = {"kind": "yarn", "factor": 40.0, "original_len": 16, "mscale": 0.707, "mscale_all_dim": 0.707}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama-tiny", {}),
    "llama3": ("llama-tiny", {"tie_embeddings": False, "rope_scaling": LLAMA3, "rope_theta": 5e5}),
    "llama-linear": ("llama-tiny", {"rope_scaling": LINEAR, "qkv_bias": True, "out_bias": True}),
    "mixtral": ("llama-tiny", {**MIXTURE, "d_expert": 160}),
    "qwen2": ("llama-tiny", {"qkv_bias": True}),
    "qwen3": ("llama-tiny", {"qk_norm": True, "head_dim": 32}),
    "qwen3moe": ("llama-tiny", {"qk_norm": True, **MIXTURE, "d_expert": 64, "tie_embeddings": False}),
    "gpt2": ("gpt2-tiny", {}),
    "deepseek3": ("deepseek-tiny", {}),
    "deepseek2": ("deepseek-tiny", {**V2, "rope_scaling": YARN}),
    "deepseek2-lite": ("deepseek-tiny", {**V2, "q_rank": 0, "n_layers": 26}),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    backend = train_bpe(["一二三 one two one two"], vocab_size=320, han_run=1, min_frequency=2, specials=SPECIALS)
    return Tokenizer(backend, TOKENIZER_CONFIG)


def shape(name: str) -> ModelConfig:
    base, changes = SHAPES[name]
    return ModelConfig.from_dict({**preset(base, vocab_size=320).to_dict(), **changes})


def random_model(config: ModelConfig) -> Decoder:
    torch.manual_seed(3)
    model = Decoder(config).eval()
    with torch.no_grad():
        for value in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
            value.add_(torch.randn_like(value) * 0.1)
    return model


def written(config: ModelConfig, tokenizer: Tokenizer, place: Path, kind: str = "F32") -> tuple[Decoder, Path]:
    model = random_model(config)
    hub.save(model, place / "model", tokenizer, card={"title": "t"})
    hub.export_gguf(place / "model", place / "model.gguf", kind)
    return model, place / "model.gguf"


@pytest.mark.parametrize("name", SHAPES)
def test_round_trip_tensor_by_tensor(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model, file = written(shape(name), tokenizer, tmp_path)
    hub.import_model(file, tmp_path / "back")
    again, words = hub.load_pretrained(tmp_path / "back")
    assert again.config == hub.read_config(tmp_path / "model")[0]
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
    text = "one two 三二一 <|end|> 12 naïve\n\n  x"
    assert (words.encode(text), words.eos, words.bos, words.pad) == (
        tokenizer.encode(text), tokenizer.eos, tokenizer.bos, tokenizer.pad,
    )  # fmt: skip
    assert words.specials == tokenizer.specials


@pytest.mark.parametrize("name", ["llama", "llama-linear", "qwen2", "qwen3", "qwen3moe", "gpt2"])
def test_transformers_reads_the_same_model(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model, file = written(shape(name), tokenizer, tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "model")  # it does not read all of a file's metadata
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=file.name, config=config, dtype=torch.float32
    )
    tokens = torch.randint(0, 320, (2, 24))
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(tokens).logits, model(tokens), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", TYPES)
def test_each_type_is_as_close_as_its_bits(kind: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model, file = written(shape("llama"), tokenizer, tmp_path, kind)
    opened = open_gguf(file, torch.float32)
    weight, found = (state["blocks.0.ffn.up.weight"] for state in (model.state_dict(), opened.state))
    error = float((weight - found).norm() / weight.norm())
    assert error <= {"F32": 0, "F16": 3e-4, "BF16": 3e-3, "Q8_0": 6e-3, "Q4_0": 0.1}[kind]
    assert error > {"F32": -1, "F16": 1e-5, "BF16": 3e-4, "Q8_0": 1e-3, "Q4_0": 0.03}[kind]
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(file).tensors}
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    assert kinds["blk.0.ffn_up.weight"] == kind
    assert kinds["token_embd.weight"] == ("Q8_0" if kind == "Q4_0" else kind)


def test_blocks_become_float16_unless_asked_otherwise(tokenizer: Tokenizer, tmp_path: Path) -> None:
    _, file = written(shape("llama"), tokenizer, tmp_path, "Q8_0")
    hub.import_model(file, tmp_path / "half")
    hub.import_model(file, tmp_path / "wide", "float32")
    dtypes = [json.loads((tmp_path / name / "config.json").read_text())["dtype"] for name in ("half", "wide")]
    assert dtypes == ["float16", "float32"]
    with pytest.raises(UserError, match="unknown dtype 'float31'; did you mean 'float32'"):
        hub.import_model(file, tmp_path / "odd", "float31")
    with pytest.raises(UserError, match="exists"):
        hub.import_model(file, tmp_path / "half")


def test_compressed_models_are_written_dense(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = Decoder(ModelConfig.from_dict({**shape("llama").to_dict(), "quantization": "int8"}))
    with torch.no_grad():
        for value in model.state_dict().values():
            value.random_(-127, 128) if value.dtype == torch.int8 else value.uniform_(0.1, 1)
    hub.save(model, tmp_path / "model", tokenizer, card={"title": "t"})
    hub.export_gguf(tmp_path / "model", tmp_path / "m.gguf", "F32")
    state = open_gguf(tmp_path / "m.gguf").state
    up = model.blocks[1].ffn.up
    assert torch.equal(state["blocks.1.ffn.up.weight"], up.weight.float() * up.scale[:, None])


def test_what_llama_cpp_cannot_run_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    hub.save(Decoder(shape("llama"), "scalar"), tmp_path / "reward", tokenizer, card={"title": "t"})
    windowed = ModelConfig.from_dict({**shape("qwen2").to_dict(), "window": 8})
    hub.save(random_model(windowed), tmp_path / "window", tokenizer, card={"title": "t"})
    hub.save(random_model(shape("llama")), tmp_path / "plain", tokenizer, card={"title": "t"})
    for source, kind, message in (
        ("reward", "F16", "no head for a reward model"),
        ("window", "F16", "'qwen2' has no window"),
        ("plain", "Q8_1", "unknown GGUF type 'Q8_1'; did you mean 'Q8_0'"),
    ):
        with pytest.raises(UserError, match=message):
            hub.export_gguf(tmp_path / source, tmp_path / "out.gguf", kind)
    assert not list(tmp_path.glob("*.gguf*"))
    assert not list(tmp_path.glob(".*"))


# --------------------------------------------------------------------------------------- files that lie


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, dims: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def gguf_file(
    pairs: list[bytes], tensors: list[bytes], data: bytes = b"", counts: tuple[int, int] | None = None
) -> bytes:
    n_tensors, n_pairs = counts or (len(tensors), len(pairs))
    start = b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_pairs) + b"".join(pairs) + b"".join(tensors)
    return start + bytes(-len(start) % 32) + data


HUGE = 2**60
LIES = {
    "counts of keys": (gguf_file([], [], counts=(0, HUGE)), "claims .* keys"),
    "counts of tensors": (gguf_file([], [], counts=(HUGE, 0)), "claims .* tensors"),
    "a long text": (gguf_file([pair("a", 8, struct.pack("<Q", HUGE))], []), "claims .* bytes of text"),
    "a long array": (gguf_file([pair("a", 9, struct.pack("<IQ", 4, HUGE))], []), "claims .* numbers"),
    "a long array of texts": (gguf_file([pair("a", 9, struct.pack("<IQ", 8, HUGE))], []), "claims .* texts"),
    "an array of arrays": (gguf_file([pair("a", 9, struct.pack("<IQ", 9, 1) * 4000)], []), "array of arrays"),
    "an unknown type": (gguf_file([pair("a", 77, b"")], []), "unknown type 77"),
    "no UTF-8": (gguf_file([pair("a", 8, struct.pack("<Q", 2) + b"\xff\xfe")], []), "not UTF-8"),
    "a key twice": (gguf_file([pair("a", 0, b"1"), pair("a", 0, b"1")], []), "key 'a' stands in it twice"),
    "a tensor twice": (gguf_file([], [tensor("t", (8,)), tensor("t", (8,))], bytes(64)), "'t' stands in it twice"),
    "dimensions": (gguf_file([], [tensor("t", (1,) * 5)], bytes(64)), "5 dimensions"),
    "a tensor of nothing": (gguf_file([], [tensor("t", (8, 0))], bytes(64)), "shape"),
    "a tensor too large": (gguf_file([], [tensor("t", (HUGE, HUGE))], bytes(64)), "'t' ends"),
    "a tensor beyond the end": (gguf_file([], [tensor("t", (8,), offset=2**63)], bytes(64)), "'t' ends"),
    "tensors over each other": (
        gguf_file([], [tensor("s", (16,)), tensor("t", (8,), offset=32)], bytes(96)), "'t' does not begin"
    ),
    "a crooked start": (gguf_file([], [tensor("t", (8,), offset=4)], bytes(96)), "'t' does not begin"),
    "a broken block": (gguf_file([], [tensor("t", (33,), kind=8)], bytes(96)), "blocks of 32"),
    "alignment": (gguf_file([pair("general.alignment", 4, struct.pack("<I", 0))], []), "alignment is 0"),
    "a version": (b"GGUF" + struct.pack("<I", 99), "version is 99"),
    "its first bytes": (b"GGML" + bytes(40), "not a GGUF file"),
    "half a header": (b"GGUF" + struct.pack("<IQ", 3, 1), "claims 1 numbers"),
    "an architecture": (gguf_file([pair("general.architecture", 8, text("lama"))], []), "did you mean 'llama'"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_named(lie: str, tmp_path: Path) -> None:
    data, message = LIES[lie]
    (tmp_path / "bad.gguf").write_bytes(data)
    with pytest.raises(UserError, match=message):
        hub.import_model(tmp_path / "bad.gguf", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.gguf"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("split.count", "many"), ("tokenizer.ggml.merges", [1, 2]), ("tokenizer.ggml.tokens", "abc"),
     ("tokenizer.ggml.pre", 7), ("llama.block_count", 2**32 - 1), ("llama.block_count", "two"),
     ("llama.embedding_length", 2**32 - 1), ("llama.attention.head_count", 0), ("llama.rope.freq_base", "high"),
     ("llama.feed_forward_length", [64, 96]), ("general.architecture", 3)],
)  # fmt: skip
def test_values_of_a_wrong_type_are_a_sentence(
    key: str, value: Any, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, file = written(shape("llama"), tokenizer, tmp_path)
    real = header.read_header(file)
    changed = header.Header({**real.metadata, key: value}, real.tensors)
    monkeypatch.setattr("danlu.hub.gguf.tensors.read_header", lambda path: changed)
    with pytest.raises(UserError) as error:
        hub.import_model(file, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert str(file) in str(error.value)


def test_what_llama_cpp_would_compute_otherwise_is_refused(tokenizer: Tokenizer) -> None:
    groups = {**V2, "router_groups": 4, "router_groups_kept": 2}
    limited = ModelConfig.from_dict({**preset("deepseek-tiny", vocab_size=320).to_dict(), **groups})
    with pytest.raises(UserError, match="scored by their best one"):
        architecture_of(limited)
    with pytest.raises(UserError, match="temperatures outside latent attention"):
        architecture_of(ModelConfig.from_dict({**shape("llama").to_dict(), "rope_scaling": YARN}))
    assert not any("group" in key for key in architecture_of(shape("deepseek2")).metadata(shape("deepseek2")))


def test_a_silent_file_stretches_linearly() -> None:
    values = {"rope.scale_linear": 4.0}
    found = read_scaling(lambda key, default=None: values.get(key, default), ())
    assert found is not None
    assert (found.kind, found.factor) == ("linear", 4.0)
    assert read_scaling(lambda key, default=None: default, ()) is None


@pytest.fixture(scope="module")
def sound(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return written(shape("llama"), tokenizer, tmp_path_factory.mktemp("sound"), "Q8_0")[1].read_bytes()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_damaged_files_end_in_a_sentence(data: st.DataObject, sound: bytes, tmp_path_factory: Any) -> None:
    """Bytes of the header changed, or the file cut: a model, or one sentence, and never anything else."""
    damaged = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(4, 24) | st.integers(4, 16_000))
        new = data.draw(st.binary(min_size=1, max_size=8))
        damaged[place : place + len(new)] = new
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged))) :]
    place = tmp_path_factory.mktemp("damaged") / "bad.gguf"
    place.write_bytes(damaged)
    said = ""
    try:
        dict(open_gguf(place).state)
    except UserError as error:
        said = str(error)
    assert "\n" not in said
    place.unlink()


def test_the_header_of_the_library_is_ours(sound: bytes, tmp_path: Path) -> None:
    """What we read without believing is what the package ``gguf`` reads."""
    (tmp_path / "m.gguf").write_bytes(sound)
    ours, theirs = header.read_header(tmp_path / "m.gguf"), gguf.GGUFReader(tmp_path / "m.gguf")
    fields = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert ours.metadata == fields
    places = {t.name: (tuple(reversed(t.shape.tolist())), t.data_offset, t.n_bytes) for t in theirs.tensors}
    assert {name: (p.shape, p.start, p.size) for name, p in ours.tensors.items()} == places
