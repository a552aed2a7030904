"""What an answer is worth to whoever practises: the reward model's score, a rule of the user's, or a sum of such.

In:  the settings ``rewards`` of a policy stage, the reward stage's directory, sampled answers.
Out: ``scorer``: one function from sampled answers to scores, whatever they are made of; ``audits``, which nobody
    practises for, and what of it is ``watched``; ``check`` and ``files_of``, what can be said before there is a model.
Left out: how a reward model is made (``reward``), the process of a rule (``rules``), KL and advantages (``losses``).

A score that is not a number belongs to an answer that nobody could score: practice leaves the answer out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field, model_validator
from torch import Tensor

from danlu import device, hub
from danlu.align import heads, monitor, quality, rules, scoring, trunk
from danlu.align.heads import Heads
from danlu.align.reward import AUDIT, read_scale
from danlu.align.rollout import Sampled, Score
from danlu.align.rules import RuleScore, module_file
from danlu.errors import UserError
from danlu.model.decoder import Decoder
from danlu.recipe import Settings
from danlu.run import Stage
from danlu.train.parallel import ALONE, World

MODEL = "model"
_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


class RewardTerm(Settings):
    """One entry of ``rewards`` in a policy stage's section."""

    source: str = MODEL
    """Where scores come from: "model", the reward model's, or a Python function of yours, "package.module:function"."""
    weight: float = 1.0
    """What a score is multiplied with before all are added up."""
    kappa: float = Field(default=0.0, ge=0)
    """Standard deviations over the reward model's heads that are taken from its score: doubt is not rewarded."""
    timeout: float = Field(default=10.0, gt=0)
    """Seconds in which a function has to score a batch; five times that if it fails and is asked for parts."""

    @model_validator(mode="after")
    def _fits(self) -> RewardTerm:
        if self.source != MODEL and not _FUNCTION.fullmatch(self.source):
            raise ValueError(f"source is '{self.source}'; give model, or a function as package.module:function")
        if self.source != MODEL and self.kappa:
            raise ValueError("kappa is for the reward model, which has heads; a function has none")
        return self


def scorer(
    terms: Sequence[RewardTerm], stage: Stage, place: device.Device, micro_batch: int, missing_end_penalty: float,
    shared: Decoder | None = None, world: World = ALONE,
) -> Score:  # fmt: skip
    """The score that a policy stage practises for.

    Args:
        terms: what it is made of.
        stage: whose input ``reward`` has the reward model, and whose console hears of functions that fail.
        place: where the reward model is computed.
        micro_batch: rows per forward.
        missing_end_penalty: taken from an answer that did not end by itself.
        shared: the frozen SFT model under the policy's adapter; the reward model then takes its weights, if it can.
        world: the processes that score a share of every batch each.

    Raises:
        UserError: no terms; a function that is not there; a reward model that is required to beat the baselines and
            does not, or that has no heads to disagree.
    """
    if not terms:
        raise UserError(f"{stage.name}.rewards is empty; name at least one source")
    if len(terms) == 1 and terms[0].source == MODEL and terms[0].weight == 1:
        return _model_score(terms[0], stage, place, micro_batch, missing_end_penalty, shared)

    def told(sentence: str) -> None:
        stage.console.say(f"{stage.name}: {sentence}", style="yellow")

    def score(term: RewardTerm) -> Score:
        if term.source == MODEL:
            return _model_score(term, stage, place, micro_batch, 0.0, shared)
        return RuleScore(term.source, term.timeout, told, whole=world.size == 1)

    return Mixture(tuple((term.weight, score(term)) for term in terms), missing_end_penalty)


def check(terms: Sequence[RewardTerm], stage: str, heads: int) -> None:
    """Refuse, before anything is made, what could not be paid.

    Args:
        terms: what the stage's score is made of.
        stage: its name.
        heads: those that the reward model will have.

    Raises:
        UserError: no terms; doubt of a model with one head; a function that is not there.
    """
    if not terms:
        raise UserError(f"{stage}.rewards is empty; name at least one source")
    if heads < 2 and any(term.kappa for term in terms):
        raise _one_head(stage)
    for source in dict.fromkeys(term.source for term in terms if term.source != MODEL):
        rules.check(source)


def audits(stage: Stage, place: device.Device, micro_batch: int, missing_end_penalty: float) -> dict[str, Score]:
    """Scores that are looked at beside the one that is practised for, by name: that of the model that audits it.

    Args:
        stage: whose input ``reward`` may hold it, like the rest as for ``scorer``.
        place: where it is computed.
        micro_batch: rows per forward.
        missing_end_penalty: as the reward model's, so that both are in the same units.
    """
    folder = stage.inputs["reward"] / AUDIT
    if not folder.is_dir():
        return {}
    return {AUDIT: RewardScore(_loaded(folder, place), *read_scale(folder), micro_batch, missing_end_penalty)}


