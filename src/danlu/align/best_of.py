"""Stage ``best_of``: answer often, keep the best answer by the score, learn from it as from a person's.

In:  the SFT model, what scores answers, training prompts.
Out: ``model/``, ``samples/`` with the best answer to every prompt, ``metrics.jsonl``, ``monitor.json`` with two looks.
Left out: the training loop and its loss, which are everybody's (``train``); choosing among answers while serving.

Rejection sampling (Touvron et al., Llama 2, arXiv 2307.09288, section 3.2.3): no policy gradient and no critic, so
there is little that can go wrong. How far the best of n is from one sample is known beforehand (``best_of_n_kl``).
Samples are written in parts and addressed by part: a killed run goes on after the last whole one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import Field

from danlu.align import losses, monitor, prompts, trunk
from danlu.align.answering import AnsweringSettings
from danlu.align.monitor import Monitor
from danlu.align.rewards import audits, scorer, watched
from danlu.align.rollout import Experience, Prompt, Rollouts
from danlu.errors import UserError
from danlu.evals.judge import judge
from danlu.evals.perplexity import heldout_texts
from danlu.files import atomic_write, read_lines
from danlu.hub.lora import adapted
from danlu.infer.generate import Generator
from danlu.model.decoder import Decoder
from danlu.run import Stage
from danlu.streams import stream_seed
from danlu.tokens.shards import Masked, read_shards, write_shards
from danlu.tokens.tokenizer import Tokenizer
from danlu.train import adapters, parallel
from danlu.train.language import LanguageSettings, Text, continuation, language_task
from danlu.train.loop import run_loop
from danlu.train.pretrain import save_model

_PART = 32  # prompts sampled at once, and lost at most


class BestOfSettings(AnsweringSettings, LanguageSettings, adapters.Adaptable):
    """The section ``best_of``."""

    most_prompts: int = Field(1000, ge=1)
    """Prompts that are answered at most."""
    n: int = Field(8, ge=2)
    """Answers to each, of which the best is kept."""
    max_new_tokens: int = Field(48, ge=1)
    """Where an answer is cut off; one that was is not learnt from."""
    scored_at_once: int = Field(32, ge=1)
    """Answers per forward of what scores them; changes memory, not the result."""
    epochs: float = Field(1.0, gt=0)
    """Times that training reads every kept answer; used if ``steps`` is 0."""
    steps: int = Field(0, ge=0)
    """Optimizer steps; 0 goes by ``epochs``."""
    lr: float = Field(1e-4, gt=0)
    """Peak learning rate, of AdamW's size for either optimizer."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of matrices; embeddings, norms and biases are not decayed."""
    probe_tokens: int = Field(4096, ge=1)
    """Tokens of held-out conversations that are read at an evaluation, and by a look as many of documents."""


@dataclass(frozen=True)
class Kept:
    """The best answer to a prompt.

    Attributes:
        prompt, response: token ids; no response if nothing was good enough to learn from.
        text: the answer in words.
        scores: of all answers that have one.
    """

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    text: str
    scores: tuple[float, ...]


def best_of(stage: Stage) -> dict[str, Any]:
    """Sample, keep the best, tune on it.

    Returns:
        How many prompts were answered and learnt from, mean score of all answers and of the kept ones, the bound on
        their KL, the looks before and after, and the loop's figures.

    Raises:
        UserError: no prompts, or no answer to learn from.
    """
    settings = cast(BestOfSettings, stage.settings)
    place, world = settings.machine(), parallel.join()
    base = stage.inputs["sft"] / "model"
    tokenizer = Tokenizer.load(base)
    model, reference = trunk.policy_and_reference(stage, settings.adapter, place)
    shared = reference if adapted(model) else None
    room = model.config.max_seq_len
    sampler = Generator(model, tokenizer, place.compute_dtype)
    score = scorer(settings.rewards, stage, place, settings.scored_at_once, settings.missing_end_penalty, shared, world)
    rollouts = Rollouts(sampler, score, settings.max_new_tokens, tokenizer.pad, place.kind, world)
    chosen, heldout = _prompts(stage, settings, sampler, tokenizer, room, world)
    _sample(stage, settings, rollouts, chosen, world)
    kept = [row for path in sorted((stage.dir / "samples").glob("*.jsonl")) for row in _read(path)]
    texts = heldout_texts(stage, tokenizer, room, settings.probe_tokens, world)
    watch = Monitor(
        judge(settings.judge), heldout[: settings.probe_prompts], rollouts, model, reference, settings.scored_at_once,
        stage.seed, audits(stage, place, settings.scored_at_once, settings.missing_end_penalty), texts,
    )  # fmt: skip
    looks = [watch.look(0)]
    figures = _tune(stage, settings, model, tokenizer, kept, texts["heldout_bpb"], world)
    sampler.refresh()
    looks.append(watch.look(figures["steps"]))
    if world.main:
        alarms = [figures["steps"]] if monitor.fallen(looks, watched(stage)) else []
        monitor.write(stage.dir / "monitor.json", looks, figures["steps"], alarms)
        save_model(model, tokenizer, stage, {"n": settings.n, "steps": figures["steps"]})
        adapters.write(model, stage, base, settings.adapter)
    return _figures(kept, settings.n) | figures | {"before": monitor.short(looks[0]), "after": monitor.short(looks[1])}


