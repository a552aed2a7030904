"""Stage ``dpo``: learn from preferences directly, without a reward model and without sampling.

In:  the SFT model (policy and reference), the comparisons that the reward model reads; for KTO also labels.
Out: ``model/``; ``reference/``, what the SFT model says of every answer; figures.
Left out: the formulas (``losses.direct``), how steps are taken (``train.loop``), KTO's batches (``unpaired``).

The reference is read once and before the first step, so that training holds one model (Rafailov et al., arXiv
2305.18290). Every strict pair of a ranking counts, weighted by 1 / C(K, 2) as in the reward model's loss. Accuracy,
margin and drift are measured alike for all losses, so that they can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any, Literal, Self, TypeVar, cast

import torch
from pydantic import Field, model_validator

from danlu import hub
from danlu.align import lessons, monitor, paired, unpaired
from danlu.align.comparisons import altered
from danlu.align.judgements import LABELS, Label, labels_of, read_comparisons, read_labels
from danlu.align.lessons import Lessons, VoteSettings
from danlu.align.likelihoods import AT_ONCE
from danlu.align.paired import Comparisons, Objective
from danlu.align.rollout import Cursor, Rollouts, fitting_prompts
from danlu.align.unpaired import Labelled
from danlu.errors import UserError
from danlu.evals.intervals import wilson
from danlu.hub.lora import adapted, bare
from danlu.infer.generate import Generator
from danlu.model.decoder import Decoder
from danlu.records import Preference
from danlu.run import Stage
from danlu.streams import stream_seed
from danlu.tokens.tokenizer import Tokenizer
from danlu.train import adapters, parallel
from danlu.train.loop import run_loop
from danlu.train.task import LoopSettings, LossOutput, Task

REFERENCE = "reference"
_Judged = TypeVar("_Judged", Preference, Label)

_USUAL_BETA = {"dpo": 0.1, "ipo": 0.1, "kto": 0.1, "orpo": 0.1, "simpo": 2.0}
# Settings that only one loss reads, and which.
_OF_ONE = {"label_smoothing": "dpo", "gamma": "simpo", "desirable_weight": "kto", "undesirable_weight": "kto"}


class DPOSettings(VoteSettings, LoopSettings, adapters.Adaptable):
    """The section ``dpo``; defaults suit a few million parameters, a tenth of the learning rate suits 100M and up."""

    loss: Literal["dpo", "ipo", "kto", "orpo", "simpo"] = "dpo"
    """What is learnt from a comparison; ``losses.direct`` has the formulas. kto takes the better and the worse answers
    one by one, and people's thumbs and "all bad" too; orpo and simpo need no reference."""
    beta: float | None = Field(None, gt=0)
    """How strongly the reference holds (dpo, ipo, kto), the weight of the odds ratio (orpo), the scale of the margin
    (simpo). The papers' usual value if none: 0.1, for simpo 2."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """How often a comparison is taken to be the wrong way round; dpo only (cDPO)."""
    gamma: float = Field(1.0, ge=0)
    """Margin that simpo asks for."""
    desirable_weight: float = Field(1.0, gt=0)
    """Weight of good answers in kto."""
    undesirable_weight: float = Field(1.0, gt=0)
    """Weight of bad answers in kto."""
    steps: int = Field(0, ge=0)
    """Optimizer steps; 0 goes by ``epochs``."""
    epochs: float = Field(1.0, gt=0)
    """How often every comparison (kto: every answer) is learnt from, if ``steps`` is 0."""
    batch_size: int = Field(32, ge=1)
    """Comparisons per optimizer step, all answers of one together; kto: answers."""
    micro_batch: int = Field(8, ge=0)
    """Comparisons (kto: answers) per forward pass; 0 takes all at once."""
    lr: float = Field(1e-4, gt=0)
    """Peak learning rate."""
    warmup: int = Field(10, ge=0)
    """Steps of linear warm-up."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of matrices."""
    probe_prompts: int = Field(128, ge=1)
    """Held-out prompts that are answered at the end, to tell how far the policy went."""
    max_new_tokens: int = Field(48, ge=1)
    """Where such an answer is cut off."""

    def objective(self) -> Objective:
        """The loss with its constants."""
        beta = _USUAL_BETA[self.loss] if self.beta is None else self.beta
        return Objective(self.loss, beta, self.label_smoothing, self.gamma)

    @model_validator(mode="after")
    def _are_read(self) -> Self:
        for name, owner in _OF_ONE.items():
            if self.loss != owner and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is for loss '{owner}' and loss is '{self.loss}'; leave it out")
        return self


