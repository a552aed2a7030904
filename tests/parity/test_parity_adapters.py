"""Adapters there and back: peft on transformers and ours on danlu give the same numbers, to 1e-5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from danlu import hub
from danlu.cli import app
from danlu.errors import UserError
from danlu.hub import adapter, lora
from danlu.hub.lora import Size
from danlu.hub.rows import rows_of, train_rows
from danlu.model import Decoder, ModelConfig, preset
from danlu.tokens.bpe import train_bpe
from danlu.tokens.chat import SPECIALS, TOKENIZER_CONFIG
from danlu.tokens.tokenizer import Tokenizer

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
transformers.logging.disable_progress_bar()

TOKENS = torch.randint(0, 97, (3, 20), generator=torch.Generator().manual_seed(1))
SOME = ("q", "v", "down")  # of GPT-2's joint q, k, v one is left out
CASES = {
    "llama-tiny": ("q", "k", "v", "o", "gate", "up", "down"),
    "gpt2-tiny": ("q", "v", "o", "down"),
    "deepseek-tiny": ("q_a", "q_b", "q", "kv_a", "kv_b", "o"),
}


@torch.no_grad()
def shaken(tensors: Any) -> None:
    """Nothing may stay at its neutral start."""
    for tensor in tensors:
        tensor.add_(torch.randn_like(tensor) * 0.1)


def base_of(name: str, head: str = "lm") -> Decoder:
    torch.manual_seed(11)
    model = Decoder(preset(name, vocab_size=97), head)
    shaken(model.parameters())
    return model


def adapt(model: Decoder, targets: tuple[str, ...], dora: bool = False) -> Decoder:
    """An adapter with numbers of its own on those layers of every block."""
    names = [n for n, m in model.blocks.named_modules(prefix="blocks") if isinstance(m, lora.LAYERS)]
    layers = {name: Size(3, 5.0) for name in names if name.rpartition(".")[2] in targets}
    lora.inject(model, lora.LoRA(layers, dora), seed=2)
    shaken(p for p in model.parameters() if p.requires_grad)
    return model


def logits(model: Decoder) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_transformers_and_peft_load_our_adapters(name: str, dora: bool, tmp_path: Path) -> None:
    model = base_of(name)
    hub.save(model, tmp_path / "base", None, card={"title": "test"})
    before = logits(model)
    adapt(model, CASES[name], dora)
    adapter.write_adapter(model, tmp_path / "adapter", tmp_path / "base", {"model": "x"})
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")  # which finds the base by itself
    with torch.no_grad():
        found = theirs(TOKENS).logits
    after = logits(model)
    with torch.no_grad():  # a few tokens with a cache: latents are decoded by parts of the merged weight
        decoded = model.hidden(TOKENS[:, :4], cache=model.new_cache(3, 8)).states
        torch.testing.assert_close(decoded, model.hidden(TOKENS[:, :4]).states, atol=1e-5, rtol=1e-5)
    assert (after - before).abs().max() > 0.1
    torch.testing.assert_close(found, after, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(lora.merged(model)), after, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits(lora.bare(model)), before)
    again = adapter.with_adapter(hub.load(tmp_path / "base"), tmp_path / "adapter")
    torch.testing.assert_close(logits(again), after, atol=1e-5, rtol=1e-5)
    hub.save(model, tmp_path / "merged", None, card={"title": "test"})
    torch.testing.assert_close(logits(hub.load(tmp_path / "merged")), after, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama-tiny", "gpt2-tiny"])
def test_an_adapter_that_peft_made_loads_here(name: str, tmp_path: Path) -> None:
    hub.save(base_of(name), tmp_path / "base", None, card={"title": "test"})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    some = {"llama-tiny": ["q_proj", "down_proj"], "gpt2-tiny": ["c_attn", "c_fc"]}[name]
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=some, use_rslora=True, alpha_pattern={some[1]: 12}, rank_pattern={some[1]: 2},
        use_dora=name == "gpt2-tiny", fan_in_fan_out=name == "gpt2-tiny",
    )  # fmt: skip
    theirs = peft.get_peft_model(theirs, config)
    shaken(p for p in theirs.parameters() if p.requires_grad)
    theirs.save_pretrained(tmp_path / "adapter")
    ours = adapter.with_adapter(hub.load(tmp_path / "base"), tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(logits(ours), theirs(TOKENS).logits, atol=1e-5, rtol=1e-5)


def test_a_reward_models_head_goes_with_its_adapter(tmp_path: Path) -> None:
    hub.save(base_of("llama-tiny"), tmp_path / "base", None, card={"title": "test"})
    trunk = hub.load(tmp_path / "base").state_dict()
    model = base_of("llama-tiny", "scalar")
    model.load_state_dict(trunk | {"score.weight": model.score.weight.detach()})
    adapt(model, SOME)
    adapter.write_adapter(model, tmp_path / "adapter", tmp_path / "base", {})
    config = transformers.AutoConfig.from_pretrained(tmp_path / "base", num_labels=1, pad_token_id=0)
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", config=config)
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter")
    tokens = TOKENS.clamp(min=1)  # 0 is padding
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits[:, 0], model(tokens), atol=1e-5, rtol=1e-5)


def test_an_adapter_is_merged_on_export(tmp_path: Path) -> None:
    backend = train_bpe(["one two"], vocab_size=300, han_run=1, min_frequency=2, specials=SPECIALS)
    tokenizer = Tokenizer(backend, TOKENIZER_CONFIG)
    torch.manual_seed(1)
    model = Decoder(preset("llama-tiny", vocab_size=tokenizer.vocab_size)).to(torch.bfloat16)
    hub.save(model, tmp_path / "base", tokenizer, card={"title": "test"})
    adapter.write_adapter(adapt(hub.load(tmp_path / "base"), SOME), tmp_path / "adapter", tmp_path / "base", {})
    ran = CliRunner().invoke(
        app, ["export", str(tmp_path / "base"), str(tmp_path / "out"), "--adapter", str(tmp_path / "adapter")]
    )
    assert ran.exit_code == 0, ran.output
    merged = hub.load(tmp_path / "out", dtype=None)
    assert merged.embed.weight.dtype == torch.bfloat16
    live = adapter.with_adapter(hub.load(tmp_path / "base"), tmp_path / "adapter")
    torch.testing.assert_close(
        merged.blocks[0].attn.q.weight, live.blocks[0].attn.q.dense(torch.bfloat16), atol=0, rtol=0
    )
    assert torch.equal(merged.blocks[0].attn.k.weight.float(), live.blocks[0].attn.k.weight)
    with pytest.raises(UserError, match="exists"):
        hub.export_merged(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    adapter.write_adapter(live, tmp_path / "known", tmp_path / "base", {"model": hub.model_hash(tmp_path / "base")})
    with pytest.raises(UserError, match=r"was trained on another model; name .*base"):  # not what it is merged into
        hub.export_merged(tmp_path / "out", tmp_path / "known", tmp_path / "twice")
    hub.export_merged(tmp_path / "base", tmp_path / "known", tmp_path / "once")


def test_adapters_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    model = adapt(base_of("llama-tiny"), SOME)
    folder = tmp_path / "adapter"
    adapter.write_adapter(model, folder, tmp_path, {})
    shape = base_of("llama-tiny").config.to_dict()
    small = Decoder(ModelConfig(**(shape | {"n_layers": 1})))
    with pytest.raises(UserError, match=r"adapts .model.layers.1.*, where this model can have no adapter; did"):
        adapter.with_adapter(small, folder)
    wide = Decoder(ModelConfig(**(shape | {"d_ff": 2 * shape["d_ff"]})))
    with pytest.raises(UserError, match=r"adapter of '.*down_proj' is .* belongs to another model"):
        adapter.with_adapter(wide, folder)
    said = json.loads((folder / "adapter_config.json").read_text())
    for change, complaint in (
        ({"peft_type": "IA3"}, "peft_type is 'IA3' and only LORA"),
        ({"bias": "all"}, "bias is 'all' and only 'none'"),
        ({"init_lora_weights": "pissa"}, "changes the base model"),
        ({"use_dora": True}, "use_dora is True, and what is kept of .* says no"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps(said | change))
        with pytest.raises(UserError, match=complaint):
            adapter.with_adapter(base_of("llama-tiny"), folder)
    (folder / "adapter_config.json").write_text(json.dumps(said))
    whole = load_file(folder / "adapter_model.safetensors")
    for name in ("model.embed_tokens", "lm_head"):
        key = f"base_model.model.{name}.lora_A.weight"
        save_file({**whole, key: torch.ones(2, 2)}, folder / "adapter_model.safetensors")
        with pytest.raises(UserError, match=f"adapts '{name}', where this model can have no adapter"):
            adapter.with_adapter(base_of("llama-tiny"), folder)
    save_file({**whole, "base_model.model.score.weight": torch.ones(1, 64)}, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match="is a reward model's, and this model writes"):
        adapter.with_adapter(base_of("llama-tiny"), folder)
    packed = Decoder(ModelConfig(**(shape | {"quantization": "int8"})))
    with pytest.raises(UserError, match="the model is compressed"):
        adapter.with_adapter(packed, folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no adapter_model.safetensors in"):
        adapter.with_adapter(base_of("llama-tiny"), folder)


@pytest.mark.parametrize("name", ["gpt2-tiny", "deepseek-tiny"])  # whose head is the embedding, and is not
def test_rows_of_untaught_tokens_go_with_an_adapter(name: str, tmp_path: Path) -> None:
    model = base_of(name)
    hub.save(model, tmp_path / "base", None, card={"title": "test"})
    before = logits(model)
    adapt(model, CASES[name])
    alone = logits(model)
    train_rows(model, [3, 5])
    assert torch.equal(logits(model), alone), "nothing has moved yet"
    shaken(trained.rows for trained in rows_of(model))
    after = logits(model)
    assert not torch.equal(after, alone)
    model(TOKENS)[..., [3, 5]].sum().backward()
    moved = {n for n, p in model.named_parameters() if p.grad is not None}
    assert {n for n in moved if ".lora_" not in n} == {n for n, _ in model.named_parameters() if n.endswith(".rows")}
    adapter.write_adapter(model, tmp_path / "adapter", tmp_path / "base", {"model": "x"})
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(theirs(TOKENS).logits, after, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(lora.merged(model)), after, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits(lora.bare(model)), before)
    assert torch.equal(logits(model), after), "whoever looks under an adapter leaves it where it is"
    again = adapter.with_adapter(hub.load(tmp_path / "base"), tmp_path / "adapter")
    torch.testing.assert_close(logits(again), after, atol=1e-5, rtol=1e-5)
