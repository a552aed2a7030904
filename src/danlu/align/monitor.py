"""Looks at practice from outside: held-out prompts, and a judge that no gradient has ever seen.

In:  the current policy (through a sampler), the reference, the score that is learnt from, the hidden judge; if they are
there, an audit (a second reward model, of other people's votes), held-out conversations and documents.
Out: one row per look: proxy reward, judge, audit, KL, length, variety, repetition, entropy, bits per byte; an alarm;
``monitor.json`` for the report.
Left out: any influence on training. Choosing a policy by the judge would make it a second reward model, so the choice
goes by proxy reward and KL alone, and the judge stays honest. An alarm may end practice, if that is wanted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from danlu.align import losses, scoring
from danlu.align.rollout import Experience, Prompt, Rollouts, Score
from danlu.align.scoring import Sequences
from danlu.errors import UserError
from danlu.evals.judge import Judge
from danlu.evals.perplexity import bits_per_byte
from danlu.evals.variety import distinct_2, repeated_4
from danlu.files import write_json
from danlu.model.decoder import Decoder
from danlu.train.language import Text
from danlu.train.parallel import ALONE, World

WATCHED = ("judge", "audit")
"""What raises the alarm when it falls, an audit only where it is known to hear what people like."""
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
        further: scores that are told beside the one that is learnt from, such as an ``audit``.
        texts: held-out ones by the name of their bits per byte, to see what the policy forgets.
    """

    def __init__(
        self, judge: Judge, prompts: Sequence[Prompt], rollouts: Rollouts, policy: Decoder, reference: Decoder,
        micro_batch: int, seed: int, further: Mapping[str, Score] | None = None,
        texts: Mapping[str, Text] | None = None,
    ) -> None:  # fmt: skip
        self._judge, self._prompts, self._rollouts = judge, prompts, rollouts
        self._policy, self._reference = policy, reference
        self._micro_batch, self._seed = micro_batch, seed
        self._further, self._texts = further or {}, texts or {}

    def look(self, iteration: int) -> dict[str, Any]:
        """Sample every prompt once and measure.

        Returns:
            ``iteration``, ``reward`` (proxy, mean), ``judge`` (total, mean) and ``judge_error`` (its standard error),
            the judge's rates, the further scores with their errors, ``kl`` (nats per answer) and ``sqrt_kl``, the
            distance that laws of over-optimisation go by, ``entropy`` (nats per token, from the samples), ``length``
            (tokens), ``finished`` (share), ``distinct_2``, ``repeated_4``, bits per byte of the texts, and a few
            ``examples``.

        Raises:
            UserError: not one answer got a score that is a number.
        """
        seen = self._rollouts.collect(self._prompts, self._seed, "look")
        judged = [self._judge.score(p.text, text) for p, text in zip(seen.prompts, seen.texts, strict=True)]
        totals = torch.tensor([each["total"] for each in judged], dtype=torch.float64)
        further = {name: _sound(score(seen)) for name, score in self._further.items()}
        reward = _sound(seen.scores)
        if not iteration and not len(reward):
            raise UserError(
                f"none of {len(seen.scores)} answers got a score that is a number; look at what scores them"
            )
        rates = {name: sum(each[name] for each in judged) / len(judged) for name in self._judge.rates}
        pairs = list(zip(seen.prompts, seen.texts, strict=True))[:_EXAMPLES]
        return {
            "iteration": iteration,
            **({"reward": float(reward.mean())} if len(reward) else {}),
            "judge": float(totals.mean()),
            "judge_error": _error(totals),
            **rates,
            **{name: float(scores.mean()) for name, scores in further.items() if len(scores)},
            **{f"{name}_error": _error(scores) for name, scores in further.items() if len(scores)},
            **distance(self._policy, self._reference, seen.sequences, self._micro_batch, self._rollouts.world),
            "finished": float(seen.finished.float().mean()),
            "distinct_2": distinct_2(seen.texts),
            "repeated_4": repeated_4(responses(seen)),
            **{name: bits_per_byte(self._policy, text) for name, text in self._texts.items()},
            "examples": [{"prompt": prompt.text, "answer": text} for prompt, text in pairs],
        }


