"""The end of a server, in order: no new work, let people finish, tell the others, stop.

In:  SIGTERM or Ctrl-C.
Out: GET /readyz answers 503 from then on, so that whoever distributes requests sends them elsewhere; new requests for
answers are refused with 503; what is being written gets its time; what is not done by then ends with an error event.
Left out: handing work over to another server.

uvicorn stops listening first and then waits for open streams, so nobody would learn that it is leaving. Here it goes on
listening until the engine is idle or the time is up. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import signal
import time
from types import FrameType

import uvicorn

from danlu.serve.engine import Engine

GRACE_SECONDS = 20.0
_LOOK_SECONDS = 0.05
_LAST_WORDS_SECONDS = 5


class Leaving:
    """Whether the server is leaving.

    Args:
        engine: what must become idle first.
    """

    def __init__(self, engine: Engine) -> None:
        self.begun = False
        self._engine = engine

    async def finish(self, grace: float) -> None:
        """Refuse new work, wait until all is written or ``grace`` seconds have passed, and end the rest."""
        self.begun = True
        self._engine.refuse_new()
        until = time.monotonic() + grace
        while time.monotonic() < until and not self._engine.idle():
            await asyncio.sleep(_LOOK_SECONDS)
        # It joins a thread: not on the event loop, which has the last events to send.
        await asyncio.to_thread(self._engine.close)


class PatientServer(uvicorn.Server):
    """uvicorn's server, which leaves as described above.

    Args:
        config: uvicorn's.
        leaving: of the application.
        grace: seconds that answers under way get.
    """

    def __init__(self, config: uvicorn.Config, leaving: Leaving, grace: float = GRACE_SECONDS) -> None:
        config.timeout_graceful_shutdown = _LAST_WORDS_SECONDS
        super().__init__(config)
        self._leaving, self._grace = leaving, grace
        self._signals = 0
        self._ending: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the end, the second one is the end."""
        if sig == signal.SIGINT:
            self._captured_signals.append(sig)  # Ctrl-C is passed on; SIGTERM is obeyed when all is done
        self._signals += 1
        if self._signals > 1:
            self.should_exit = self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second; a signal's handler must not do more than count."""
        if self._signals and self._ending is None:
            self._ending = asyncio.create_task(self._end())
        return await super().on_tick(counter)

    async def _end(self) -> None:
        await self._leaving.finish(self._grace)
        self.should_exit = True
