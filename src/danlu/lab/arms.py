"""Arms of an experiment: one method on one finished run, in a run directory of its own, with a budget that all share.

In:  a finished run, a method's name, a ``Budget``.
Out: a run directory in which what lies below the policy is linked, and the policy was made by the pipeline's own stage
with every checkpoint kept.
Left out: looking at the checkpoints (``looks``); what is compared (``methods``, ``goodhart``).

What is linked is never written to: a stage that has to be made again is moved away first, and of a link the link moves.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from danlu.align import DPOSettings
from danlu.align.answering import AnsweringSettings
from danlu.align.grpo import METHODS, unread
from danlu.align.judgements import VOTES
from danlu.console import Console
from danlu.errors import UserError, unknown
from danlu.pipeline import execute, outdated, read_recipe, stages_of
from danlu.places import snapshot_path
from danlu.recipe import Recipe
from danlu.run import Run

Said = Sequence[str | Mapping[str, Any]]
"""Differences from a run's recipe."""

_LOSSES = get_args(DPOSettings.model_fields["loss"].annotation)
_PRACTICE = ("ppo", "grpo", "online_dpo")
KNOWN = ("best_of", *reversed(METHODS), "ppo", "online_dpo", *_LOSSES)
"""Every method there is, by the name that a user gives it."""
_ANSWERING = ("max_new_tokens", *AnsweringSettings.model_fields)  # what methods that do not practise share with ppo
_RANKED = 4  # samples that are ranked together, for methods that learn from comparisons
_GLANCE = 8  # prompts of the stages' own looks, which the lab does not read


@dataclass(frozen=True)
class Budget:
    """What every method may spend.

    Attributes:
        answers: that are sampled.
        per_step: of them, for one optimizer step.
        looks: at the policy on its way, at least.
    """

    answers: int
    per_step: int
    looks: int

    @property
    def steps(self) -> int:
        """Optimizer steps, the same for all methods."""
        return self.answers // self.per_step


@dataclass(frozen=True)
class Arm:
    """A run that shares the beginning of another.

    Attributes:
        dir: the run directory to make.
        base: the run directory from which is linked what is the same.
        goal: the stage that it is for.
        said: how its recipe differs from the base's.
    """

    dir: Path
    base: Path
    goal: str
    said: Said


def stage_of(method: str) -> str:
    """The stage of a method.

    Raises:
        UserError: there is no such method.
    """
    if method not in KNOWN:
        raise unknown("method", method, KNOWN)
    return "grpo" if method in METHODS else "dpo" if method in _LOSSES else method


def budget_of(recipe: Recipe, answers: int, looks: int) -> Budget:
    """A budget that fits a recipe; ``answers`` 0 are as many as the recipe's ``ppo`` samples.

    Raises:
        UserError: it is not to be divided into the recipe's batches.
    """
    ppo = recipe.sections["ppo"].model_dump()
    batch, step = ppo["batch_size"], ppo["mini_batch"]
    answers = answers or ppo["iterations"] * batch
    if step < _RANKED:
        raise UserError(f"ppo.mini_batch={step} is too few to rank {_RANKED} answers; give it {_RANKED} or more")
    if answers % batch or batch % step:
        raise UserError(f"{answers} answers are no whole number of ppo.batch_size={batch} and ppo.mini_batch={step}")
    return Budget(answers, step, looks)


