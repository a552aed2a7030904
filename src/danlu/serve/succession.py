"""The succession: a server follows a run's champion from one version to the next, and nobody has to wait for it.

In:  ``RUN/champion.json``, which somebody else writes (``align.champion``).
Out: models that are loaded beside those that answer, then take their name; a candidate in some of the comparisons.
Left out: who is promoted and why (``align.gate``, ``danlu.flywheel``).

The public name stays and the hash changes. Whatever was begun with the old weights is finished with them: they are let
go a while later, when also those who were only about to ask have asked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from anyio.to_thread import run_sync

from danlu.align.champion import CANDIDATE, CHAMPION, Registry
from danlu.align.rounds import Rounds
from danlu.errors import UserError
from danlu.records import Message
from danlu.serve.engine import Engine
from danlu.serve.models import Models, Served, read_served

_LOG = logging.getLogger("danlu.serve")
SECONDS = 1.0  # between two looks
LINGER = 60.0  # from being replaced to going: between a request and its job are the gates, and a long text to encode


def with_champion(places: Mapping[str, Path], run: Path | None) -> dict[str, Path]:
    """Model directories by name, before them the champion of ``run`` if it has one.

    Raises:
        UserError: the pointer is damaged, or names a version that is not there.
    """
    standing = Registry(run).standing() if run else None
    if run is None or standing is None:
        return dict(places)
    return {CHAMPION: Registry(run).place(standing.champion), **places}


class Succession:
    """Follows the pointer of one run.

    Args:
        run: the run directory.
        models: whose champion it changes.
        engine: loads.
        shots: turns of examples that stand before every dialogue.
    """

    def __init__(self, run: Path, models: Models, engine: Engine, shots: Sequence[Message] = ()) -> None:
        self._registry, self._models, self._engine, self._shots = Registry(run), models, engine, tuple(shots)
        self._held = {served.hash: served for served in models.all() if served.name == CHAMPION}
        self._leaving: dict[str, asyncio.TimerHandle] = {}
        self._seen: tuple[int, int] | None = None

    async def follow(self) -> None:
        """Look at the pointer until cancelled; what goes wrong is told once and tried again."""
        told = ""
        while True:
            try:
                await self.look()
                told = ""
            except (UserError, OSError) as error:
                if str(error) != told:
                    told = str(error)
                    _LOG.error("the champion cannot be followed: %s", told)
            await asyncio.sleep(SECONDS)

    async def look(self) -> None:
        """Bring what is served in line with the pointer, if it has changed.

        Raises:
            UserError: the pointer is damaged, or a version cannot be loaded; what was served goes on being served.
        """
        stamp = await run_sync(self._stamp)
        if stamp is None or stamp == self._seen:
            return
        standing = await run_sync(self._registry.standing)
        if standing is None:
            return
        champion = await self._hold(CHAMPION, standing.champion)
        candidate = await self._hold(CANDIDATE, standing.candidate) if standing.candidate else None
        self._models.reign(champion, candidate, standing.share)
        for identity in self._held.keys() - {standing.champion, standing.candidate}:
            self._release(identity)
        self._seen = stamp

    def _stamp(self) -> tuple[int, int] | None:
        """What changes whenever the pointer is replaced; None if there is none."""
        try:
            facts = self._registry.pointer.stat()
        except FileNotFoundError:
            return None
        return facts.st_ino, facts.st_mtime_ns

    async def _hold(self, name: str, identity: str) -> Served:
        """A version under a name; loaded if it is not held yet."""
        if identity in self._leaving:
            self._leaving.pop(identity).cancel()
        if identity not in self._held:
            place = self._registry.place(identity)
            served = await run_sync(read_served, name, place, self._shots)
            await asyncio.wrap_future(self._engine.load(identity, place))
            self._held[identity] = replace(served, weights=identity)
        held = self._held[identity]
        return replace(held, name=name, weights=held.weights or held.name)

    def _release(self, identity: str) -> None:
        """Let go of a version after a while, unless it is wanted again before that."""
        if identity not in self._leaving:
            self._leaving[identity] = asyncio.get_running_loop().call_later(LINGER, self._drop, identity)

    def _drop(self, identity: str) -> None:
        del self._leaving[identity]
        held = self._held.pop(identity)
        self._engine.drop(held.weights or held.name)


def show(run: Path | None) -> dict[str, Any]:
    """Who reigns, who is tried, and what is still needed, for the operator; empty without a flywheel."""
    standing = Registry(run).standing() if run else None
    if run is None or standing is None:
        return {"standing": None}
    return {"standing": asdict(standing), **Rounds(run).summary()}
