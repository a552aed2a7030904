"""Formulas of learning from samples without a critic: what an answer is compared with, and what its tokens weigh.

In:  (B,) scores of answers and which group, that is which prompt, each belongs to; (B,) lengths.
Out: (B,) advantages, weights and penalties; pairs; the plain policy gradient; the baseline of a running mean.
Left out: the clipped surrogate (``policy``), which takes these advantages as it takes a critic's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Per = Literal["answer", "token", "constant", "none"]
_EPSILON = 1e-4  # TRL's and verl's, beside the standard deviation of a group


def telling(scores: Tensor, groups: Tensor) -> Tensor:
    """(B,) bool, whether an answer's group holds different scores; one whose scores are all equal says nothing."""
    same = groups[:, None] == groups  # B, B
    table = scores.expand(len(scores), -1)
    highest = table.masked_fill(~same, -math.inf).amax(1)
    lowest = table.masked_fill(~same, math.inf).amin(1)
    return highest > lowest


def best_and_worst(scores: Tensor, groups: Tensor) -> Tensor:
    """(P, 2) int64, the best and the worst answer of every group that is ``telling``, the first of equals.

    With two answers a prompt it is the order of the two (online DPO: Guo et al., arXiv 2402.04792, algorithm 1).
    """
    same, table = groups[:, None] == groups, scores.expand(len(scores), -1)
    best = table.masked_fill(~same, -math.inf).argmax(1)
    worst = table.masked_fill(~same, math.inf).argmin(1)
    speaks = same.int().argmax(1) == torch.arange(len(scores), device=scores.device)  # a group's first answer for it
    return torch.stack([best, worst], 1)[speaks & telling(scores, groups)]


def group_advantages(scores: Tensor, groups: Tensor, scale: bool) -> Tensor:
    """``r - mean`` of the answer's group, divided by the group's deviation if ``scale``.

    With the deviation it is GRPO's (Shao et al., arXiv 2402.03300, section 4.1.2), without it Dr. GRPO's (Liu et al.,
    arXiv 2503.20783, section 3.2: the deviation makes much of prompts that are nearly always or nearly never solved).
    The deviation is that of a sample, n - 1. A group that is not ``telling`` has advantages of exactly 0.

    Args:
        scores: (B,) fp32.
        groups: (B,) int64; groups may differ in size.
        scale: whether to divide.

    Returns:
        (B,).
    """
    same, centred = _from_mean(scores, groups)
    if scale:
        variance = (same * centred**2).sum(1) / (same.sum(1) - 1).clamp(min=1)
        centred = centred / (variance.sqrt() + _EPSILON)
    return centred.to(scores).masked_fill(~telling(scores, groups), 0.0)


def leave_one_out(scores: Tensor, groups: Tensor) -> Tensor:
    """``r`` minus the mean of the *other* answers of the group: RLOO (Ahmadian et al., arXiv 2402.14740, section 3.2).

    An unbiased baseline, since no answer is its own. It equals ``n / (n - 1)`` times the distance from the group's
    mean. An answer without others, and a group that is not ``telling``, has an advantage of 0.
    """
    same, centred = _from_mean(scores, groups)
    n = same.sum(1)
    return (centred * n / (n - 1).clamp(min=1)).to(scores).masked_fill(~telling(scores, groups), 0.0)


def _from_mean(scores: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """(B, B) 1 where two answers share a group, and (B,) each score's distance from its group's mean; fp64."""
    same = (groups[:, None] == groups).double()
    return same, scores.double() - (same * scores.double()).sum(1) / same.sum(1)


@dataclass(frozen=True)
class RunningMean:
    """The mean of all scores so far, REINFORCE's baseline (Williams 1992, section 5: a reinforcement baseline).

    Attributes:
        mean: 0 before the first score.
        n: scores so far.
    """

    mean: float = 0.0
    n: int = 0

    def update(self, scores: Tensor) -> RunningMean:
        """The mean after some more scores (B,)."""
        n = self.n + len(scores)
        return RunningMean(self.mean + (float(scores.double().mean()) - self.mean) * len(scores) / n, n)


def policy_gradient_loss(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """``-A log p`` summed over tokens, whose gradient is the policy gradient written out (Williams 1992, REINFORCE).

    It holds for samples of this very policy alone: nothing corrects for a policy that has moved since.

    Args:
        logprobs: (B, R), differentiable.
        advantages: (B, R), or (B, 1) for one per answer.
        mask: (B, R).
    """
    return -(advantages * logprobs).masked_fill(~mask, 0.0).sum()


def answer_weights(lengths: Tensor, per: Per, n_answers: int, n_tokens: int, longest: int) -> Tensor:
    """What every token of an answer weighs, relative to a mean over all tokens of an optimizer step.

    ``sum over answers and tokens of weight * loss / n_tokens`` is, by ``per``: "answer", the mean over answers of each
    one's mean over its tokens (GRPO, arXiv 2402.03300, eq. 3); "token", the mean over tokens (DAPO, arXiv 2503.14476,
    eq. 12); "constant", the sum divided by answers times the longest possible answer, which favours no length (Dr.
    GRPO, arXiv 2503.20783, section 3.2); "none", the mean over answers of each one's sum, as a whole answer is one
    action (RLOO, REINFORCE).

    Args:
        lengths: (B,) tokens of some answers of the step.
        per: see above.
        n_answers, n_tokens: of the whole step.
        longest: tokens of the longest possible answer.

    Returns:
        (B,) fp32.
    """
    alike = torch.ones_like(lengths, dtype=torch.float32)
    of_a_token = {
        "answer": alike / lengths,
        "token": alike * (n_answers / n_tokens),
        "constant": alike / longest,
        "none": alike,
    }
    return of_a_token[per] * (n_tokens / n_answers)


def overlong_penalty(lengths: Tensor, longest: int, margin: int) -> Tensor:
    """DAPO's soft punishment of answers that end late (arXiv 2503.14476, eq. 13): 0 to -1 over the last ``margin``.

    Args:
        lengths: (B,) tokens.
        longest: where answers are cut off.
        margin: tokens before that over which the penalty grows; 0 for no penalty.
    """
    if not margin:
        return torch.zeros_like(lengths, dtype=torch.float32)
    return ((longest - margin - lengths) / margin).clamp(-1.0, 0.0)


def best_of_n_kl(n: int) -> float:
    """``log n - (n - 1) / n`` nats: how far the best of n samples is from one (Stiennon et al., arXiv 2009.01325, G.3).

    Exact if no two answers score alike; an upper bound otherwise (Beirami et al., arXiv 2401.01879).
    """
    return math.log(n) - (n - 1) / n