def settings(method: str, recipe: Recipe, budget: Budget) -> dict[str, dict[str, Any]]:
    """What a method's section has to say, so that it samples and steps as often as the budget allows.

    What the methods have in common is said by the recipe's ``ppo``, the rest by their own sections. ``reinforce``
    samples before every step, because its gradient holds for the policy that sampled alone. ``best_of`` learns from the
    best of every ``n``. What learns from comparisons is given rankings of samples of the SFT model, four beside the
    person's own answer, by the simulated human.

    Raises:
        UserError: the method would train an adapter, whose checkpoints hold no whole policy to look at.
    """
    stage, steps = stage_of(method), budget.steps
    own = recipe.sections[stage].model_dump(mode="json")
    common = {key: value for key, value in recipe.sections["ppo"].model_dump(mode="json").items() if key in own}
    if stage == "online_dpo":  # whose coefficient is a loss's beta
        common = {key: value for key, value in common.items() if not key.startswith("kl_")}
    if stage == "grpo":
        fields = type(recipe.sections[stage]).model_fields
        common |= {key: fields[key].default for key in unread(method)}  # it refuses any other, wherever that was said
    kept = common if stage in _PRACTICE else own
    if kept.get("adapter", {}).get("kind", "none") != "none":
        section = "ppo" if kept is common else stage
        raise UserError(f"the laboratory looks at whole policies; give it {section}.adapter.kind=none")
    if stage in _PRACTICE:
        batch = budget.per_step if method == "reinforce" else common["batch_size"]
        rest = {"batch_size": batch, "mini_batch": budget.per_step, **_practised(budget.answers // batch, budget.looks)}
        return {stage: common | rest | ({"method": method, "sampling_rounds": 1} if stage == "grpo" else {})}
    common = {key: common[key] for key in _ANSWERING if key in common}
    rest = {"steps": steps, "probe_prompts": _GLANCE, **_kept(steps, budget.looks)}
    if stage == "best_of":
        return {stage: common | rest | {"most_prompts": budget.answers // own["n"]}}
    rankings = {"prompts": budget.answers // _RANKED, "temperatures": [1.0] * _RANKED, "endings": 0}
    compared = budget.per_step // _RANKED
    size = compared * (_RANKED + 1) if method == "kto" else compared  # kto's are single answers
    return {"rankings": rankings, stage: common | rest | {"loss": method, "batch_size": size}}


def _practised(iterations: int, looks: int) -> dict[str, int]:
    every = max(1, iterations // looks)
    return {
        "iterations": iterations, "probe_every": every, "checkpoints": iterations // every + 1,
        "probe_prompts": _GLANCE, "probe_tokens": 0, "stop_on_alarm": False,
    }  # fmt: skip


def _kept(steps: int, looks: int) -> dict[str, int]:
    every = max(1, steps // looks)
    return {"save_every": every, "eval_every": steps, "checkpoints": steps // every + 1}


def recipe_of(arm: Arm) -> Recipe:
    """The recipe that an arm is made by.

    Raises:
        UserError: it cannot be.

    People's votes are read by no stage that is made here: they would be judgements beyond the budget. They belong to
    what a linked reward model is.
    """
    return read_recipe(str(arm.base / "recipe.yaml"), [*arm.said, {"run": {"goal": arm.goal, "votes": ""}}])


def make(arm: Arm, console: Console) -> Run:
    """Bring an arm up to date; what is finished is skipped, what was killed goes on.

    Raises:
        UserError: the base lacks a stage below what is made here, or its own is out of date, or ``said`` is about one:
            what is compared has to stand on the same ground.
    """
    before, recipe = read_recipe(str(arm.base / "recipe.yaml")), recipe_of(arm)
    made_here = {name for one in arm.said if isinstance(one, Mapping) for name in one}
    shared = [spec.name for spec in stages_of(recipe) if spec.name not in made_here]
    arm.dir.mkdir(parents=True, exist_ok=True)
    for name in shared:
        if recipe.sections[name] != before.sections[name]:
            raise UserError(
                f"'{name}' lies below what is compared; make another run with that {name}, and name it here"
            )
        if not Run(arm.base).finished(name):
            raise UserError(f"{arm.base} has no finished stage '{name}'; danlu run makes it")
        _link(arm, name)
    votes = snapshot_path(arm.base)
    frozen = {VOTES: votes} if "reward" in shared and votes.is_file() else {}
    for name in shared:
        if reason := outdated(recipe, Run(arm.dir), name, frozen):
            raise UserError(
                f"stage '{name}' of {arm.base} is out of date ({reason}); bring it up to date first: danlu run"
            )
    return execute(recipe, arm.dir, console, frozen=frozen)


def made_in(run: Run) -> float:
    """Seconds that it took to make what an arm does not share with its base."""
    own = [name for name in run.stages() if not run.stage_dir(name).is_symlink()]
    return sum(float((run.manifest(name) or {})["seconds"]) for name in own)


def _link(arm: Arm, name: str) -> None:
    """Let an arm have a stage of its base, whatever it had in that place."""
    place, made = arm.dir / name, (arm.base / name).resolve()
    if place.is_symlink() and place.resolve() != made:  # of a base that was somewhere else
        place.unlink()
    if not place.is_symlink():
        Run(arm.dir).set_aside(name)
        place.symlink_to(os.path.relpath(made, arm.dir.resolve()))


def refuse_overruled(said: Said, methods: Sequence[Mapping[str, Mapping[str, Any]]]) -> None:
    """Refuse settings that somebody gave and that what methods have in common, or the budget, would overrule.

    Args:
        said: ``section.key=value`` or mappings.
        methods: what the sections of each have to say, see ``settings``.

    Raises:
        UserError: naming the first one. What one of the methods overrules and another reads is none of them.
    """
    for one in said:
        section, _, key = one.partition("=")[0].partition(".") if isinstance(one, str) else ("", "", "")
        having = [sections[section] for sections in methods if section in sections]
        if section != "ppo" and having and all(key in own for own in having):
            raise UserError(f"{section}.{key} would change nothing: methods share what ppo and the budget say; set "
                            f"ppo.{key} or --answers")  # fmt: skip
