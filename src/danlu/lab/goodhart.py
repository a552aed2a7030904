"""Over-optimisation on purpose: reward models of little data, policies without a leash, and gold that falls in the end.

In:  a finished run, sizes of the rankings that reward models are taught from, methods.
Out: ``results.json`` and ``goodhart.svg``: proxy and gold against sqrt(KL), Gao's laws fitted, where gold is highest,
and how much of it the monitor's alarm or a KL budget keeps.
Left out: training and looks (``arms``, ``looks``), formulas (``laws``, ``best_of_n``).

Gao, Schulman and Hilton, arXiv 2210.10760; gold is the run's judge. ``best_of`` is the best of n samples, for which
nobody trains; every other method that practises is trained with the leash off, unless it is said otherwise; that of dpo
and its kin is in their loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from danlu.align.rollout import Experience
from danlu.console import Console
from danlu.errors import UserError
from danlu.files import atomic_write, read_json, write_json
from danlu.lab import best_of_n, laws
from danlu.lab.arms import Arm, Said, budget_of, make, refuse_overruled, settings, stage_of
from danlu.lab.looks import Look, Observer, told
from danlu.pipeline import read_recipe
from danlu.recipe import Recipe
from danlu.report import open_run
from danlu.report.pictures import over_optimisation
from danlu.run import Run

BEST_OF = "best_of"
SIZES = (250, 1000, 4000, 8000)
METHODS = ("ppo", "grpo", "dpo", BEST_OF)
_DASH = "–"
_NO_LEASH = {"ppo": {"kl_coefficient": 0.0, "kl_horizon": 0}}


@dataclass(frozen=True)
class Question:
    """What is driven how far.

    Attributes:
        sizes: rankings from which a reward model is taught, one model each.
        methods: that learn from it.
        answers: sampled by each method that trains; 0 for as many as the recipe's ``ppo`` samples.
        looks: at each on its way, at least.
        prompts: held out, per look.
        among: answers a prompt from which ``best_of`` takes the best.
        said: further differences from the run's recipe.
    """

    sizes: Sequence[int] = SIZES
    methods: Sequence[str] = METHODS
    answers: int = 0
    looks: int = 8
    prompts: int = 300
    among: int = 64
    said: Said = ()


class Goodhart:
    """The experiment on one run.

    Args:
        run: finished up to its SFT model.
        question: what is asked.
        out: directory of the arms and the results.
        console: where progress goes.

    Raises:
        UserError: a run that is none, a method that is none, or a budget that cannot be divided.
    """

    def __init__(self, run: Path, question: Question, out: Path, console: Console) -> None:
        for method in question.methods:
            stage_of(method)
        self._run, self._out, self._question, self._console = open_run(run).dir, out, question, console
        self._said: Said = [_NO_LEASH, *question.said]
        self._recipe = read_recipe(str(run / "recipe.yaml"), self._said)
        self._budget = budget_of(self._recipe, question.answers, question.looks)
        self._sections = {
            method: settings(method, self._recipe, self._budget) for method in question.methods if method != BEST_OF
        }
        refuse_overruled(question.said, list(self._sections.values()))
        for sections in self._sections.values():  # what cannot be is said before hours of what can
            read_recipe(str(run / "recipe.yaml"), [*self._said, sections])

    def go(self) -> dict[str, Any]:
        """Make what is not made yet, and write ``results.json`` and the figure."""
        arms, start = [], None
        for n in self._question.sizes:
            base = self._taught(n)
            made = (base.manifest("rankings") or {})["figures"]["comparisons"]
            if made < n:  # few conversations, or answers that are all the same
                self._console.say(f"{n:,} rankings were asked for, and the run's prompts gave {made:,}", style="yellow")
            observer = Observer(base, self._recipe, self._question.prompts, self._console)
            start = start or observer.start
            accuracy = (base.manifest("reward") or {})["figures"]["accuracy"]
            for method in self._question.methods:
                self._console.say(f"{n} rankings, {method}")
                path = self._path(method, base, observer)
                arms.append({"rankings": made, "method": method, "accuracy": accuracy, **self._told(method, path)})
        assert start is not None, "there is a size"
        results = {
            "run": self._run.name, "budget": asdict(self._budget), "prompts": len(observer.prompts),
            "judge": observer.settings.judge, "kl_budget": self._kl_budget, "sft": told(start), "arms": arms,
        }  # fmt: skip
        write_json(self._out / "results.json", results)
        with atomic_write(self._out / "goodhart.svg") as handle:
            handle.write(over_optimisation(panels(results), alarms(results)))
        return results

    def _taught(self, n: int) -> Run:
        """A run whose reward model was taught from ``n`` simulated rankings."""
        said = [*self._said, of_size(n, self._recipe)]
        return make(Arm(self._out / f"{n}", self._run, "reward", said), self._console)

    def _path(self, method: str, base: Run, observer: Observer) -> list[Look]:
        folder = self._out / f"{base.dir.name}-{method}"
        if method == BEST_OF:
            return self._best_of(folder / "curve.json", observer)
        goal = stage_of(method)
        said = {goal: self._sections[method][goal]}  # the rankings are the base's
        arm = Arm(folder, base.dir, goal, [said])
        return observer.path(make(arm, self._console).stage_dir(arm.goal))

    def _best_of(self, file: Path, observer: Observer) -> list[Look]:
        asked = {"among": self._question.among, **observer.asked}
        known = read_json(file) if file.is_file() else {}
        if known.get("asked") != asked:
            seen, gold = self._samples
            proxy = observer.rollouts.score(seen).reshape(-1, self._question.among)
            known = {"asked": asked, "looks": best_of_n.curve(proxy, gold.reshape(proxy.shape))}
            write_json(file, known)
        looks: list[Look] = known["looks"]
        return looks

    @cached_property
    def _samples(self) -> tuple[Experience, Tensor]:
        """Answers of the SFT model, which all reward models score."""
        base = Run(self._out / f"{self._question.sizes[0]}")
        observer = Observer(base, self._recipe, self._question.prompts, self._console)
        return best_of_n.sample(observer, self._question.among)

    @property
    def _kl_budget(self) -> float:
        return float(self._recipe.sections["ppo"].kl_budget)  # type: ignore[attr-defined]

    def _told(self, method: str, path: Sequence[Look]) -> dict[str, Any]:
        """A path with what is to be said of it."""
        law, alarmed = laws.fit(path, sampled=method == BEST_OF), laws.stopped_by_alarm(path)
        stops = {"end": path[-1], "best proxy": laws.kept(path), "alarm": laws.kept(alarmed),
                 "kl budget": laws.kept(path, self._kl_budget)}  # fmt: skip
        return {
            "law": asdict(law) | {"peak_kl": law.peak_kl} if law else None,
            "peak": {key: laws.peak(path)[key] for key in ("iteration", "kl", "judge", "reward")},
            "alarm": laws.alarm(path),
            "recovered": {name: laws.recovered(path, look) for name, look in stops.items()},
            "looks": [told(look) for look in path],
        }


def of_size(n: int, recipe: Recipe) -> dict[str, dict[str, int]]:
    """What a recipe has to say for ``n`` rankings, of its two kinds in its proportion.

    Raises:
        UserError: it has none.
    """
    rankings, reward = (recipe.sections[name].model_dump() for name in ("rankings", "reward"))
    usual = rankings["prompts"] + rankings["endings"]
    if not usual:
        raise UserError("goodhart teaches by simulated rankings, and the run has none; give it rankings.prompts=1000")
    prompts = max(1, round(n * rankings["prompts"] / usual))
    return {
        "rankings": {"prompts": prompts, "endings": n - prompts},
        "reward": {"near_misses": round(reward["near_misses"] * n / usual)},
    }


def panels(results: dict[str, Any]) -> dict[str, dict[str, list[tuple[float, float, float]]]]:
    """Method -> size -> (sqrt(KL), proxy gained, gold gained), gains in deviations of the SFT model's answers.

    The proxy is counted in them already (``align.rewards``); the judge's are told by the error of its mean.
    """
    start = results["sft"]
    deviation = start["judge_error"] * results["prompts"] ** 0.5 or 1.0  # a judge may find all of few answers alike
    drawn: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    for arm in results["arms"]:
        first, looks = arm["looks"][0], [look for look in arm["looks"] if "reward" in look]
        drawn.setdefault(arm["method"], {})[_taught_from(arm)] = [
            (look["sqrt_kl"], look["reward"] - first["reward"], (look["judge"] - first["judge"]) / deviation)
            for look in looks
        ]
    return drawn


def alarms(results: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Method -> size -> which of the looks raises the alarm; arms without one are left out."""
    found: dict[str, dict[str, int]] = {}
    for arm in results["arms"]:
        if arm["alarm"]:
            found.setdefault(arm["method"], {})[_taught_from(arm)] = arm["alarm"]["place"]
    return found


