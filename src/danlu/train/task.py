"""What a stage gives to the training loop: batches, a pure loss, an evaluation; and the loop's settings.

In:  nothing; these are the types that the stages fill in.
Out: ``LoopSettings``, ``Task``, ``LossOutput``.
Left out: how steps are taken (``loop``); what is learned (``pretrain``, ``sft`` and the reward model of ``align``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from danlu.device import ComputeSettings
from danlu.errors import UserError
from danlu.model.decoder import Decoder
from danlu.train.checkpoint import KEEP
from danlu.train.parallel import ALONE, World


class LoopSettings(ComputeSettings):
    """Settings that every stage with gradient steps shares."""

    steps: int = Field(default=1000, ge=1)
    """Optimizer steps."""
    batch_size: int = Field(default=32, ge=1)
    """Sequences per optimizer step, over all processes."""
    micro_batch: int = Field(default=0, ge=0)
    """Sequences per forward pass; 0 takes the whole batch at once. Changes memory, not the result."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate, of AdamW's size for either optimizer."""
    warmup: int = Field(default=50, ge=0)
    """Steps of linear warm-up, at most half of all steps."""
    schedule: Literal["cosine", "wsd", "linear"] = "cosine"
    """After warm-up: half a cosine; stable then a linear decay (wsd); or linear all the way."""
    decay_share: float = Field(default=0.2, gt=0, le=1)
    """Share of the steps that schedule wsd spends on the decay."""
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    """Learning rate of the last step, as a share of the peak."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw for everything, or muon for the hidden matrices and adamw for the rest."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay of matrices; embeddings, norms and biases are not decayed."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's decay of the first moment."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """AdamW's decay of the second moment."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the whole gradient; a longer one is scaled down."""
    router_rate: float = Field(default=0.001, ge=0)
    """How far an expert's selection bias moves per step towards equal load (mixture of experts only)."""
    compile: Literal["auto", "yes", "no"] = "auto"
    """Whether torch compiles the blocks; auto does on a GPU with Triton, if the model is large enough, or
    the steps are many enough, to win back the time."""
    eval_every: int = Field(default=200, ge=1)
    """Steps between evaluations on held-out data; the last step is always followed by one."""
    save_every: int = Field(default=200, ge=1)
    """Steps between checkpoints: what a power cut can cost."""
    checkpoints: int = Field(default=KEEP, ge=1)
    """Newest checkpoints that are kept; more of them let the path be looked at afterwards."""
    log_every: int = Field(default=10, ge=1)
    """Steps between lines of metrics.jsonl."""
    max_skips: int = Field(default=5, ge=1)
    """Steps in a row with a loss or gradient that is not finite, after which training stops."""

    def rows(self, world: World = ALONE) -> int:
        """Rows of a forward pass: ``micro_batch``, and no more than leaves each process some of the batch.

        One process takes what is set. Sums over rows do not depend on how these are cut.
        """
        wanted = self.micro_batch or self.batch_size
        return wanted if world.size == 1 else min(wanted, max(1, self.batch_size // world.size))

    def check_processes(self, world: World, stage: str) -> None:
        """Refuse, before anything is made, more processes than can share a step, or the GPUs of this machine.

        Args:
            world: the processes.
            stage: the section's name, for errors.

        Raises:
            UserError: there are fewer rows in a batch than processes, or fewer GPUs.
        """
        world.check_device(self.machine().kind)
        if self.batch_size < world.size:
            raise UserError(
                f"{stage}.batch_size is {self.batch_size} and {world.size} processes cannot share that; start at most "
                f"{self.batch_size}, or make it larger"
            )


@dataclass(frozen=True)
class LossOutput:
    """The loss of one micro-batch, as sums, so that splitting a batch changes nothing.

    Attributes:
        loss_sum: () differentiable; summed over ``n`` items.
        n: what to divide by, once per optimizer step over all micro-batches and processes: targets of a language
            model (as often as they count), comparisons of a reward model.
        tokens: non-padding tokens read.
        counts: (L, E) how often each expert was chosen, or None for a dense model.
        sums: further figures summed over the ``n`` items, logged as means.
    """

    loss_sum: Tensor
    n: int
    tokens: int
    counts: Tensor | None = None
    sums: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """One thing to learn.

    Attributes:
        batches: optimizer step, from 0 -> the micro-batches of that step (this process's share of them). A pure
            function, so that a resumed run reads what the interrupted one would have read.
        loss: the loss of one micro-batch.
        evaluate: figures on held-out data, called without gradient; must not change the model.
        sample: a text to show how far the model is, or None.
        flops_per_token: forward and backward, by the PaLM convention; 0 if not known.
    """

    batches: Callable[[int], Sequence[Any]]
    loss: Callable[[Decoder, Any], LossOutput]
    evaluate: Callable[[Decoder], dict[str, float]]
    sample: Callable[[Decoder], str] | None = None
    flops_per_token: float = 0.0

    def shared(self, world: World, stage: str) -> Task:
        """The same task, of whose micro-batches this process has its share, where ``batches`` knows of no processes.

        Args:
            world: the processes.
            stage: its name, for errors.
        """
        if world.size == 1:
            return self

        def share(step: int) -> Sequence[Any]:
            every = self.batches(step)
            if len(every) < world.size:
                raise UserError(
                    f"{stage}: {world.size} processes cannot share the {len(every)} micro-batches of a step; start "
                    f"fewer processes, or make {stage}.batch_size larger"
                )
            return world.deal(every)

        return replace(self, batches=share)
