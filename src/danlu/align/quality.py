"""How good a reward model is: its accuracy on held-out comparisons beside that of baselines.

In:  a reward model, the SFT model, held-out comparisons.
Out: ``quality``: accuracy with its interval, on people's votes alone, by length, by rater, by who wrote the answers,
    and of baselines that know nothing of quality; calibration. ``refuse_unproven``, for whoever is about to practise on
    a reward model.
Left out: what PPO makes of the reward (``monitor``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from danlu.align import comparisons, scoring
from danlu.align.calibration import calibration, disagreement
from danlu.align.comparisons import RankedBatch, Ranking
from danlu.align.splits import is_source
from danlu.errors import UserError
from danlu.evals.intervals import wilson
from danlu.files import read_json
from danlu.model.decoder import Decoder
from danlu.run import MANIFEST

_COMPARISONS = 64  # per forward
_ANSWERS = 256
_RATERS = 20  # of whom figures are kept
_UNKNOWN = {"accuracy": None, "accuracy_interval": [0.0, 1.0]}


def quality(model: Decoder, sft: Decoder, heldout: Sequence[Ranking], padding: int) -> dict[str, Any]:
    """How well held-out comparisons are predicted: by the model, by groups of them, by baselines.

    ``votes_accuracy`` and its interval are of the ``votes_heldout`` comparisons that people judged, neither simulated
    nor pairs of an imported file, which name nobody; None without any.

    Args:
        model: with its scalar head, or with all of its heads.
        sft: the language model, for the likelihood.
        heldout: comparisons that nothing was learnt from; those that prefer nothing are passed over.
        padding: token that fills rows up.
    """
    heldout = _strict(heldout)
    if not heldout:
        return {**_UNKNOWN, **_of_votes([], []), "baselines": {}, "best_baseline": None, "beats_baselines": False}
    device = sft.output_weight.device.type
    batch = comparisons.batch_of(heldout, padding, device)
    baselines, lengths = _baselines(sft, heldout, padding, device)
    by_baseline = {name: round(_mean_accuracy(_spread(flat, batch), batch), 4) for name, flat in baselines.items()}
    best = max(by_baseline, key=lambda name: by_baseline[name])
    every = head_scores(model, batch)
    found, ranks = every.mean(-1), batch.ranks
    by_comparison = comparisons.accuracy(found, ranks).tolist()
    measured = _rate(by_comparison)
    figures = measured | {
        **_of_votes(heldout, by_comparison),
        "accuracy_by_length": _by_length(batch, found, _spread(lengths, batch)),
        "accuracy_by_model": _by_model(heldout, by_comparison),
        "accuracy_by_rater": _by_rater(heldout, by_comparison),
        **calibration(found, ranks),
        "baselines": by_baseline,
        "best_baseline": best,
        "beats_baselines": beats(measured, by_baseline),
    }
    if every.shape[-1] > 1:
        figures["accuracy_by_head"] = [round(_mean_accuracy(head, batch), 4) for head in every.unbind(-1)]
        figures["disagreement"] = disagreement(every, ranks)
    return figures


def beats(measured: Mapping[str, Any], baselines: Mapping[str, float]) -> bool:
    """Whether the lower bound of an accuracy is above every baseline; never where nothing was held out."""
    return bool(baselines) and measured["accuracy_interval"][0] > max(baselines.values())


def held_out_accuracy(model: Decoder, heldout: Sequence[Ranking], padding: int, device: str) -> dict[str, Any]:
    """Accuracy and its interval alone."""
    heldout = _strict(heldout)
    if not heldout:
        return dict(_UNKNOWN)
    batch = comparisons.batch_of(heldout, padding, device)
    return _rate(comparisons.accuracy(scores(model, batch), batch.ranks).tolist())


def audit_proven(figures: Mapping[str, Any]) -> bool:
    """Whether the audit beats every baseline, by the figures of a reward stage; it is trusted where they do not say."""
    return bool(figures.get("audit", {}).get("beats_baselines", True))


def audit_proven_in(folder: Path) -> bool:
    """The same of a finished reward stage, or of a directory from elsewhere, which tells no figures."""
    return audit_proven(read_json(folder / MANIFEST)["figures"] if (folder / MANIFEST).is_file() else {})


def refuse_unproven(folder: Path) -> None:
    """Refuse a reward model that has to beat the baselines and did not.

    Args:
        folder: of the finished reward stage. It decides by ``reward.require``, which it was made with.

    Raises:
        UserError: its accuracy is not clearly above that of the best baseline, with both.
    """
    if not (folder / MANIFEST).is_file():  # a directory from elsewhere: nothing was required of it
        return
    manifest = read_json(folder / MANIFEST)
    figures = manifest.get("figures", {})
    if not manifest["settings"].get("require") or figures.get("beats_baselines"):
        return
    best = figures.get("best_baseline")
    if best is None:
        found = "no comparison was held out to measure the reward model on"
    else:
        low, high = figures["accuracy_interval"]
        found = (
            f"the reward model's held-out accuracy is {figures['accuracy']} (95 % interval {low} to {high}), not "
            f"clearly above that of the baseline '{best}', {figures['baselines'][best]}"
        )
    raise UserError(f"reward.require: {found}; rank more answers, or set reward.require=false")


def scores(model: Decoder, batch: RankedBatch) -> Tensor:
    """(B, K) rewards of many comparisons, without gradient."""
    return head_scores(model, batch).mean(-1)


def head_scores(model: Decoder, batch: RankedBatch) -> Tensor:
    """(B, K, H) rewards of many comparisons by every head, without gradient."""
    rows = torch.arange(len(batch.ranks), device=batch.ranks.device)
    with torch.inference_mode():
        parts = scoring.split(rows, _COMPARISONS)
        return torch.cat([comparisons.head_scores(model, batch.rows(part)) for part in parts])


def _strict(rankings: Sequence[Ranking]) -> list[Ranking]:
    """Those in which something is better than something."""
    return [ranking for ranking in rankings if len(set(ranking.ranks)) > 1]


def _rate(by_comparison: Sequence[float]) -> dict[str, Any]:
    """Mean and interval of accuracies; pairs of one comparison hang together, so comparisons are counted."""
    accuracy = sum(by_comparison) / len(by_comparison)
    low, high = wilson(round(accuracy * len(by_comparison)), len(by_comparison))
    return {"accuracy": round(accuracy, 4), "accuracy_interval": [round(low, 4), round(high, 4)]}


def _of_votes(heldout: Sequence[Ranking], by_comparison: Sequence[float]) -> dict[str, Any]:
    """The same of what people judged, if they did: that a simulated human is understood says nothing of them."""
    votes = [accuracy for one, accuracy in zip(heldout, by_comparison, strict=True) if not is_source(one.rater)]
    found = _rate(votes) if votes else _UNKNOWN
    return {f"votes_{name}": value for name, value in found.items()} | {"votes_heldout": len(votes)}


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


def _by_model(heldout: Sequence[Ranking], by_comparison: Sequence[float]) -> dict[str, dict[str, float]]:
    """Accuracy by who wrote the answers: on those of the policy of today it decides what practice learns."""
    groups: dict[str, list[float]] = {}
    for ranking, accuracy in zip(heldout, by_comparison, strict=True):
        writers = sorted({model or "unknown" for model in ranking.models})
        groups.setdefault(" + ".join(writers) or "unknown", []).append(accuracy)
    return {name: _group(group) for name, group in sorted(groups.items())}


def _by_rater(heldout: Sequence[Ranking], by_comparison: Sequence[float]) -> list[dict[str, float]]:
    """Accuracy for those who judged most, without their names: whoever is forgotten leaves none behind here."""
    groups: dict[str, list[float]] = {}
    for ranking, accuracy in zip(heldout, by_comparison, strict=True):
        groups.setdefault(ranking.rater, []).append(accuracy)
    most = sorted(groups.values(), key=len, reverse=True)[:_RATERS]
    return [_group(group) for group in most]


def _group(accuracies: Sequence[float]) -> dict[str, float]:
    return {"comparisons": len(accuracies), "accuracy": round(sum(accuracies) / len(accuracies), 4)}
