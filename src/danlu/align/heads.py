"""Several scalar heads on one trunk: what a reward model says, and how far its heads disagree about it.

In:  a language model whose trunk is taken over; seeds for the heads.
Out: a model to train (``with_heads``), the ordinary model with one head that it becomes (``with_mean_head``), and the
    heads on disk beside that (``write``, ``read``).
Left out: which comparisons teach which head (``lessons``), what is made of the disagreement (``rewards``).

A linear head's mean is a linear head: whoever loads the directory without danlu has the mean of all heads and needs to
know of nothing else. The heads themselves lie in a folder of their own, because some programs read every file of
tensors that lies beside the weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.align import scoring
from danlu.align.scoring import Sequences
from danlu.files import atomic_write
from danlu.model.decoder import Decoder
from danlu.model.heads import ScalarHead
from danlu.streams import stream_seed

FILE = Path("heads") / "heads.safetensors"


class TrainedHeads(nn.Module):
    """The heads while they are trained, in place of a model's scalar head.

    Args:
        weight: (H, D) first values.
        log_nu: logarithm of Davidson's tie parameter, or None if ties teach nothing.
        learnt: whether it is learnt with the weights.
    """

    log_nu: Tensor | None

    def __init__(self, weight: Tensor, log_nu: float | None = None, learnt: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        value = None if log_nu is None else torch.tensor(log_nu)
        if value is not None and learnt:
            self.register_parameter("log_nu", nn.Parameter(value))
        else:
            self.register_buffer("log_nu", value)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., H) fp32."""
        return F.linear(x.float(), self.weight.float())


@dataclass(frozen=True)
class Heads:
    """The heads of a finished reward model.

    Attributes:
        weight: (H, D).
        mean: (H,) each head's mean reward of the SFT model's samples. Comparisons do not say where a head's zero is,
            and where heads differ by a constant they agree.
    """

    weight: Tensor
    mean: Tensor

    def of(self, model: Decoder, answers: Sequences) -> Tensor:
        """(B, H) fp32 rewards of whole answers, each less its head's mean; ``model`` has the trunk."""
        return F.linear(scoring.last_states(model, answers).float(), self.weight) - self.mean

    def to(self, device: str) -> Self:
        """The same heads elsewhere."""
        return type(self)(self.weight.to(device), self.mean.to(device))


def with_scalar_head(model: Decoder, seed: int) -> Decoder:
    """A reward model with a copy of the trunk and a fresh head, normal with variance 1 / (d + 1) (N+ details)."""
    scored = Decoder(model.config, head="scalar")
    trunk = {name: tensor for name, tensor in model.state_dict().items() if name in scored.state_dict()}
    scored.load_state_dict(trunk | {"score.weight": _fresh(model.config.d_model, seed)})
    return scored


def with_heads(model: Decoder, seed: int, heads: int, log_nu: float | None = None, learnt: bool = False) -> Decoder:
    """``with_scalar_head`` for training: ``values`` gives (B, T, H), from as many fresh heads as are wanted."""
    scored = with_scalar_head(model, seed)
    others = [_fresh(model.config.d_model, stream_seed(seed, head)) for head in range(1, heads)]
    weight = torch.cat([scored.score.weight.detach(), *others])
    scored.score = TrainedHeads(weight, log_nu, learnt)  # type: ignore[assignment]  # values() reads what it gives
    return scored


def with_mean_head(model: Decoder) -> Tensor:
    """Make the mean of a trained model's heads its only head, in place; returns the heads, (H, D)."""
    weight = model.score.weight.detach()
    mean = ScalarHead(weight.shape[1]).to(weight.device)
    with torch.no_grad():
        mean.weight.copy_(weight.mean(0, keepdim=True))
    model.score = mean
    return weight


def write(heads: Heads, folder: Path) -> None:
    """Put the heads into a model directory."""
    with atomic_write(folder / FILE, "wb") as handle:
        handle.write(safetensors.torch.save({"weight": heads.weight.cpu(), "mean": heads.mean.cpu()}))


def read(folder: Path) -> Heads | None:
    """The heads of a model directory; None if its model was trained with one."""
    if not (folder / FILE).is_file():
        return None
    tensors = safetensors.torch.load_file(folder / FILE)
    return Heads(tensors["weight"], tensors["mean"])


def _fresh(d_model: int, seed: int) -> Tensor:
    """(1, D) first values of a head."""
    return torch.randn(1, d_model, generator=torch.Generator().manual_seed(seed)) / math.sqrt(d_model + 1)
