"""Formulas of learning from preferences without samples: DPO, cDPO, IPO, KTO, ORPO, SimPO.

In:  what a policy says of whole answers, one number each: a log-probability, or its log-ratio to the reference.
Out: a loss for every entry; nothing is summed. Tensors broadcast, so all pairs of a ranking are one call.
Left out: which entries are pairs (``ranking.mean_over_pairs``), where the numbers come from (``likelihoods``).

*Ratio* is ``log pi(y|x) - log pi_ref(y|x)`` of a whole answer. *Mean* is an answer's log-probability by its tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_CERTAIN = -1e-6  # log-probability of a token beyond which its odds would be infinite


def dpo(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """``-log sigmoid(beta (chosen - rejected))`` of two ratios (Rafailov et al., arXiv 2305.18290, eq. 7).

    With ``label_smoothing`` a pair is taken to be the wrong way round that often (cDPO: Mitchell, "A note on DPO with
    noisy preferences", 2023, eq. 3), and the margin stops growing at the log-odds of that.
    """
    margin = beta * (chosen - rejected)
    return -(1.0 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


def ipo(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """``(chosen - rejected - 1 / (2 beta))^2``: a margin to reach and to keep (Azar et al., arXiv 2310.12036, eq. 17).

    The ratios are to be means over tokens, as its authors advised later: else the margin means less the longer an
    answer is.
    """
    return (chosen - rejected - 0.5 / beta) ** 2


def kto(
    ratios: Tensor, desirable: Tensor, baseline: Tensor, beta: float, desirable_weight: float, undesirable_weight: float
) -> Tensor:
    """``w (1 - sigmoid(+-beta (ratio - baseline)))``, + for a good answer (Ethayarajh et al., arXiv 2402.01306, eq. 8).

    Args:
        ratios: (N,) of single answers.
        desirable: (N,) bool, whether each is a good one.
        baseline: () from ``kl_baseline``, without gradient.
        beta: how soon more of the same stops paying.
        desirable_weight, undesirable_weight: of the two kinds.
    """
    gain = beta * (ratios - baseline)
    good, bad = 1.0 - torch.sigmoid(gain), 1.0 - torch.sigmoid(-gain)
    return torch.where(desirable, desirable_weight * good, undesirable_weight * bad)


def kl_baseline(ratios: Tensor) -> Tensor:
    """KTO's estimate of the KL between policy and reference, () and never negative (the same paper, section 4).

    Args:
        ratios: (N,) of answers to *other* prompts. They are not the policy's samples: a cheap and biased estimate.
    """
    return ratios.detach().mean().clamp(min=0.0)


def orpo(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """``-chosen - beta log sigmoid(log odds(chosen) - log odds(rejected))`` of two means.

    Hong et al., arXiv 2403.07691, eq. 6, whose lambda is beta here. The first term is the likelihood of the better
    answer, so no reference is needed; ``odds(p) = p / (1 - p)``.
    """
    return -chosen - beta * F.logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def simpo(chosen: Tensor, rejected: Tensor, beta: float, gamma: float) -> Tensor:
    """``-log sigmoid(beta (chosen - rejected) - gamma)`` of two means (Meng et al., arXiv 2405.14734, eq. 6)."""
    return -F.logsigmoid(beta * (chosen - rejected) - gamma)


def _log_odds(mean: Tensor) -> Tensor:
    """``log(p / (1 - p))`` of ``p = exp(mean)``; flat, and without gradient, where p is nearly 1."""
    return mean - torch.log(-torch.expm1(mean.clamp(max=_CERTAIN)))
