"""The mean of a policy's weights over its past: what is looked at and kept, while the policy itself goes on learning.

In:  a model in training, and what share of its past a mean keeps at every update.
Out: ``WeightMean``: the exponential mean, which can take the model's place for a while, and its tensors.
Left out: what an update is (``learner``), when the mean is looked at (``practice``).

InstructGPT's released models are such means, with 0.992 (arXiv 2203.02155, appendix C). The mean begins at the weights
that the model has, which for a policy are those it sets out from, the SFT model's or the champion's: it follows late,
and stays nearer to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightMean:
    """``mean <- decay mean + (1 - decay) weight`` of every weight that is trained.

    Args:
        model: in training; its weights now are the first mean.
        decay: between 0 and 1; over about 1 / (1 - decay) updates the past fades.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._mean = {name: weight.detach().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the weights as they are now."""
        for name, weight in self._weights.items():
            self._mean[name].lerp_(weight, 1.0 - self._decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the mean for weights; afterwards its own again, to the bit."""
        own = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._put(self._mean)
        try:
            yield
        finally:
            self._put(own)

    def tensors(self) -> dict[str, Tensor]:
        """The mean by the names of the weights."""
        return dict(self._mean)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of ``tensors``."""
        for name, mean in self._mean.items():
            mean.copy_(tensors[name])

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, weight in self._weights.items():
            weight.copy_(values[name])
