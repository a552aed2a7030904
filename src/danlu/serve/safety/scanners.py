"""Scanners: what looks at a text and says what it found.

In:  rules (``evals.hazards``), a guard model (``align.guard``).
Out: ``RuleScanner`` and ``GuardScanner``, both of the form ``Scanner``.
Left out: what is done about a finding (``gates``).

A scanner is made once, with everything it needs loaded, and asked for every text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

from danlu.align.guard import Guard
from danlu.evals import plain
from danlu.evals.hazards import Action, Rules, Stage

UNSAFE = "unsafe"  # the guard's category: it knows that a text is unsafe, not in which way


@dataclass(frozen=True)
class Finding:
    """What a scanner found.

    Attributes:
        action: ``"block"``, ``"warn"`` or ``"review"``.
        category: id in the rules file.
        scanner: ``"rules"`` or ``"guard"``.
        score: how sure, from 0 to 1.
    """

    action: Action
    category: str
    scanner: Literal["rules", "guard"]
    score: float


class Scanner(Protocol):
    """What the gates ask.

    Attributes:
        stride: characters that an answer grows by before it is looked at again; 0 looks at every piece.
        reach: characters before the fresh ones that it wants to see again.
    """

    stride: int
    reach: int

    def look(self, text: str, stage: Stage, fresh: int = 0, unfinished: bool = False) -> tuple[list[Finding], int]:
        """What is found in a text, and how much of it may be told if that is nothing.

        Args:
            text: a prompt, or the end of an answer.
            stage: ``"prompt"`` or ``"answer"``.
            fresh: where in ``text`` the part begins that nobody has seen yet.
            unfinished: more will come.
        """


class RuleScanner:
    """Words that are known to mean harm.

    What may yet become a match is not told: mostly the last word or two, and more from where a phrase has begun.
    """

    stride = 0

    def __init__(self, rules: Rules, overlap: int = 32) -> None:
        """``overlap``: characters of what was told that are looked at again, so that words are whole."""
        self.rules, self.reach = rules, overlap

    def look(self, text: str, stage: Stage, fresh: int = 0, unfinished: bool = False) -> tuple[list[Finding], int]:
        """See ``Scanner``."""
        views = plain.views(text)
        found = self.rules.scan_views(views, stage, fresh, unfinished)
        told = self.rules.begun(views, stage) if unfinished else len(text)
        return [Finding(match.action, match.category, "rules", 1.0) for match in found], told


class GuardScanner:
    """A model that was trained to tell safe texts from unsafe ones.

    Args:
        guard: loaded.
        action: what is done about a text above its threshold.
        stride: characters between two looks: each is a forward pass.
    """

    reach = 2000

    def __init__(self, guard: Guard, action: Action, stride: int = 160) -> None:
        self.guard, self.action, self.stride = guard, action, stride

    def look(self, text: str, stage: Stage, fresh: int = 0, unfinished: bool = False) -> tuple[list[Finding], int]:
        """See ``Scanner``; what was looked at and found safe may be told to its end."""
        score = self.guard.score(text) if text.strip() else -math.inf
        if score < self.guard.threshold:
            return [], len(text)
        return [Finding(self.action, UNSAFE, "guard", 1 / (1 + math.exp(-score)))], len(text)
