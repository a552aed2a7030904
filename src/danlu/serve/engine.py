"""The engine as the server sees it: a queue with an end in front of a worker, which is a thread or a process.

In:  jobs from the event loop.
Out: ``Answers``: pieces of text as they come and each job's ``Completion``, back on the event loop.
Left out: how answers are written (``worker``), what is asked (``chat``, ``feedback``).

In a process of its own the worker's forward passes never keep the event loop waiting, and a worker that dies takes
nothing else with it: its answers end with an error, and another is started.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, replace
from pathlib import Path
from typing import Protocol

from danlu.errors import UserError
from danlu.serve import jobs
from danlu.serve.jobs import Fault, Finished, Job, Loaded, Piece, Stats
from danlu.serve.problems import Refusal
from danlu.serve.worker import Setup, Tell, Worker, Writer

_LOG = logging.getLogger("danlu.serve")
_CLOSE_SECONDS = 10
Lost = Callable[[str | None], None]
MAX_WAITING_TOKENS = 1 << 18
"""Of prompts in the queue: a few that are very long are as much work as many that are short."""


class Answers:
    """Answers under way: iterate to get their pieces, in the order in which they are written.

    Iteration ends when all are finished or ``cancel`` was called, and raises ``Refusal`` if one fails.
    """

    def __init__(self, jobs: Sequence[Job], leave: Callable[[], None] = lambda: None) -> None:
        self.jobs = tuple(jobs)
        self.cancelled = False
        self._leave = leave
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Piece | Finished | Refusal | None] = asyncio.Queue()

    def cancel(self) -> None:
        """Stop writing; harmless when everything is written."""
        if not self.cancelled:
            self.cancelled = True
            self._leave()
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
        """Called from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)


class Line(Protocol):
    """The way to a worker."""

    def submit(self, number: int, job: Job) -> None:
        """Begin an answer."""

    def cancel(self, number: int) -> None:
        """Drop an answer."""

    def load(self, number: int, key: str, place: str) -> None:
        """Hold one more model."""

    def drop(self, key: str) -> None:
        """Let go of a model when its answers are written."""

    def close(self) -> None:
        """End the worker and wait for its end."""


