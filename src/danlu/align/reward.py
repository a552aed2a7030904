"""Stage ``reward``: learn what people prefer, as one number per answer.

In:  the SFT model, ranked answers (simulated and, if there are any, the frozen votes of people).
Out: ``model/``, a sequence-classification model, with ``reward.json`` in it: the mean and deviation of the rewards of
SFT samples, which make its scale the same for everybody; if wanted, ``audit/``, another that was taught from prompts
the first never saw; and figures that say whether the first learned more than a baseline.
Left out: regression on absolute scores.

The training loop is everybody's (``train.loop``); here are its batches and its evaluation, in ``comparisons`` its loss,
in ``lessons`` what is learnt from, in ``heads`` the heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
from pydantic import Field, model_validator

from danlu import device, hub
from danlu.align import comparisons, heads, lessons, quality, scoring
from danlu.align.comparisons import Objective, RankedBatch, Ranking, accuracy, batch_of, encode, ranking_loss
from danlu.align.heads import Heads
from danlu.align.lessons import Lessons, VoteSettings, place_of
from danlu.align.rollout import Cursor, Rollouts, fitting_prompts
from danlu.align.scoring import Sequences
from danlu.errors import UserError
from danlu.files import read_json, write_json
from danlu.infer.generate import Generator
from danlu.model.decoder import Decoder
from danlu.records import Preference, read_preferences
from danlu.run import Metrics, Stage
from danlu.streams import stream_seed
from danlu.tokens.tokenizer import Tokenizer
from danlu.train import adapters, parallel
from danlu.train.loop import run_loop
from danlu.train.task import LoopSettings, Task

SCALE = "reward.json"
AUDIT = "audit"
_CHUNK = 256


class RewardSettings(VoteSettings, LoopSettings, adapters.Adaptable):
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
    ties: Literal["skip", "davidson"] = "skip"
    """What two answers of equal rank teach: nothing, or by Davidson's model that they are about as good."""
    nu: float = Field(0.0, ge=0)
    """Davidson's tie parameter, twice the odds of a tie between equals; 0 begins where the share of ties puts it, and
    learning moves it little."""
    margin: float = Field(0.0, ge=0)
    """Lead of a reward that is wanted for every rank between two answers."""
    centring: float = Field(0.0, ge=0)
    """Weight of the pull of rewards towards a mean of zero; 0.01 is a usual one."""
    heads: int = Field(1, ge=1)
    """Heads on one trunk, each taught by a part of the comparisons that no other sees: where they disagree is doubt."""
    audit_share: float = Field(0.0, ge=0, lt=1)
    """Share of the prompts that teach a second reward model, and not the first; it watches practice. 0 makes none."""
    require: bool = False
    """Whether practice is refused on a reward model that is not clearly better than the best baseline."""

    @model_validator(mode="after")
    def _are_read(self) -> Self:
        if self.nu and self.ties != "davidson":
            raise ValueError(f"nu is for ties 'davidson' and ties is '{self.ties}'; leave it out")
        return self


def reward(stage: Stage) -> dict[str, Any]:
    """Train the reward model, and the one that audits it.

    Returns:
        Held-out accuracy with its interval, on people's votes alone, in groups, of four baselines that know nothing of
        quality, and whether the accuracy's lower bound beats the best of them (PPO on a reward model that does not
        learns the baseline); how well calibrated it is; how many comparisons there were, and what of the votes was left
        out.

    Raises:
        UserError: there is nothing to learn from.
    """
    settings = cast(RewardSettings, stage.settings)
    place = settings.machine()
    sft, tokenizer = hub.load_pretrained(stage.inputs["sft"] / "model")
    sft.to(place.kind).compute_in(place.compute_dtype)
    teacher = _Teacher(stage, settings, sft, tokenizer, place)
    model = teacher.train(teacher.own, stage)
    if not parallel.join().main:
        if settings.audit_share:
            teacher.train_audit()
        return {}
    figures = model.figures | teacher.counts()
    figures |= quality.quality(model.model, sft, teacher.heldout, tokenizer.pad)
    scale = teacher.finish(model, stage.dir / "model")
    adapters.write(model.model, stage, stage.inputs["sft"] / "model", settings.adapter)
    if settings.audit_share:
        figures[AUDIT] = teacher.audit(figures["baselines"])
    if not figures["beats_baselines"]:
        found = (
            "too few comparisons were held out to tell whether it learned anything" if figures["accuracy"] is None
            else f"accuracy {figures['accuracy']} is not clearly above that of a baseline ({figures['best_baseline']})"
        )  # fmt: skip
        then = "practice is refused" if settings.require else "PPO will learn no more than that"
        stage.console.say(f"{stage.name}: {found}; {then}. Rank more answers.", style="yellow")
    return figures | scale


def read_scale(folder: Path) -> tuple[float, float]:
    """Mean and deviation of a reward model's rewards on SFT samples, from beside its weights."""
    scale = read_json(folder / SCALE)
    return float(scale["mean"]), float(scale["std"])


