"""Where things are: the models of a run, models by name, votes, runs.

In:  what a person typed.
Out: directories and files.
Left out: making any of them (``pipeline``).
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from danlu import hub
from danlu.align import ALIGNED
from danlu.align.champion import CHAMPION, Registry
from danlu.console import Console
from danlu.errors import UserError, nearest, unknown
from danlu.files import read_json
from danlu.recipe import Recipe
from danlu.run import RESOLVED, Run

_STORE = "preferences.db"
_COPY = "recipe.yaml"  # a run's own, of what was asked for
_STARTERS = 4  # as many as the page shows


def snapshot_path(run_dir: Path) -> Path:
    """Where a run keeps the frozen copy of the votes that it learned from."""
    return run_dir / "feedback" / "votes.jsonl"


def labels_beside(votes: Path) -> Path:
    """Where, beside a frozen copy of the votes, what was called good or bad by itself is frozen."""
    return votes.with_name("labels.jsonl")


def undecided_beside(votes: Path) -> Path:
    """Where, beside a frozen copy of the votes, those are frozen that prefer nothing: they teach nothing, but ask."""
    return votes.with_name("undecided.jsonl")


def votes_path(run_dir: Path) -> Path:
    """Where a run keeps the preference store that its chat page writes to."""
    return run_dir / "feedback" / _STORE


def votes_of(place: Path) -> Path:
    """Where votes on what is served at ``place``, a run or a model, are kept unless another store is named.

    Never in a model directory: one inside a run is moved away when its stage is made again, and one that is published
    would publish people's words. The former's votes go to its run, the latter's into a folder beside it; those of a
    model that is known by name only, among the runs.
    """
    if hub.is_remote(place):
        return runs_root() / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', str(place))}.feedback" / _STORE
    if hub.is_named(place):
        return place.with_name(f"{place.stem}.feedback") / _STORE
    if not (place / "config.json").is_file():
        return votes_path(place)
    model = place.resolve()
    for folder in model.parents:
        if (folder / RESOLVED).is_file():
            return votes_path(folder)
    return model.with_name(f"{model.name}.feedback") / _STORE


def find_model(path: Path, stage: str | None = None) -> Path:
    """The model directory meant by ``path``: a model directory itself, a run and one of its stages, or a model's name.

    Args:
        path: a model directory or a run directory; or ``smollm2``, ``hf:ORG/NAME`` or a GGUF file, which are fetched
            and imported once and kept in the cache.
        stage: which model of the run; if None the champion, or the last finished one of its life before there is a
            champion: what the stages hold then may be a candidate, untried or refused.

    Raises:
        UserError: there is none, naming what there is.
    """
    if stage is not None and ((path / "config.json").is_file() or hub.is_named(path)):
        raise UserError(f"{path} is one model; --stage chooses among those of a run")
    if (path / "config.json").is_file():
        return path
    if hub.is_named(path):
        return hub.obtain(path, Console())
    if not path.exists():
        hint = nearest(str(path), hub.PACKAGED)
        raise UserError(f"{path} does not exist{hint if 'mean' in hint else '; make a run first: danlu run tang'}")
    run, champion = Run(path), _champion_of(path)
    finished = [name for name in _stages(run) if run.finished(name)]
    if stage is None and champion is not None:
        return champion
    if stage is not None:
        valid = finished + (["reward"] if run.finished("reward") else [])
        if stage not in valid:
            raise unknown("finished stage", stage, valid, str(path))
        return path / stage / "model"
    if not finished:
        older = [name for name in _stages(run) if (path / name / "model" / "config.json").is_file()]
        if older:
            again = f"{path} is being made again and has no finished model; run danlu run to finish it"
            raise UserError(f"{again}, or use an older model: {path / older[-1] / 'model'}")
        raise UserError(f"{path} is neither a model directory nor a run with a finished model")
    return path / finished[-1] / "model"


def _stages(run: Run) -> list[str]:
    """The stages that leave a model to talk to, in the order of a life; the aligned model that the run goes on with
    after others that it once made.
    """
    path = run.dir / RESOLVED
    chosen = read_json(path).get("stages", ()) if path.is_file() else ()  # older runs did not list them
    aligned = sorted(ALIGNED, key=lambda name: name in chosen)
    return ["pretrain", "sft", *aligned, "compress"]


def _champion_of(run: Path) -> Path | None:
    """The version that serves; None before the flywheel of a run has crowned one."""
    standing = Registry(run).standing()
    return Registry(run).place(standing.champion) if standing else None


def find_guard(path: Path) -> Path:
    """The guard meant by ``path``: its directory, or a run that trained one.

    Raises:
        UserError: it is neither.
    """
    if (path / "config.json").is_file():
        return path
    if Run(path).finished("guard"):
        return path / "guard" / "model"
    raise UserError(
        f"{path} is neither a guard's directory nor a run with one; train one: danlu run guard guard.data=FILE"
    )


def servable_models(path: Path) -> dict[str, Path]:
    """Name -> directory of every model at ``path`` that people can talk to, the newest of its life first.

    A base model has not learned to answer, so it is served only when a run has nothing else. Where there is a champion
    it stands for the aligned model and what was made of it: their stages may hold a candidate.
    """
    newest = find_model(path)
    if newest == path:
        return {path.resolve().name: path}
    if hub.is_named(path):
        return {path.stem if path.suffix == ".gguf" else path.name.partition("@")[0]: newest}
    run = Run(path)
    champion = _champion_of(path)
    names = [name for name in reversed(_stages(run)) if run.finished(name)]
    if champion is not None:
        return {CHAMPION: champion} | {name: path / name / "model" for name in names if name == "sft"}
    talkers = [name for name in names if name != "pretrain"] or names
    return {name: path / name / "model" for name in talkers}


def run_of(place: Path) -> Path | None:
    """The run that ``place`` is; None if it is a model or a model's name."""
    return place if (place / RESOLVED).is_file() else None


