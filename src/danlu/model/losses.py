"""Losses that read the output matrix in chunks, so that the logits of a whole batch never exist.

In:  hidden states (N, D), output weight (V, D), targets (N,).
Out: summed cross entropy, or log-probabilities (and entropies) of single tokens; differentiable in states and weight.
Left out: what is made of them (``train``, ``align``).

Products run in the dtype of the states; soft-max and sums in fp32. On a GPU what stands between two products is one
kernel: eight passes over fp32 logits took as long as the products themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.model.fused import fused
from danlu.model.rows import Learnt

IGNORE = -100
_BLOCK = 1024  # on a GPU the matrix is filled up to so many rows or a multiple: odd numbers of columns multiply slowly
_NEVER = -1e30  # logit of a column that is only there to fill up; -inf minus -inf would be no number


def cross_entropy_reference(
    states: Tensor, weight: Tensor, targets: Tensor, counts: Tensor | None = None, ignore_index: int = IGNORE
) -> tuple[Tensor, Tensor]:
    """``linear_cross_entropy`` with all the logits at once."""
    logits = F.linear(states, weight.to(states.dtype)).float()
    losses = F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction="none")
    counts = _counts(targets, counts, ignore_index)
    return (losses * counts).sum(), counts.sum()


def logprobs_reference(
    states: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """``linear_logprobs_entropy`` with all the logits at once."""
    logp = (F.linear(states, weight.to(states.dtype)).float() / temperature).log_softmax(-1)
    return logp.gather(1, targets.unsqueeze(1)).squeeze(1), -(logp.exp() * logp).sum(-1)


def linear_cross_entropy(
    states: Tensor, weight: Tensor, targets: Tensor, *, counts: Tensor | None = None, chunk: int | None = None,
    ignore_index: int = IGNORE, learnt: Learnt | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Summed cross entropy of ``states @ weight.T`` against ``targets``.

    Gradients are computed in the forward, chunk by chunk, while the logits are at hand (as Liger-Kernel does).

    Args:
        states: (N, D).
        weight: (V, D), usually fp32.
        targets: (N,) ids.
        counts: (N,) int64, how many times each target counts; once by default.
        chunk: rows at a time; by default what suits the vocabulary and the device.
        ignore_index: targets that do not count.
        learnt: rows in place of the weight's, which is frozen then; they alone get a gradient.

    Returns:
        The sum of the losses (fp32 scalar) and how many targets counted (int64 scalar).
    """
    grad = torch.is_grad_enabled()
    rows = chunk or chunk_rows(weight, len(states), 2**30 if grad else 2**28)
    counts = _counts(targets, counts, ignore_index)
    ids, own = learnt or (None, None)
    loss: Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
        states, weight, targets, counts, rows, grad, ids, own
    )
    return loss, counts.sum()


def linear_logprobs(
    states: Tensor, weight: Tensor, targets: Tensor, *, temperature: float = 1.0, chunk: int | None = None
) -> Tensor:
    """Log-probability of every target under ``softmax(states @ weight.T / temperature)``; (N,) fp32.

    Args:
        states: (N, D).
        weight: (V, D).
        targets: (N,) ids, all of them valid.
        temperature: divides the logits.
        chunk: rows at a time.
    """
    return _logprobs(states, weight, targets, temperature, chunk, entropy=False)[0]


