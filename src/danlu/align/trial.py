"""A candidate before people see it: the same held-out prompts and text for it, the champion and the SFT model.

In:  three model directories, the audit reward model if there is one, held-out conversations and text, red lines.
Out: conditions: audit reward gained, KL and bits per byte within their budgets, red lines kept.
Left out: people's votes (``gate.compare``).

Prompts and seeds are the same for both, so the audit's scores are compared pair by pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from danlu import hub
from danlu.align import gate, redlines, scoring
from danlu.align.gate import Condition, GateSettings
from danlu.align.scoring import Sequences
from danlu.device import Device
from danlu.errors import UserError
from danlu.evals.evaluate import EvalSettings
from danlu.evals.exam import heldout_prompts
from danlu.evals.judge import judge
from danlu.evals.perplexity import bits_per_byte, heldout_text
from danlu.infer.generate import Generator
from danlu.infer.sampler import Sampling
from danlu.model.decoder import Decoder
from danlu.run import Stage
from danlu.streams import stream_seed
from danlu.tokens import chat
from danlu.tokens.tokenizer import Tokenizer

_ROWS = 32  # per forward
AUDIT = "audit reward gain"
_NO_AUDIT = "no reward model was kept apart: give the recipe reward.audit_share=0.2, or the flywheel audit=false"


@dataclass(frozen=True)
class Contestants:
    """Directories of the models.

    Attributes:
        champion, candidate: who is compared.
        sft: where both come from.
        audit: a reward model that neither was trained by; None if there is none.
    """

    champion: Path
    candidate: Path
    sft: Path
    audit: Path | None


@dataclass(frozen=True)
class _Answered:
    """A model's answers to the held-out prompts, and what it needs for the held-out text."""

    sequences: Sequences
    bits_per_byte: float


def trial(
    stage: Stage, contestants: Contestants, settings: GateSettings, exam: EvalSettings, red_lines: Path | None
) -> list[Condition]:
    """Hold a candidate against the champion without people.

    Args:
        stage: with the inputs ``sft`` (its conversations) and, if there are any, ``tokens``; a place to write.
        contestants: the models.
        settings: the budgets.
        exam: the run's own exam: whose prompts, how many, how long answers get.
        red_lines: a file of them (``redlines``).

    Raises:
        UserError: champion and candidate spell text in different tokens, no held-out prompt can be judged, or the file
            of red lines cannot be read.
    """
    place = exam.machine()
    candidate, tokenizer = _load(contestants.candidate, place)
    prompts = _prompts(stage, candidate, tokenizer, exam)
    text = heldout_text(stage, tokenizer, candidate.config.max_seq_len, exam.bpb_tokens)
    ours = _Answered(_answer(candidate, tokenizer, prompts, exam, stage.seed, place), bits_per_byte(candidate, text))
    sft, _ = _load(contestants.sft, place)
    conditions = [
        gate.within("KL from the SFT model, nats per answer", _kl(candidate, sft, ours.sequences), settings.kl_budget),
        gate.within(
            "bits per byte above the SFT model's, as a share", ours.bits_per_byte / bits_per_byte(sft, text) - 1,
            settings.bpb_budget,
        ),
    ]  # fmt: skip
    del sft
    champion, spelling = _load(contestants.champion, place)
    if spelling.hash != tokenizer.hash:
        raise UserError(
            f"the champion {contestants.champion.name[:12]} has another tokenizer than the candidate; their answers "
            "cannot be compared token by token: give the new recipe a run of its own"
        )
    if settings.audit:
        theirs = _answer(champion, tokenizer, prompts, exam, stage.seed, place)
        conditions.insert(0, _audit(contestants.audit, place, ours.sequences, theirs, settings.audit_gain))
    if red_lines is not None:
        lines = redlines.read(red_lines)
        before, after = (Generator(model, tokenizer, place.compute_dtype) for model in (champion, candidate))
        conditions.append(redlines.kept(lines, before, after, exam.max_new_tokens))
    return conditions


def _load(folder: Path, place: Device) -> tuple[Decoder, Tokenizer]:
    model, tokenizer = hub.load_pretrained(folder)
    model.to(place.kind).compute_in(place.compute_dtype)
    return model, tokenizer


def _prompts(stage: Stage, model: Decoder, tokenizer: Tokenizer, exam: EvalSettings) -> list[list[int]]:
    """Ids of the held-out prompts of the run's exam."""
    path, room = stage.inputs["sft"] / "conversations" / "heldout.jsonl", model.config.max_seq_len - exam.max_new_tokens
    turns = heldout_prompts(path, judge(exam.judge), tokenizer, room, exam.prompts, stage.seed)
    return [chat.encode_prompt(tokenizer, prompt) for prompt in turns]


def _answer(
    model: Decoder, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], exam: EvalSettings, seed: int, place: Device
) -> Sequences:
    """One answer per prompt from the model's own distribution: the KL is an expectation under it."""
    seeds = [stream_seed(seed, "trial", row) for row in range(len(prompts))]
    sampling = Sampling(max_new_tokens=exam.max_new_tokens)
    done = Generator(model, tokenizer, place.compute_dtype).generate(prompts, sampling, seeds)
    return scoring.pad(prompts, [completion.tokens for completion in done], tokenizer.pad, place.kind)


def _kl(model: Decoder, reference: Decoder, answers: Sequences) -> float:
    """Nats per answer: the mean over answers of the model of what they are likelier to it than to the reference."""
    parts = scoring.parts_by_length(answers, _ROWS)
    here, there = (
        scoring.without_gradient(scoring.response_logprobs, one, answers, parts).sum(1) for one in (model, reference)
    )
    return float((here - there).mean())


def _audit(folder: Path | None, place: Device, ours: Sequences, theirs: Sequences, needed: float) -> Condition:
    if folder is None:
        return Condition(AUDIT, None, f"> {needed:g}", False, _NO_AUDIT)
    model, _ = _load(folder, place)

    def score(answers: Sequences) -> list[float]:
        parts = scoring.parts_by_length(answers, _ROWS)
        found: list[float] = scoring.without_gradient(scoring.rewards, model, answers, parts).tolist()
        return found

    return gate.paired_gain(AUDIT, score(ours), score(theirs), needed)
