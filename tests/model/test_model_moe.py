"""Routing and experts: back ends agree, the router chooses with its bias and weighs without it, the bias balances."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from danlu.model import Decoder, preset
from danlu.model.moe import Router, expert_counts, expert_ffn, mix_in_one_pass

E, D, I = 8, 16, 24  # noqa: E741
ROUTINGS = {
    "spread": lambda: torch.rand(20, E).argsort(-1)[:, :3],
    "empty experts": lambda: torch.rand(20, 4).argsort(-1)[:, :3] * 2,
    "all to one": lambda: torch.full((20, 1), 5),
    "one token": lambda: torch.tensor([[3, 0]]),
}


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("backend", ["grouped", "gather"])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_back_ends_equal_the_loop(routing: str, backend: str, activation: str) -> None:
    torch.manual_seed(0)
    chosen = ROUTINGS[routing]()
    leaves = [torch.randn(chosen.shape[0], D), torch.rand(chosen.shape), torch.randn(E, 2 * I, D), torch.randn(E, D, I)]
    direction = torch.randn(chosen.shape[0], D)
    results: list[list[Tensor]] = []
    for name in ("loop", backend):
        x, weights, gate_up, down = (leaf.clone().requires_grad_() for leaf in leaves)
        out = expert_ffn(x, chosen, weights, gate_up, down, backend=name, activation=activation)
        results.append([out, *torch.autograd.grad(out, (x, weights, gate_up, down), direction)])
    for expected, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-4)


def test_grouped_takes_a_gradient_without_strides() -> None:
    x = torch.randn(6, D, requires_grad=True)
    chosen, weights = torch.rand(6, E).argsort(-1)[:, :2], torch.rand(6, 2)
    expert_ffn(x, chosen, weights, torch.randn(E, 2 * I, D), torch.randn(E, D, I), backend="grouped").sum().backward()
    assert x.grad is not None


def test_mixing_in_one_pass_is_the_weighted_sum() -> None:
    torch.manual_seed(0)
    parts, weights = torch.randn(5, 3, 7), torch.rand(5, 3)
    torch.testing.assert_close(mix_in_one_pass(parts, weights), torch.einsum("nkd,nk->nd", parts, weights))
    assert mix_in_one_pass(parts.bfloat16(), weights).dtype == torch.bfloat16


def router(**changes: object) -> Router:
    torch.manual_seed(3)
    made = Router(preset("deepseek-tiny", vocab_size=32, **changes))
    torch.nn.init.normal_(made.weight)
    return made


def test_bias_chooses_and_does_not_weigh() -> None:
    made = router(router_groups=1, norm_topk=False)
    made.bias[6] = 10.0
    x = torch.randn(5, 64)
    weights, chosen = made(x)
    assert (chosen == 6).any(-1).all()
    torch.testing.assert_close(weights, (x @ made.weight.t()).sigmoid().gather(1, chosen))


def test_dropped_groups_stay_out_when_scores_are_negative() -> None:
    made = router(router_groups=4, router_groups_kept=1, top_k=2)
    made.bias.fill_(-5.0)
    _, chosen = made(torch.randn(50, 64))
    groups = chosen // 2
    assert (groups[:, 0] == groups[:, 1]).all()


def test_weights_are_normalised_and_scaled() -> None:
    weights, _ = router(routed_scale=2.5)(torch.randn(7, 64))
    torch.testing.assert_close(weights.sum(-1), torch.full((7,), 2.5))


def test_bias_stays_exact_when_the_model_is_rounded() -> None:
    model = Decoder(preset("deepseek-tiny", vocab_size=32))
    bias = model.get_submodule("blocks.1.ffn.router").bias
    bias.fill_(1.001)
    model.to(torch.bfloat16)
    kept = model.get_submodule("blocks.1.ffn.router").bias
    assert kept.dtype == torch.float32
    assert (kept == bias).all()
    assert model.get_submodule("blocks.1.ffn.router").weight.dtype == torch.bfloat16


def test_counts_add_up_per_layer() -> None:
    model = Decoder(preset("deepseek-tiny", vocab_size=32, n_layers=3))
    counts = model.hidden(torch.randint(0, 32, (2, 10))).counts
    assert counts is not None
    assert counts.shape == (2, 8)  # the first layer is dense
    assert (counts.sum(-1) == 2 * 10 * 2).all()
    assert (expert_counts(torch.tensor([[1, 2], [2, 0]]), 4) == torch.tensor([1, 1, 2, 0])).all()


def test_bias_moves_against_load() -> None:
    model = Decoder(preset("deepseek-tiny", vocab_size=32))
    counts = torch.tensor([[9, 1, 4, 4, 4, 4, 4, 2]])
    model.update_router_bias(counts, 0.1)
    bias = model.get_submodule("blocks.1.ffn.router").bias
    torch.testing.assert_close(bias, torch.tensor([-0.1, 0.1, 0, 0, 0, 0, 0, 0.1]))
    still = Decoder(preset("deepseek-tiny", vocab_size=32, balance="none"))
    still.update_router_bias(counts, 0.1)
    assert not still.get_submodule("blocks.1.ffn.router").bias.any()


def test_balancing_evens_out_the_load() -> None:
    torch.manual_seed(0)
    model = Decoder(preset("deepseek-tiny", vocab_size=32, router_groups=1, init_std=0.2))
    tokens = torch.randint(0, 32, (8, 32))
    loads = []
    for _ in range(150):
        with torch.no_grad():
            counts = model.hidden(tokens).counts
        assert counts is not None
        loads.append((counts.max() / counts.float().mean()).item())
        model.update_router_bias(counts, 0.005)
    assert loads[-1] < 1 + (loads[0] - 1) / 2