class ThreadLine:
    """A worker in a thread: for tests and notebooks, and where a second process is too much."""

    def __init__(self, writers: Mapping[str, Writer], setup: Setup, tell: Tell) -> None:
        self._worker = Worker(writers, setup, tell)
        self.submit, self.cancel = self._worker.submit, self._worker.cancel
        self.load, self.drop = self._worker.load, self._worker.drop
        self._thread = threading.Thread(target=self._worker.run, name="danlu-worker", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread at the next token."""
        self._worker.close()
        self._thread.join()


class ProcessLine:
    """A worker in a process of its own; started again if it dies.

    Args:
        places: model directories by name. One that holds another model by the time when a worker is started again is
            passed over, and what is asked of it is refused.
        setup: how it serves.
        tell: gets every event, from a thread of this process.
        lost: is told None when the worker has died and what it was writing is lost, ``""`` when another has taken its
            place, and else why there is none.

    Raises:
        UserError: a model cannot be served.
    """

    def __init__(self, places: Mapping[str, Path], setup: Setup, tell: Tell, lost: Lost) -> None:
        self._places, self._setup = {name: str(place) for name, place in places.items()}, asdict(setup)
        self._hashes: dict[str, str] = {}  # what was found in each place at first
        self._tell, self._lost = tell, lost
        self._closing, self._lock = threading.Event(), threading.Lock()
        self._process = self._start()
        self._thread = threading.Thread(target=self._listen, name="danlu-worker", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """Of the worker's process."""
        return self._process.pid

    def submit(self, number: int, job: Job) -> None:
        """Begin an answer."""
        self._send({"submit": number, "job": jobs.write_job(job)})

    def cancel(self, number: int) -> None:
        """Drop an answer."""
        self._send({"cancel": number})

    def load(self, number: int, key: str, place: str) -> None:
        """Hold one more model; a worker that takes this one's place will hold it too."""
        self._send({"load": number, "key": key, "place": place})

    def drop(self, key: str) -> None:
        """Let go of a model when its answers are written."""
        with self._lock:
            self._places.pop(key, None)
            self._hashes.pop(key, None)
        self._send({"drop": key})

    def close(self) -> None:
        """End the worker at the next token, or by force."""
        with self._lock:
            self._closing.set()
            process = self._process
        self._end(process)
        self._thread.join()

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(OSError):
            process.stdin.close()  # type: ignore[union-attr]  # it is a pipe
        try:
            process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "from danlu.serve.process import main; main()"]
        # A session of its own: Ctrl-C is for the server, which ends the worker when the last answers are written.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, bufsize=0
        )
        assert process.stdin is not None
        assert process.stdout is not None
        with self._lock:
            first = json.dumps({"places": self._places, "hashes": self._hashes, "setup": self._setup})
        process.stdin.write(first.encode() + b"\n")
        said = json.loads(process.stdout.readline() or b"{}")
        if "refused" in said:
            process.wait()
            raise UserError(said["refused"])
        if "ready" not in said:
            process.kill()
            raise UserError("the worker that holds the models did not start; what it said is above")
        with self._lock:
            self._hashes |= said["ready"]
        return process

    def _send(self, command: object) -> None:
        line = json.dumps(command).encode() + b"\n"
        # Where it has died, ``_listen`` notices and tells whoever waits; where it is being closed, nobody waits.
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(line)  # type: ignore[union-attr]

    def _listen(self) -> None:
        while True:
            assert self._process.stdout is not None
            for line in self._process.stdout:
                if not line.endswith(b"\n"):  # killed in the middle of a word
                    break
                number, _, said = line.partition(b" ")
                event = jobs.read_event(said)
                if isinstance(event, Loaded):
                    with self._lock:
                        self._places[event.key], self._hashes[event.key] = event.place, event.hash
                self._tell(int(number), event)
            if self._closing.is_set():
                return
            _LOG.error("the worker has ended (exit code %s); starting another", self._process.wait())
            self._lost(None)
            try:
                process = self._start()
            except (UserError, OSError, ValueError) as error:
                _LOG.error("no other worker could be started: %s", error)
                self._lost("the worker that holds the models has died and does not start again; the log says why")
                return
            with self._lock:
                self._process = process
            if self._closing.is_set():
                self._end(process)
                return
            self._lost("")