def linear_logprobs_entropy(
    states: Tensor, weight: Tensor, targets: Tensor, *, temperature: float = 1.0, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """``linear_logprobs`` and the entropy of every distribution, in nats: two (N,) fp32, both differentiable."""
    return _logprobs(states, weight, targets, temperature, chunk, entropy=True)


def _logprobs(
    states: Tensor, weight: Tensor, targets: Tensor, temperature: float, chunk: int | None, entropy: bool
) -> tuple[Tensor, Tensor]:
    rows = chunk or chunk_rows(weight, len(states), 2**28)
    out: tuple[Tensor, Tensor] = _LogProbs.apply(  # type: ignore[no-untyped-call]
        states, weight, targets, temperature, rows, entropy
    )
    return out


def chunk_rows(weight: Tensor, n: int, logits: int) -> int:
    """Rows at a time, of ``n``: few enough for the caches of a CPU, enough for its matrix products.

    On a GPU as many as give that many ``logits``, nearly the same number every time: kernels are made for a size.
    """
    if not weight.is_cuda:
        return max(512, 2**22 // weight.shape[0])
    parts = -(-n // max(1024, logits // weight.shape[0]))
    return -(-n // parts) if n else 1


def _counts(targets: Tensor, counts: Tensor | None, ignore_index: int) -> Tensor:
    """(N,) int64 how many times each target counts: 0 where it is to be ignored."""
    valid = (targets != ignore_index).long()
    return valid if counts is None else valid * counts


def _chunks(n: int, rows: int) -> Iterator[slice]:
    return (slice(start, min(start + rows, n)) for start in range(0, n, rows))


@fused
def loss_and_slopes(logits: Tensor, index: Tensor, times: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Summed cross entropy of a chunk and its gradient with respect to the logits, ``(p - onehot) * times``.

    The sum of a row is that of its blocks: a kernel holds a block of logits in registers, and would read a whole row
    from memory twice and slowly.

    Args:
        logits: (C, V or more) of any float dtype; a multiple of 1024 columns.
        index: (C, 1) targets.
        times: (C, 1) how many times each counts.
        size: V; columns from there on only fill up the matrix.

    Returns:
        () fp32, and (C, V or more) in the dtype of the logits.
    """
    columns = torch.arange(logits.shape[1], device=logits.device)
    wide = logits.float()
    if size < logits.shape[1]:
        wide = wide.where(columns < size, _NEVER)
    blocks = wide.view(len(wide), -1, _BLOCK)  # C, blocks, 1024
    highest = blocks.amax(-1, keepdim=True)
    sums = highest.squeeze(-1) + (blocks - highest).exp().sum(-1).log()  # C, blocks
    whole = sums.logsumexp(-1, keepdim=True)  # C, 1
    lost = whole - logits.gather(1, index).float()
    slopes = ((wide - whole).exp() - (columns == index).float()) * times
    return (lost * times).where(times > 0, 0).sum(), slopes.to(logits.dtype)


def _loss_and_slopes_in_place(
    logits: Tensor, index: Tensor, times: Tensor, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """The same without a compiler: one buffer is log-probabilities, then probabilities, then slopes, in fp32."""
    logp = logits.float().log_softmax(-1)  # C, V
    loss = -(logp.gather(1, index) * times).where(times > 0, 0).sum()
    if not wanted:
        return loss, None
    p = logp.exp_()
    p.scatter_add_(1, index, p.new_full((), -1.0).expand_as(index))
    return loss, p.mul_(times)


class _Gradients:
    """Gradients of states and weight, filled chunk by chunk; either may not be wanted.

    Attributes:
        matrix: (V or more, D), the weight in the dtype of the states; rows of zeros below it if ``aligned``.
        weight: (V, D) its gradient; if only some rows are ``learnt``, theirs (k, D).
    """

    def __init__(
        self, states: Tensor, weight: Tensor, wanted: tuple[bool, bool], aligned: bool = False,
        learnt: Learnt | None = None,
    ) -> None:  # fmt: skip
        matrix = weight.to(states.dtype) if learnt is None else learnt.put_into(weight, states.dtype)
        self.matrix = F.pad(matrix, (0, 0, 0, -len(weight) % _BLOCK)) if aligned else matrix
        self.states = torch.empty_like(states) if wanted[0] else None
        trained = weight if learnt is None else learnt.rows
        self.weight = torch.zeros_like(trained, dtype=torch.float32) if wanted[1] else None
        self._ids = None if learnt is None else learnt.ids

    def add(self, rows: slice, states: Tensor, dlogits: Tensor) -> None:
        """Take in d loss / d logits (C, V or more) of the given rows."""
        dlogits = dlogits.to(states.dtype)
        if self.states is not None:
            torch.mm(dlogits, self.matrix, out=self.states[rows])
        if self._ids is not None:
            dlogits = dlogits[:, self._ids]
        if self.weight is not None and states.dtype == torch.float32:
            self.weight.addmm_(dlogits[:, : len(self.weight)].t(), states)
        elif self.weight is not None:
            self.weight += (dlogits.t() @ states)[: len(self.weight)]


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, targets: Tensor, counts: Tensor, rows: int, grad: bool,
        ids: Tensor | None, own: Tensor | None,
    ) -> Tensor:  # fmt: skip
        learnt = None if ids is None or own is None else Learnt(ids, own)
        wanted = (grad and ctx.needs_input_grad[0], grad and ctx.needs_input_grad[1 if learnt is None else 7])
        fuse = states.is_cuda and any(wanted)
        gradients = _Gradients(states, weight, wanted, aligned=fuse, learnt=learnt)
        loss = states.new_zeros((), dtype=torch.float32)
        for part in _chunks(states.shape[0], rows):
            x, times = states[part], counts[part].unsqueeze(1)  # C, 1
            index = targets[part].unsqueeze(1).where(times > 0, 0)
            logits = F.linear(x, gradients.matrix)  # C, V or more
            lost, slopes = (
                loss_and_slopes(logits, index, times, len(weight))
                if fuse
                else _loss_and_slopes_in_place(logits, index, times, any(wanted))
            )
            loss += lost
            if slopes is not None:
                gradients.add(part, x, slopes)
        ctx.partly, ctx.dtype = learnt is not None, (weight if learnt is None else learnt.rows).dtype
        ctx.save_for_backward(gradients.states, gradients.weight)
        return loss

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        dstates, dweight = ctx.saved_tensors
        trained = None if dweight is None else (dweight * dloss).to(ctx.dtype)
        return (
            None if dstates is None else dstates * dloss.to(dstates.dtype),
            None if ctx.partly else trained,
            *[None] * 5,
            trained if ctx.partly else None,
        )


class _LogProbs(torch.autograd.Function):
    """Nothing of size V is kept: the backward makes each chunk's logits again."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, targets: Tensor, temperature: float, rows: int, entropy: bool
    ) -> tuple[Tensor, Tensor]:
        matrix = weight.to(states.dtype)
        chosen = states.new_empty(states.shape[0], dtype=torch.float32)
        entropies = torch.zeros_like(chosen)
        for part in _chunks(states.shape[0], rows):
            logp = F.linear(states[part], matrix).float().div_(temperature).log_softmax(-1)
            chosen[part] = logp.gather(1, targets[part].unsqueeze(1)).squeeze(1)
            if entropy:
                entropies[part] = -(logp.exp() * logp).sum(-1)
        ctx.save_for_backward(states, weight, targets, entropies)
        ctx.temperature, ctx.rows, ctx.entropy = temperature, rows, entropy
        return chosen, entropies

    @staticmethod
    def backward(ctx: Any, dchosen: Tensor, dentropy: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, targets, entropies = ctx.saved_tensors
        gradients = _Gradients(states, weight, ctx.needs_input_grad[:2])
        for part in _chunks(states.shape[0], ctx.rows):
            x, g = states[part], dchosen[part].unsqueeze(1)
            logp = F.linear(x, gradients.matrix).float().div_(ctx.temperature).log_softmax(-1)
            p = logp.exp()
            slope = g
            if ctx.entropy:  # dH/dlogits = -p (log p + H)
                slope = g + (logp + entropies[part].unsqueeze(1)) * dentropy[part].unsqueeze(1)
            dlogits = p.mul_(-slope).scatter_add_(1, targets[part].unsqueeze(1), g)
            gradients.add(part, x, dlogits.div_(ctx.temperature))
        dweight = None if gradients.weight is None else gradients.weight.to(weight.dtype)
        return gradients.states, dweight, *[None] * 4
