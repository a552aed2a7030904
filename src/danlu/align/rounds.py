"""Rounds of the flywheel as they lie on disk: which state each is in, and what every state came to.

In:  results of states.
Out: ``RUN/flywheel/rounds/0001/STATE.json`` for every state that is done; ``look.json``, what is waited for now.
Left out: what is done in a state (``danlu.flywheel``).

There is no variable that says where a round is: its state is the first that has no result yet. A result is written when
all that belongs to the state is done, whole or not at all, so a process that is killed comes back to the same place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.align.tables import now
from danlu.files import read_json, write_json

STATES = ("collect", "freeze", "reward", "reward_gate", "policy", "policy_gate", "canary", "verdict")
FLYWHEEL = "flywheel"
SETTINGS = "flywheel.yaml"
_LOOK = "look.json"


@dataclass(frozen=True)
class Round:
    """One turn of the flywheel: from new votes to a promotion or a refusal.

    Attributes:
        number: from 1.
        dir: where its results are.
    """

    number: int
    dir: Path

    @property
    def state(self) -> str | None:
        """The state that is to be gone through next; None if the round is over.

        A gate that was not passed leads straight to the verdict, and after a verdict nothing is done, whatever was not.
        """
        if self.result(STATES[-1]):
            return None
        for state in STATES[:-1]:
            result = self.result(state)
            if result is None:
                return state
            if not result.get("passed", True):
                break
        return STATES[-1]

    def result(self, state: str) -> dict[str, Any] | None:
        """What a state came to; None if it is not done."""
        path = self.dir / f"{state}.json"
        return read_json(path) if path.exists() else None

    def failed(self) -> str | None:
        """The gate that was not passed."""
        return next((s for s in STATES[:-1] if not (self.result(s) or {}).get("passed", True)), None)

    def write(self, state: str, result: Mapping[str, Any]) -> None:
        """Note what a state came to, which ends it, and when that was."""
        write_json(self.dir / f"{state}.json", {**result, "ended": now()})

    def since(self) -> str | None:
        """When the last of its states ended, ISO 8601; None if none has, or if that was not noted."""
        results = [result for state in STATES if (result := self.result(state))]
        return results[-1].get("ended") if results else None

    def conditions(self) -> list[dict[str, Any]]:
        """Every condition that the gates have looked at, in their order."""
        results = (self.result(state) for state in STATES[:-1])
        return [condition for result in results if result for condition in result.get("conditions", [])]


class Rounds:
    """The rounds of a run.

    Args:
        run: the run directory.
    """

    def __init__(self, run: Path) -> None:
        self.dir = Path(run) / FLYWHEEL

    def all(self) -> list[Round]:
        """Every round that has begun, the first one first."""
        places = (self.dir / "rounds").glob("[0-9]*")
        return sorted((Round(int(place.name), place) for place in places), key=lambda one: one.number)

    def last(self) -> Round | None:
        """The round that began last; None before the first."""
        rounds = self.all()
        return rounds[-1] if rounds else None

    def place(self, number: int) -> Path:
        """Where a round's results are."""
        return self.dir / "rounds" / f"{number:04d}"

    def current(self) -> Round:
        """The round that is under way, or the next one, of which nothing is on disk yet."""
        last = self.last()
        if last is not None and last.state is not None:
            return last
        number = last.number + 1 if last else 1
        return Round(number, self.place(number))

    def summary(self) -> dict[str, Any]:
        """Where the flywheel is: round, state and since when, what was last seen there, what its gates found, how the
        others ended."""
        current, path = self.current(), self.dir / _LOOK
        look: dict[str, Any] = read_json(path) if path.exists() else {}
        here = look if (look.get("round"), look.get("state")) == (current.number, current.state) else {}
        verdicts = [(one.number, one.result(STATES[-1])) for one in self.all()]
        return {
            "round": current.number,
            "state": current.state,
            "since": current.since(),
            "waits_for": here.get("waits_for"),
            "votes_needed": here.get("votes_needed"),
            "new_votes": here.get("new"),
            "votes_wanted": here.get("wanted"),
            "conditions": [*current.conditions(), *here.get("conditions", [])],
            "rounds": [{"round": number, **verdict} for number, verdict in verdicts if verdict],
        }

    def note_look(self, look: Mapping[str, Any]) -> None:
        """Note what is waited for, and how far it is; for whoever looks from outside."""
        write_json(self.dir / _LOOK, look)
