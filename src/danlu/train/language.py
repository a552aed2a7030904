"""Learning to foresee the next token, for pre-training and instruction tuning alike.

In:  token shards of training and held-out text.
Out: the pure loss, its evaluation (nats per token, bits per byte), a ``Task`` for the loop.
Left out: which shards (``pretrain``, ``sft``); how steps are taken (``loop``).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from pydantic import Field
from torch import Tensor, nn

from danlu.device import send
from danlu.errors import UserError
from danlu.infer.generate import Generator
from danlu.infer.sampler import Sampling
from danlu.model.count import flops_per_token
from danlu.model.decoder import Decoder
from danlu.model.losses import linear_cross_entropy
from danlu.model.rows import Table
from danlu.streams import stream_seed
from danlu.tokens.loader import IGNORE, Batch, Loader, one_pass
from danlu.tokens.pack import PackIndex, pack
from danlu.tokens.shards import Shards
from danlu.tokens.tokenizer import Tokenizer
from danlu.train.emphasis import Count, Emphasis, counter
from danlu.train.parallel import World
from danlu.train.task import LoopSettings, LossOutput, Task

_SAMPLE_TOKENS = 48


class LanguageSettings(LoopSettings):
    """Settings of stages that learn to foresee the next token."""

    seq_len: int = Field(default=256, ge=8)
    """Tokens in a row; several documents share one and cannot see each other."""
    packing: str = "bestfit"
    """bestfit keeps documents whole where they fit, stream cuts them wherever a row ends."""
    emphasis: Emphasis = Emphasis()
    """What counts more than once in the training loss, and in what is logged of it; held-out loss is plain."""
    mtp_weight: float = Field(default=0.3, ge=0)
    """Weight of the loss of tokens beyond the next, in a model that foresees some (n_mtp); held-out loss is plain."""
    eval_batches: int = Field(default=8, ge=0)
    """Held-out batches read at an evaluation during training; 0 reads all, as the one after the last step does."""

    def check_processes(self, world: World, stage: str) -> None:
        """Refuse, before anything is made, a batch that cannot be cut into equal parts; see ``LoopSettings``."""
        super().check_processes(world, stage)
        rows = self.batch_size
        if rows % world.size:
            fits = [n for n in range(1, rows + 1) if rows % n == 0]
            fewer, more = max(n for n in fits if n < world.size), min(n for n in fits if n > world.size)
            raise UserError(
                f"{stage}.batch_size is {rows}, which {world.size} processes cannot share evenly; start {fewer} or "
                f"{more}, or make it a multiple of {world.size}"
            )


@dataclass(frozen=True)
class Text:
    """Tokens laid out in rows.

    Attributes:
        shards: the tokens.
        pack: the rows.
    """

    shards: Shards
    pack: PackIndex

    @staticmethod
    def lay_out(shards: Shards, settings: LanguageSettings, seed: int) -> Text:
        """Pack the shards into rows of ``seq_len``."""
        return Text(shards, pack(shards, settings.seq_len, settings.packing, stream_seed(seed, "pack")))


def next_token_loss(model: Decoder, batch: Batch, count: Count | None = None, mtp_weight: float = 0.0) -> LossOutput:
    """Cross entropy in nats, summed over the batch's targets; the logits as a whole never exist.

    Only positions with a target reach the head, which for a chat is the assistant's part.

    Args:
        model: the model.
        batch: what it reads.
        count: tells how many times each target counts; once by default.
        mtp_weight: of the mean loss of the depths that foresee further tokens (DeepSeek-V3, equation 25), of a model
            that has such; their part is also told as ``mtp_loss``.
    """
    head = model.output_table
    tokens, positions = (send(x, head.weight.device) for x in (batch.tokens, batch.positions))
    documents = batch.documents  # they stay where they are: borders are found there
    hidden = model.hidden(tokens, positions, documents)
    loss_sum, n = _summed_loss(hidden.states, head, batch.targets, count)
    if not mtp_weight or not model.config.n_mtp:
        return LossOutput(loss_sum, n, batch.n_tokens, hidden.counts)
    further, counts = loss_sum.new_zeros(()), [hidden.counts]
    for depth, foreseen in enumerate(model.foresee(hidden.states, tokens, positions, documents), 1):
        crossing = batch.documents[:, depth:] != batch.documents[:, :-depth]
        targets = batch.targets[:, depth:].masked_fill(crossing, IGNORE)
        further = further + _summed_loss(foreseen.states, head, targets, count)[0]
        counts.append(foreseen.counts)
    further = further / model.config.n_mtp
    routed = [c for c in counts if c is not None]
    told = {"mtp_loss": float(further.detach())}
    return LossOutput(loss_sum + mtp_weight * further, n, batch.n_tokens, torch.cat(routed) if routed else None, told)


def _summed_loss(
    states: Tensor, head: nn.Embedding | nn.Linear | Table, targets: Tensor, count: Count | None
) -> tuple[Tensor, int]:  # fmt: skip
    """Loss of the states (B, T, D) of those places that have a target, and how many these are, each ``count`` times."""
    weight, rows = head.weight, head.learnt if isinstance(head, Table) else None
    learnt = (targets != IGNORE).flatten().nonzero().squeeze(1)  # N
    flat = states.flatten(0, 1)  # B*T, D
    if len(learnt) < len(flat):
        flat = flat.index_select(0, send(learnt, weight.device))  # N, D
    times = torch.ones_like(learnt) if count is None else count(targets).flatten()[learnt]  # N
    wanted = send(targets.flatten()[learnt], weight.device)
    loss_sum, _ = linear_cross_entropy(flat, weight, wanted, counts=send(times, weight.device), learnt=rows)
    return loss_sum, int(times.sum())


def split_rows(batch: Batch, rows: int) -> list[Batch]:
    """Cut a batch into micro-batches of so many rows; 0 leaves it whole."""
    size = len(batch.tokens)
    cuts = [slice(start, start + rows) for start in range(0, size, rows)] if 0 < rows < size else [slice(size)]
    return [
        replace(
            batch, tokens=batch.tokens[cut], targets=batch.targets[cut], positions=batch.positions[cut],
            documents=batch.documents[cut], n_tokens=int((batch.documents[cut] >= 0).sum()),
        )
        for cut in cuts
    ]  # fmt: skip


@torch.no_grad()
def evaluate_text(model: Decoder, text: Text, batch_size: int, batches: int = 0) -> dict[str, float]:
    """Held-out loss per token that counts, and bits per UTF-8 byte of the text that counts.

    Args:
        model: the model.
        text: held-out text.
        batch_size: rows at a time.
        batches: read only so many, and take the mean as that of the whole; 0 reads all.
    """
    total, n = 0.0, 0
    for batch in itertools.islice(one_pass(text.shards, text.pack, batch_size), batches or None):
        output = next_token_loss(model, batch)
        total, n = total + float(output.loss_sum), n + output.n
    loss = total / n
    mask = text.shards.mask
    bits = loss * (text.pack.n_tokens if mask is None else int(mask.sum())) / math.log(2)
    return {"val_loss": loss, "bpb": bits / max(1, text.shards.manifest["bytes"])}


def language_task(
    train: Text, val: Text, settings: LanguageSettings, model: Decoder, tokenizer: Tokenizer, seed: int, world: World,
    sample: Callable[[Decoder], str],
) -> Task:  # fmt: skip
    """The task of learning ``train``, watched on ``val``, where every target counts once."""
    loader = Loader(train.shards, train.pack, settings.batch_size, stream_seed(seed, "batches"), world.rank, world.size)
    rows = settings.micro_batch or settings.batch_size
    return Task(
        batches=lambda step: split_rows(loader.batch(step), settings.micro_batch),
        loss=functools.partial(
            next_token_loss, count=counter(settings.emphasis, tokenizer), mtp_weight=settings.mtp_weight
        ),
        evaluate=lambda model: evaluate_text(model, val, rows, settings.eval_batches),
        sample=sample,
        flops_per_token=flops_per_token(model.config, settings.seq_len),
    )


def continuation(tokenizer: Tokenizer, prompt: Sequence[int]) -> Callable[[Decoder], str]:
    """A sampler of texts that go on from ``prompt`` (ids); its random numbers are always the same, so texts compare."""

    def sample(model: Decoder) -> str:
        new = min(_SAMPLE_TOKENS, model.config.max_seq_len // 2)
        start = prompt[-(model.config.max_seq_len - new) :]  # the end of a prompt that is too long
        sampling = Sampling(temperature=0.8, top_p=0.95, max_new_tokens=new)
        (completion,) = Generator(model, tokenizer).generate([start], sampling, [stream_seed("sample")])
        return tokenizer.decode([*start, *completion.tokens])

    return sample
