"""A block is one graph, and all blocks of one shape are the same one: nothing breaks it, nothing compiles it again."""

import copy

import pytest
import torch

from danlu.model import Decoder, preset
from danlu.train.compiled import compile_blocks
from danlu.train.task import LoopSettings


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(("shape", "graphs"), [("gpt2-tiny", 1), ("llama-tiny", 1), ("deepseek-tiny", 2)])
def test_blocks_are_whole_graphs_compiled_once(shape, graphs):
    torch.manual_seed(0)
    model = Decoder(preset(shape, vocab_size=64, n_layers=3)).compute_in(torch.bfloat16)
    plain, names = copy.deepcopy(model), list(model.state_dict())
    for block in model.blocks:
        block.compile(fullgraph=True, backend="eager")  # as compile_blocks does; what is tested is the tracing
    for step in range(3):
        tokens, documents = (
            torch.randint(64, (2, 16)),
            torch.arange(16).div(5 + step, rounding_mode="floor").repeat(2, 1),
        )
        states = model.hidden(tokens, documents=documents).states
        torch.testing.assert_close(states, plain.hidden(tokens, documents=documents).states, atol=5e-2, rtol=5e-2)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs  # a dense block and a mixture are two
    assert not torch._dynamo.utils.counters["graph_break"]
    assert list(model.state_dict()) == names
    assert all(
        block._compiled_call_impl is None for block in copy.deepcopy(model).blocks
    )  # a generator's copy is plain


def test_what_is_compiled_and_why_not():
    model = Decoder(preset("llama-tiny", vocab_size=64))
    assert compile_blocks(model, LoopSettings(compile="no"), "cuda") == "not compiled (asked for)"
    assert compile_blocks(model, LoopSettings(), "cpu") == "not compiled (there is no GPU with Triton)"
    assert all(block._compiled_call_impl is None for block in model.blocks)
    assert compile_blocks(model, LoopSettings(compile="yes"), "cpu") == "compiled"
    assert all(block._compiled_call_impl is not None for block in model.blocks)