def dpo(stage: Stage) -> dict[str, Any]:
    """Learn from comparisons, or go on with it.

    Returns:
        The loop's figures; of held-out comparisons val_loss, val_accuracy (how often the policy's implicit reward has
        the order right) with its interval, val_margin, val_chosen and val_rejected (log-ratio to the SFT model of the
        best and of the worst answers, nats: both often fall); and after, of its own answers to held-out prompts: kl
        (nats per answer from the SFT model), entropy, length and finished.

    Raises:
        UserError: nothing to learn from.
    """
    settings = cast(DPOSettings, stage.settings)
    place = settings.machine()
    base = stage.inputs["sft"] / "model"
    policy, tokenizer = hub.load_pretrained(base)
    adapters.attach(policy, settings.adapter, stream_seed(stage.seed, stage.name, "adapter"))
    policy.to(place.kind).compute_in(place.compute_dtype)
    found = read_comparisons(stage, settings)
    train, heldout, watched, held_back = _lessons(stage, found, settings, policy, tokenizer)
    if not settings.steps:
        steps = math.ceil(settings.epochs * len(train) / settings.batch_size)
        settings = settings.model_copy(update={"steps": steps})
    world = parallel.join()
    task = _task(train, heldout, watched, settings, tokenizer.pad, stage, world)
    task = adapters.with_dropout(task, settings.adapter, stage.seed).shared(world, stage.name)
    figures = run_loop(policy, task, settings, stage)
    if not world.main:
        return {}
    objective, count = settings.objective(), {"answers" if settings.loss == "kto" else "comparisons": len(train)}
    facts = {"stage": stage.name, "loss": objective.loss, "beta": objective.beta, **count}
    hub.save(policy, stage.dir / "model", tokenizer, card=facts)  # and nothing that held-out votes change
    adapters.write(policy, stage, base, settings.adapter)
    figures |= count | {"heldout": len(heldout), "votes": found.votes}
    learnt = train.examples if isinstance(train, Labelled) else train.rankings
    figures |= altered([*learnt, *heldout.rankings], stage)
    if held_back:
        figures["raters_held_back"] = len(held_back)
    if len(heldout):
        interval = wilson(round(figures["val_accuracy"] * len(heldout)), len(heldout))
        figures["accuracy_interval"] = [round(end, 4) for end in interval]
    drift = _drift(stage, settings, policy, tokenizer, [preference for preference, _ in found.split("heldout")])
    return figures | ({"after": drift} if drift else {})


def _lessons(
    stage: Stage, found: Lessons, settings: DPOSettings, policy: Decoder, tokenizer: Tokenizer
) -> tuple[Comparisons | Labelled, Comparisons, Labelled | None, frozenset[str]]:
    """What is learnt from, held-out comparisons, for kto held-out answers, and raters whose votes count for less.

    Raises:
        UserError: nothing to learn from, or for kto only one kind of it.
    """
    files = {name: stage.dir / REFERENCE / f"{name}.safetensors" for name in ("train", "heldout", "labels")}
    heldout = Comparisons.read(found.split("heldout"), policy, tokenizer, files["heldout"])
    if settings.loss != "kto":
        chosen = _needed(found.split("train"), settings, stage)
        if not chosen:
            raise UserError(
                f"{stage.name}: no comparison prefers one answer to another; rank more, lower tie_width or vote"
            )
        return Comparisons.read(chosen, policy, tokenizer, files["train"]), heldout, None, found.held_back
    labels, held_back = _labels(stage, found, settings)
    learnt = _needed([one for one in labels if one[0].split == "train"], settings, stage)
    good = sum(label.good for label, _ in learnt)
    if good in (0, len(learnt)):
        raise UserError(
            f"{stage.name}: kto needs good and bad answers and has {good} good and {len(learnt) - good} bad ones; "
            "rank or rate more answers"
        )
    train = Labelled.read(learnt, policy, tokenizer, stage.seed, files["train"])
    apart = [(label, 1.0) for label, _ in labels if label.split == "heldout"]
    return train, heldout, Labelled.read(apart, policy, tokenizer, stage.seed, files["labels"]), held_back