def distance(
    policy: Decoder, reference: Decoder, sequences: Sequences, micro_batch: int, world: World = ALONE
) -> dict[str, float]:
    """How far a policy's own samples are from the reference: ``kl`` (nats per answer), ``entropy``, ``length``."""
    parts, score = scoring.parts_by_length(sequences, micro_batch), scoring.response_logprobs
    here, there = (
        scoring.without_gradient(score, model, sequences, parts, world=world) for model in (policy, reference)
    )
    kl = float(losses.kl_k1(here, there).sum(1).mean())
    return {
        "kl": kl,
        "sqrt_kl": max(kl, 0.0) ** 0.5,  # the estimate may fall below 0, the distance cannot
        "entropy": float(-losses.masked_mean(here, sequences.mask)),
        "length": float(sequences.mask.sum(1).float().mean()),
    }


def over_optimised(rows: Sequence[dict[str, Any]], by: str = "judge") -> bool:
    """Whether the proxy still rises while the judge has clearly fallen (Gao et al., arXiv 2210.10760).

    Clearly: by more than two standard errors of the difference since the judge's best look.

    Args:
        rows: the looks, in order.
        by: the score that the proxy stands for, one of ``WATCHED``; one that was not looked at never falls.
    """
    scored = [row for row in rows if by in row and "reward" in row]
    if not scored or scored[-1] is not rows[-1]:
        return False
    best, now = max(scored, key=lambda row: float(row[by])), rows[-1]
    error = (best[f"{by}_error"] ** 2 + now[f"{by}_error"] ** 2) ** 0.5
    return bool(now["reward"] > best["reward"] and now[by] < best[by] - 2.0 * error)


def fallen(rows: Sequence[dict[str, Any]], watched: Sequence[str] = WATCHED) -> list[str]:
    """Those of the scores that are watched by which the last look is over-optimised."""
    return [name for name in watched if over_optimised(rows, name)]


def choose(rows: Sequence[dict[str, Any]], kl_coefficient: float, kl_budget: float) -> int:
    """The iteration whose policy is kept: the best ``reward - coefficient * kl`` within the KL budget.

    The first look is at the SFT model itself, whose KL is 0, unless practice set out from another one: if nothing fits
    the budget, the nearest is kept. A look at which no answer got a score chooses nothing.
    """
    scored = [row for row in rows if "reward" in row]
    fitting = [row for row in scored if row["kl"] <= kl_budget] or [min(scored, key=lambda row: row["kl"])]
    return int(max(fitting, key=lambda row: row["reward"] - kl_coefficient * row["kl"])["iteration"])


def write(path: Path, rows: Sequence[dict[str, Any]], chosen: int, alarms: Sequence[int]) -> None:
    """Write monitor.json: every look, the iteration that was kept, the iterations at which the alarm went off."""
    write_json(path, {"looks": list(rows), "chosen": chosen, "alarms": list(alarms)})


def short(look: Mapping[str, Any]) -> dict[str, float]:
    """A look's numbers without its examples."""
    return {key: round(value, 4) for key, value in look.items() if isinstance(value, float)}


def responses(seen: Experience) -> list[list[int]]:
    """Token ids of every answer."""
    starts, ends = seen.sequences.prompt_lengths.tolist(), seen.sequences.lengths.tolist()
    rows = zip(seen.sequences.tokens.tolist(), starts, ends, strict=True)
    return [tokens[start:end] for tokens, start, end in rows]


def _sound(scores: Tensor) -> Tensor:
    """The scores that are numbers."""
    return scores[torch.isfinite(scores)]


def _error(scores: Tensor) -> float:
    """Standard error of the mean."""
    return float(scores.std(correction=0) / len(scores) ** 0.5)