@dataclass(frozen=True)
class _Taught:
    """A reward model with all its heads, the figures of its training, and how many comparisons taught it."""

    model: Decoder
    figures: dict[str, Any]
    comparisons: int


class _Teacher:
    """What the reward model and the one that audits it have in common."""

    def __init__(
        self, stage: Stage, settings: RewardSettings, sft: Decoder, tokenizer: Tokenizer, place: device.Device
    ) -> None:
        self._stage, self._settings, self._sft, self._tokenizer, self._place = stage, settings, sft, tokenizer, place
        self._lessons = lessons.read(
            stage.inputs["rankings"] / "preferences.jsonl", stage.outside.get("votes"),
            ties=settings.ties == "davidson", vote_weight=settings.vote_weight, rater_share=settings.rater_share,
        )  # fmt: skip
        taught = self._lessons.split("train")
        others = [place_of(p.prompt, AUDIT) < settings.audit_share for p, _ in taught]
        self.own = self._encoded([one for one, other in zip(taught, others, strict=True) if not other])
        self._audits = self._encoded([one for one, other in zip(taught, others, strict=True) if other])
        self.heldout = self._encoded(self._lessons.split("heldout"))
        self._check(self.own, "lower")
        if settings.audit_share:
            self._check(self._audits, "raise")
        self._samples: Sequences | None = None

    def train(self, train: Sequence[Ranking], stage: Stage, *purpose: str) -> _Taught:
        """Train a reward model in a stage's directory; ``purpose`` is added to the address of its first head."""
        settings, tokenizer, place = self._settings, self._tokenizer, self._place
        if not settings.steps:
            settings = settings.model_copy(update={"steps": math.ceil(len(train) / settings.batch_size)})
        seed = stream_seed(self._stage.seed, self._stage.name, "head", *purpose)
        log_nu = _log_nu(train, settings) if settings.ties == "davidson" else None
        model = heads.with_heads(self._sft, seed, settings.heads, log_nu, learnt=not settings.nu)
        adapters.attach(model, settings.adapter, stream_seed(seed, "adapter")).to(place.kind)
        world = parallel.join()
        task = _task(train, self.heldout, settings, tokenizer.pad, self._stage.seed, place.kind, world)
        task = adapters.with_dropout(task, settings.adapter, seed).shared(world, stage.name)
        figures = run_loop(model, task, settings, stage)
        if settings.ties == "davidson":
            figures["nu"] = round(math.exp(model.score.log_nu.item()), 4)  # type: ignore[operator]
        return _Taught(model, figures, len(train))

    def counts(self) -> dict[str, Any]:
        """How many comparisons there are, and what became of the votes."""
        found: Lessons = self._lessons
        figures: dict[str, Any] = {"comparisons": len(self.own), "heldout": len(self.heldout), "votes": found.votes}
        figures |= comparisons.altered([*self.own, *self._audits, *self.heldout], self._stage)
        if found.left_out:
            figures["votes_left_out"] = dict(found.left_out)
        if found.held_back:
            figures["raters_held_back"] = len(found.held_back)
        return figures

    def finish(self, taught: _Taught, folder: Path) -> dict[str, float]:
        """Store a model with its scale, its heads beside it if there are several; returns the scale."""
        model = taught.model
        weight = heads.with_mean_head(model)
        samples = self._samples = self._samples or self._sample()
        rewards = _over(samples, model, scoring.rewards)
        scale = {"mean": float(rewards.mean()), "std": max(float(rewards.std()), 1e-3)}
        # Nothing that held-out votes change: the model would be another one, and PPO would run again for it.
        card = {"stage": "reward", "comparisons": taught.comparisons, **scale}
        hub.save(model, folder, self._tokenizer, card=card)
        write_json(folder / SCALE, scale)
        if len(weight) > 1:
            every = Heads(weight, weight.new_zeros(len(weight)))
            heads.write(replace(every, mean=_over(samples, model, every.of).mean(0)), folder)
        return scale

    def train_audit(self) -> _Taught:
        """Train the second reward model."""
        self._stage.console.say(
            f"{self._stage.name}: another model, from prompts that the first never saw, to audit it"
        )
        beside = self._stage.dir / f"{AUDIT}-training"
        stage = replace(self._stage, dir=beside, metrics=Metrics(beside / self._stage.metrics.path.name))
        return self.train(self._audits, stage, AUDIT)

    def audit(self, baselines: Mapping[str, float]) -> dict[str, Any]:
        """Make the second reward model, in ``audit/``; returns its figures, and whether it beats the baselines."""
        taught, kind = self.train_audit(), self._place.kind
        measured = quality.held_out_accuracy(taught.model, self.heldout, self._tokenizer.pad, kind)
        measured["beats_baselines"] = quality.beats(measured, baselines)
        return {"comparisons": len(self._audits)} | measured | self.finish(taught, self._stage.dir / AUDIT)

    def _check(self, train: Sequence[Ranking], remedy: str) -> None:
        """Refuse, before anything is trained, what nothing can be learnt from.

        Raises:
            UserError: no comparison prefers anything, or none is left for one of the heads.
        """
        name, telling = self._stage.name, [ranking for ranking in train if len(set(ranking.ranks)) > 1]
        if not telling:
            missing = f"; {remedy} {name}.audit_share" if self._settings.audit_share else ""
            raise UserError(
                f"{name}: no comparison prefers one answer to another; rank more, lower tie_width or vote{missing}"
            )
        taught = {ranking.fold for ranking in telling}
        if len(taught) < self._settings.heads:
            raise UserError(
                f"{name}: there are comparisons for {len(taught)} of {self._settings.heads} heads; lower {name}.heads"
            )

    def _encoded(self, chosen: Sequence[tuple[Preference, float]]) -> list[Ranking]:
        """Comparisons in token ids; those of one prompt are in one fold, so that no head sees another's prompts."""
        room, folds = self._sft.config.max_seq_len, self._settings.heads
        return [
            encode(preference, self._tokenizer, room, weight, int(place_of(preference.prompt, "fold") * folds))
            for preference, weight in chosen
        ]

    def _sample(self) -> Sequences:
        """Fresh samples of the SFT model for prompts of the rankings, as often as there are few.

        Without rankings, for those of the votes that teach: one that is held out must not make another model.
        """
        stage, settings, tokenizer, sft = self._stage, self._settings, self._tokenizer, self._sft
        ranked = [one.prompt for one in read_preferences(stage.inputs["rankings"] / "preferences.jsonl")]
        ranked = ranked or [one.prompt for one, _ in self._lessons.split("train")]
        longest = sft.config.max_seq_len - settings.max_new_tokens
        fitting = fitting_prompts(dict.fromkeys(ranked), tokenizer, longest)
        prompts = list(islice(cycle(islice(fitting, settings.scale_prompts)), settings.scale_prompts))
        if not prompts:
            raise UserError(
                f"{stage.name}: no judged prompt has at most {longest} tokens; lower {stage.name}.max_new_tokens"
            )
        rollouts = Rollouts(
            Generator(sft, tokenizer, self._place.compute_dtype), lambda sampled: torch.zeros(len(sampled.texts)),
            settings.max_new_tokens, tokenizer.pad, self._place.kind,
        )  # fmt: skip
        return rollouts.collect(prompts, stage.seed, stage.name, "scale").sequences