def watched(stage: Stage) -> tuple[str, ...]:
    """What raises the alarm when it falls: an audit that beats no baseline on held-out comparisons is told only."""
    proven = quality.audit_proven_in(stage.inputs["reward"])
    return tuple(name for name in monitor.WATCHED if name != AUDIT or proven)


def files_of(terms: Sequence[RewardTerm]) -> dict[str, Path]:
    """The files with the user's functions, for the ``reads`` of a section: when they change, the stage runs again.

    Raises:
        UserError: a module is not there.
    """
    files = {term.source: module_file(term.source) for term in terms if term.source != MODEL}
    return {f"rewards {source}": file for source, file in files.items() if file is not None}


def _model_score(
    term: RewardTerm, stage: Stage, place: device.Device, micro_batch: int, missing_end_penalty: float,
    shared: Decoder | None,
) -> RewardScore:  # fmt: skip
    """The reward model's score.

    Raises:
        UserError: it may not be practised on, or has no heads though their disagreement is asked for.
    """
    quality.refuse_unproven(stage.inputs["reward"])
    folder = stage.inputs["reward"] / "model"
    found = heads.read(folder)
    if term.kappa and found is None:
        raise _one_head(stage.name)
    every = found.to(place.kind) if found is not None else None
    return RewardScore(
        trunk.reward_model(stage, place, shared), *read_scale(folder), micro_batch, missing_end_penalty, heads=every,
        kappa=term.kappa,
    )  # fmt: skip


def _one_head(stage: str) -> UserError:
    return UserError(
        f"{stage}.rewards: kappa asks how far heads disagree, and the reward model has one; set reward.heads to 2 or "
        "more, or kappa to 0"
    )


def _loaded(folder: Path, place: device.Device) -> Decoder:
    return hub.load(folder, device=place.kind).compute_in(place.compute_dtype)


@dataclass(frozen=True)
class RewardScore:
    """The reward model's score in units of the SFT model's spread: ``clip((r - mean) / std)``, less if cut off.

    With the starting reward at mean 0 and deviation 1, the same KL coefficient means the same for every reward model.
    The clip is on the reward alone, before any KL (DeepSpeed-Chat, OpenRLHF). Without the penalty answers grow until
    they are cut off (lm-human-preferences). With several heads r can be a lower bound, their mean less ``kappa`` times
    their standard deviation: what the heads do not agree on earns less (Coste et al., arXiv 2310.02743, who take
    the variance over whole models).

    Attributes:
        model: with a scalar head.
        mean, std: of the rewards of the SFT model's own samples.
        micro_batch: rows per forward.
        missing_end_penalty: taken from an answer that did not end by itself.
        clip: largest absolute score before that.
        heads: those of the model, if it was trained with several.
        kappa: how much their disagreement costs.
    """

    model: Decoder
    mean: float
    std: float
    micro_batch: int
    missing_end_penalty: float = 1.0
    clip: float = 5.0
    heads: Heads | None = None
    kappa: float = 0.0

    def __call__(self, sampled: Sampled) -> Tensor:
        """(B,) normalised scores."""
        sequences = sampled.sequences
        parts = scoring.parts_by_length(sequences, self.micro_batch)
        raw = scoring.without_gradient(scoring.rewards, self.model, sequences, parts)
        if self.heads is not None and self.kappa:
            raw = raw - self.kappa * scoring.without_gradient(self.heads.of, self.model, sequences, parts).std(1)
        score = ((raw - self.mean) / self.std).clamp(-self.clip, self.clip)
        return score - self.missing_end_penalty * (~sampled.finished).to(score)


@dataclass(frozen=True)
class Mixture:
    """A weighted sum of scores, less if the answer was cut off.

    Attributes:
        terms: scores with their weights.
        missing_end_penalty: taken from an answer that did not end by itself, once and whatever the weights.
    """

    terms: tuple[tuple[float, Score], ...]
    missing_end_penalty: float

    def __call__(self, sampled: Sampled) -> Tensor:
        """(B,) scores; not a number where one of them is not."""
        total = torch.zeros_like(sampled.finished, dtype=torch.float32)
        for weight, score in self.terms:
            total = total + weight * score(sampled)
        return total - self.missing_end_penalty * (~sampled.finished).to(total)
