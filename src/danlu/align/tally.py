"""What the votes say, as plain figures: of the models, and of those who voted.

In:  a preference store, what models are called.
Out: one dictionary, for the operator's page and for the terminal.
Left out: how each figure comes about (``ratings``, ``agreement``, ``conduct``), how it looks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from danlu.align.agreement import agree, steadiness
from danlu.align.conduct import conduct
from danlu.align.preferences import PreferenceStore
from danlu.align.ratings import ENOUGH, Table, left_share, rate
from danlu.align.showings import repeats
from danlu.align.splits import SOURCE


def tally(store: PreferenceStore, name_of: Callable[[str], str], anchor: str = "") -> dict[str, Any]:
    """Everything, ready for JSON. What was imported is counted; its models and raters are none of ours.

    Args:
        name_of: hash of a model -> what people call it.
        anchor: hash of the model whose rating is 0; the one most often judged if empty or never judged.
    """
    preferences = store.all()
    here = [preference for preference in preferences if not preference.rater.startswith(SOURCE)]
    table = rate(here, anchor)
    times, n, low, high = left_share(here)
    agreement, again = agree(here), steadiness(repeats(store))
    return {
        "votes": len(here),
        "imported": len(preferences) - len(here),
        "enough": ENOUGH,
        "anchor": name_of(table.anchor) if table else None,
        "length": _length(table) if table else None,
        "models": [
            {**asdict(rating), "model": name_of(rating.model), "model_hash": rating.model}
            for rating in (table.ratings if table else ())
        ],
        "left": {"times": times, "of": n, "low": round(low, 4), "high": round(high, 4)},
        "agreement": asdict(agreement) if agreement else None,
        "again": asdict(again) if again else None,
        "conduct": asdict(conduct(here)),
    }


def _length(table: Table) -> dict[str, float]:
    low, high = table.length_interval
    return {"worth": round(table.length, 3), "low": round(low, 3), "high": round(high, 3)}
