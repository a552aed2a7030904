"""The same models on a CPU and on a GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from workshop import make_model, make_stage, prompts, rankings, reward_dir, sft_dir, tokenizer

from danlu.model import Decoder, preset

__all__ = ["make_model", "make_stage", "prompts", "rankings", "reward_dir", "sft_dir", "tokenizer"]  # fixtures
VOCAB = 331  # no multiple of anything
SHAPES = {"gpt2": "gpt2-tiny", "llama": "llama-tiny", "deepseek": "deepseek-tiny"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU"))


def lively(name: str, vocab: int = VOCAB, head: str = "lm", seed: int = 7, **changes: object) -> Decoder:
    """A model in which nothing is left at its neutral first value."""
    torch.manual_seed(seed)
    model = Decoder(preset(SHAPES[name], vocab_size=vocab, **changes), head)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(torch.randn_like(tensor) * 0.08)
    return model


@pytest.fixture(params=list(SHAPES))
def shape(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make() -> Callable[..., Decoder]:
    return lively


@pytest.fixture
def pair(shape: str) -> tuple[Decoder, Decoder]:
    """One model on the CPU and its copy on the GPU."""
    model = lively(shape)
    return model, copy.deepcopy(model).cuda()
