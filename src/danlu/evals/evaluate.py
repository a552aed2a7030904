"""The stage ``eval``: the same held-out prompts answered at every stage of a model's life, and judged.

In:  the models of the run, held-out conversations, held-out text, training text.
Out: ``figures.json`` (metric -> stage of life -> value, with 95 % intervals), ``answers.json`` (a few fixed prompts
     answered at every stage), ``samples.jsonl`` (every answer with its scores).
Left out: benchmarks that need outside data; verdicts on whether a model may be promoted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import Field

from danlu import hub
from danlu.corpus.split import is_heldout, read_share
from danlu.device import ComputeSettings
from danlu.evals.exam import Prompt, answer, heldout_prompts, judged, measure
from danlu.evals.judge import Judge, judge
from danlu.evals.perplexity import bits_per_byte, heldout_text
from danlu.evals.variety import CopyIndex
from danlu.files import atomic_write, write_json
from danlu.infer.generate import Generator
from danlu.infer.sampler import Sampling
from danlu.records import Message, read_conversations, read_documents
from danlu.run import Stage
from danlu.streams import stream_seed
from danlu.train.language import Text


class EvalSettings(ComputeSettings):
    """The section ``eval``."""

    judge: str = "prose"
    """Who scores the answers: poems or prose."""
    prompts: int = Field(512, ge=1)
    """Held-out prompts, one answer each at every stage of life; all there are if there are fewer."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature; 1 is the model's own distribution, 0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the likeliest tokens that together have this probability."""
    max_new_tokens: int = Field(64, ge=1)
    """Where an answer is cut off."""
    bpb_tokens: int = Field(50_000, ge=1)
    """Held-out tokens on which bits per byte are measured, about."""
    copy_chars: int = Field(10_000_000, ge=1)
    """Characters of training text in which answers are searched for; the first ones, if there are more."""
    showcase: tuple[str, ...] = ()
    """Prompts whose answers at every stage of life are shown in the report."""


@dataclass(frozen=True)
class Exam:
    """What every model is asked, and what its answers are held against.

    Attributes:
        judge: scores the answers.
        prompts: held-out prompts.
        showcase: prompts whose answers people will read.
        copies: finds what was copied from training text.
        text: held-out text for bits per byte.
    """

    judge: Judge
    prompts: list[Prompt]
    showcase: list[Prompt]
    copies: CopyIndex
    text: Text


def evaluate(stage: Stage) -> dict[str, Any]:
    """Examine every model of the run; the module says what is written.

    Returns:
        Figures: prompts, and every rate of the judge at every stage of life, such as ``form_rate_ppo``.

    Raises:
        UserError: an unknown judge, or no held-out prompt that it can judge.
    """
    settings = cast(EvalSettings, stage.settings)
    exam = _prepare(stage, settings)
    lives = _lives(stage)
    results: dict[str, dict[str, Any]] = {}
    shown: dict[str, list[str]] = {}
    with atomic_write(stage.dir / "samples.jsonl") as samples, stage.console.task("eval", len(lives), "models") as task:
        for life, folder in lives.items():
            results[life], rows, shown[life] = _examine(folder / "model", exam, settings, stage.seed)
            samples.writelines(json.dumps({"life": life, **row}, ensure_ascii=False) + "\n" for row in rows)
            task.advance()
    figures = _by_metric(results) | {"judge": exam.judge.name, "prompts": len(exam.prompts)}
    write_json(stage.dir / "figures.json", figures)
    write_json(stage.dir / "answers.json", {"prompts": _side_by_side(settings.showcase, shown)})
    rates = {f"{rate}_rate_{life}": results[life][f"{rate}_rate"] for rate in exam.judge.rates for life in lives}
    return {"prompts": len(exam.prompts), **rates}


def _lives(stage: Stage) -> dict[str, Path]:
    """Stage of life, as reports call it -> the directory of the stage whose model that is, in the order of a life."""
    base, sft, aligned, small = (stage.inputs[name] for name in ("pretrain", "sft", "aligned", "compress"))
    return {"base": base, "sft": sft, aligned.name: aligned, "compress": small}


def _prepare(stage: Stage, settings: EvalSettings) -> Exam:
    by, conversations = judge(settings.judge), stage.inputs["sft"] / "conversations"
    model, tokenizer = hub.load_pretrained(stage.inputs["sft"] / "model")
    heldout, room = conversations / "heldout.jsonl", model.config.max_seq_len - settings.max_new_tokens
    return Exam(
        judge=by,
        prompts=heldout_prompts(heldout, by, tokenizer, room, settings.prompts, stage.seed),
        showcase=[(Message("user", prompt),) for prompt in settings.showcase],
        copies=CopyIndex(_up_to(settings.copy_chars, _training_texts(stage, conversations / "train.jsonl"))),
        text=heldout_text(stage, tokenizer, model.config.max_seq_len, settings.bpb_tokens),
    )


def _examine(
    folder: Path, exam: Exam, settings: EvalSettings, seed: int
) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """One model's figures, its scored answers, and its answers to the showcase."""
    machine = settings.machine()
    model, tokenizer = hub.load_pretrained(folder)
    model.to(machine.kind).compute_in(machine.compute_dtype)
    generator = Generator(model, tokenizer, machine.compute_dtype)
    sampling = Sampling(settings.temperature, top_p=settings.top_p, max_new_tokens=settings.max_new_tokens)
    answers = answer(generator, tokenizer, exam.prompts, sampling, stream_seed(seed, "eval"))
    rows = judged(exam.judge, exam.prompts, answers)
    figures = {"bpb": bits_per_byte(model, exam.text), **measure(exam.judge, rows, exam.copies)}
    return figures, rows, answer(generator, tokenizer, exam.showcase, sampling, stream_seed(seed, "showcase"))


def _training_texts(stage: Stage, conversations: Path) -> Iterator[str]:
    """What a model may have learnt by heart: training documents, or for an adopted model the answers it was taught."""
    if "corpus" in stage.inputs:
        share = read_share(stage.inputs["corpus"])
        documents = read_documents(stage.inputs["corpus"] / "documents")
        yield from (document.text for document in documents if not is_heldout(document.id, share))
    else:
        yield from (c.messages[-1].content for c in read_conversations(conversations)[0])


def _up_to(n_chars: int, texts: Iterator[str]) -> Iterator[str]:
    """Texts until their characters reach a number."""
    for text in texts:
        yield text
        n_chars -= len(text)
        if n_chars <= 0:
            return


def _by_metric(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """life -> metric -> value, turned into metric -> life -> value; the intervals likewise, below one key."""
    first = next(iter(results.values()))
    figures: dict[str, Any] = {
        name: {life: row[name] for life, row in results.items()} for name in first if name != "intervals"
    }
    figures["intervals"] = {
        rate: {life: row["intervals"][rate] for life, row in results.items()} for rate in first["intervals"]
    }
    return figures


def _side_by_side(prompts: Sequence[str], shown: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Each prompt with its answers: life -> text."""
    return [
        {"prompt": prompt, "answers": {life: answers[place] for life, answers in shown.items()}}
        for place, prompt in enumerate(prompts)
    ]
