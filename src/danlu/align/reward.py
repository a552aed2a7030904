"""Stage ``reward``: learn what people prefer, as one number per answer.

In:  the SFT model, ranked answers (simulated and, if there are any, the frozen votes of real people).
Out: ``model/``, a sequence-classification model, with ``reward.json`` in it: the mean and deviation of the rewards of
SFT samples, which make its scale the same for everybody; and figures that say whether it learned more than a habit.
Left out: regression on absolute scores, ensembles.

The training loop is everybody's (``train.loop``); here are its batches, its loss and its evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor

from danlu import device, hub
from danlu.align import losses, scoring
from danlu.align.rollout import Cursor, Prompt, Rollouts
from danlu.align.scoring import Sequences
from danlu.evals.intervals import wilson
from danlu.infer.generate import Generator
from danlu.model.decoder import Decoder
from danlu.records import Message, Preference, read_preferences
from danlu.run import Stage, read_json, stream_seed, write_json
from danlu.tokens import chat
from danlu.tokens.tokenizer import Tokenizer
from danlu.train.loop import run_loop
from danlu.train.task import LoopSettings, LossOutput, Task

SCALE = "reward.json"
_CHUNK = 256


class RewardSettings(LoopSettings):
    """The section ``reward``."""

    steps: int = Field(0, ge=0)
    """Optimizer steps; 0 goes through the comparisons once (twice over-fits)."""
    batch_size: int = Field(32, ge=1)
    """Comparisons per optimizer step; all answers of one are in the same batch."""
    micro_batch: int = Field(8, ge=0)
    """Comparisons per forward pass; 0 takes all at once."""
    lr: float = Field(2e-4, gt=0)
    """Peak learning rate."""
    warmup: int = Field(5, ge=0)
    """Steps of linear warm-up."""
    min_lr_ratio: float = Field(0.05, ge=0, le=1)
    """Learning rate of the last step, as a share of the peak."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay of matrices."""
    scale_prompts: int = Field(256, ge=2)
    """Samples of the SFT model from which the reward's mean and deviation are measured."""
    max_new_tokens: int = Field(48, ge=1)
    """Where such a sample is cut off."""


@dataclass(frozen=True)
class Ranking:
    """One comparison in token ids: the answers of K, a prompt for each (the same, cut alike), their ranks."""

    prompts: tuple[list[int], ...]
    responses: tuple[list[int], ...]
    ranks: tuple[int, ...]

    def longest(self) -> int:
        """Tokens of the longest answer with its prompt."""
        return max(len(p) + len(r) for p, r in zip(self.prompts, self.responses, strict=True))


@dataclass(frozen=True)
class RankedBatch:
    """Comparisons side by side: N answers in all, each forwarded once however many pairs it is in.

    Attributes:
        sequences: N rows, comparison by comparison.
        ranks: (B, K) int64, -1 where a comparison has fewer than K answers.
    """

    sequences: Sequences
    ranks: Tensor

    def spread(self, flat: Tensor) -> Tensor:
        """(N,) numbers of the answers as (B, K), 0 where there is none."""
        return torch.zeros(self.ranks.shape, dtype=flat.dtype, device=flat.device).masked_scatter(self.ranks >= 0, flat)


def reward(stage: Stage) -> dict[str, Any]:
    """Train the reward model.

    Returns:
        Held-out accuracy with its interval, by which answer is longer, of four habits that know nothing of quality,
        and whether the accuracy's lower bound beats the best of them. PPO on a reward model that does not learns
        the habit.
    """
    settings = cast(RewardSettings, stage.settings)
    place = device.choose(settings.device, settings.dtype)
    sft, tokenizer = hub.load_pretrained(stage.inputs["sft"] / "model")
    sft.to(place.kind).compute_in(place.compute_dtype)
    model = with_scalar_head(sft, stream_seed(stage.seed, stage.name, "head")).to(place.kind)
    train, heldout, counts = _comparisons(stage, tokenizer, sft.config.max_seq_len)
    if not settings.steps:
        settings = settings.model_copy(update={"steps": math.ceil(len(train) / settings.batch_size)})
    task = _task(train, heldout, settings, tokenizer.pad, stage.seed, place.kind)
    figures = run_loop(model, task, settings, stage)
    figures |= counts | quality(model, sft, heldout, tokenizer.pad)
    scale = _scale(stage, settings, model, sft, tokenizer, place)
    facts = {key: figures[key] for key in ("accuracy", "comparisons", "votes")}
    hub.save(model, stage.dir / "model", tokenizer, card={"stage": "reward", **facts, **scale})
    write_json(stage.dir / "model" / SCALE, scale)
    if not figures["beats_habits"]:
        stage.console.say(
            f"{stage.name}: accuracy {figures['accuracy']} is not clearly above that of a habit "
            f"({figures['best_habit']}); PPO will learn the habit. Rank more answers.", style="yellow"
        )  # fmt: skip
    return figures | scale


