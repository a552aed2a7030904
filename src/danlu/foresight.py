"""What a run would only find out hours later, found before its first stage.

In:  a recipe, the stages that it needs, where it goes, the votes that it is to learn from.
Out: nothing; or the first thing that cannot be, in a sentence.
Left out: what one section knows by itself (its validators), and what only the data can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from danlu.align import AnsweringSettings, PracticeSettings, rewards
from danlu.align.judgements import VOTES
from danlu.align.lessons import VoteSettings
from danlu.align.preferences import PreferenceStore
from danlu.errors import UserError, beside
from danlu.places import labels_beside, undecided_beside, votes_path
from danlu.recipe import Recipe, Settings
from danlu.run import Run
from danlu.train.parallel import World
from danlu.train.task import LoopSettings

_NONE_YET = "there are none yet; make a model with --until sft, serve it and vote in the chat page"


def check(recipe: Recipe, stages: Iterable[str], out: Path, votes: Path | None = None) -> None:
    """Look at everything that stages will need from outside and from each other.

    Args:
        recipe: what to make.
        stages: the names of those that it needs.
        out: the run directory.
        votes: a frozen copy of them, if there is one.

    Raises:
        UserError: something is missing, or the run would find itself in what it reads.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; choose another --out, which names a directory")
    names = [*stages]
    for name in ("run", *names):
        _check_files(name, recipe.sections[name], out)
    ranks = recipe.sections["rankings"]
    for name in names:
        section = recipe.sections[name]
        if isinstance(section, AnsweringSettings):
            rewards.check(section.rewards, name, heads=recipe.sections["reward"].heads)  # type: ignore[attr-defined]
            if section.prompts == VOTES and not _has_votes(recipe, out, votes, undecided_beside):
                raise UserError(f"{name}.prompts=votes needs votes, and {_NONE_YET}")
        alone = isinstance(section, VoteSettings) and not ranks.prompts + ranks.endings  # type: ignore[attr-defined]
        beside_them = labels_beside if getattr(section, "loss", "") == "kto" else None
        if alone and not _has_votes(recipe, out, votes, beside_them):
            raise UserError(f"without rankings (rankings.prompts=0) {name} learns from votes alone, and {_NONE_YET}")


def check_processes(recipe: Recipe, stages: Iterable[str], run: Run, world: World) -> None:
    """Look at what several processes will have to share out; what is finished was shared out by others.

    Args:
        recipe: what to make.
        stages: the names of those that the processes share.
        run: where it goes.
        world: the processes.

    Raises:
        UserError: a stage cannot be shared out among so many.
    """
    for name in stages if world.size > 1 else ():
        section, manifest = recipe.sections[name], run.manifest(name)
        if isinstance(section, LoopSettings | PracticeSettings) and (manifest is None or manifest["state"] != "done"):
            section.check_processes(world, name)


def _check_files(name: str, section: Settings, out: Path) -> None:
    """Packages are installed, and the user's files are there and not around the run directory."""
    section.check_packages()
    for option, path in section.reads().items():
        if not path.exists():
            raise UserError(f"{name}.{option}: {path} does not exist{beside(path)}")
        if path.is_dir() and out.resolve().is_relative_to(path.resolve()):
            raise UserError(f"the run directory {out} lies in {name}.{option} ({path}); choose another --out")


def _has_votes(
    recipe: Recipe, out: Path, votes: Path | None, beside_them: Callable[[Path], Path] | None = None
) -> bool:  # fmt: skip
    """Whether anybody has voted where the run would look, or said what would be frozen ``beside_them``."""
    if votes is not None:
        frozen = [votes, *([beside_them(votes)] if beside_them else [])]
        return any(path.is_file() and path.stat().st_size > 0 for path in frozen)
    own, chosen = votes_path(out), recipe.sections["run"].votes  # type: ignore[attr-defined]
    if not chosen and not own.exists():
        return False
    store = PreferenceStore(chosen or own)
    try:
        return store.count() > 0 or (beside_them is labels_beside and store.count_thumbs() > 0)
    finally:
        store.close()