def _labels(stage: Stage, found: Lessons, settings: DPOSettings) -> tuple[list[tuple[Label, float]], frozenset[str]]:
    """Single answers with what each counts for, and raters whose count for less.

    Those of a comparison weigh as it does. The others are weighed among themselves: who has no more than a share of
    either kind has no more of both.
    """
    weighed = zip(found.preferences, found.weights, strict=True)
    labels = [(label, weight) for preference, weight in weighed for label in labels_of(preference)]
    alone = read_labels(stage.outside[LABELS]) if LABELS in stage.outside else []
    weights, held_back = lessons.weigh(alone, settings.vote_weight, settings.rater_share)
    return [*labels, *zip(alone, weights, strict=True)], found.held_back | held_back


def _needed(judged: list[tuple[_Judged, float]], settings: DPOSettings, stage: Stage) -> list[tuple[_Judged, float]]:
    """All of it, or as much as the steps can read, drawn at random: the reference need not read what nobody learns."""
    n = settings.steps * settings.batch_size
    if not 0 < n < len(judged):
        return judged
    return [judged[index] for index in Cursor(len(judged), stage.seed, stage.name, "needed").batch(0, n)]


def _task(
    train: Comparisons | Labelled, heldout: Comparisons, watched: Labelled | None, settings: DPOSettings, padding: int,
    stage: Stage, world: parallel.World,
) -> Task:  # fmt: skip
    """Seeded epochs of what is learnt from; the losses share their figures of held-out comparisons."""
    cursor, place = Cursor(len(train), stage.seed, stage.name), settings.machine().kind
    size, objective = settings.rows(world), settings.objective()
    loss: Callable[[Decoder, Any], LossOutput] = partial(paired.pair_loss, objective=objective)
    if watched is not None:
        weights = settings.desirable_weight, settings.undesirable_weight
        loss = partial(unpaired.kto_loss, beta=objective.beta, weights=weights)

    def evaluate(model: Decoder) -> dict[str, float]:
        found = paired.measure(model, heldout.batches(range(len(heldout)), AT_ONCE, padding, place), objective)
        if watched is not None:
            found |= unpaired.measure(model, watched.batches(range(len(watched)), AT_ONCE, padding, place), loss)
        return {f"val_{name}": value for name, value in found.items()}

    def batches(step: int) -> Sequence[Any]:
        return train.batches(cursor.batch(step, settings.batch_size), size, padding, place)

    return Task(batches, loss, evaluate)


def _drift(
    stage: Stage, settings: DPOSettings, policy: Decoder, tokenizer: Tokenizer, heldout: Sequence[Preference]
) -> dict[str, float]:
    """How far the policy's own answers to held-out prompts went; nothing if there is no prompt that leaves room."""
    device, new = policy.output_weight.device.type, settings.max_new_tokens
    turns = dict.fromkeys(preference.prompt for preference in heldout)
    prompts = list(islice(fitting_prompts(turns, tokenizer, policy.config.max_seq_len - new), settings.probe_prompts))
    if not prompts:
        return {}
    sampler = Generator(policy, tokenizer, policy.compute_dtype)
    rollouts = Rollouts(sampler, lambda *_: torch.zeros(len(prompts)), new, tokenizer.pad, device)
    seen = rollouts.collect(prompts, stage.seed, stage.name, "drift")
    if adapted(policy):
        reference = bare(policy)
    else:
        reference = hub.load(stage.inputs["sft"] / "model", device=device).compute_in(policy.compute_dtype)
    found = monitor.distance(policy, reference, seen.sequences, AT_ONCE)
    return found | {"finished": float(seen.finished.float().mean())}
