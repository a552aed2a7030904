"""How good a reward model is: its accuracy on held-out comparisons beside that of baselines.

In:  a reward model, the SFT model, held-out comparisons.
Out: ``quality``: accuracy with its interval, by length, and of baselines that know nothing of quality.
Left out: calibration; what PPO makes of the reward (``monitor``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from danlu.align import comparisons, scoring
from danlu.align.comparisons import RankedBatch, Ranking
from danlu.evals.intervals import wilson
from danlu.model.decoder import Decoder

_COMPARISONS = 64  # per forward
_ANSWERS = 256


def quality(model: Decoder, sft: Decoder, heldout: Sequence[Ranking], padding: int) -> dict[str, Any]:
    """How well held-out comparisons are predicted: by the model, by which answer is longer, by baselines."""
    if not heldout:
        return {
            "accuracy": None,
            "accuracy_interval": [0.0, 1.0],
            "baselines": {},
            "best_baseline": None,
            "beats_baselines": False,
        }
    device = sft.output_weight.device.type
    batch = comparisons.batch_of(heldout, padding, device)
    baselines, lengths = _baselines(sft, heldout, padding, device)
    by_baseline = {name: round(_mean_accuracy(_spread(flat, batch), batch), 4) for name, flat in baselines.items()}
    best = max(by_baseline, key=lambda name: by_baseline[name])
    found = scores(model, batch)
    accuracy = _mean_accuracy(found, batch)
    # Pairs of one comparison are not independent, so the interval counts comparisons.
    low, high = wilson(round(accuracy * len(heldout)), len(heldout))
    return {
        "accuracy": round(accuracy, 4),
        "accuracy_interval": [round(low, 4), round(high, 4)],
        "accuracy_by_length": _by_length(batch, found, _spread(lengths, batch)),
        "baselines": by_baseline,
        "best_baseline": best,
        "beats_baselines": low > by_baseline[best],
    }


def scores(model: Decoder, batch: RankedBatch) -> Tensor:
    """(B, K) rewards of many comparisons, without gradient."""
    rows = torch.arange(len(batch.ranks), device=batch.ranks.device)
    with torch.inference_mode():
        return torch.cat([comparisons.scores(model, batch.rows(part)) for part in scoring.split(rows, _COMPARISONS)])


def _baselines(sft: Decoder, heldout: Sequence[Ranking], padding: int, device: str) -> tuple[dict[str, Tensor], Tensor]:
    """What somebody without taste might go by, one number per answer; and the answers' lengths."""
    prompts = [prompt for ranking in heldout for prompt in ranking.prompts]
    answers = scoring.pad(prompts, [r for ranking in heldout for r in ranking.responses], padding, device)
    parts = scoring.parts_by_length(answers, _ANSWERS)
    likelihood = scoring.without_gradient(scoring.response_logprobs, sft, answers, parts).sum(1)
    lengths = answers.mask.sum(1).float()
    baselines = {
        "longer": lengths,
        "shorter": -lengths,
        "likelihood": likelihood,
        "likelihood_per_token": likelihood / lengths,
    }
    return baselines, lengths


def _spread(flat: Tensor, batch: RankedBatch) -> Tensor:
    """(N,) numbers of the answers as (B, K), 0 where there is none."""
    there = batch.ranks >= 0
    return torch.zeros(there.shape, dtype=flat.dtype, device=flat.device).masked_scatter(there, flat)


def _mean_accuracy(found: Tensor, batch: RankedBatch) -> float:
    """Share of pairs in the right order, averaged within a comparison and then over comparisons."""
    return float(comparisons.accuracy(found, batch.ranks).mean())


def _by_length(batch: RankedBatch, found: Tensor, lengths: Tensor) -> dict[str, dict[str, float]]:
    """Accuracy over pairs whose better answer is longer, as long, or shorter: a length bias shows as a slope."""
    right, better = comparisons.right_pairs(found, batch.ranks)
    gap = lengths[:, :, None] - lengths[:, None, :]
    groups: dict[str, Callable[[Tensor], Tensor]] = {
        "better_is_longer": lambda g: g > 0,
        "same_length": lambda g: g == 0,
        "better_is_shorter": lambda g: g < 0,
    }
    result = {}
    for name, chooses in groups.items():
        pairs = better & chooses(gap)
        n = int(pairs.sum())
        result[name] = {"pairs": n, "accuracy": round(float(right[pairs].mean()), 4) if n else math.nan}
    return {name: group for name, group in result.items() if group["pairs"]}