def _task(
    train: Sequence[Ranking], heldout: Sequence[Ranking], settings: RewardSettings, padding: int, seed: int, place: str,
    world: parallel.World,
) -> Task:  # fmt: skip
    near = [index for index, ranking in enumerate(train) if settings.near_misses and ranking.near_miss()]
    cursor = Cursor(len(train), seed, "reward", first=near[: settings.near_misses * settings.batch_size])
    size = settings.rows(world)
    objective = Objective(settings.margin, settings.centring)

    def batches(step: int) -> list[RankedBatch]:
        chosen = [train[index] for index in cursor.batch(step, settings.batch_size)]
        chosen.sort(key=Ranking.tokens)  # similar lengths share a micro-batch, so that little padding is computed
        return [batch_of(chosen[i : i + size], padding, place) for i in range(0, len(chosen), size)]

    def evaluate(model: Decoder) -> dict[str, float]:
        if not heldout:
            return {}
        batch = batch_of(heldout, padding, place)
        found = quality.scores(model, batch)
        log_nu = getattr(model.score, "log_nu", None)
        strict = comparisons.right_pairs(found, batch.ranks)[1].any(-1).any(-1)
        right = {"val_accuracy": float(accuracy(found, batch.ranks)[strict].mean())} if strict.any() else {}
        return {"val_loss": float(objective(found, batch.ranks, log_nu).mean())} | right

    return Task(batches=batches, loss=partial(ranking_loss, objective=objective), evaluate=evaluate)


def _log_nu(train: Sequence[Ranking], settings: RewardSettings) -> float:
    """Logarithm of Davidson's nu as set, or where learning begins: likeliest for equals, given how many pairs tie."""
    if settings.nu:
        return math.log(settings.nu)
    tied = sum(r.ranks.count(rank) * (r.ranks.count(rank) - 1) // 2 for r in train for rank in set(r.ranks))
    pairs = sum(math.comb(len(r.ranks), 2) for r in train)
    share = min(max(tied / pairs, 0.01), 0.9)  # none and all have no finite logarithm
    return math.log(2 * share / (1 - share))


def _over(samples: Sequences, model: Decoder, score: scoring.Scoring) -> torch.Tensor:
    """What ``score`` says of all samples, without gradient."""
    return scoring.without_gradient(score, model, samples, scoring.parts_by_length(samples, _CHUNK))
