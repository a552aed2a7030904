"""Who serves: the versions of a run's model, which never change, and one file that names the champion among them.

In:  a finished model directory; decisions to propose, promote, withdraw or roll back.
Out: ``RUN/versions/HASH`` (a model directory with ``lineage.json`` in it) and ``RUN/champion.json``, the pointer.
Left out: whether to promote (``gate``), who follows the pointer (``danlu.serve.succession``).

A stage of a run is made again in place, and what it held before goes at the next time. A version stays: it is made of
hard links where the disk has them, which cost nothing, and since the files of a run are replaced and never written
into, a link keeps its bytes. The pointer is replaced as a whole: whoever reads it sees the old champion or the new one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from danlu import hub
from danlu.align.tables import now
from danlu.errors import UserError
from danlu.files import atomic_directory, read_json, write_json

CHAMPION, CANDIDATE = "champion", "candidate"  # what they are called where they serve
VERSIONS, POINTER, LINEAGE = "versions", "champion.json", "lineage.json"

_Ended = Literal["promoted", "rolled back"]


@dataclass(frozen=True)
class Reign:
    """How long a model was champion.

    Attributes:
        model: hash.
        since, until: ISO 8601.
        ended: by what: another one was promoted, or this one was taken back.
        why: in words.
    """

    model: str
    since: str
    until: str
    ended: _Ended
    why: str


@dataclass(frozen=True)
class Standing:
    """What the pointer says.

    Attributes:
        champion: hash of the model that serves.
        since: since when, ISO 8601.
        why: it is the champion, in words.
        candidate: hash of the model that is tried against it; empty for none.
        share: of the comparisons that are between the two, 0 to 1.
        history: earlier champions, the first one first.
    """

    champion: str
    since: str
    why: str
    candidate: str = ""
    share: float = 0.0
    history: tuple[Reign, ...] = ()

    def before(self) -> str | None:
        """The champion that this one took the place of; None if it is the first.

        A rollback undoes the last promotion that is not undone yet: to roll back twice goes back twice.
        """
        taken: list[str] = []
        for reign in self.history:
            if reign.ended == "promoted":
                taken.append(reign.model)
            else:
                taken.pop()
        return taken[-1] if taken else None


class Registry:
    """The versions and the pointer of a run.

    Args:
        run: the run directory.
    """

    def __init__(self, run: Path) -> None:
        self.run = Path(run)
        self.pointer = self.run / POINTER

    def add(self, model: Path, lineage: Mapping[str, Any]) -> str:
        """Keep a model directory as a version; returns its hash. What is kept already stays as it is.

        Args:
            model: the directory.
            lineage: where it comes from: stage, parents, votes.
        """
        identity = hub.model_hash(model)
        place = self.run / VERSIONS / identity
        if not place.exists():
            with atomic_directory(place) as beside:
                for file in sorted(path for path in model.iterdir() if path.is_file()):
                    _link(file, beside / file.name)
                write_json(beside / LINEAGE, {"model": identity, "made": now(), **lineage})
        return identity

    def place(self, identity: str) -> Path:
        """The directory of a version.

        Raises:
            UserError: there is none of that hash.
        """
        place = self.run / VERSIONS / identity
        if not identity or not (place / LINEAGE).is_file():
            raise UserError(f"{self.run / VERSIONS} holds no version '{identity}'; danlu flywheel RUN makes them")
        return place

    def lineage(self, identity: str) -> dict[str, Any]:
        """Where a version comes from."""
        found: dict[str, Any] = read_json(self.place(identity) / LINEAGE)
        return found

    def standing(self) -> Standing | None:
        """What the pointer says; None if the run has no champion yet.

        Raises:
            UserError: the pointer is damaged.
        """
        if not self.pointer.exists():
            return None
        said = read_json(self.pointer)
        try:
            return Standing(**{**said, "history": tuple(Reign(**reign) for reign in said["history"])})
        except (TypeError, KeyError) as error:
            raise UserError(f"{self.pointer} is damaged ({error}); restore it or delete it") from None

    def crown(self, identity: str, why: str) -> Standing:
        """Make a version the first champion of a run; nothing changes if there is one."""
        self.place(identity)
        with self._changing():
            return self.standing() or self._write(Standing(identity, now(), why))

    def propose(self, identity: str, share: float) -> Standing:
        """Try a version against the champion in a share of the comparisons."""
        self.place(identity)
        with self._changing():
            return self._write(replace(self._there(), candidate=identity, share=share))

    def withdraw(self, identity: str) -> Standing:
        """Try a version no longer; nothing changes if it is not the candidate."""
        with self._changing():
            standing = self._there()
            return self._write(_alone(standing)) if standing.candidate == identity else standing

    def promote(self, identity: str, why: str) -> Standing:
        """Let a version take the champion's place; nothing changes if it has it already."""
        self.place(identity)
        with self._changing():
            standing = self._there()
            return standing if standing.champion == identity else self._succeed(standing, identity, "promoted", why)

    def roll_back(self, why: str) -> Standing:
        """Let the former champion have its place again, and try no candidate.

        Raises:
            UserError: there was no other champion before.
        """
        with self._changing():
            standing = self._there()
            before = standing.before()
            if before is None:
                raise UserError(f"{self.run} has had no other champion to go back to")
            self.place(before)
            return self._succeed(standing, before, "rolled back", why)

    def _succeed(self, standing: Standing, identity: str, ended: _Ended, why: str) -> Standing:
        moment = now()
        reign = Reign(standing.champion, standing.since, moment, ended, why)
        return self._write(Standing(identity, moment, why, history=(*standing.history, reign)))

    def _there(self) -> Standing:
        standing = self.standing()
        if standing is None:
            raise UserError(f"{self.run} has no champion yet; danlu flywheel {self.run} makes one")
        return standing

    def _write(self, standing: Standing) -> Standing:
        write_json(self.pointer, asdict(standing))
        return standing

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """One change at a time, whoever makes it: what is read stays true until it is written.

        Raises:
            UserError: there is no run.
        """
        if not self.run.is_dir():
            raise UserError(f"{self.run} does not exist; make a run first: danlu run tang")
        with open(self.run / f".{POINTER}.lock", "a", encoding="utf-8") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def _alone(standing: Standing) -> Standing:
    return replace(standing, candidate="", share=0.0)


def _link(file: Path, beside: Path) -> None:
    """The same bytes under another name; a copy where the disk has no hard links."""
    try:
        os.link(file, beside)
    except OSError:
        shutil.copyfile(file, beside)
