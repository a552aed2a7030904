"""Borders of documents say what the written-out mask says."""

from __future__ import annotations

import torch

from danlu.model.attention import SHARED, Mask, attend_reference, causal_mask
from danlu.model.packed import allowed, borders, fits

DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 2], [0, 0, 0, 0, -1, -1], [0, 0, 0, 0, 0, 0]], dtype=torch.int32)
CPU = torch.device("cpu")


def test_borders_are_counted_over_all_rows() -> None:
    assert borders(DOCUMENTS).tolist() == [0, 3, 5, 6, 10, 12, 18]
    assert borders(DOCUMENTS).dtype == torch.int32


def test_borders_and_the_written_mask_allow_the_same() -> None:
    written = causal_mask(6, DOCUMENTS, torch.float32, CPU).bias
    assert written is not None
    assert torch.equal(allowed(borders(DOCUMENTS), 6), written == 0)


def test_the_reference_reads_either() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, 6, 4) for _ in range(3))
    written = attend_reference(q, k, v, scale=0.5, mask=causal_mask(6, DOCUMENTS, torch.float32, CPU))
    packed = attend_reference(q, k, v, scale=0.5, mask=Mask(None, borders(DOCUMENTS)))
    assert torch.equal(written, packed)


def test_which_mask_a_model_with_the_kernel_gets() -> None:
    packed = causal_mask(6, DOCUMENTS, torch.bfloat16, CPU, kernel=True)
    assert packed.bias is None
    assert packed.borders is not None
    assert causal_mask(6, DOCUMENTS[2:], torch.bfloat16, CPU, kernel=True) == Mask(None)  # rows of one document
    shared = DOCUMENTS.masked_fill(DOCUMENTS == 0, SHARED)
    for documents, window in ((shared, 0), (DOCUMENTS, 2)):
        mask = causal_mask(6, documents, torch.bfloat16, CPU, window, kernel=True)
        assert mask.borders is None
        assert mask.bias is not None


def test_the_kernel_is_for_bf16_on_gpus_and_for_heads_it_knows() -> None:
    gpu = torch.device("cuda")
    assert fits(gpu, torch.bfloat16, 64)
    assert not fits(CPU, torch.bfloat16, 64)
    assert not fits(gpu, torch.float32, 64)
    assert not fits(gpu, torch.bfloat16, 60)
    assert not fits(gpu, torch.bfloat16, 264)