def choose(experience: Experience, n: int) -> list[Kept]:
    """The best of every ``n`` answers that follow each other, if it ended by itself; scores may be no numbers."""
    found = []
    responses = monitor.responses(experience)
    for start in range(0, len(experience.scores), n):
        scores = experience.scores[start : start + n]
        sound = torch.isfinite(scores)
        best = start + int(scores.masked_fill(~sound, -math.inf).argmax())
        learnt = bool(sound.any()) and bool(experience.finished[best])
        prompt = experience.prompts[start].ids
        response = tuple(responses[best]) if learnt else ()
        found.append(Kept(prompt, response, experience.texts[best], tuple(scores[sound].tolist())))
    return found


def _prompts(
    stage: Stage, settings: BestOfSettings, sampler: Generator, tokenizer: Tokenizer, room: int, world: parallel.World
) -> tuple[list[Prompt], list[Prompt]]:
    seeds = [stream_seed(stage.seed, stage.name, "ask", number) for number in range(settings.self_prompts)]
    longest = min(room, settings.seq_len) - settings.max_new_tokens  # prompt and answer are one row of training
    train, heldout = prompts.gather(
        stage, settings.prompts, settings.judge, tokenizer, longest,
        lambda: prompts.asked_by(sampler, tokenizer, seeds, room // 2, world),
    )  # fmt: skip
    order = torch.randperm(
        len(train), generator=torch.Generator().manual_seed(stream_seed(stage.seed, stage.name, "prompts"))
    )
    return [train[index] for index in order[: settings.most_prompts].tolist()], heldout


def _sample(
    stage: Stage, settings: BestOfSettings, rollouts: Rollouts, chosen: Sequence[Prompt], world: parallel.World
) -> None:
    """Write the best answers, part by part; parts that are there already are not made again."""
    with stage.console.task(f"{stage.name} sampling", len(chosen) * settings.n, "answers") as task:
        for part, start in enumerate(range(0, len(chosen), _PART)):
            asked = [prompt for prompt in chosen[start : start + _PART] for _ in range(settings.n)]
            path = stage.dir / "samples" / f"{part:05d}.jsonl"
            if world.told(not path.exists()):
                experience = rollouts.collect(asked, stage.seed, stage.name, part)
                if world.main:
                    _write(path, choose(experience, settings.n))
            task.advance(len(asked))
    world.wait()


def _write(path: Path, kept: Sequence[Kept]) -> None:
    with atomic_write(path) as handle:
        for row in kept:
            handle.write(json.dumps(vars(row), ensure_ascii=False) + "\n")


def _read(path: Path) -> list[Kept]:
    rows = map(json.loads, read_lines(path))
    return [Kept(tuple(r["prompt"]), tuple(r["response"]), r["text"], tuple(r["scores"])) for r in rows]


def _tune(
    stage: Stage, settings: BestOfSettings, model: Decoder, tokenizer: Tokenizer, kept: Sequence[Kept], text: Text,
    world: parallel.World,
) -> dict[str, Any]:  # fmt: skip
    """Learn from the kept answers; only the answers and their stop tokens count."""
    learnt = [row for row in kept if row.response]
    if not learnt:
        raise UserError(
            f"{stage.name}: none of {len(kept)} best answers ended within {settings.max_new_tokens} tokens and has a "
            "score; raise best_of.max_new_tokens"
        )
    if world.main:
        write_shards(stage.dir / "shards", map(_masked, learnt), tokenizer)
    world.wait()
    settings = settings.model_copy(update={"seq_len": min(settings.seq_len, model.config.max_seq_len)})
    train = Text.lay_out(read_shards(stage.dir / "shards"), settings, stage.seed)
    if not settings.steps:
        steps = math.ceil(settings.epochs * train.pack.n_rows / settings.batch_size)
        settings = settings.model_copy(update={"steps": steps})
    sample = continuation(tokenizer, learnt[0].prompt)
    task = language_task(train, text, settings, model, tokenizer, stage.seed, world, sample)
    return run_loop(model, adapters.with_dropout(task, settings.adapter, stage.seed), settings, stage)


def _masked(row: Kept) -> Masked:
    return [*row.prompt, *row.response], [0] * len(row.prompt) + [1] * len(row.response)


def _figures(kept: Sequence[Kept], n: int) -> dict[str, Any]:
    scored = [row.scores for row in kept if row.scores]
    every = [score for scores in scored for score in scores]
    figures: dict[str, Any] = {
        "prompts": len(kept),
        "learnt_from": sum(bool(row.response) for row in kept),
        "reward_mean": round(sum(every) / max(1, len(every)), 4),
        "reward_best": round(sum(map(max, scored)) / max(1, len(scored)), 4),
        "best_of_n_kl": round(losses.best_of_n_kl(n), 4),
    }
    missing = len(kept) * n - len(every)
    return figures | ({"answers_without_score": missing} if missing else {})
