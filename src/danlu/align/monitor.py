"""Looks at PPO from outside: held-out prompts, and a judge that no gradient has ever seen.

In:  the current policy (through a sampler), the reference, the reward model's score, the hidden judge.
Out: one row per look: proxy reward, judge, KL, length, variety, entropy; an alarm; ``monitor.json`` for the report.
Left out: any influence on training. Choosing a policy by the judge would make it a second reward model, so the choice
goes by proxy reward and KL alone, and the judge stays honest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from danlu.align import losses, scoring
from danlu.align.rollout import Prompt, Rollouts
from danlu.align.scoring import Sequences
from danlu.evals.judge import Judge
from danlu.evals.variety import distinct_2
from danlu.files import write_json
from danlu.model.decoder import Decoder

_EXAMPLES = 3


class Monitor:
    """A fixed set of held-out prompts, sampled with fixed seeds: looks differ by the policy alone.

    Args:
        judge: the hidden metric.
        prompts: held out from training.
        rollouts: samples from the policy as it is, scored by the proxy reward.
        policy, reference: for the KL.
        micro_batch: rows per forward.
        seed: of the samples.
    """

    def __init__(
        self, judge: Judge, prompts: Sequence[Prompt], rollouts: Rollouts, policy: Decoder, reference: Decoder,
        micro_batch: int, seed: int,
    ) -> None:  # fmt: skip
        self._judge, self._prompts, self._rollouts = judge, prompts, rollouts
        self._policy, self._reference = policy, reference
        self._micro_batch, self._seed = micro_batch, seed

    def look(self, iteration: int) -> dict[str, Any]:
        """Sample every prompt once and measure.

        Returns:
            ``iteration``, ``reward`` (proxy, mean), ``judge`` (total, mean) and ``judge_error`` (its standard error),
            the judge's rates, ``kl`` (nats per answer), ``entropy`` (nats per token, from the samples), ``length``
            (tokens), ``finished`` (share), ``distinct_2``, and a few ``examples``.
        """
        seen = self._rollouts.collect(self._prompts, self._seed, "look")
        judged = [self._judge.score(p.text, text) for p, text in zip(seen.prompts, seen.texts, strict=True)]
        totals = torch.tensor([each["total"] for each in judged], dtype=torch.float64)
        rates = {name: sum(each[name] for each in judged) / len(judged) for name in self._judge.rates}
        pairs = list(zip(seen.prompts, seen.texts, strict=True))[:_EXAMPLES]
        return {
            "iteration": iteration,
            "reward": float(seen.scores.mean()),
            "judge": float(totals.mean()),
            "judge_error": float(totals.std(correction=0) / len(totals) ** 0.5),
            **rates,
            **distance(self._policy, self._reference, seen.sequences, self._micro_batch),
            "finished": float(seen.finished.float().mean()),
            "distinct_2": distinct_2(seen.texts),
            "examples": [{"prompt": prompt.text, "answer": text} for prompt, text in pairs],
        }


def distance(policy: Decoder, reference: Decoder, sequences: Sequences, micro_batch: int) -> dict[str, float]:
    """How far a policy's own samples are from the reference: ``kl`` (nats per answer), ``entropy``, ``length``."""
    parts, score = scoring.parts_by_length(sequences, micro_batch), scoring.response_logprobs
    here = scoring.without_gradient(score, policy, sequences, parts)
    there = scoring.without_gradient(score, reference, sequences, parts)
    return {
        "kl": float(losses.kl_k1(here, there).sum(1).mean()),
        "entropy": float(-losses.masked_mean(here, sequences.mask)),
        "length": float(sequences.mask.sum(1).float().mean()),
    }


def over_optimised(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether the proxy still rises while the judge has clearly fallen (Gao et al., arXiv 2210.10760).

    Clearly: by more than two standard errors of the difference since the judge's best look.
    """
    if not rows:
        return False
    best, now = max(rows, key=lambda row: float(row["judge"])), rows[-1]
    error = (best["judge_error"] ** 2 + now["judge_error"] ** 2) ** 0.5
    return bool(now["reward"] > best["reward"] and now["judge"] < best["judge"] - 2.0 * error)


def choose(rows: Sequence[dict[str, Any]], kl_coefficient: float, kl_budget: float) -> int:
    """The iteration whose policy is kept: the best ``reward - coefficient * kl`` within the KL budget.

    The first look is at the SFT model itself, whose KL is 0, so something always fits the budget.
    """
    fitting = [row for row in rows if row["kl"] <= kl_budget]
    return int(max(fitting, key=lambda row: row["reward"] - kl_coefficient * row["kl"])["iteration"])


def write(path: Path, rows: Sequence[dict[str, Any]], chosen: int, alarms: Sequence[int]) -> None:
    """Write monitor.json: every look, the iteration that was kept, the iterations at which the alarm went off."""
    write_json(path, {"looks": list(rows), "chosen": chosen, "alarms": list(alarms)})
