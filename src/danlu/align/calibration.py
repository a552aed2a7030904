"""Whether a reward model is right as often as it says.

In:  rewards of held-out comparisons and their ranks; the same by every head, if there are several.
Out: ``calibration``: expected calibration error and a table of predicted beside seen shares of wins; ``disagreement``:
    how far heads disagree where the model is right, and where it is wrong.
Left out: who judged and who wrote (``quality``).

A Bradley-Terry model says of two answers whose rewards are d apart that the first wins with probability sigmoid(d); so
does Davidson's of those that do not tie.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from danlu.align.comparisons import right_pairs

_BINS = 5  # from a half to certainty


def calibration(found: Tensor, ranks: Tensor) -> dict[str, Any]:
    """Compare what is predicted for every strict pair with what was seen.

    Args:
        found: (B, K) rewards.
        ranks: (B, K), 0 the best, -1 for none.

    Returns:
        ``calibration_error``: the mean over pairs of the gap between predicted and seen share in the pair's bin (Guo et
        al., arXiv 1706.04599, eq. 3), None without pairs; ``reliability``: for every bin with pairs how many, the mean
        prediction for the answer that is scored higher, and the share of pairs in which it was preferred.
    """
    right, better = right_pairs(found, ranks)
    predicted = torch.sigmoid((found[:, :, None] - found[:, None, :]).abs())[better].double()
    seen = right[better].double()
    bins = ((predicted - 0.5) * 2 * _BINS).long().clamp(max=_BINS - 1)
    error, table = 0.0, []
    for number in range(_BINS):
        inside = bins == number
        if n := int(inside.sum()):
            said, was = float(predicted[inside].mean()), float(seen[inside].mean())
            error += n / len(bins) * abs(said - was)
            table.append({"pairs": n, "predicted": round(said, 4), "seen": round(was, 4)})
    return {"calibration_error": round(error, 4) if len(bins) else None, "reliability": table}


def disagreement(found: Tensor, ranks: Tensor) -> dict[str, dict[str, float | None]]:
    """How far heads disagree about pairs that their mean puts in the right order, and about those it does not.

    Args:
        found: (B, K, H) rewards by every head, H at least 2.
        ranks: (B, K).

    Returns:
        ``deviation``: standard deviation over heads of the better answer's lead, which is what ``kappa`` punishes, and
        which grows with the lead; ``against``: share of heads that put the pair the other way round than the mean.
        Each ``where_right`` and ``where_wrong``, None without such pairs.
    """
    right, better = right_pairs(found.mean(-1), ranks)
    hits, leads = right[better], (found[:, :, None] - found[:, None, :])[better]  # (N,), (N, H)
    against = (leads.sign() != leads.mean(-1, keepdim=True).sign()).float().mean(-1)
    return {
        name: {
            group: round(float(doubt[hits == hit].mean()), 4) if (hits == hit).any() else None
            for group, hit in (("where_right", 1), ("where_wrong", 0))
        }
        for name, doubt in (("deviation", leads.std(-1)), ("against", against))
    }