def describe(results: dict[str, Any]) -> str:
    """What came of it, for a person: a row per arm in Markdown."""
    heads = ["method", "rankings", "alpha", "beta", "most gold", "by the law", "alarm"]
    heads += [f"kept: {stop}" for stop in results["arms"][0]["recovered"]]
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join(['---'] * len(heads))} |"]
    for arm in results["arms"]:
        law, kept = arm["law"] or {}, [_DASH if one is None else f"{one:.0%}" for one in arm["recovered"].values()]
        most = f"{arm['peak']['judge'] - arm['looks'][0]['judge']:+.2f} at {_nats(arm['peak']['kl'])}"
        cells = [
            arm["method"], f"{arm['rankings']:,}", _number(law.get("alpha")), _number(law.get("beta")), most,
            _nats(law.get("peak_kl")), _rung(arm["alarm"]), *kept,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _taught_from(arm: dict[str, Any]) -> str:
    return f"{arm['rankings']:,} rankings"


def _rung(alarm: dict[str, Any] | None) -> str:
    if alarm is None:
        return _DASH
    kept = f"{-alarm['lost']:+.2f}" if alarm["lost"] else "its best"
    return f"at {_nats(alarm['kl'])}, gold {-alarm['fallen']:+.2f}; kept {kept}"


def _number(value: float | None) -> str:
    return _DASH if value is None else f"{value:.3f}"


def _nats(value: float | None) -> str:
    return _DASH if value is None else f"{value:.2f} nats"
