"""What a run has promised, and whether it kept the promise.

In:  the key figures of a run (``figures``).
Out: targets with the values that were reached.
Left out: many runs at once (``bench/``, which reads these rows).
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@dataclass(frozen=True)
class Target:
    """A promise and what became of it.

    Attributes:
        what: the figure, in words.
        value: what was reached.
        sign: "<", "<=", ">" or ">=".
        limit: what the value is compared with.
    """

    what: str
    value: float
    sign: str
    limit: float

    @property
    def met(self) -> bool:
        """Whether the promise was kept."""
        return bool(_COMPARE[self.sign](self.value, self.limit))

    def as_row(self) -> dict[str, Any]:
        """``{what, target, value, met}``."""
        return {"what": self.what, "target": f"{self.sign} {self.limit:g}", "value": self.value, "met": self.met}


def targets(result: Mapping[str, Any]) -> list[Target]:
    """The promises that a run's figures can be held against; design section 8.

    Args:
        result: from ``figures``; what a run has not measured yet is left out.
    """
    found: list[Target] = []
    if result["recipe"] == "tang" and result.get("form_rate"):  # of which the last stage is done
        found.append(Target("minutes, all stages", result["minutes_total"], "<=", 12))
    if result.get("aligned") in result.get("form_rate", {}):  # of the judge of poems, and of the model chosen last
        found += _poems(result)
    if result.get("reward", {}).get("baselines"):
        lead = result["reward"]["accuracy"] - max(result["reward"]["baselines"].values())
        found.append(Target("reward accuracy - best baseline", lead, ">", 0))
    squeezed = result.get("compression", {})
    if "int8" in squeezed:
        found.append(Target("INT8: share of bits per byte lost", squeezed["int8"] / squeezed["dense"] - 1, "<", 0.01))
    if "sparsegpt" in squeezed:
        ratio = squeezed["sparsegpt"] / squeezed["magnitude"]
        found.append(Target("SparseGPT 50 % / magnitude 50 %, bits per byte", ratio, "<", 1))
    return found


def _poems(result: Mapping[str, Any]) -> list[Target]:
    form, rhyme, variety, copies = (result[key] for key in ("form_rate", "rhyme_rate", "distinct_2", "copy_rate"))
    after = result["aligned"]
    return [
        Target(f"form rate after {after.upper()}", form[after], ">=", 0.9),
        Target(f"rhyme rate after {after.upper()} / SFT", _ratio(rhyme, after), ">=", 2),
        Target(f"distinct-2 after {after.upper()} / SFT", _ratio(variety, after), ">=", 0.9),
        Target(f"copy rate after {after.upper()} - SFT", copies[after] - copies["sft"], "<=", 0),
    ]


def _ratio(by_life: Mapping[str, float], after: str) -> float:
    return by_life[after] / max(by_life["sft"], 1e-9)
