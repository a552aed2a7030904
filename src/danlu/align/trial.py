"""A candidate before people see it: the same held-out prompts and text for it, the champion and the SFT model.

In:  three model directories, the reward model that audits if there is one, held-out conversations and text, red lines.
Out: conditions: audit reward gained, KL and bits per byte within their budgets, red lines kept.
Left out: people's votes (``gate.compare``).

Prompts and seeds are the same for both, so the audit's scores are compared pair by pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from danlu import hub
from danlu.align import gate, redlines, scoring
from danlu.align.gate import Condition, GateSettings
from danlu.align.reward import AUDIT
from danlu.align.rewards import audits
from danlu.align.rollout import Experience, Prompt, Rollouts, Score, fitting_prompts
from danlu.align.scoring import Sequences
from danlu.device import Device
from danlu.errors import UserError
from danlu.evals.evaluate import EvalSettings
from danlu.evals.exam import heldout_prompts
from danlu.evals.judge import judge
from danlu.evals.perplexity import bits_per_byte, heldout_text
from danlu.infer.generate import Generator
from danlu.model.decoder import Decoder
from danlu.run import Stage
from danlu.tokens.tokenizer import Tokenizer

_ROWS = 32  # per forward
_CUT_OFF = 1.0  # taken from the audit's score of an answer that did not end, in its standard deviations
GAIN = "audit reward gain"
_NO_AUDIT = "no reward model was kept apart: give the recipe reward.audit_share=0.2, or the flywheel audit=false"


@dataclass(frozen=True)
class Contestants:
    """Directories of the models.

    Attributes:
        champion, candidate: who is compared.
        sft: where both come from.
    """

    champion: Path
    candidate: Path
    sft: Path


def trial(
    stage: Stage, contestants: Contestants, settings: GateSettings, exam: EvalSettings, red_lines: Path | None,
    proven: bool = True,
) -> list[Condition]:  # fmt: skip
    """Hold a candidate against the champion without people.

    Args:
        stage: with the inputs ``sft`` (its conversations), ``reward`` (whose ``audit/`` is asked, if it is there) and,
            if there are any, ``tokens``; a place to write.
        contestants: the models.
        settings: the budgets.
        exam: the run's own exam: whose prompts, how many, how long answers get.
        red_lines: a file of them (``redlines``).
        proven: whether the audit beats every baseline on held-out comparisons; see ``gate.paired_gain``.

    Raises:
        UserError: the audit is asked and the reward stage is not finished, champion and candidate spell text in
            different tokens, no held-out prompt can be judged, or the file of red lines cannot be read.
    """
    if settings.audit and "reward" not in stage.inputs:
        raise UserError(
            "the audit is asked, and the run's reward model is not finished or not of its rankings of today; make it: "
            "danlu run RECIPE --out RUN --until reward"
        )
    place = exam.machine()
    candidate, tokenizer = _load(contestants.candidate, place)
    prompts = _prompts(stage, candidate, tokenizer, exam)
    text = heldout_text(stage, tokenizer, candidate.config.max_seq_len, exam.bpb_tokens)
    audit = audits(stage, place, _ROWS, _CUT_OFF).get(AUDIT) if settings.audit else None
    ours = _answer(candidate, tokenizer, prompts, exam, stage.seed, place, audit)
    sft, _ = _load(contestants.sft, place)
    conditions = [
        gate.within("KL from the SFT model, nats per answer", _kl(candidate, sft, ours.sequences), settings.kl_budget),
        gate.within(
            "bits per byte above the SFT model's, as a share",
            bits_per_byte(candidate, text) / bits_per_byte(sft, text) - 1, settings.bpb_budget,
        ),
    ]  # fmt: skip
    del sft
    champion, spelling = _load(contestants.champion, place)
    if spelling.hash != tokenizer.hash:
        raise UserError(
            f"the champion {contestants.champion.name[:12]} has another tokenizer than the candidate; their answers "
            "cannot be compared token by token: give the new recipe a run of its own"
        )
    if audit is not None:
        theirs = _answer(champion, tokenizer, prompts, exam, stage.seed, place, audit)
        gain = gate.paired_gain(GAIN, ours.scores.tolist(), theirs.scores.tolist(), settings.audit_gain, proven)
        conditions.insert(0, gain)
    elif settings.audit:
        conditions.insert(0, Condition(GAIN, None, f"> {settings.audit_gain:g}", False, _NO_AUDIT))
    if red_lines is not None:
        lines = redlines.read(red_lines)
        before, after = (Generator(model, tokenizer, place.compute_dtype) for model in (champion, candidate))
        conditions.append(redlines.kept(lines, before, after, exam.max_new_tokens))
    return conditions


def _load(folder: Path, place: Device) -> tuple[Decoder, Tokenizer]:
    model, tokenizer = hub.load_pretrained(folder)
    model.to(place.kind).compute_in(place.compute_dtype)
    return model, tokenizer


def _prompts(stage: Stage, model: Decoder, tokenizer: Tokenizer, exam: EvalSettings) -> list[Prompt]:
    """The held-out prompts of the run's exam."""
    path, room = stage.inputs["sft"] / "conversations" / "heldout.jsonl", model.config.max_seq_len - exam.max_new_tokens
    turns = heldout_prompts(path, judge(exam.judge), tokenizer, room, exam.prompts, stage.seed)
    return list(fitting_prompts(turns, tokenizer, room))


def _answer(
    model: Decoder, tokenizer: Tokenizer, prompts: Sequence[Prompt], exam: EvalSettings, seed: int, place: Device,
    score: Score | None,
) -> Experience:  # fmt: skip
    """One answer per prompt from the model's own distribution, since the KL is an expectation under it."""
    generator = Generator(model, tokenizer, place.compute_dtype)
    scores: Score = score or (lambda sampled: torch.zeros(len(sampled.texts)))
    return Rollouts(generator, scores, exam.max_new_tokens, tokenizer.pad, place.kind).collect(prompts, seed, "trial")


def _kl(model: Decoder, reference: Decoder, answers: Sequences) -> float:
    """Nats per answer: the mean over answers of the model of what they are likelier to it than to the reference."""
    parts = scoring.parts_by_length(answers, _ROWS)
    here, there = (
        scoring.without_gradient(scoring.response_logprobs, one, answers, parts).sum(1) for one in (model, reference)
    )
    return float((here - there).mean())
