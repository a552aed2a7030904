"""What people said, frozen: the copies that stages read, so that what was learnt from is known and stays so.

In:  a recipe, a preference store or what a round of the flywheel froze.
Out: ``votes.jsonl``, and beside it ``labels.jsonl`` and ``undecided.jsonl`` where a recipe asks for them; which of
them a stage reads.
Left out: what is learnt from them (``align``), whose judgements they hold (``lineage``).
"""

from __future__ import annotations

from pathlib import Path

from danlu.align import DPOSettings
from danlu.align.judgements import LABELS, UNDECIDED, VOTES, freeze_labels, freeze_undecided
from danlu.align.preferences import PreferenceStore
from danlu.places import labels_beside, snapshot_path, undecided_beside, votes_path
from danlu.recipe import Recipe, Settings


def read_by(stage: str, recipe: Recipe, run: Path, votes: Path | None) -> dict[str, Path]:
    """The frozen files that a stage reads: it learns from them, as ``reward`` and ``dpo`` do, or practises on what was
    asked. Empty ones are none.

    Args:
        stage: its name.
        recipe: of the run.
        run: its directory.
        votes: a copy that was frozen already; else one is made, if there is a store.
    """
    section, chosen = recipe.sections[stage], recipe.sections["run"].votes  # type: ignore[attr-defined]
    if stage not in ("reward", "dpo") and not _asks_voters(section):
        return {}
    own = votes_path(run)
    if votes is None and (chosen or own.exists()):
        votes = snapshot_path(run)
        freeze_votes(recipe, PreferenceStore(chosen or own), votes)
    if votes is None:
        return {}
    judged = {VOTES: votes}
    if isinstance(section, DPOSettings) and section.loss == "kto":
        judged[LABELS] = labels_beside(votes)
    if _asks_voters(section):
        judged[UNDECIDED] = undecided_beside(votes)
    return {name: path for name, path in judged.items() if path.is_file() and path.stat().st_size}


def freeze_votes(recipe: Recipe, store: PreferenceStore, path: Path) -> int:
    """Write those votes of a store from which a recipe learns, and beside them labels if it does, and the other votes
    if it practises on what was asked; returns how many of the first.
    """
    ties = recipe.sections["reward"].ties == "davidson"  # type: ignore[attr-defined]
    if recipe.sections["dpo"].loss == "kto":  # type: ignore[attr-defined]
        freeze_labels(store, labels_beside(path))
    if any(map(_asks_voters, recipe.sections.values())):
        freeze_undecided(store, undecided_beside(path), ties)
    return store.snapshot(path, ties)


def _asks_voters(section: Settings) -> bool:
    """Whether a stage practises on what people asked who voted."""
    return getattr(section, "prompts", None) == VOTES
