"""Methods at equal cost: how much gold each gains at the same distance from the SFT model, over several runs.

In:  finished runs that differ in their seed, methods, a budget of sampled answers; or results of such.
Out: ``results.json`` and ``table.md``; an arm per method in every run's ``lab/methods/``.
Left out: training and looks (``arms``, ``looks``).

Runs may be compared one by one, in processes or on machines of their own: results of several are ``join``ed into one.

Gold at the end of training compares how far methods went as much as what they are worth, so gold is read at equal KL,
between looks and never beyond them (``laws.at_kl``).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from danlu.console import Console
from danlu.errors import UserError
from danlu.evals.judge import judge
from danlu.files import atomic_write, write_json
from danlu.lab import laws
from danlu.lab.arms import (
    Arm,
    Budget,
    Said,
    budget_of,
    made_in,
    make,
    recipe_of,
    refuse_overruled,
    settings,
    stage_of,
)
from danlu.lab.looks import Look, Observer, told
from danlu.pipeline import read_recipe
from danlu.recipe import Recipe
from danlu.report import open_run

USUAL = ("best_of", "reinforce", "rloo", "grpo", "ppo", "dpo", "kto")
KLS = (1.0, 2.0, 3.0)
_DASH = "–"


@dataclass(frozen=True)
class Question:
    """What is compared.

    Attributes:
        methods: their names.
        answers: sampled by each; 0 for as many as the recipe's ``ppo`` samples.
        looks: at each on its way, at least.
        prompts: held out, per look.
        kls: nats at which gold is read.
        said: differences from the recipes of the runs, for all methods.
    """

    methods: Sequence[str] = USUAL
    answers: int = 0
    looks: int = 4
    prompts: int = 300
    kls: Sequence[float] = KLS
    said: Said = ()


def compare(runs: Sequence[Path], question: Question, out: Path, console: Console) -> dict[str, Any]:
    """Make every arm that is not made yet, look at all of them, and write ``results.json`` and ``table.md``.

    Raises:
        UserError: a run that is none, a method that is none, or a budget that cannot be divided.
    """
    for method in question.methods:
        stage_of(method)
    recipes = [_recipe(run, question) for run in runs]
    budgets = {budget_of(recipe, question.answers, question.looks) for recipe in recipes}
    if len(budgets) > 1:
        raise UserError("the runs' recipes sample and step differently; give them the same ppo section")
    budget = budgets.pop()
    plan = [  # whole before anything is made: what cannot be is said before hours of what can
        (Observer(open_run(run), recipe, question.prompts, console), _arms(run, recipe, question, budget))
        for run, recipe in zip(runs, recipes, strict=True)
    ]
    return write(join([_results(*one, budget, question, console) for one in plan], question.kls), out)


def join(parts: Sequence[Mapping[str, Any]], kls: Sequence[float]) -> dict[str, Any]:
    """Results of different runs as results of them all.

    Args:
        parts: what ``compare`` returned or wrote.
        kls: nats at which gold is read.

    Raises:
        UserError: they do not compare the same methods at the same cost by the same judge.
    """
    facts = _facts(parts[0])
    for part in parts:
        for what, value in _facts(part).items():
            if value != facts[what]:
                raise UserError(
                    f"results of {part['runs'][0]} and of {parts[0]['runs'][0]} differ in {what}, {value} and "
                    f"{facts[what]}: what is joined has to be compared alike"
                )
    names = facts.pop("methods")
    paths, seconds = (
        {n: [one for part in parts for one in part[key][n]] for n in names} for key in ("paths", "seconds")
    )
    runs, prompts = [run for part in parts for run in part["runs"]], min(part["prompts"] for part in parts)
    return {"runs": runs, **facts, "prompts": prompts, "seconds": seconds, **summary(paths, kls), "paths": paths}


def _facts(part: Mapping[str, Any]) -> dict[str, Any]:
    """What results that are joined have in common."""
    return {**{what: part[what] for what in ("budget", "most_tokens", "judge")}, "methods": list(part["paths"])}


def write(results: dict[str, Any], out: Path) -> dict[str, Any]:
    """Write ``results.json`` and ``table.md``; returns the results."""
    write_json(out / "results.json", results)
    with atomic_write(out / "table.md") as handle:
        handle.write(f"{table(results, judge(results['judge']).rates)}\n\n{caption(results)}\n")
    return results


def _results(
    observer: Observer, arms: Mapping[str, Arm], budget: Budget, question: Question, console: Console
) -> dict[str, Any]:
    """What ``join`` joins: the path of every method on one run, and how many seconds it took to make."""
    paths, seconds = {}, {}
    for method, arm in arms.items():
        console.say(f"{arm.base.name}, {method}")
        made, started = make(arm, console), time.monotonic()
        seconds[method] = [made_in(made)]
        paths[method] = [[told(look) for look in observer.path(made.stage_dir(arm.goal))]]
        looked = time.monotonic() - started
        console.say(f"{arm.base.name}, {method}: made in {seconds[method][0]:.0f} s, looked at in {looked:.0f} s")
    return {
        "runs": [arm.base.name], "budget": asdict(budget) | {"steps": budget.steps},
        "prompts": len(observer.prompts), "most_tokens": observer.settings.max_new_tokens,
        "judge": observer.settings.judge, "seconds": seconds, "paths": paths,
    }  # fmt: skip


def _arms(run: Path, recipe: Recipe, question: Question, budget: Budget) -> dict[str, Arm]:
    """The arm of every method on one run.

    Raises:
        UserError: one of them cannot be, or not differ as was said.
    """
    sections = {method: settings(method, recipe, budget) for method in question.methods}
    refuse_overruled(question.said, list(sections.values()))
    place = run / "lab" / "methods"
    found = {
        method: Arm(place / method, run, stage_of(method), [*question.said, own]) for method, own in sections.items()
    }
    for arm in found.values():
        recipe_of(arm)
    return found


def summary(paths: Mapping[str, Sequence[Sequence[Look]]], kls: Sequence[float]) -> dict[str, Any]:
    """Gold of every method and run at some distances, at the largest that all of them reached, and at the end.

    Args:
        paths: method -> the path of each run, each with the SFT model first.
        kls: distances in nats.

    Returns:
        ``shared_kl``, per run the largest distance that all methods reached in it; ``methods``: name -> ``at`` (the
        distance as text -> gold of each run, None where it was not reached), ``at_shared``, ``end`` (the last look of
        each run); ``sft``, the first look of each run.
    """
    n_runs = len(next(iter(paths.values())))
    shared = [min(laws.farthest(found[run]) for found in paths.values()) for run in range(n_runs)]
    methods = {
        name: {
            "at": {f"{kl:g}": [laws.at_kl(path, kl) for path in found] for kl in kls},
            "at_shared": [laws.at_kl(path, kl) for path, kl in zip(found, shared, strict=True)],
            "end": [told(path[-1]) for path in found],
        }
        for name, found in paths.items()
    }
    sft = [told(path[0]) for path in next(iter(paths.values()))]
    return {"shared_kl": shared, "sft": sft, "methods": methods}


def table(results: Mapping[str, Any], rates: Sequence[str]) -> str:
    """The results as a table in Markdown: the mean over runs, the least and the most in brackets."""
    methods, kls = results["methods"], list(next(iter(results["methods"].values()))["at"])
    shared = _spread(results["shared_kl"])
    ends = ("KL at the end", *rates, "distinct-2", "seconds")
    heads = [
        "method",
        *(f"gold at {kl} nats" for kl in kls),
        f"gold at the KL that all reached, {shared}",
        "gold at the end",
    ]
    lines = ["| " + " | ".join([*heads, *ends]) + " |", "| " + " | ".join(["---"] * (len(heads) + len(ends))) + " |"]
    sft = results["sft"]
    lines.append(_row("sft", [*[[None] * len(sft)] * (len(kls) + 1), *_ends(sft, rates), [None] * len(sft)]))
    for name, found in methods.items():
        seconds = results["seconds"][name]
        lines.append(_row(name, [*found["at"].values(), found["at_shared"], *_ends(found["end"], rates), seconds]))
    return "\n".join(lines)


def caption(results: Mapping[str, Any]) -> str:
    """What a reader of the table has to know."""
    budget, sft = results["budget"], results["sft"]
    tokens, error = (statistics.fmean(look[key] for look in sft) for key in ("length", "judge_error"))
    runs = "1 run" if len(results["runs"]) == 1 else f"{len(results['runs'])} runs, means with the least and the most"
    return (
        f"{runs}. Each method: {budget['answers']:,} sampled answers (of {tokens:.0f} tokens on average for sft, "
        f"{results['most_tokens']} at most), {budget['steps']} steps. Gold: judge "
        f"'{results['judge']}' on {results['prompts']} held-out prompts; standard error of one look {error:.3f}. KL in "
        "nats per answer; a dash: not reached. Seconds: sampling, judging and learning, without the looks."
    )


def _recipe(run: Path, question: Question) -> Recipe:
    return read_recipe(str(open_run(run).dir / "recipe.yaml"), question.said)


def _ends(looks: Sequence[Look], rates: Sequence[str]) -> list[list[float]]:
    return [[look[key] for look in looks] for key in ("judge", "kl", *rates, "distinct_2")]


def _row(name: str, columns: Sequence[Sequence[float | None]]) -> str:
    return "| " + " | ".join([name, *map(_spread, columns)]) + " |"


def _spread(values: Sequence[float | None]) -> str:
    """The mean with the least and the most; of how many runs, if some have no value."""
    known = [value for value in values if value is not None]
    if not known:
        return _DASH
    shown = f"{statistics.fmean(known):.2f}"
    if len(values) > 1:
        shown += f" [{min(known):.2f}..{max(known):.2f}]"
    return shown if len(known) == len(values) else f"{shown} ({len(known)} of {len(values)})"