def runs_beside(place: Path) -> Path:
    """The folder of the runs that the page shows with ``place``: where the run is that it is or belongs to."""
    if place.exists():
        real = place.resolve()
        for folder in (real, *real.parents):
            if (folder / RESOLVED).is_file():
                return folder.parent
    return runs_root()


def starters_of(place: Path) -> list[str]:
    """Things to try with the models of a run, or with one of its models: what its evaluation shows; else nothing."""
    for folder in (place, *place.resolve().parents):
        if (folder / RESOLVED).is_file():
            shown: list[str] = read_json(folder / RESOLVED).get("sections", {}).get("eval", {}).get("showcase", [])
            return shown[:_STARTERS]
    return []


def default_out(recipe: Recipe) -> Path:
    """``runs/NAME`` below the working directory, or below DANLU_RUNS if that is set."""
    return runs_root() / recipe.name


def place_of(recipe: Recipe, source: str, out: Path | None) -> tuple[Recipe, Path]:
    """Where a recipe is to be made, and the recipe under the name of its run there.

    Args:
        recipe: what was read.
        source: where from, as it was typed.
        out: the run directory; ``runs/NAME`` if None.

    Raises:
        UserError: the directory holds a run of another recipe, whose stages would be replaced.
    """
    place = out or default_out(recipe)
    path = place / RESOLVED
    held = read_json(path).get("recipe", recipe.name) if path.is_file() else recipe.name
    if Path(source).expanduser().resolve() == (place / _COPY).resolve():
        return replace(recipe, name=held), place
    if held not in (recipe.name, Path(_COPY).stem):  # the copy's own name: of any recipe, so it says nothing
        raise UserError(f"{place} holds a run of '{held}'; choose another --out")
    return recipe, place


def runs_root() -> Path:
    """Where runs are, unless told otherwise: ``runs`` below the working directory, or DANLU_RUNS."""
    return Path(os.environ.get("DANLU_RUNS", "runs"))