def read_scale(folder: Path) -> tuple[float, float]:
    """Mean and deviation of a reward model's rewards on SFT samples, from beside its weights."""
    scale = read_json(folder / SCALE)
    return float(scale["mean"]), float(scale["std"])


def with_scalar_head(model: Decoder, seed: int) -> Decoder:
    """A reward model with a copy of the trunk and a fresh head, normal with variance 1 / (d + 1) (N+ details)."""
    scored = Decoder(model.config, head="scalar")
    trunk = {name: tensor for name, tensor in model.state_dict().items() if name in scored.state_dict()}
    head = scored.score.weight
    noise = torch.randn(head.shape, generator=torch.Generator().manual_seed(seed))
    scored.load_state_dict(trunk | {"score.weight": noise / math.sqrt(model.config.d_model + 1)})
    return scored


def batch_of(rankings: Sequence[Ranking], padding: int, place: str) -> RankedBatch:
    """Put comparisons side by side."""
    width = max(len(ranking.ranks) for ranking in rankings)
    prompts = [prompt for ranking in rankings for prompt in ranking.prompts]
    responses = [response for ranking in rankings for response in ranking.responses]
    ranks = torch.tensor([[*r.ranks, *[-1] * (width - len(r.ranks))] for r in rankings], device=place)
    return RankedBatch(scoring.pad(prompts, responses, padding, place), ranks)


def ranking_loss(model: Decoder, batch: RankedBatch) -> LossOutput:
    """Bradley-Terry over every pair of every comparison, summed over comparisons."""
    scores = batch.spread(scoring.rewards(model, batch.sequences))
    loss = losses.bradley_terry(scores, batch.ranks).sum()
    right, pairs = _right_pairs(scores.detach(), batch.ranks)
    accuracy = (right.sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)).sum()
    tokens = int(batch.sequences.lengths.sum())
    return LossOutput(loss, len(batch.ranks), tokens, sums={"accuracy": float(accuracy)})


def quality(model: Decoder, sft: Decoder, heldout: Sequence[Ranking], padding: int) -> dict[str, Any]:
    """How well held-out comparisons are predicted: by the model, by which answer is longer, by mere habits."""
    if not heldout:
        return {"accuracy": None, "accuracy_interval": [0.0, 1.0], "beats_habits": False, "best_habit": None}
    batch = batch_of(heldout, padding, sft.output_weight.device.type)
    answers = batch.sequences
    parts = scoring.parts_by_length(answers, _CHUNK)
    lengths = answers.mask.sum(1).float()
    likelihood = scoring.without_gradient(scoring.response_logprobs, sft, answers, parts).sum(1)
    habits = {
        "longer": lengths,
        "shorter": -lengths,
        "likelihood": likelihood,
        "likelihood_per_token": likelihood / lengths,
    }
    scores = _rewards(model, answers)
    accuracy = _accuracy(batch, scores)
    # Pairs of one comparison are not independent, so the interval counts comparisons.
    low, high = wilson(round(accuracy * len(heldout)), len(heldout))
    by_habit = {name: round(_accuracy(batch, values), 4) for name, values in habits.items()}
    best = max(by_habit, key=lambda name: by_habit[name])
    return {
        "accuracy": round(accuracy, 4),
        "accuracy_interval": [round(low, 4), round(high, 4)],
        "accuracy_by_length": _by_length(batch, scores, lengths),
        "habits": by_habit,
        "best_habit": best,
        "beats_habits": low > by_habit[best],
    }


def _task(
    train: Sequence[Ranking], heldout: Sequence[Ranking], settings: RewardSettings, padding: int, seed: int, place: str
) -> Task:
    cursor = Cursor(len(train), seed, "reward")
    size = settings.micro_batch or settings.batch_size

    def batches(step: int) -> list[RankedBatch]:
        chosen = [train[index] for index in cursor.batch(step, settings.batch_size)]
        chosen.sort(key=Ranking.longest)  # similar lengths share a micro-batch, so that little padding is computed
        return [batch_of(chosen[i : i + size], padding, place) for i in range(0, len(chosen), size)]

    def evaluate(model: Decoder) -> dict[str, float]:
        if not heldout:
            return {}
        batch = batch_of(heldout, padding, place)
        scores = _rewards(model, batch.sequences)
        loss = losses.bradley_terry(batch.spread(scores), batch.ranks).mean()
        return {"heldout_loss": float(loss), "heldout_accuracy": _accuracy(batch, scores)}

    return Task(batches=batches, loss=ranking_loss, evaluate=evaluate)


