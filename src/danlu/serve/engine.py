"""The engine: one thread that writes every answer, a token of each in turn, and a queue with an end.

In:  jobs (prompt ids, sampling, seed) from the event loop.
Out: ``Answers``: pieces of text as they come and each job's ``Completion``, back on the event loop.
Left out: batching different answers into one forward pass (``infer``'s scheduler, when it comes); what is asked
(``chat``, ``feedback``).

A model's forward pass holds all cores, so a second thread would only make both slower. Answers take turns token by
token instead: nobody waits for somebody else's long answer, and one whose reader left is dropped before its next token.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import abc, deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from danlu.infer import Completion, Generator, Sampling, Token
from danlu.serve.problems import Refusal

_LOG = logging.getLogger("danlu.serve")


@dataclass(frozen=True)
class Job:
    """One answer to write."""

    generator: Generator
    prompt: Sequence[int]
    sampling: Sampling
    seed: int

    def stream(self) -> abc.Generator[tuple[str, Token], None, Completion]:
        """The answer, to be written step by step; nothing is computed yet."""
        return self.generator.stream(self.prompt, self.sampling, self.seed)


@dataclass(frozen=True)
class Piece:
    """Some text of answer ``index``, and the tokens that said it."""

    index: int
    text: str
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Finished:
    """Answer ``index`` is whole."""

    index: int
    completion: Completion


class Answers:
    """Answers under way: iterate to get their pieces, in the order in which they are written.

    Iteration ends when all are finished or ``cancel`` was called, and raises ``Refusal`` if one fails.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = tuple(jobs)
        self.cancelled = False
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Piece | Finished | Refusal | None] = asyncio.Queue()

    def cancel(self) -> None:
        """Stop writing; harmless when everything is written."""
        self.cancelled = True
        self._events.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[Piece | Finished]:
        left = len(self.jobs)
        while left:
            event = await self._events.get()
            if event is None:
                return
            if isinstance(event, Refusal):
                raise event
            left -= isinstance(event, Finished)
            yield event

    def tell(self, event: Piece | Finished | Refusal) -> None:
        """Called by the engine's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)


class Engine:
    """The thread and its queue.

    Args:
        running: answers written in turns at the same time; each holds a key-value cache.
        waiting: answers that may wait for their turn; more are refused.
    """

    def __init__(self, running: int = 4, waiting: int = 16) -> None:
        self.running, self.waiting = running, waiting
        self._queue: deque[_Writer] = deque()
        self._writers: list[_Writer] = []
        self._changed = threading.Condition()
        self._leaving = self._closing = False
        self._thread = threading.Thread(target=self._work, name="danlu-engine", daemon=True)
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> Answers:
        """Queue jobs, all or none; call from the event loop.

        Raises:
            Refusal: the queue is full or the server is stopping (503, with ``Retry-After``).
        """
        answers = Answers(jobs)
        writers = [_Writer(answers, index, job.stream()) for index, job in enumerate(jobs)]
        with self._changed:
            self._queue = deque(writer for writer in self._queue if not writer.answers.cancelled)
            room = self.running + self.waiting - len(self._writers) - len(self._queue)
            if self._leaving or self._closing or len(writers) > room:
                raise _busy(self._leaving or self._closing)
            self._queue.extend(writers)
            self._changed.notify()
        return answers

    def idle(self) -> bool:
        """Whether nothing is being written or waits."""
        with self._changed:
            return not self._writers and not self._queue

    def stats(self) -> dict[str, int]:
        """What is under way; this engine's caches are a request's own, so there is none to share and to fill up."""
        with self._changed:
            counts = {"running": len(self._writers), "waiting": len(self._queue)}
        return counts | dict.fromkeys(("cache_used", "cache_total", "prefix_hits", "prefix_queries"), 0)

    def refuse_new(self) -> None:
        """Take no more work: what is under way is written to its end."""
        with self._changed:
            self._leaving = True

    def close(self) -> None:
        """Stop at the next token; what is under way ends with an error that says so."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while self._admit():
            unfinished = [writer for writer in self._writers if writer.step()]
            with self._changed:
                self._writers = unfinished
        for answers in {writer.answers for writer in (*self._queue, *self._writers)}:
            answers.tell(_busy(stopping=True))

    def _admit(self) -> bool:
        """Wait for work and take up as much as may run; returns False when the engine closes."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._writers or self._queue)
            while self._queue and len(self._writers) < self.running:
                self._writers.append(self._queue.popleft())
            return not self._closing


class _Writer:
    """Writes one answer, a token at a time."""

    def __init__(
        self, answers: Answers, index: int, stream: abc.Generator[tuple[str, Token], None, Completion]
    ) -> None:
        self.answers, self._index, self._stream = answers, index, stream
        self._silent: list[Token] = []  # drawn, and nothing to show for them yet

    def step(self) -> bool:
        """One token on; returns whether there is more to write."""
        if self.answers.cancelled:
            self._stream.close()
            return False
        try:
            piece, token = next(self._stream)
            self._silent.append(token)
            if piece:  # a token that shows nothing yet is nobody's news
                self.answers.tell(Piece(self._index, piece, tuple(self._silent)))
                self._silent = []
        except StopIteration as end:
            self.answers.tell(Finished(self._index, end.value))
            return False
        except Exception:  # a fault in one answer must not end the thread that all the others need
            _LOG.exception("fault while writing an answer")
            self.answers.tell(Refusal(500, "the model failed while it wrote this answer", "generation_failed"))
            return False
        return True


def _busy(stopping: bool) -> Refusal:
    why = "the server is stopping" if stopping else "the server is busy and its queue is full"
    return Refusal(503, f"{why}; try again in a moment", "overloaded", headers={"retry-after": "2"})
