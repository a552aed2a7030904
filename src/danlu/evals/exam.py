"""An exam: held-out prompts, one answer each, scored by a judge and summed up.

In:  conversations, a generator, a judge.
Out: prompts, answers, scored rows, figures with 95 % intervals.
Left out: which models sit it (``evaluate``, ``compress.report``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from danlu.errors import UserError
from danlu.evals.intervals import wilson
from danlu.evals.judge import Judge
from danlu.evals.variety import CopyIndex, distinct_2
from danlu.infer.generate import Sampler
from danlu.infer.sampler import Sampling
from danlu.records import Message, read_conversations
from danlu.streams import stream_seed
from danlu.tokens import chat
from danlu.tokens.tokenizer import Tokenizer

Prompt = tuple[Message, ...]


def heldout_prompts(
    path: Path, judge: Judge, tokenizer: Tokenizer, longest: int, count: int, seed: int
) -> list[Prompt]:
    """At most ``count`` different prompts of a conversation file, in a seeded order.

    Args:
        path: the conversations.
        judge: only prompts that it can judge are taken.
        tokenizer: the models'.
        longest: only prompts of at most so many tokens are taken.
        count: how many.
        seed: of the order.

    Raises:
        UserError: there is not one.
    """
    conversations, _ = read_conversations(path)
    judgeable = {c.messages[:-1] for c in conversations if judge.accepts(c.messages[-2].content)}
    prompts = [turns for turns, _ in chat.encode_fitting(tokenizer, judgeable, longest)]
    if not prompts:
        raise UserError(
            f"{path} holds no prompt of at most {longest} tokens that the judge '{judge.name}' can judge; "
            "choose another judge or fewer max_new_tokens"
        )
    return sorted(prompts, key=lambda turns: stream_seed(seed, "prompt", *(m.content for m in turns)))[:count]


def answer(
    sampler: Sampler, tokenizer: Tokenizer, prompts: Sequence[Prompt], sampling: Sampling, seed: int
) -> list[str]:
    """One answer per prompt; the seeds depend on a prompt's place alone, so every model gets the same luck."""
    ids = [chat.encode_prompt(tokenizer, prompt) for prompt in prompts]
    seeds = [stream_seed(seed, "answer", place) for place in range(len(ids))]
    return [completion.text for completion in sampler.generate(ids, sampling, seeds)]


def judged(judge: Judge, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[dict[str, Any]]:
    """One row per answer: ``prompt`` (the user's last words), ``answer``, ``scores``."""
    asked = [turns[-1].content for turns in prompts]
    return [
        {"prompt": prompt, "answer": text, "scores": judge.score(prompt, text)}
        for prompt, text in zip(asked, answers, strict=True)
    ]


def measure(judge: Judge, rows: Sequence[Mapping[str, Any]], copies: CopyIndex | None = None) -> dict[str, Any]:
    """Figures of judged answers.

    Args:
        judge: that scored them.
        rows: from ``judged``, at least one.
        copies: training text; without it ``copy_rate`` is left out.

    Returns:
        ``{name}_rate`` of every rate of the judge, ``copy_rate``, the mean of every other component, what the judge
        sees ``across`` answers, ``score`` (mean total), ``distinct_2``, ``length`` (mean characters), and
        ``intervals``: rate -> Wilson 95 % interval.
    """
    n, answers, scores = len(rows), [row["answer"] for row in rows], [row["scores"] for row in rows]
    hits = {f"{rate}_rate": int(sum(s[rate] for s in scores)) for rate in judge.rates}
    if copies is not None:
        hits["copy_rate"] = sum(map(copies.is_copy, answers))
    components = [name for name in scores[0] if name not in (*judge.rates, "total")]
    return {
        **{rate: count / n for rate, count in hits.items()},
        **{name: fmean(s[name] for s in scores) for name in components},
        **judge.across([(row["prompt"], row["answer"]) for row in rows]),
        "score": fmean(s["total"] for s in scores),
        "distinct_2": distinct_2(answers),
        "length": fmean(map(len, answers)),
        "intervals": {rate: list(wilson(count, n)) for rate, count in hits.items()},
    }