def _comparisons(stage: Stage, tokenizer: Tokenizer, room: int) -> tuple[list[Ranking], list[Ranking], dict[str, int]]:
    """Training and held-out comparisons that say something, and how many came from where."""
    simulated = read_preferences(stage.inputs["rankings"] / "preferences.jsonl")
    votes = read_preferences(stage.outside["votes"]) if "votes" in stage.outside else []
    useful = [preference for preference in (*simulated, *votes) if preference.pairs()]
    train = [_encode(p, tokenizer, room) for p in useful if p.split == "train"]
    heldout = [_encode(p, tokenizer, room) for p in useful if p.split == "heldout"]
    return train, heldout, {"comparisons": len(train), "heldout": len(heldout), "votes": len(votes)}


def _encode(preference: Preference, tokenizer: Tokenizer, room: int) -> Ranking:
    ids = [scoring.answer_ids(tokenizer, preference.prompt, answer, room) for answer in preference.answers]
    return Ranking(tuple(p for p, _ in ids), tuple(r for _, r in ids), preference.ranks)


def _right_pairs(scores: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """(B, K, K): 1 where i is better than j and scored so (a half for equal scores), and 1 where i is better."""
    present = ranks >= 0
    better = (ranks[:, :, None] < ranks[:, None, :]) & present[:, :, None] & present[:, None, :]
    agreement = 0.5 + 0.5 * torch.sign(scores[:, :, None] - scores[:, None, :])
    return agreement.masked_fill(~better, 0.0), better


def _accuracy(batch: RankedBatch, flat: Tensor) -> float:
    """Share of pairs in the right order, averaged within a comparison and then over comparisons."""
    right, pairs = _right_pairs(batch.spread(flat), batch.ranks)
    return float((right.sum((1, 2)) / pairs.sum((1, 2))).mean())


def _by_length(batch: RankedBatch, scores: Tensor, lengths: Tensor) -> dict[str, dict[str, float]]:
    """Accuracy over pairs whose better answer is longer, as long, or shorter: a length bias shows as a slope."""
    right, better = _right_pairs(batch.spread(scores), batch.ranks)
    spread = batch.spread(lengths)
    gap = spread[:, :, None] - spread[:, None, :]
    groups: dict[str, Callable[[Tensor], Tensor]] = {
        "better_is_longer": lambda g: g > 0,
        "same_length": lambda g: g == 0,
        "better_is_shorter": lambda g: g < 0,
    }
    result = {}
    for name, chooses in groups.items():
        pairs = better & chooses(gap)
        n = int(pairs.sum())
        result[name] = {"pairs": n, "accuracy": round(float(right[pairs].mean()), 4) if n else math.nan}
    return {name: group for name, group in result.items() if group["pairs"]}


def _scale(
    stage: Stage, settings: RewardSettings, model: Decoder, sft: Decoder, tokenizer: Tokenizer, place: device.Device
) -> dict[str, float]:
    """Mean and deviation of the rewards of fresh SFT samples for prompts of the rankings."""
    preferences = read_preferences(stage.inputs["rankings"] / "preferences.jsonl")
    turns = list(dict.fromkeys(p.prompt for p in preferences))[: settings.scale_prompts]
    prompts = [_prompt(messages, tokenizer) for messages in turns]
    rollouts = Rollouts(
        Generator(sft, tokenizer, place.compute_dtype),
        lambda answers, _finished: _rewards(model, answers),
        settings.max_new_tokens, tokenizer.pad, place.kind,
    )  # fmt: skip
    seen = rollouts.collect(prompts, stage.seed, stage.name, "scale")
    return {"mean": float(seen.scores.mean()), "std": max(float(seen.scores.std()), 1e-3)}


def _rewards(model: Decoder, answers: Sequences) -> Tensor:
    """(N,) rewards, without gradient."""
    return scoring.without_gradient(scoring.rewards, model, answers, scoring.parts_by_length(answers, _CHUNK))


def _prompt(messages: tuple[Message, ...], tokenizer: Tokenizer) -> Prompt:
    return Prompt(messages, messages[-1].content, tuple(chat.encode_prompt(tokenizer, messages)))
