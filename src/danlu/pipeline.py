"""THE MAP, executable: the stages of a model's life in order, what each needs and what it makes.

In:  a recipe.
Out: a run directory in which every stage is done, and a reason for each stage that ran.
Left out: what happens inside a stage (the rooms), and what a person types (``cli``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from danlu import __version__, align, compress, corpus, costs, evals, foresight, hub, tokens, train
from danlu.align import database
from danlu.align.judgements import VOTES
from danlu.align.trunk import START
from danlu.console import Console
from danlu.errors import UserError, unknown
from danlu.files import atomic_write, free_space, hash_paths, hash_place, hash_value, write_json
from danlu.model.config import ModelConfig
from danlu.recipe import Recipe, Settings, load_recipe
from danlu.run import METRICS, RESOLVED, Metrics, Run, Stage
from danlu.snapshots import read_by
from danlu.train import parallel


class RunSettings(Settings):
    """The section ``run``: what belongs to no stage."""

    seed: int = 0
    """Seed from which every random stream of the run is derived."""
    votes: str = ""
    """Preference store that the reward model learns from, a file or a database's URL; the run's own if empty."""
    aligned: str = "ppo"
    """The stage that learns from what people prefer and whose model is compressed, examined and served."""
    goal: str = ""
    """The stage that the run is for: it and what it needs are run. If empty, every stage; guard only if it has data."""

    def reads(self) -> dict[str, Path]:
        """The user's own preference store, if it is a file."""
        return {"votes": Path(self.votes)} if self.votes and not database.is_url(self.votes) else {}

    def written(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """Everything but the password of the store's URL: it is needed again, and given again, at the next run."""
        return {key: database.written(value) if key == "votes" else value for key, value in said.items()}


@dataclass(frozen=True)
class StageSpec:
    """One line of the map.

    Attributes:
        name: the stage, its section of the recipe and its directory.
        life: what it is in the life of a model, for people.
        settings: the typed section.
        function: does the work and returns the key figures.
        needs: stages whose output it reads; "aligned" is the one of ``align.ALIGNED`` that the recipe chose.
        makes: what it leaves in its directory for others; their bytes are the stage's output hash.
        disk: bytes that should be free before it starts, beside those of checkpoints and models.
        together: whether the processes that ``torchrun`` started share its steps; else the first works alone.
        sees: stages that its needs were made from and by which it measures, so that they change nothing that it makes.
    """

    name: str
    life: str
    settings: type[Settings]
    function: Callable[[Stage], dict[str, Any]]
    needs: tuple[str, ...]
    makes: tuple[str, ...]
    disk: int = 100 << 20
    together: bool = False
    sees: tuple[str, ...] = ()


# A stage that learns from scores of its own answers, and sees what it makes a model forget of what was read.
_practice = partial(
    StageSpec, life="work induction", needs=("sft", "reward"), makes=("model",), sees=("tokens",), together=True
)  # fmt: skip
STAGES: tuple[StageSpec, ...] = (
    StageSpec("corpus", "books", corpus.CorpusSettings, corpus.build, (), ("documents", "split.json"), 500 << 20),
    StageSpec("tokenizer", "letters", tokens.TokenizerSettings, tokens.build_tokenizer, ("corpus",), ("model",)),
    StageSpec("tokens", "reading", tokens.TokensSettings, tokens.build_shards, ("corpus", "tokenizer"), ("shards",)),
    StageSpec(
        "pretrain", "school", train.PretrainSettings, train.pretrain, ("tokens", "tokenizer"),
        ("model", "untaught.json"), together=True,
    ),
    StageSpec(
        "sft", "university", train.SFTSettings, train.sft, ("pretrain", "corpus"), ("model", "conversations"),
        together=True,
    ),
    StageSpec("rankings", "judgement", align.RankingsSettings, align.rankings, ("sft",), ("preferences.jsonl",)),
    StageSpec(
        "reward", "taste", align.RewardSettings, align.reward, ("sft", "rankings"), ("model", "audit"), together=True
    ),
    _practice("ppo", settings=align.PPOSettings, function=align.ppo),
    _practice("grpo", settings=align.GRPOSettings, function=align.grpo),
    _practice("online_dpo", settings=align.OnlineDPOSettings, function=align.online_dpo),
    _practice("best_of", settings=align.BestOfSettings, function=align.best_of),
    StageSpec("dpo", "work induction", align.DPOSettings, align.dpo, ("sft", "rankings"), ("model",), together=True),
    StageSpec(
        "compress", "travelling light", compress.CompressSettings, compress.compress,
        ("aligned", "sft", "tokens"), ("model", "int8", "magnitude", "sparsegpt"),
    ),
    StageSpec(
        "eval", "examination", evals.EvalSettings, evals.evaluate,
        ("pretrain", "sft", "aligned", "compress", "tokens", "corpus"), ("figures.json", "answers.json"),
    ),
    StageSpec("guard", "gatekeeping", align.GuardSettings, align.guard, ("pretrain",), ("model",), together=True),
)  # fmt: skip
SECTIONS: dict[str, type[Settings]] = {"run": RunSettings} | {spec.name: spec.settings for spec in STAGES}
SHORTCUTS = {"base": "pretrain.base", "seed": "run.seed"}
# Settings that may name a file of the user's.
PATHS = (
    "corpus.source", "pretrain.base", "sft.source", "run.votes", "guard.data", "ppo.prompts", "grpo.prompts",
    "online_dpo.prompts", "best_of.prompts",
)  # fmt: skip


def read_recipe(name: str, overrides: Sequence[str | Mapping[str, Any]] = ()) -> Recipe:
    """Load and check a recipe against the map."""
    return load_recipe(name, overrides, SECTIONS, SHORTCUTS, PATHS)


def stages_of(recipe: Recipe) -> tuple[StageSpec, ...]:
    """The stages that a recipe needs: one that starts from a base model reads no corpus it does not use.

    Raises:
        UserError: the recipe's goal or its choice of an aligned model is no such stage.
    """
    goal, aligned = recipe.sections["run"].goal, aligned_of(recipe)  # type: ignore[attr-defined]
    needs = {spec.name: tuple(aligned if need == "aligned" else need for need in spec.needs) for spec in STAGES}
    left_out = {*align.ALIGNED} - {aligned}
    if goal:
        left_out |= _beyond(goal, needs)
    if not goal and not recipe.sections["guard"].data:  # type: ignore[attr-defined]
        left_out.add("guard")
    if recipe.sections["pretrain"].base:  # type: ignore[attr-defined]
        left_out |= {"tokenizer", "tokens"}
        if "sft" in left_out or recipe.sections["sft"].reads():
            left_out.add("corpus")

    def kept(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(name for name in names if name not in left_out)

    return tuple(
        replace(spec, needs=kept(needs[spec.name]), sees=kept(spec.sees))
        for spec in STAGES
        if spec.name not in left_out
    )


def aligned_of(recipe: Recipe) -> str:
    """The stage that makes the aligned model of a recipe.

    Raises:
        UserError: the recipe's choice is no such stage.
    """
    goal = recipe.sections["run"].goal  # type: ignore[attr-defined]
    aligned: str = goal if goal in align.ALIGNED else recipe.sections["run"].aligned  # type: ignore[attr-defined]
    if aligned not in align.ALIGNED:
        raise unknown("stage", aligned, align.ALIGNED, "run.aligned")
    return aligned


def _beyond(goal: str, needs: Mapping[str, tuple[str, ...]]) -> set[str]:
    """The stages that ``goal`` does not need."""
    if goal not in needs:
        raise unknown("stage", goal, needs, "run.goal")
    wanted = {goal}
    for name in reversed([*needs]):  # what a stage needs stands before it
        if name in wanted:
            wanted |= {*needs[name]}
    return {*needs} - wanted


def execute(
    recipe: Recipe, out: Path, console: Console, until: str | None = None, frozen: Mapping[str, Path] | None = None
) -> Run:
    """Walk the map: skip what is already made from the same things, say why the rest runs.

    Args:
        recipe: what to make.
        out: the run directory.
        console: where progress goes.
        until: the last stage to run; all of them if None.
        frozen: files that stages read: ``votes``, made here if not given; a ``champion`` that practice sets out from.

    Raises:
        UserError: a mistake of the user's; the run directory keeps everything that was finished.
    """
    specs = stages_of(recipe)
    names = [spec.name for spec in specs]
    if until is not None and until not in names:
        raise unknown("stage", until, names)
    ahead = names[: names.index(until) + 1] if until else names
    specs, run, world = specs[: len(ahead)], Run(out), parallel.join()
    if not world.main:
        for spec in specs:
            _help(run, spec, recipe, world)
        return run
    foresight.check(recipe, ahead, out, (frozen or {}).get(VOTES))
    foresight.check_processes(recipe, [spec.name for spec in specs if spec.together], run, world)
    with run.locked():
        with atomic_write(out / "recipe.yaml") as handle:
            handle.write(recipe.text)
        lives = {spec.name: spec.life for spec in stages_of(recipe)}
        write_json(out / RESOLVED, {"recipe": recipe.name, "stages": lives, "sections": recipe.resolved()})
        for spec in specs:
            _run_stage(run, spec, recipe, console, frozen or {}, world)
    return run


def outdated(recipe: Recipe, run: Run, name: str, frozen: Mapping[str, Path]) -> str | None:
    """Why a stage of a run would be made again with what was ``frozen``; None if it would be passed over."""
    spec = next(spec for spec in stages_of(recipe) if spec.name == name)
    identity = _identity(run, spec, recipe, _outside(run, spec, recipe, frozen))
    manifest = run.manifest(name)
    return why(manifest, _as_then(manifest, identity, recipe.sections[name]))


def _run_stage(
    run: Run, spec: StageSpec, recipe: Recipe, console: Console, frozen: Mapping[str, Path], world: parallel.World
) -> None:  # fmt: skip
    """Bring one stage up to date."""
    outside = _outside(run, spec, recipe, frozen)
    manifest = run.manifest(spec.name)
    identity = _identity(run, spec, recipe, outside)
    wanted = _as_then(manifest, identity, recipe.sections[spec.name])
    reason = why(manifest, wanted)
    if reason is None:
        console.say(f"{spec.name:<10} up to date")
        world.told(None)
        return
    same = manifest is not None and manifest.get("fingerprint") == wanted["fingerprint"]
    if not same:
        run.set_aside(spec.name)
    # One that goes on has written some of its checkpoints already; each checks for itself before it is written.
    free_space(run.dir, spec.disk if same else disk_needed(spec, recipe, run))
    alone = f"; by one of {world.size} processes" if world.size > 1 and not spec.together else ""
    console.say(f"{spec.name:<10} {spec.life}: {reason}{alone}")
    stage = _stage(run, spec, recipe, outside, console)
    stage.dir.mkdir(parents=True, exist_ok=True)
    if same:
        run.recover_seconds(spec.name)
    else:
        run.begin(spec.name, {**identity, "why": reason})
    world.told(outside)
    started = time.monotonic()
    try:
        figures = spec.function(stage)
    except BaseException:
        run.add_seconds(spec.name, time.monotonic() - started)
        raise
    seconds = time.monotonic() - started
    run.finish(spec.name, hash_paths(stage.dir, spec.makes), figures, seconds)
    shown = " ".join(f"{key}={_short(value)}" for key, value in figures.items() if isinstance(value, (int, float)))
    console.say(f"{spec.name:<10} done in {seconds:.1f} s {shown}")


def _help(run: Run, spec: StageSpec, recipe: Recipe, world: parallel.World) -> None:
    """Take part in a stage if the first process makes it now, and it is one for several."""
    outside = world.told(None)
    if outside is not None and spec.together:
        spec.function(_stage(run, spec, recipe, outside, Console(quiet=True)))


def _stage(run: Run, spec: StageSpec, recipe: Recipe, outside: Mapping[str, Path], console: Console) -> Stage:
    """What a stage's function is given."""
    return Stage(
        name=spec.name,
        dir=run.stage_dir(spec.name),
        settings=recipe.sections[spec.name],
        inputs={
            "aligned" if need in align.ALIGNED else need: run.stage_dir(need) for need in (*spec.needs, *spec.sees)
        },
        outside=outside,
        seed=recipe.sections["run"].seed,  # type: ignore[attr-defined]
        metrics=Metrics(run.stage_dir(spec.name) / METRICS),
        console=console,
    )


def shape_of(recipe: Recipe) -> ModelConfig | None:
    """The shape of the model that a recipe trains, or None if it is adopted from elsewhere."""
    settings = cast(train.PretrainSettings, recipe.sections["pretrain"])
    if settings.base:
        return None
    return settings.shape(cast(tokens.TokenizerSettings, recipe.sections["tokenizer"]).vocab_size)


def disk_needed(spec: StageSpec, recipe: Recipe, run: Run) -> int:
    """Bytes that should be free before a stage starts; an adopted model's size is known once it is in the run."""
    shape, adopted = shape_of(recipe), run.stage_dir("pretrain") / "model"
    if shape is None and adopted.is_dir():
        shape, _ = hub.read_config(adopted)
    return spec.disk + (costs.stored(shape, recipe.sections[spec.name]) if shape is not None else 0)


def why(manifest: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> str | None:
    """Why a stage has to run, in words; None if its manifest already says done for the same things."""
    if manifest is None:
        return "not made yet"
    if manifest.get("fingerprint") == wanted["fingerprint"]:
        return None if manifest["state"] == "done" else "was interrupted, going on"
    for key, value in wanted["settings"].items():
        old = manifest["settings"].get(key)
        if old != value:
            return f"{key} changed from {_short(old)} to {_short(value)}"
    for kind, sentence in (("parents", "stage {} made something new"), ("outside", "{} changed")):
        for name, digest in wanted[kind].items():
            if manifest[kind].get(name) != digest:
                return sentence.format(name)
    for name in manifest["outside"].keys() - wanted["outside"].keys():
        return f"{name} {'are' if name.endswith('s') else 'is'} gone"
    return "seed changed" if manifest["seed"] != wanted["seed"] else "another version of danlu"


def _identity(run: Run, spec: StageSpec, recipe: Recipe, outside: Mapping[str, Path]) -> dict[str, Any]:
    """Everything a stage's result depends on, and one hash of it."""
    parents = {}
    for need in spec.needs:
        manifest = run.manifest(need)
        if manifest is None or manifest["state"] != "done":
            raise UserError(f"stage '{spec.name}' needs '{need}', which is not finished in {run.dir}")
        parents[need] = manifest["output"]
    parts = {
        "stage": spec.name,
        "settings": recipe.sections[spec.name].model_dump(mode="json"),
        "parents": parents,
        "outside": {name: hash_place(path) for name, path in outside.items()},
        "seed": recipe.sections["run"].seed,  # type: ignore[attr-defined]
        "version": __version__,
    }
    return {**parts, "fingerprint": hash_value(parts)}


def _as_then(manifest: Mapping[str, Any] | None, wanted: dict[str, Any], section: Settings) -> dict[str, Any]:
    """An identity without settings that did not exist when the stage was made, where they are at their defaults.

    A source that was worked on has more settings; a default must mean what was done before there was a choice, and does
    not make anybody's finished work unfinished. A new version number does, since what a stage does may have changed.
    """
    if manifest is None or manifest.get("fingerprint") == wanted["fingerprint"]:
        return wanted
    try:
        usual = type(section)().model_dump(mode="json")
    except ValidationError:  # a section that has to be told something
        return wanted
    parts = {key: value for key, value in wanted.items() if key != "fingerprint"}
    parts["settings"] = _known_then(wanted["settings"], manifest["settings"], usual)
    return {**parts, "fingerprint": hash_value(parts)}


def _known_then(now: Any, then: Any, usual: Any) -> Any:
    """``now`` without keys that ``then`` does not have and that are as ``usual``, at any depth."""
    if not (isinstance(now, Mapping) and isinstance(then, Mapping) and isinstance(usual, Mapping)):
        return now
    return {
        key: _known_then(value, then.get(key), usual.get(key))
        for key, value in now.items()
        if key in then or key not in usual or value != usual[key]
    }


def _outside(run: Run, spec: StageSpec, recipe: Recipe, frozen: Mapping[str, Path]) -> dict[str, Path]:
    """What a stage reads beside the run: the user's files, where practice sets out from, frozen copies of what people
    said.
    """
    section = recipe.sections[spec.name]
    outside = dict(section.reads())
    if START in frozen and isinstance(section, align.PracticeSettings):
        outside[START] = frozen[START]
    return outside | read_by(spec.name, recipe, run.dir, frozen.get(VOTES))


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
