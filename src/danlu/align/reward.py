"""Stage ``reward``: learn what people prefer, as one number per answer.

In:  the SFT model, ranked answers (simulated and, if there are any, the frozen votes of people).
Out: ``model/``, a sequence-classification model, with ``reward.json`` in it: the mean and deviation of the rewards of
SFT samples, which make its scale the same for everybody; and figures that say whether it learned more than a baseline.
Left out: regression on absolute scores, ensembles.

The training loop is everybody's (``train.loop``); here are its batches and its evaluation, in ``comparisons`` its loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor

from danlu import device, hub
from danlu.align import losses, quality, scoring
from danlu.align.comparisons import RankedBatch, Ranking, accuracy, batch_of, encode, ranking_loss
from danlu.align.judgements import read_comparisons
from danlu.align.rollout import Cursor, Rollouts, fitting_prompts
from danlu.align.scoring import Sequences
from danlu.errors import UserError
from danlu.files import read_json, write_json
from danlu.infer.generate import Generator
from danlu.model.decoder import Decoder
from danlu.records import read_preferences
from danlu.run import Stage
from danlu.streams import stream_seed
from danlu.tokens.tokenizer import Tokenizer
from danlu.train.loop import run_loop
from danlu.train.task import LoopSettings, Task

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
    near_misses: int = Field(0, ge=0)
    """Steps at the start that learn from near misses alone (``Ranking.near_miss``), as long as there are any. A fine
    difference is heard sooner while coarse ones are kept away (docs/log.md)."""
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


def reward(stage: Stage) -> dict[str, Any]:
    """Train the reward model.

    Returns:
        Held-out accuracy with its interval, by which answer is longer, of four baselines that know nothing of quality,
        and whether the accuracy's lower bound beats the best of them. PPO on a reward model that does not learns
        the baseline.
    """
    settings = cast(RewardSettings, stage.settings)
    place = settings.machine()
    sft, tokenizer = hub.load_pretrained(stage.inputs["sft"] / "model")
    sft.to(place.kind).compute_in(place.compute_dtype)
    model = with_scalar_head(sft, stream_seed(stage.seed, stage.name, "head")).to(place.kind)
    preferences, votes = read_comparisons(stage)
    room = sft.config.max_seq_len
    train, heldout = (
        [encode(p, tokenizer, room) for p in preferences if p.split == split] for split in ("train", "heldout")
    )
    if not train:
        raise UserError(f"{stage.name}: no comparison prefers one answer to another; rank more or lower tie_width")
    if not settings.steps:
        settings = settings.model_copy(update={"steps": math.ceil(len(train) / settings.batch_size)})
    task = _task(train, heldout, settings, tokenizer.pad, stage.seed, place.kind)
    figures = run_loop(model, task, settings, stage)
    figures |= {"comparisons": len(train), "heldout": len(heldout), "votes": votes}
    figures |= quality.quality(model, sft, heldout, tokenizer.pad)
    scale = _scale(stage, settings, model, sft, tokenizer, place)
    # Nothing that held-out votes change: the model would be another one, and PPO would run again for it.
    hub.save(model, stage.dir / "model", tokenizer, card={"stage": "reward", "comparisons": len(train), **scale})
    write_json(stage.dir / "model" / SCALE, scale)
    if not figures["beats_baselines"]:
        found = (
            "too few comparisons were held out to tell whether it learned anything" if figures["accuracy"] is None
            else f"accuracy {figures['accuracy']} is not clearly above that of a baseline ({figures['best_baseline']})"
        )  # fmt: skip
        stage.console.say(
            f"{stage.name}: {found}; PPO will learn no more than that. Rank more answers.", style="yellow"
        )
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


def _task(
    train: Sequence[Ranking], heldout: Sequence[Ranking], settings: RewardSettings, padding: int, seed: int, place: str
) -> Task:
    near = [index for index, ranking in enumerate(train) if settings.near_misses and ranking.near_miss()]
    cursor = Cursor(len(train), seed, "reward", first=near[: settings.near_misses * settings.batch_size])
    size = settings.micro_batch or settings.batch_size

    def batches(step: int) -> list[RankedBatch]:
        chosen = [train[index] for index in cursor.batch(step, settings.batch_size)]
        chosen.sort(key=Ranking.tokens)  # similar lengths share a micro-batch, so that little padding is computed
        return [batch_of(chosen[i : i + size], padding, place) for i in range(0, len(chosen), size)]

    def evaluate(model: Decoder) -> dict[str, float]:
        if not heldout:
            return {}
        batch = batch_of(heldout, padding, place)
        found = quality.scores(model, batch)
        return {
            "val_loss": float(losses.bradley_terry(found, batch.ranks).mean()),
            "val_accuracy": float(accuracy(found, batch.ranks).mean()),
        }

    return Task(batches=batches, loss=ranking_loss, evaluate=evaluate)


def _scale(
    stage: Stage, settings: RewardSettings, model: Decoder, sft: Decoder, tokenizer: Tokenizer, place: device.Device
) -> dict[str, float]:
    """Mean and deviation of the rewards of fresh SFT samples for prompts of the rankings, as often as there are few."""
    preferences = read_preferences(stage.inputs["rankings"] / "preferences.jsonl")
    longest = sft.config.max_seq_len - settings.max_new_tokens
    turns = dict.fromkeys(p.prompt for p in preferences)
    fitting = fitting_prompts(turns, tokenizer, longest)
    prompts = list(islice(cycle(islice(fitting, settings.scale_prompts)), settings.scale_prompts))
    if not prompts:
        raise UserError(f"{stage.name}: no ranked prompt has at most {longest} tokens; lower reward.max_new_tokens")
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
