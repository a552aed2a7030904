"""transformers reads what we write and we read what transformers writes: the same numbers, to 1e-5."""

from dataclasses import replace

import pytest
import torch

from danlu import hub
from danlu.model import Decoder, preset
from danlu.model.quantized import quantize_rows
from danlu.records import Message
from danlu.tokens.bpe import train_bpe
from danlu.tokens.chat import SPECIALS, TOKENIZER_CONFIG, encode_prompt
from danlu.tokens.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")
transformers.logging.disable_progress_bar()

FAMILIES = ("gpt2-tiny", "llama-tiny", "deepseek-tiny")
CARD = {"title": "test"}


@pytest.fixture(scope="module")
def tokenizer():
    backend = train_bpe(["春眠不觉晓。one two three"], vocab_size=320, han_run=1, min_frequency=2, specials=SPECIALS)
    return Tokenizer(backend, TOKENIZER_CONFIG)


def shake(tensors):
    """No value may stay at its neutral start: a norm that is forgotten would not be noticed."""
    with torch.no_grad():
        for tensor in tensors:
            tensor.add_(torch.randn_like(tensor) * 0.1)


def random_model(name, head="lm", vocab_size=320, **changes):
    torch.manual_seed(11)
    model = Decoder(preset(name, vocab_size=vocab_size, **changes), head)
    shake([*model.parameters(), *model.buffers()])
    return model


def padded_batch(tokenizer):
    """Rows of different lengths, padded on the right."""
    rows = torch.randint(0, 250, (3, 24), generator=torch.Generator().manual_seed(5))
    lengths = torch.tensor([24, 9, 1])
    return rows.masked_fill(torch.arange(24) >= lengths[:, None], tokenizer.pad), lengths


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_loads_our_language_models(name, tied, tokenizer, tmp_path):
    model = random_model(name, tie_embeddings=tied)
    hub.save(model, tmp_path / "model", tokenizer, card=CARD)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values()), info
    tokens, _ = padded_batch(tokenizer)
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, model(tokens), atol=1e-5, rtol=1e-5)
    assert theirs.config.pad_token_id == theirs.generation_config.pad_token_id == tokenizer.pad
    assert theirs.generation_config.eos_token_id == tokenizer.eos


