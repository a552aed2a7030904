"""What was learned from whose votes: the runs that froze them, and the stages and models that hang below.

In:  a preference store's place, where runs are, a rater.
Out: ``Learned`` for every run that froze judgements of that rater; its snapshot without them.
Left out: erasing the votes themselves (``align.erasure``), making anything again (``pipeline``: a snapshot that changed
is reason enough for it).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from danlu.align import database
from danlu.align.champion import LINEAGE, VERSIONS
from danlu.align.judgements import LABELS, UNDECIDED, VOTES, read_labels, write_labels
from danlu.align.rounds import FLYWHEEL, SETTINGS
from danlu.errors import UserError
from danlu.files import read_json
from danlu.places import labels_beside, snapshot_path, undecided_beside, votes_path
from danlu.records import read_preferences, write_preferences
from danlu.run import MANIFEST, REPLACED, RESOLVED, Run

_KINDS = (VOTES, UNDECIDED, LABELS)


@dataclass(frozen=True)
class Learned:
    """What a run holds of a rater's judgements.

    Attributes:
        run: its directory.
        judgements: how many are in its snapshot.
        stages: that read the snapshot or were made from one that did.
        models: directories of weights that learned from it, those that were set aside and the flywheel's versions too.
    """

    run: Path
    judgements: int
    stages: tuple[str, ...]
    models: tuple[Path, ...]


def learned_from(rater: str, store: str, runs: Iterable[Path]) -> list[Learned]:
    """The runs that froze judgements of ``rater`` out of a store.

    Raises:
        UserError: one of them is being made at this moment.
    """
    found = []
    for run in runs:
        heard = _heard(run, rater) if _reads(run, store) else {}
        if not heard:
            continue
        if Run(run).working():
            raise UserError(f"{run} is being made of the votes of '{rater}'; wait for it or stop it, then try again")
        stages = _below(_manifests(run), heard)
        models = (*_models(run, stages), *_set_aside(run), *_versions(run, rater), *_arms(run, heard))
        found.append(Learned(run, sum(heard.values()), stages, models))
    return found


def strip(learned: Learned, rater: str) -> None:
    """Write a run's snapshots again without a rater."""
    for votes in _snapshots(learned.run):
        labels = labels_beside(votes)
        for file in (votes, undecided_beside(votes)):
            if file.is_file():
                write_preferences(file, [one for one in read_preferences(file) if one.rater != rater])
        if labels.is_file():
            write_labels(labels, [one for one in read_labels(labels) if one.rater != rater])


def runs_in(folder: Path) -> list[Path]:
    """Every run of a folder."""
    return sorted(path.parent for path in folder.glob(f"*/{RESOLVED}"))


def _snapshots(run: Path) -> list[Path]:
    """Where a run's votes are frozen: its own, and those of the flywheel's rounds."""
    return [snapshot_path(run), *sorted(run.glob("flywheel/rounds/*/votes.jsonl"))]


def _heard(run: Path, rater: str) -> dict[str, int]:
    """How many judgements of a rater a run has frozen, by kind; those of one snapshot are mostly those of the next."""
    held = [_held(votes, rater) for votes in _snapshots(run)]
    most = {kind: max(one[kind] for one in held) for kind in _KINDS}
    return {kind: n for kind, n in most.items() if n}


def _held(votes: Path, rater: str) -> dict[str, int]:
    labels, undecided = labels_beside(votes), undecided_beside(votes)
    return {
        VOTES: sum(one.rater == rater for one in read_preferences(votes)) if votes.is_file() else 0,
        UNDECIDED: sum(one.rater == rater for one in read_preferences(undecided)) if undecided.is_file() else 0,
        LABELS: sum(one.rater == rater for one in read_labels(labels)) if labels.is_file() else 0,
    }


def _reads(run: Path, store: str) -> bool:
    """Whether a run learns from a store: its own, unless its recipe or its flywheel names another."""
    recipe, flywheel = read_json(run / RESOLVED).get("sections", {}).get("run", {}), run / SETTINGS
    places = [recipe.get(VOTES) or votes_path(run)]
    if flywheel.is_file():
        places.append((yaml.safe_load(flywheel.read_text(encoding="utf-8")) or {}).get("store") or places[0])
    return any(_same(str(place), store) for place in places)


def _same(named: str, store: str) -> bool:
    if database.is_url(named) or database.is_url(store):
        return database.is_url(named) and database.is_url(store) and database.written(named) == database.written(store)
    return Path(named).resolve() == Path(store).resolve()


def _manifests(folder: Path) -> dict[str, dict[str, Any]]:
    found = {path.parent.name: Run(folder).manifest(path.parent.name) for path in sorted(folder.glob(f"*/{MANIFEST}"))}
    return {name: manifest for name, manifest in found.items() if manifest is not None}


def _below(manifests: Mapping[str, Mapping[str, Any]], heard: Iterable[str]) -> tuple[str, ...]:
    """Stages that read frozen copies of these kinds and all that were made from those stages, parents first."""
    below = [name for name, manifest in manifests.items() if {*heard} & {*manifest.get("outside", {})}]
    while more := [
        name for name, manifest in manifests.items() if name not in below and {*manifest.get("parents", {})} & {*below}
    ]:
        below += [name for name in more if not {*manifests[name]["parents"]} & {*more}]
    return tuple(below)


def _models(folder: Path, stages: Iterable[str]) -> list[Path]:
    return [folder / name / "model" for name in stages if (folder / name / "model").is_dir()]


def _set_aside(run: Path) -> list[Path]:
    """Models of stages that were replaced, of which some learned from an older snapshot: of whom, nobody knows now."""
    aside = run / REPLACED
    return _models(aside, _below(_manifests(aside), _KINDS)) if aside.is_dir() else []


def _arms(run: Path, heard: Iterable[str]) -> list[Path]:
    """Models of experiments on the run (``lab``): what read the snapshot is linked there, the policies are not."""
    arms = [path.parent for path in sorted(run.glob(f"lab/*/*/{RESOLVED}"))]
    models = [model for arm in arms for model in _models(arm, _below(_manifests(arm), heard))]
    return [model for model in models if not model.parent.is_symlink()]


def _versions(run: Path, rater: str) -> list[Path]:
    """Versions made from a snapshot that holds the rater."""
    made = {path.parent: int(read_json(path).get("round", 0)) for path in sorted(run.glob(f"{VERSIONS}/*/{LINEAGE}"))}
    return [version for version, number in made.items() if any(_held_then(run, number, rater).values())]


def _held_then(run: Path, number: int, rater: str) -> dict[str, int]:
    """What a round of the flywheel held of a rater; in round 0 the run itself, whose votes of then the flywheel keeps:
    another ``danlu run`` has frozen others in their place.
    """
    rounds = run / FLYWHEEL / "rounds"
    if number:
        return _held(rounds / f"{number:04d}" / "votes.jsonl", rater)
    own, then = _held(snapshot_path(run), rater), rounds / "first" / "votes.jsonl"
    return own | {VOTES: _held(then, rater)[VOTES]} if then.is_file() else own
