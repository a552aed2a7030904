"""Block by block through models of every family: the path is the model's own, and the statistics are what entered."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from danlu import hub
from danlu.compress import Site, magnitude, quantize, sparsegpt, walk
from danlu.compress.calibrate import matrices
from danlu.compress.report import zeros
from danlu.model import Decoder, preset
from danlu.model.quantized import QuantLinear
from danlu.tokens.loader import Batch

PRESETS = ("gpt2-tiny", "llama-tiny", "deepseek-tiny")
N_TEXT = 50


@pytest.fixture(params=PRESETS)
def model(request: pytest.FixtureRequest) -> Decoder:
    torch.manual_seed(0)
    made = Decoder(preset(request.param, vocab_size=128))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return made


def batch(seed: int = 0) -> Batch:
    """Four rows of two documents and padding."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 128, (4, 64), generator=generator)
    lengths = (20, N_TEXT - 20, 64 - N_TEXT)
    documents = torch.cat([torch.full((n,), kind) for n, kind in zip(lengths, (0, 1, -1), strict=True)])
    positions = torch.cat(
        [torch.arange(lengths[0]), torch.arange(lengths[1]), torch.zeros(lengths[2], dtype=torch.long)]
    )
    return Batch(tokens, tokens, positions.expand(4, 64), documents.expand(4, 64).int(), 4 * N_TEXT)


def unchanged(site: Site) -> Tensor:
    return site.weight


def test_nothing_compressed_is_nothing_changed(model: Decoder) -> None:
    before = copy.deepcopy(model.state_dict())
    batches = [batch(0), batch(1)]
    told: list[int] = []
    states = walk(model, batches, unchanged, lambda: told.append(len(told)))
    assert len(told) == len(model.blocks)
    for given, got in zip(batches, states, strict=True):
        text = given.documents >= 0
        expected = model.hidden(given.tokens, given.positions, given.documents).states
        torch.testing.assert_close(got[text], expected[text])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_walk_ends_where_the_changed_model_ends(model: Decoder) -> None:
    given = batch()
    (states,) = walk(model, [given], lambda site: magnitude(site.weight, 0.5))
    torch.testing.assert_close(states, model.hidden(given.tokens, given.positions, given.documents).states)
    assert zeros(model) == pytest.approx(0.5, abs=1e-3)


def test_statistics_are_of_text_alone_and_of_every_matrix(model: Decoder) -> None:
    seen: dict[str, Site] = {}

    def remember(site: Site) -> Tensor:
        seen[site.name] = site
        return site.weight

    given = batch()
    walk(model, [given, given], remember)
    assert seen.keys() == matrices(model.blocks, "blocks").keys()
    routed = {name for name in seen if name.rsplit(".", 1)[-1].isdigit()}
    assert all(seen[name].inputs == 2 * 4 * N_TEXT for name in seen.keys() - routed)
    if routed:
        per_part = sum(seen[name].inputs for name in routed if ".down." in name)
        assert per_part == 2 * 4 * N_TEXT * model.config.top_k
    first = next(name for name in seen if name.startswith("blocks.0.attn"))
    normed = model.blocks[0].norm1(first_states(model, given))[given.documents >= 0]
    torch.testing.assert_close(seen[first].hessian, 2 * normed.T @ normed, atol=1e-3, rtol=1e-4)


def first_states(model: Decoder, given: Batch) -> Tensor:
    """What enters the first block."""
    states = model.embed.weight[given.tokens]
    return states + model.positions.weight[given.positions] if model.config.positions == "learned" else states


def test_an_experts_statistics_are_of_the_tokens_routed_to_it() -> None:
    torch.manual_seed(0)
    model = Decoder(preset("deepseek-tiny", vocab_size=128))
    moe, given, caught = model.blocks[1].ffn, batch(), []
    hook = moe.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    model.hidden(given.tokens, given.positions, given.documents)
    hook.remove()
    rows = caught[0][given.documents >= 0]
    _, chosen = moe.router(rows)
    seen: dict[str, Site] = {}
    walk(model, [given], lambda site: seen.setdefault(site.name, site).weight)
    for expert in range(model.config.n_experts):
        mine = rows[(chosen == expert).any(dim=1)]
        gate, up = (mine @ moe.gate_up[expert].T).chunk(2, dim=-1)
        inner = torch.nn.functional.silu(gate) * up
        for part, entered in (("gate_up", mine), ("down", inner)):
            hessian = seen[f"blocks.1.ffn.{part}.{expert}"].hessian
            torch.testing.assert_close(hessian, entered.T @ entered, atol=1e-4, rtol=1e-4)


def test_embeddings_norms_and_routers_stay_as_they_are(model: Decoder) -> None:
    before = copy.deepcopy(model.state_dict())
    walk(model, [batch()], lambda site: sparsegpt(site.weight, site.hessian, 0.5) if site.inputs else site.weight)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    kinds = {name.rsplit(".", 1)[0].rsplit(".", 1)[-1] if name.endswith("weight") else name for name in changed}
    assert not kinds & {"embed", "positions", "norm", "norm1", "norm2", "router", "q_norm", "kv_norm"}
    assert not any(name.endswith("bias") for name in changed)


def test_hooks_are_gone_afterwards(model: Decoder) -> None:
    walk(model, [batch()], unchanged)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_int8_weights_are_within_half_a_step_and_the_rest_is_untouched(model: Decoder) -> None:
    small = quantize(model)
    assert small.config.quantization == "int8"
    dense = dict(model.named_modules())
    quantized = {name: m for name, m in small.named_modules() if isinstance(m, QuantLinear)}
    assert len(quantized) == sum(type(m).__name__ == "Linear" for m in model.blocks.modules())
    for name, module in quantized.items():
        error = (module.dense(torch.float32) - dense[name].weight).abs()
        assert (error <= 0.5001 * module.scale[:, None]).all()
        assert (module.weight.abs().amax(dim=1) == 127).all()
    for name, value in small.state_dict().items():
        if name.rpartition(".")[0] not in quantized or name.endswith("bias"):
            assert torch.equal(value, model.state_dict()[name])


def test_int8_survives_the_disk(tmp_path) -> None:
    torch.manual_seed(0)
    model = Decoder(preset("llama-tiny", vocab_size=128))
    small = quantize(model)
    hub.save(small, tmp_path / "int8", None, card={"title": "int8"})
    loaded = hub.load(tmp_path / "int8")
    tokens = batch().tokens
    with torch.no_grad():
        assert torch.equal(loaded(tokens), small(tokens))
        assert (loaded(tokens) - model(tokens)).abs().max() < 0.05 * model(tokens).abs().max()


def test_layers_that_only_foresee_are_left_out() -> None:
    torch.manual_seed(0)
    dense = {"n_experts": 0, "top_k": 0, "n_shared_experts": 0, "n_dense_layers": 0}
    model = Decoder(preset("deepseek-tiny", vocab_size=128, n_mtp=1, **dense))
    small = quantize(model)
    assert small.config.n_mtp == 0
    assert not any(name.startswith("mtp.") for name in small.state_dict())
    with torch.no_grad():
        difference = (small(batch().tokens) - model(batch().tokens)).abs().max()
    assert difference < 0.05 * model(batch().tokens).abs().max()
