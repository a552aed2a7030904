"""A model trained at T works at 4 T once its positions are stretched (YaRN, arXiv 2309.00071), and not without."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from danlu.model import Decoder, ModelConfig
from danlu.model.config import RopeScaling
from danlu.train.optim import build_optimizer
from danlu.train.pretrain import PretrainSettings

TRAINED, VOCAB, STEPS = 48, 16, 400
SHAPE = ModelConfig(
    vocab_size=VOCAB, n_layers=2, d_model=64, max_seq_len=4 * TRAINED, n_heads=2, n_kv_heads=2, head_dim=32, d_ff=128,
    rope_theta=1000.0,
)  # fmt: skip


class Language:
    """A token follows from the last and the third last, but for one in twenty."""

    def __init__(self) -> None:
        self.draw = torch.Generator().manual_seed(1)
        self.table = self._random(VOCAB, VOCAB)

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.randint(0, VOCAB, shape, generator=self.draw)

    def rows(self, n: int, length: int) -> torch.Tensor:
        tokens = [self._random(n) for _ in range(3)]
        while len(tokens) < length:
            odd = torch.rand(n, generator=self.draw) < 0.05
            tokens.append(torch.where(odd, self._random(n), self.table[tokens[-1], tokens[-3]]))
        return torch.stack(tokens, 1)


def loss_of_last_half(model: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    half = tokens.shape[1] // 2
    return F.cross_entropy(model(tokens[:, :-1])[:, half:].flatten(0, 1), tokens[:, half + 1 :].flatten())


def stretched(model: Decoder, scaling: RopeScaling | None) -> Decoder:
    other = Decoder(dataclasses.replace(model.config, rope_scaling=scaling))
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.slow
def test_yarn_reaches_four_times_as_far() -> None:
    torch.manual_seed(1)
    language, model = Language(), Decoder(SHAPE)
    optimizer = build_optimizer(model, PretrainSettings(optimizer="muon"))
    for step in range(STEPS):
        optimizer.zero_grad()
        tokens = language.rows(32, TRAINED)
        F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]
        optimizer.step(5e-3 * min(1.0, (STEPS - step) / 100))
    yarn = RopeScaling(kind="yarn", factor=4.0, original_len=TRAINED)
    with torch.no_grad():
        near, far = loss_of_last_half(model, language.rows(64, TRAINED)), language.rows(32, 4 * TRAINED)
        plain, reached = (loss_of_last_half(stretched(model, scaling), far) for scaling in (None, yarn))
    assert near < 0.6
    assert plain > 3 * near
    assert reached < 1.3 * near
