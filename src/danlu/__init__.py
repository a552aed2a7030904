"""danlu: raw text in, your own ChatGPT out.

In:  a recipe, or a model directory.
Out: ``run`` makes a model, ``load`` reads one, ``Chat`` talks to one.
Left out: everything else has its room; see ``docs/map.md``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

# The ground module ``danlu.run`` is loaded first so that the function below, not the module, is ``danlu.run``.
from danlu.run import Run

if TYPE_CHECKING:
    from danlu.model.decoder import Decoder
    from danlu.talk import Chat
    from danlu.tokens.tokenizer import Tokenizer

__version__ = "0.1.0"
__all__ = ["Chat", "Run", "__version__", "load", "run"]


def load(path: str | Path, stage: str | None = None) -> tuple[Decoder, Tokenizer]:
    """Load a model and its tokenizer.

    Args:
        path: a model directory, or a run directory.
        stage: for a run, which stage's model (``"sft"``, ``"reward"`` ...); the last of its life if None.

    Returns:
        ``(model, tokenizer)``; ``model(tokens)`` gives logits ``(B, T, V)``, or ``(B,)`` for a reward model.
    """
    from danlu.hub import load_pretrained
    from danlu.places import find_model

    return load_pretrained(find_model(Path(path), stage))


def run(recipe: str, out: str | Path | None = None, **overrides: Any) -> Run:
    """Make everything a recipe describes, write its report, and return its run directory.

    Args:
        recipe: a bundled recipe's name or the path of a YAML file.
        out: the run directory; ``runs/NAME`` if None.
        overrides: settings by section, or ``seed`` and ``base``: ``run("tang", pretrain={"steps": 200}, seed=1)``.

    Raises:
        UserError: a mistake of the user's; the run directory keeps everything that was finished. A run of another
            recipe in ``out`` is one.
    """
    from danlu.console import Console
    from danlu.pipeline import execute, read_recipe
    from danlu.places import place_of
    from danlu.report import write_report
    from danlu.train import parallel

    resolved, place = place_of(read_recipe(recipe, [overrides]), recipe, None if out is None else Path(out))
    done = execute(resolved, place, Console())
    if parallel.join().main:
        write_report(done)
    return done


def __getattr__(name: str) -> Any:
    """``danlu.Chat``, without paying for torch when danlu is imported."""
    if name != "Chat":
        raise AttributeError(f"module 'danlu' has no attribute '{name}'")
    from danlu.talk import Chat

    return Chat
