"""The best of n answers, without training: what the proxy and the gold of the answer that the proxy likes best are.

In:  an ``Observer`` of a run, how many answers a prompt.
Out: one row for each n = 1, 2, 4, ..., alike to looks: ``kl``, ``reward``, ``judge`` with its error.
Left out: learning from the best (stage ``best_of``).

From N answers the mean over every choice of n of them is known exactly (the estimator of Nakano et al., WebGPT, arXiv
2112.09332, appendix I): the i-th of N by the proxy, counted from the worst, is the best of C(i - 1, n - 1) of all
C(N, n) choices. So all n share the same answers.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from danlu.align import losses
from danlu.align.rollout import Experience
from danlu.evals.judge import judge
from danlu.lab.looks import Look, Observer


def weights(n: int, among: int) -> np.ndarray:
    """(among,) how often the answer at each place, the worst first, is the best of ``n`` of ``among``; sums to 1."""
    return np.array([math.comb(place, n - 1) for place in range(among)]) / math.comb(among, n)


def sample(observer: Observer, among: int) -> tuple[Experience, Tensor]:
    """``among`` answers of the SFT model to every held-out prompt, and the judge's total of each (P * among,)."""
    asked = [prompt for prompt in observer.prompts for _ in range(among)]
    seen = observer.answers(asked, "best of n")
    hidden = judge(observer.settings.judge)
    judged = [hidden.score(prompt.text, text)["total"] for prompt, text in zip(asked, seen.texts, strict=True)]
    return seen, torch.tensor(judged, dtype=torch.float64)


def curve(proxy: Tensor, gold: Tensor) -> list[Look]:
    """Rows for n = 1, 2, 4, ... from the scores of N answers to each of P prompts; both (P, N).

    An answer without a proxy that is a number is the worst. Distances are those of ``losses.best_of_n_kl``.
    """
    proxy, gold = proxy.double().cpu(), gold.double().cpu()  # a GPU scored them, and a few sums are all there is to do
    proxy = proxy.masked_fill(~torch.isfinite(proxy), -math.inf)
    order = proxy.argsort(dim=1, stable=True)
    by_proxy = [np.asarray(score.gather(1, order)) for score in (proxy, gold)]
    rows, n, among = [], 1, proxy.shape[1]
    while n <= among:
        share = weights(n, among)
        reward, judged = (np.where(np.isfinite(score), score, 0.0) @ share for score in by_proxy)  # (P,)
        kl = losses.best_of_n_kl(n)
        rows.append({
            "iteration": n, "reward": float(reward.mean()), "judge": float(judged.mean()),
            "judge_error": float(judged.std() / math.sqrt(len(judged))), "kl": kl, "sqrt_kl": math.sqrt(kl),
        })  # fmt: skip
        n *= 2
    return rows
