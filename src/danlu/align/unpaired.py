"""KTO's side of ``dpo``: learn from single answers that were called good or bad.

In:  labels, a tokenizer, what the reference says of the answers and of answers to other prompts.
Out: ``Example``s in token ids, each with an answer to another prompt; ``Labelled``; the loss of a batch.
Left out: the formula (``losses.direct``), the order of steps (``train.loop``), where labels come from (``judgements``).

How far the policy is from the reference, KTO's baseline, is estimated from prompts with answers to *other* prompts.
Each prompt keeps the same foreign answer throughout, so that the reference needs to read it once. The baseline belongs
to an optimizer step, not to a micro-batch: cutting a batch up changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from danlu.align import losses, scoring
from danlu.align.judgements import Label
from danlu.align.likelihoods import AT_ONCE, remembered
from danlu.align.scoring import Sequences
from danlu.model.decoder import Decoder
from danlu.streams import stream_seed
from danlu.tokens.tokenizer import Tokenizer
from danlu.train.task import LossOutput


@dataclass(frozen=True)
class Example:
    """A prompt with an answer, whether it was called good, and the prompt with an answer that belongs elsewhere.

    ``weight`` is what the label counts for; ``cut`` and ``anew`` are as in ``comparisons.Ranking``.
    """

    prompt: list[int]
    response: list[int]
    good: bool
    foreign_prompt: list[int]
    foreign_response: list[int]
    weight: float = 1.0
    cut: bool = False
    anew: int = 0


class Baseline:
    """KTO's baseline of one optimizer step: computed for whoever asks first, since weights rest within a step.

    Args:
        sequences: prompts with foreign answers.
        reference: (N,) log-probabilities of these under the reference.
        micro_batch: rows per forward.
    """

    def __init__(self, sequences: Sequences, reference: Tensor, micro_batch: int) -> None:
        self._sequences, self._reference, self._micro_batch = sequences, reference, micro_batch
        self._value: Tensor | None = None

    def __call__(self, model: Decoder) -> Tensor:
        """() nats per answer."""
        if self._value is None:
            parts, training = scoring.parts_by_length(self._sequences, self._micro_batch), model.training
            model.eval()  # an adapter's dropout is addressed by micro-batch, and this is of the step
            found = scoring.without_gradient(scoring.response_logprobs, model, self._sequences, parts).sum(1)
            model.train(training)
            self._value = losses.kl_baseline(found - self._reference)
        return self._value


@dataclass(frozen=True)
class UnpairedBatch:
    """Answers called good or bad.

    Attributes:
        sequences: prompts and answers.
        good: (B,) bool.
        reference: (B,) fp32, log-probabilities under the reference.
        weights: (B,) fp32, what each label counts for.
        baseline: of the step to which they belong.
    """

    sequences: Sequences
    good: Tensor
    reference: Tensor
    weights: Tensor
    baseline: Baseline


@dataclass(frozen=True)
class Labelled:
    """Examples, and what the reference says of their answers and of the foreign ones: (N,) each."""

    examples: list[Example]
    reference: Tensor
    foreign: Tensor

    @staticmethod
    def read(
        labels: Sequence[tuple[Label, float]], policy: Decoder, tokenizer: Tokenizer, seed: int, file: Path
    ) -> Labelled:
        """Ask the policy, which before its first step is the reference, or the file if it is there; labels with what
        each counts for.
        """
        examples = encode_labels(labels, tokenizer, policy.config.max_seq_len, seed)
        found = remembered(file, lambda: _logprobs(policy, examples, tokenizer.pad))
        return Labelled(examples, found["answers"], found["foreign"])

    def __len__(self) -> int:
        return len(self.examples)

    def batches(self, rows: Sequence[int], size: int, padding: int, device: str) -> list[UnpairedBatch]:
        """Some of them as the micro-batches of one step, ``size`` answers each."""
        index, examples = list(rows), [self.examples[row] for row in rows]
        if not examples:
            return []
        baseline = Baseline(_foreign(examples, padding, device), self.foreign[index].to(device), size)
        sequences, reference = _sequences(examples, padding, device), self.reference[index].to(device)
        good = torch.tensor([example.good for example in examples], device=device)
        weights = torch.tensor([example.weight for example in examples], device=device)
        parts = scoring.parts_by_length(sequences, size)
        return [UnpairedBatch(sequences.rows(p), good[p], reference[p], weights[p], baseline) for p in parts]


def encode_labels(labels: Sequence[tuple[Label, float]], tokenizer: Tokenizer, room: int, seed: int) -> list[Example]:
    """Labels in token ids, at most ``room`` of them per answer, each with the answer of another prompt where one is."""
    ids = [scoring.answer_ids(tokenizer, label.prompt, label.answer, room) for label, _ in labels]
    others = _elsewhere([label for label, _ in labels], seed)
    examples = []
    for (prompt, response), (label, weight), other in zip(ids, labels, others, strict=True):
        foreign = ids[other][1]
        lost = scoring.altered(tokenizer, label.prompt, [label.answer], [(prompt, response)], room)
        examples.append(Example(prompt, response, label.good, prompt[-(room - len(foreign)) :], foreign, weight, *lost))
    return examples


def kto_loss(model: Decoder, batch: UnpairedBatch, beta: float, weights: tuple[float, float]) -> LossOutput:
    """KTO's weighted losses, summed over answers; and how many are on their side of the baseline, which is told too.

    Args:
        model: the policy.
        batch: answers.
        beta: how soon more of the same stops paying.
        weights: of good and of bad answers.
    """
    baseline = batch.baseline(model)
    ratios = scoring.response_logprobs(model, batch.sequences).sum(1) - batch.reference
    loss = (batch.weights * losses.kto(ratios, batch.good, baseline, beta, *weights)).sum()
    n, right = len(ratios), ((ratios > baseline) == batch.good).sum()
    sums = {"accuracy": float(right), "baseline": n * float(baseline)}
    return LossOutput(loss, n, int(batch.sequences.lengths.sum()), sums=sums)


@torch.no_grad()
def measure(model: Decoder, batches: Sequence[UnpairedBatch], loss: Callable[..., LossOutput]) -> dict[str, float]:
    """Means over answers: ``loss``, and the ``baseline``; nothing for none."""
    outputs = [loss(model, batch) for batch in batches]
    n = sum(output.n for output in outputs)
    if not n:
        return {}
    baseline = sum(output.sums["baseline"] for output in outputs)
    return {"loss": sum(float(output.loss_sum) for output in outputs) / n, "baseline": baseline / n}


def _logprobs(model: Decoder, examples: Sequence[Example], padding: int) -> dict[str, Tensor]:
    """Summed log-probabilities (N,) of the answers and (N,) of the foreign ones, without gradient, on the CPU."""
    if not examples:
        return {"answers": torch.zeros(0), "foreign": torch.zeros(0)}
    device, score = model.output_weight.device.type, scoring.response_logprobs
    both = {"answers": _sequences(examples, padding, device), "foreign": _foreign(examples, padding, device)}
    return {
        name: scoring.without_gradient(score, model, rows, scoring.parts_by_length(rows, AT_ONCE)).sum(1).cpu()
        for name, rows in both.items()
    }


def _elsewhere(labels: Sequence[Label], seed: int) -> list[int]:
    """For every label the next of a shuffled order that has another prompt; itself if there is no other prompt."""
    n = len(labels)
    if len({label.prompt for label in labels}) < 2:
        return list(range(n))
    order = np.random.default_rng(stream_seed(seed, "elsewhere")).permutation(n).tolist()
    found = [0] * n
    for place, index in enumerate(order):
        step = 1
        while labels[order[(place + step) % n]].prompt == labels[index].prompt:
            step += 1
        found[index] = order[(place + step) % n]
    return found


def _sequences(examples: Sequence[Example], padding: int, device: str) -> Sequences:
    return scoring.pad([e.prompt for e in examples], [e.response for e in examples], padding, device)


def _foreign(examples: Sequence[Example], padding: int, device: str) -> Sequences:
    return scoring.pad([e.foreign_prompt for e in examples], [e.foreign_response for e in examples], padding, device)
