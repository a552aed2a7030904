"""What was learned from whose votes: the runs that froze them, and the stages and models that hang below.

In:  a preference store's place, where runs are, a rater.
Out: ``Learned`` for every run that froze judgements of that rater; its frozen copies without them.
Left out: erasing the votes themselves (``align.erasure``), making anything again (``pipeline``: a frozen copy that
changed is reason enough for it).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.align import database
from danlu.align.judgements import LABELS, VOTES, freeze_labels, label_line, labels_in
from danlu.align.preferences import PreferenceStore
from danlu.errors import UserError
from danlu.files import read_json
from danlu.places import frozen_path, votes_path
from danlu.records import read_preferences, write_preferences
from danlu.run import MANIFEST, REPLACED, RESOLVED, Run


@dataclass(frozen=True)
class Learned:
    """What a run holds of a rater's judgements.

    Attributes:
        run: its directory.
        judgements: how many are in its frozen copies.
        stages: that read such a copy or were made from one that did.
        models: directories of weights that learned from it, those that were set aside too.
    """

    run: Path
    judgements: int
    stages: tuple[str, ...]
    models: tuple[Path, ...]


def learned_from(rater: str, store: PreferenceStore, place: str, runs: Iterable[Path]) -> list[Learned]:
    """The runs that froze judgements of ``rater`` out of a store, which still has them.

    Args:
        rater: the pseudonym.
        store: the store.
        place: where it is, as a recipe would name it.
        runs: directories of runs that may have learned from it.

    Raises:
        UserError: one of them is being made at this moment.
    """
    labels = Counter(label_line(label) for by, label in labels_in(store) if by == rater)
    found = []
    for run in runs:
        heard = {kind: n for kind, n in _heard(run, rater, labels).items() if n} if _reads(run, place) else {}
        if not heard:
            continue
        if Run(run).working():
            raise UserError(f"{run} is being made of the votes of '{rater}'; wait for it or stop it, then try again")
        stages = _below(_manifests(run), heard)
        models = (*_models(run, stages), *_set_aside(run))
        found.append(Learned(run, sum(heard.values()), stages, models))
    return found


def strip(learned: Learned, rater: str) -> None:
    """Write a run's frozen votes again without a rater."""
    path = frozen_path(learned.run, VOTES)
    if path.is_file():
        write_preferences(path, [one for one in read_preferences(path) if one.rater != rater])


def freeze_again(learned: Learned, store: PreferenceStore) -> None:
    """Write a run's frozen copies again without what the store no longer has: words of deleted conversations, too."""
    votes, labels = frozen_path(learned.run, VOTES), frozen_path(learned.run, LABELS)
    if votes.is_file():
        there = {preference.id for preference in store.all()}
        write_preferences(votes, [one for one in read_preferences(votes) if one.id in there])
    if labels.is_file():  # they name no rater
        freeze_labels(store, labels)


def runs_in(folder: Path) -> list[Path]:
    """Every run of a folder."""
    return sorted(path.parent for path in folder.glob(f"*/{RESOLVED}"))


def _heard(run: Path, rater: str, labels: Counter[str]) -> dict[str, int]:
    """How many judgements of a rater are in each of a run's frozen copies."""
    votes, thumbs = frozen_path(run, VOTES), frozen_path(run, LABELS)
    frozen = Counter(thumbs.read_text(encoding="utf-8").splitlines()) if labels and thumbs.is_file() else Counter()
    return {
        VOTES: sum(one.rater == rater for one in read_preferences(votes)) if votes.is_file() else 0,
        LABELS: (frozen & labels).total(),
    }


def _reads(run: Path, store: str) -> bool:
    """Whether a run learns from a store: its own, unless its recipe names another."""
    named = str(read_json(run / RESOLVED).get("sections", {}).get("run", {}).get(VOTES) or votes_path(run))
    if database.is_url(named) or database.is_url(store):
        return database.is_url(named) and database.is_url(store) and database.written(named) == database.written(store)
    return Path(named).resolve() == Path(store).resolve()


def _manifests(folder: Path) -> dict[str, dict[str, Any]]:
    found = {path.parent.name: Run(folder).manifest(path.parent.name) for path in sorted(folder.glob(f"*/{MANIFEST}"))}
    return {name: manifest for name, manifest in found.items() if manifest is not None}


def _below(manifests: Mapping[str, Mapping[str, Any]], heard: Iterable[str]) -> tuple[str, ...]:
    """Stages that read frozen copies of some kinds and all that were made from those stages, parents first."""
    below = [name for name, manifest in manifests.items() if {*heard} & manifest.get("outside", {}).keys()]
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
    return _models(aside, _below(_manifests(aside), (VOTES, LABELS))) if aside.is_dir() else []