def test_logits_agree_where_a_model_is_sure(tokenizer, tmp_path):
    """Logits of 20 leave fp32 ten roundings within 1e-5; only the same sums in the same order stay there."""
    model = random_model("llama-tang", tie_embeddings=True)
    with torch.no_grad():
        model.embed.weight.mul_(15)
    hub.save(model, tmp_path / "model", tokenizer, card=CARD)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokens, _ = padded_batch(tokenizer)
    with torch.no_grad():
        ours = model(tokens)
        assert ours.abs().max() > 15
        torch.testing.assert_close(theirs(tokens).logits, ours, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_loads_our_reward_models(name, tokenizer, tmp_path):
    model = random_model(name, "scalar")
    hub.save(model, tmp_path / "model", tokenizer, card=CARD)
    loader = transformers.AutoModelForSequenceClassification
    theirs, info = loader.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values()), info
    tokens, lengths = padded_batch(tokenizer)  # it must find the last token that is not padding by itself
    with torch.no_grad():
        wanted = model(tokens, lengths)
        torch.testing.assert_close(theirs(tokens).logits[:, 0], wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(hub.load(tmp_path / "model")(tokens, lengths), wanted, atol=0, rtol=0)


def test_transformers_loads_our_tokenizer(tokenizer, tmp_path):
    hub.save(random_model("llama-tiny"), tmp_path / "model", tokenizer, card=CARD)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    asked = [{"role": "user", "content": "觉晓 one"}]
    ours = encode_prompt(tokenizer, [Message("user", "觉晓 one")])
    assert theirs.apply_chat_template(asked, add_generation_prompt=True, tokenize=True, return_dict=False) == ours
    for role in ("bos", "eos", "pad"):
        assert getattr(theirs, f"{role}_token_id") == getattr(tokenizer, role)


THEIRS = {
    "gpt2": ("GPT2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "gpt2-untied": (
        "GPT2",
        {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 64, "n_inner": 96, "tie_word_embeddings": False},
    ),
    "llama": ("Llama", {"num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 24, "tie_word_embeddings": True}),
    "deepseek": ("DeepseekV3", {"n_group": 4, "topk_group": 2, "q_lora_rank": 24, "num_nextn_predict_layers": 0}),
    "deepseek-plain": (
        "DeepseekV3",
        {"q_lora_rank": None, "n_group": 1, "topk_group": 1, "norm_topk_prob": False, "rope_interleave": False,
         "n_shared_experts": 2, "first_k_dense_replace": 0, "rms_norm_eps": 1e-5},
    ),
}  # fmt: skip
_COMMON = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
    "max_position_embeddings": 64,
}  # fmt: skip
_LATENT = {
    "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12, "n_routed_experts": 8,
    "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1,
}  # fmt: skip


def their_model(name):
    family, changes = THEIRS[name]
    shape = {"GPT2": {}, "Llama": _COMMON, "DeepseekV3": {**_COMMON, **_LATENT}}[family]
    config = getattr(transformers, f"{family}Config")(
        vocab_size=200, bos_token_id=1, eos_token_id=2, pad_token_id=0, **{**shape, **changes}
    )
    torch.manual_seed(13)
    kind = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    model = getattr(transformers, kind)(config).eval()
    shake([*model.parameters(), *(b for n, b in model.named_buffers() if "e_score" in n)])
    return model


@pytest.mark.parametrize("name", THEIRS)
def test_we_load_what_transformers_saves(name, tmp_path):
    theirs = their_model(name)
    theirs.save_pretrained(tmp_path, max_shard_size="60KB")  # in shards, as big models are
    assert (tmp_path / "model.safetensors.index.json").is_file()
    ours = hub.load(tmp_path)
    tokens = torch.randint(0, 200, (2, 40))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-5, rtol=1e-5)


def test_we_load_a_trunk_without_prefix_and_old_buffers(tmp_path):
    """The form of the original GPT-2 files."""
    from safetensors.torch import save_file

    theirs = their_model("gpt2")
    theirs.save_pretrained(tmp_path)
    trunk = {name: tensor.contiguous() for name, tensor in theirs.transformer.state_dict().items()}
    trunk["h.0.attn.bias"] = torch.ones(1, 1, 64, 64).tril()
    trunk["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(trunk, tmp_path / "model.safetensors")
    tokens = torch.randint(0, 200, (2, 40))
    with torch.no_grad():
        torch.testing.assert_close(hub.load(tmp_path)(tokens), theirs(tokens).logits, atol=1e-5, rtol=1e-5)


def quantized(model):
    """The INT8 form of a model by plain rounding."""
    small = Decoder(replace(model.config, quantization="int8"), model.head_kind)
    source, state = model.state_dict(), small.state_dict()
    for name in [name for name in state if not name.endswith(".scale")]:
        scale = f"{name.removesuffix('.weight')}.scale"
        if scale in state:
            state[name], state[scale] = quantize_rows(source[name])
        else:
            state[name] = source[name]
    small.load_state_dict(state)
    return small


@pytest.mark.parametrize("changes", [{}, {"d_ff": 94, "tie_embeddings": False}])  # 94: rows that do not fill a word
@pytest.mark.parametrize("head", ["lm", "scalar"])
def test_transformers_loads_our_int8_models(head, changes, tokenizer, tmp_path):
    pytest.importorskip("compressed_tensors")
    dense = random_model("llama-tiny", head, **changes)
    model = quantized(dense)
    hub.save(model, tmp_path / "model", tokenizer, card=CARD)
    hub.save(dense, tmp_path / "dense", tokenizer, card=CARD)
    weigh = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("model", "dense")]
    assert weigh[0] < 0.6 * weigh[1]
    auto = transformers.AutoModelForCausalLM if head == "lm" else transformers.AutoModelForSequenceClassification
    theirs = auto.from_pretrained(tmp_path / "model", dtype=torch.float32)
    tokens, lengths = padded_batch(tokenizer)
    with torch.no_grad():
        wanted = model(tokens, lengths)
        found = theirs(tokens).logits
        torch.testing.assert_close(found.reshape(wanted.shape), wanted, atol=2e-5, rtol=1e-5)
        assert (dense(tokens, lengths) - wanted).abs().max() > 1e-3  # it is not the dense model that was compared
    again = hub.load(tmp_path / "model")
    assert again.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_latent_attention_in_int8(tokenizer, tmp_path):
    pytest.importorskip("compressed_tensors")
    model = quantized(random_model("deepseek-tiny", n_experts=0, top_k=0, n_dense_layers=0, n_shared_experts=0))
    hub.save(model, tmp_path / "model", tokenizer, card=CARD)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    tokens, _ = padded_batch(tokenizer)
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, model(tokens), atol=2e-5, rtol=1e-5)
