"""The stage ``sft`` with an adapter: the base stays as it is, what is written is whole, a resumed run is the same."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from danlu import hub
from danlu.console import Console
from danlu.errors import UserError
from danlu.files import hash_file, hash_paths, write_json
from danlu.hub import lora
from danlu.hub.adapter import with_adapter
from danlu.hub.rows import train_rows
from danlu.model import Decoder, Linear, ModelConfig
from danlu.pipeline import STAGES
from danlu.tokens import chat
from danlu.tokens.tokenizer import Tokenizer
from danlu.train import adapters, sft
from danlu.train.adapters import AdapterSettings
from danlu.train.compiled import compile_blocks
from danlu.train.pretrain import untaught_of
from danlu.train.task import LoopSettings, Task

pytest.importorskip("peft")
DORA = {"kind": "dora", "rank": 2, "alpha": 4.0, "dropout": 0.1, "targets": ("q", "down")}


@pytest.fixture
def places(tmp_path, inputs, tiny_config):
    tokenizer = Tokenizer.load(inputs["tokenizer"] / "model")
    torch.manual_seed(0)
    model = Decoder(replace(tiny_config, vocab_size=tokenizer.vocab_size))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    hub.save(model, tmp_path / "pretrain" / "model", tokenizer, card={"title": "test"})
    write_json(tmp_path / "pretrain" / "untaught.json", [])
    return {"pretrain": tmp_path / "pretrain", "corpus": inputs["corpus"]}


def test_sft_trains_an_adapter_alone_and_resumes_to_the_same_bytes(tmp_path, places, make_stage, sft_settings):
    settings = sft_settings(adapter=DORA, lr=5e-2)
    whole = make_stage(tmp_path / "whole", settings, places, "sft")
    figures = sft(whole)
    losses = [row["loss"] for row in whole.metrics.read() if "loss" in row]
    assert losses[-1] < losses[0]
    sft(make_stage(tmp_path / "cut", settings, places, "sft"))
    (tmp_path / "cut" / "ckpt" / "000006" / "tensors.safetensors").write_bytes(b"half")  # the disk was full
    sft(make_stage(tmp_path / "cut", settings, places, "sft"))
    for name in ("model/model.safetensors", "adapter/adapter_model.safetensors", "adapter/base.json"):
        assert hash_file(tmp_path / "whole" / name) == hash_file(tmp_path / "cut" / name)
    kept = load_file(whole.dir / "ckpt/000006/tensors.safetensors")
    assert all(".lora_" in name for name in kept)
    base, tuned = (hub.load(path / "model") for path in (places["pretrain"], whole.dir))
    moved = {name for name, tensor in base.state_dict().items() if not torch.equal(tensor, tuned.state_dict()[name])}
    assert {name.split(".")[-2] for name in moved} == {"q", "down"}
    tokens = torch.arange(12).view(1, -1)
    with torch.no_grad():
        again = with_adapter(base, whole.dir / "adapter")(tokens)
        torch.testing.assert_close(again, tuned(tokens), atol=1e-5, rtol=1e-5)
    assert figures["parameters_total"] == sum(p.numel() for p in tuned.parameters())


def test_dropout_is_addressed_by_step_and_looks_see_none_of_it(tiny_config):
    model = Decoder(tiny_config)
    adapters.attach(model, AdapterSettings(**(DORA | {"dropout": 0.5})), seed=0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    seen = []

    def loss(model, batch):
        seen.append(model(torch.tensor([[1, 2, 3]])).detach())

    task = adapters.with_dropout(Task(lambda step: [0, 1], loss, lambda model: {}), AdapterSettings(**DORA), 5)
    for step in (3, 3, 4):
        for batch in task.batches(step):
            task.loss(model, batch)
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[4])
    plain = model(torch.tensor([[1, 2, 3]]))
    assert torch.equal(plain, model(torch.tensor([[1, 2, 3]])))


@pytest.mark.parametrize(("bits", "most"), [(16, 0.01), (8, 0.01), (4, 0.1)])
def test_a_base_in_fewer_bits_is_near_and_merges_into_what_it_computes(bits, most, tiny_config):
    torch.manual_seed(1)
    model = Decoder(tiny_config, "scalar")
    before = model.hidden(torch.arange(9).view(1, -1)).states.detach()
    adapters.attach(model, AdapterSettings(kind="lora", base_bits=bits), seed=0)
    states = model.hidden(torch.arange(9).view(1, -1)).states
    assert 0 < float((states.detach() - before).pow(2).mean() / before.pow(2).mean()) < most
    assert not any(type(module) is Linear for module in model.blocks.modules()) or bits == 16
    assert model.score.weight.requires_grad
    assert model.score.weight.dtype == torch.float32
    merged = lora.merged(model)
    torch.testing.assert_close(merged.hidden(torch.arange(9).view(1, -1)).states, states, atol=1e-5, rtol=1e-5)


def test_mixtures_have_adapters_of_attention_only():
    shape = ModelConfig(vocab_size=64, n_layers=2, d_model=32, n_heads=2, n_kv_heads=2, head_dim=16, d_ff=32,
                        max_seq_len=32, n_experts=4, top_k=2, d_expert=16, n_shared_experts=1)  # fmt: skip
    model = Decoder(shape)
    with pytest.raises(UserError, match=r"names up, .* these can: k, o, q, v"):
        adapters.attach(model, AdapterSettings(kind="lora", targets=("up",)), seed=0)
    adapters.attach(model, AdapterSettings(kind="lora"), seed=0)
    assert all(".attn." in name for name, p in model.named_parameters() if p.requires_grad)


def test_blocks_with_lora_are_one_graph_and_those_with_dora_are_left(tiny_config):
    model = Decoder(replace(tiny_config, n_layers=1))
    adapters.attach(model, AdapterSettings(kind="lora", base_bits=4, targets=("q", "up")), seed=0)
    tokens = torch.arange(8).view(1, -1)
    plain = model(tokens)
    for block in model.blocks:
        block.compile(fullgraph=True, backend="eager")
    model(tokens).sum().backward()
    torch.testing.assert_close(model(tokens), plain)
    other = adapters.attach(Decoder(tiny_config), AdapterSettings(kind="dora", targets=("q",)), seed=0)
    assert "DoRA" in compile_blocks(other, LoopSettings(compile="yes"), "cpu")


@pytest.mark.parametrize(("told", "tied"), [({"kind": "lora"}, True), (DORA | {"base_bits": 4}, False)])
def test_a_footprint_is_what_is_trained_and_what_is_kept(told, tied, tiny_config):
    settings, shape = AdapterSettings(**told), replace(tiny_config, tie_embeddings=tied)
    model = train_rows(adapters.attach(Decoder(shape), settings, seed=0), [4, 7])
    named = {id(t): (name, t) for name, t in (*model.named_buffers(), *model.named_parameters())}
    kept = sum(t.nbytes for name, t in named.values() if ".lora_" not in name and not name.endswith((".rows", ".ids")))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert adapters.footprint(shape, settings, rows=2) == (trained, kept)
    tables = 1 if tied else 2
    assert adapters.footprint(shape, settings) == (trained - tables * 2 * shape.d_model, kept)


def test_tokens_for_turns_that_a_base_was_never_taught_are_learnt_with_the_adapter(
    tmp_path, places, make_stage, sft_settings
):
    tokenizer = Tokenizer.load(places["pretrain"] / "model")
    turns = chat.turn_ids(tokenizer)
    write_json(places["pretrain"] / "untaught.json", turns)
    adapter = {"kind": "lora", "targets": ("q",), "base_bits": 16}
    stage = make_stage(tmp_path / "sft", sft_settings(adapter=adapter, steps=2), places, "sft")
    sft(stage)
    base, tuned = (hub.load(path / "model").embed.weight for path in (places["pretrain"], stage.dir))
    moved = (tuned != base.bfloat16().float()).any(1).nonzero().flatten().tolist()
    assert sorted(moved) == sorted(turns)
    kept = load_file(stage.dir / "ckpt/000002/tensors.safetensors")
    assert {tensor.shape[0] for name, tensor in kept.items() if "embed" in name and tensor.ndim} == {len(turns)}


@pytest.mark.parametrize(("base", "said"), [("", ""), ("smollm2", "smollm2 was adopted before danlu noted")])
def test_a_model_that_was_made_before_anybody_noted_what_it_was_taught(base, said, places, capsys):
    folder, tokenizer = places["pretrain"], Tokenizer.load(places["pretrain"] / "model")
    (folder / "untaught.json").unlink()
    write_json(folder / "manifest.json", {"settings": {"base": base} if base else {}})
    assert untaught_of(folder, tokenizer, Console()) == ([] if base else chat.turn_ids(tokenizer))
    told = capsys.readouterr()
    assert said in " ".join((told.out + told.err).split())
    assert bool(told.out + told.err) is bool(said)


def test_what_nobody_taught_a_model_is_part_of_what_its_stage_made_where_it_was_noted(places):
    made = {spec.name: spec.makes for spec in STAGES}["pretrain"]
    noted = hash_paths(places["pretrain"], made)
    write_json(places["pretrain"] / "untaught.json", [1])
    assert hash_paths(places["pretrain"], made) != noted
    (places["pretrain"] / "untaught.json").unlink()
    assert hash_paths(places["pretrain"], made) == hash_paths(places["pretrain"], ("model",)), "as it always was"