class Engine:
    """A queue with an end; ``in_thread`` and ``in_process`` make one.

    Args:
        line: makes the way to a worker, given where its events go and what to call when it was lost.
        running: answers written at the same time.
        waiting: answers that may wait for their turn; more are refused.
    """

    def __init__(self, line: Callable[[Tell, Lost], Line], running: int = 16, waiting: int = 32) -> None:
        self.running, self.waiting = running, waiting
        self._numbers = itertools.count(1)
        self._under: dict[int, tuple[Answers, int]] = {}  # by number: whose, and which of them
        self._loading: dict[int, Future[None]] = {}
        self._changed = threading.Condition()
        self._leaving, self._closing, self._last = False, False, Stats()
        self._out_of_order = ""  # why nothing can be taken
        self._line = line(self._heard, self._lost)

    @staticmethod
    def in_thread(writers: Mapping[str, Writer], setup: Setup, waiting: int = 32) -> Engine:
        """An engine whose worker is a thread of this process."""
        return Engine(lambda tell, _: ThreadLine(writers, setup, tell), setup.rows, waiting)

    @staticmethod
    def in_process(places: Mapping[str, Path], setup: Setup, waiting: int = 32) -> Engine:
        """An engine whose worker is a process of its own.

        Raises:
            UserError: a model cannot be served.
        """
        return Engine(lambda tell, lost: ProcessLine(places, setup, tell, lost), setup.rows, waiting)

    def submit(self, jobs: Sequence[Job]) -> Answers:
        """Queue jobs, all or none; call from the event loop.

        Raises:
            Refusal: the queue is full or the server is stopping (503, with ``Retry-After``).
        """
        numbers = [next(self._numbers) for _ in jobs]
        answers = Answers(jobs, lambda: self._leave(numbers))
        with self._changed:
            if self._out_of_order:
                raise Refusal(503, self._out_of_order, "overloaded", headers={"retry-after": "5"})
            prompts = [len(answers.jobs[index].prompt) for answers, index in self._under.values()]
            queued = sum([*prompts, *(len(job.prompt) for job in jobs)][self.running :])
            room = self.running + self.waiting - len(self._under)
            stopping = self._leaving or self._closing
            if stopping or len(jobs) > room or (self._under and queued > MAX_WAITING_TOKENS):
                raise _busy(stopping)
            self._under |= {number: (answers, index) for index, number in enumerate(numbers)}
        for number, job in zip(numbers, jobs, strict=True):
            self._line.submit(number, job)
        return answers

    def load(self, key: str, place: Path) -> Future[None]:
        """Have the worker hold one more model, called ``key`` in jobs (``Job.weights``).

        Returns:
            Done when it can be asked; raises UserError if it cannot be loaded, or the worker died meanwhile.
        """
        number, loaded = next(self._numbers), Future[None]()
        loaded.set_running_or_notify_cancel()  # who waits for it may go, and it is settled all the same
        with self._changed:
            if self._out_of_order:  # what is sent to a worker that is not there gets no answer
                loaded.set_exception(UserError(self._out_of_order))
                return loaded
            self._loading[number] = loaded
        self._line.load(number, key, str(place))
        return loaded

    def drop(self, key: str) -> None:
        """Have the worker let go of a model when what was asked of it is written; nothing may be asked any more."""
        self._line.drop(key)

    def idle(self) -> bool:
        """Whether nothing is being written or waits."""
        with self._changed:
            return not self._under

    def stats(self) -> Stats:
        """How busy the worker is, a moment ago."""
        return self._last

    def refuse_new(self) -> None:
        """Take no more work: what is under way is written to its end."""
        with self._changed:
            self._leaving = True

    def close(self) -> None:
        """Stop at the next token; what is under way ends with an error that says so."""
        with self._changed:
            self._closing = True
        self._line.close()
        self._end_all(_busy(stopping=True))

    def _leave(self, numbers: Sequence[int]) -> None:
        with self._changed:
            left = [number for number in numbers if self._under.pop(number, None)]
        for number in left:
            self._line.cancel(number)

    def _heard(self, number: int, event: jobs.Event) -> None:
        """From the worker's thread."""
        if isinstance(event, Stats):
            self._last = event
            return
        with self._changed:
            loading = self._loading.pop(number, None)
            whose = self._under.get(number)
            if whose is not None and not isinstance(event, Piece):
                del self._under[number]
        if loading is not None:
            _settle(loading, event)
        if whose is None:  # nobody waits for it any more
            return
        answers, index = whose
        if isinstance(event, Fault):
            answers.tell(_fault(event))
        elif not isinstance(event, Loaded):
            answers.tell(replace(event, index=index))

    def _lost(self, why: str | None) -> None:
        """From the line's thread: until another worker is there, nothing new is taken."""
        with self._changed:
            self._out_of_order = "the worker is being started again; try again in a moment" if why is None else why
        if why is None:
            self._end_all(_fault(Fault(0, 500, "the worker that wrote this answer has died; ask again")))
            with self._changed:
                loading, self._loading = self._loading, {}
            for one in loading.values():
                _settle(one, Fault(0, 500, "the worker has died while it read the model"))

    def _end_all(self, refusal: Refusal) -> None:
        with self._changed:
            left, self._under = list(self._under.values()), {}
        for answers in {answers for answers, _ in left}:
            answers.tell(refusal)


def _settle(loading: Future[None], event: jobs.Event) -> None:
    """A model is there, or it is not."""
    if isinstance(event, Fault):
        loading.set_exception(UserError(event.message))
    else:
        loading.set_result(None)


def _fault(fault: Fault) -> Refusal:
    if fault.status < 500:
        return Refusal(fault.status, fault.message, "invalid_value")
    return Refusal(fault.status, fault.message, "generation_failed")


def _busy(stopping: bool) -> Refusal:
    why = "the server is stopping" if stopping else "the server is busy and its queue is full"
    return Refusal(503, f"{why}; try again in a moment", "overloaded", headers={"retry-after": "2"})
