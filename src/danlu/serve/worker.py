"""The worker: holds the models, runs their engines in turn, in a thread or in a process of its own (``process``).

In:  jobs and cancellations, each job under a number.
Out: events under the same numbers.
Left out: clients, queues with an end, refusals (``engine``).

A forward pass holds all cores, so one thread serves every model: each gets a step in turn.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from danlu import device, hub
from danlu.errors import UserError, unknown
from danlu.infer import Completion, Event, Generator, Request, Token, read
from danlu.infer.answer import Answer
from danlu.infer.batching import Batching
from danlu.infer.engine import Drafter
from danlu.infer.kernels import kernels_for
from danlu.infer.speculate import PromptLookup
from danlu.infer.vllm import VLLM
from danlu.serve import jobs
from danlu.serve.jobs import Fault, Finished, Job, Loaded, Piece, Stats

_LOG = logging.getLogger("danlu.serve")
_FAILED = "the model failed while it wrote this answer; the server's log has the details"
_REPLACED = "the model that was to write this answer has been replaced by another, or its files are gone; ask again"
_STATS_SECONDS = 0.5
_READ_TOKENS = {"cpu": 128, "cuda": 4096}  # of prompts per step: what everybody else's next token waits for
_SHARE = 0.9  # of a GPU's memory, for all models together
ENGINES = ("danlu", "vllm")
Tell = Callable[[int, jobs.Event], None]
Reading = abc.Generator[None, None, Finished]
Writer = Generator | VLLM
"""A model made ready for inference, in our engine or in another."""


@dataclass(frozen=True)
class Setup:
    """How a worker serves.

    Attributes:
        rows: answers under way at most, per model.
        cache_bytes: what their keys and values may take, per model.
        pool_bytes: what may be kept of earlier prompts, per model.
        guess: how to guess what comes next (``infer.speculate``): ``"lookup"``, ``"mtp"`` for the model's own layer
            that foresees it, the directory of a smaller model with the same vocabulary, or empty for not at all.
        engine: which one writes the answers, one of ``ENGINES``.
        parallel: GPUs that share each layer's matrices; for vLLM.
        spare: models that may come beside the others, for which vLLM leaves room on a GPU.
    """

    rows: int = 16
    cache_bytes: int = 1 << 30
    pool_bytes: int = 1 << 28
    guess: str = ""
    engine: str = "danlu"
    parallel: int = 1
    spare: int = 0

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise unknown("engine", self.engine, ENGINES)
        if self.engine == "vllm" and self.guess:
            raise UserError("guessing what comes next is for danlu's own engine; leave out --guess, or --engine vllm")
        if self.engine != "vllm" and self.parallel > 1:
            raise UserError("only vLLM shares a model between GPUs; leave out --parallel, or add --engine vllm")


def load(place: Path, setup: Setup, models: int = 1) -> Writer:
    """A model directory made ready for inference on this machine, one of so many.

    Raises:
        UserError: it cannot be served.
    """
    if setup.engine == "danlu":
        return _load_own(place)
    machine = device.choose()
    # A GPU is the models' own and is shared out; on a CPU they take what ours would.
    cache = None if machine.kind == "cuda" else setup.cache_bytes + setup.pool_bytes
    share = _SHARE / (models + setup.spare)
    return VLLM(place, machine.compute_dtype, rows=setup.rows, cache_bytes=cache, share=share, parallel=setup.parallel)


def _load_own(place: Path) -> Generator:
    machine = device.choose()
    native = kernels_for(machine)
    _LOG.info("products of few rows: %s", native.describe())
    model, tokenizer = hub.load_pretrained(place, dtype=None)
    return Generator(model.to(machine.kind), tokenizer, machine.compute_dtype, native)


@dataclass
class _Under:
    """An answer's number, who writes it, and tokens that were drawn for it and have nothing to show yet."""

    number: int
    engine: Batching
    silent: list[Token] = field(default_factory=list)


class Worker:
    """Engines in turn.

    Args:
        writers: models by the name they are served under.
        setup: how.
        tell: gets every event, from the thread that ``run`` is in.
    """

    def __init__(self, writers: Mapping[str, Writer], setup: Setup, tell: Tell) -> None:
        self._writers, self._setup, self._tell = dict(writers), setup, tell
        self._engines = {name: _engine(writer, setup) for name, writer in self._writers.items()}
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._under: dict[Answer, _Under] = {}
        self._readings: dict[int, tuple[str, Reading]] = {}  # by number, the oldest first, and who reads
        self._told = (Stats(), 0.0)
        self._leaving: set[str] = set()

    # From any thread.

    def submit(self, number: int, job: Job) -> None:
        """Begin an answer."""
        self._commands.put(lambda: self._begin(number, job))

    def cancel(self, number: int) -> None:
        """Drop an answer; harmless if it has ended."""
        self._commands.put(lambda: self._drop(number))

    def load(self, number: int, key: str, place: str) -> None:
        """Hold one more model, beside the others, whose answers are written on while ours reads it."""
        if self._setup.engine == "vllm":  # its models share what a process has once, so none may run meanwhile
            self._commands.put(lambda: self._load(number, key, place))
            return
        threading.Thread(target=self._load, args=(number, key, place), name="danlu-load", daemon=True).start()

    def drop(self, key: str) -> None:
        """Let go of a model as soon as all that it was asked for is written."""
        self._commands.put(lambda: self._leaving.add(key))
        self._commands.put(self._let_go)

    def close(self) -> None:
        """Stop at the next token."""
        self._commands.put(None)

    # From the worker's own.

    def run(self) -> None:
        """Work until ``close``."""
        while self._obey():
            for engine in self._engines.values():
                if _busy(engine):
                    self._step(engine)
            self._read_one()
            self._let_go()
            self._tell_stats()

    def _load(self, number: int, key: str, place: str) -> None:
        """Up to where the worker's own thread takes the model over; in any thread."""
        try:
            identity = hub.model_hash(Path(place))
            writer = load(Path(place), self._setup, max(1, len(self._writers)))  # one that leaves makes room
            engine = _engine(writer, self._setup)
        except UserError as error:
            failure = Fault(0, 400, str(error))
            self._commands.put(lambda: self._tell(number, failure))
        except Exception:
            _LOG.exception("fault while loading %s", place)
            self._commands.put(lambda: self._tell(number, Fault(0, 500, f"{place} cannot be loaded; the log says why")))
        else:
            self._commands.put(lambda: self._take(number, Loaded(key, place, identity), writer, engine))

    def _take(self, number: int, loaded: Loaded, writer: Writer, engine: Batching) -> None:
        self._leaving.discard(loaded.key)
        if loaded.key not in self._engines:
            self._writers[loaded.key], self._engines[loaded.key] = writer, engine
        elif isinstance(writer, VLLM):  # the one that was to leave still writes, and stays
            writer.close()
        self._tell(number, loaded)

    def _let_go(self) -> None:
        """Of models that are to leave and have nothing more to say."""
        reading = {writer for writer, _ in self._readings.values()}
        for key in [*self._leaving]:
            if key in reading or (key in self._engines and _busy(self._engines[key])):
                continue
            self._leaving.discard(key)
            self._engines.pop(key, None)
            if isinstance(writer := self._writers.pop(key, None), VLLM):
                writer.close()

    def _obey(self) -> bool:
        """Do what was asked for; waits if there is nothing else to do. Returns False when it is time to end."""
        while True:
            idle = not self._readings and not any(map(_busy, self._engines.values()))
            if idle:
                self._tell_stats()
            try:
                command = self._commands.get(block=idle)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()

    def _begin(self, number: int, job: Job) -> None:
        if job.writer not in self._engines:
            self._tell(number, Fault(0, 500, _REPLACED))
            return
        if job.read:
            self._readings[number] = job.writer, _read(self._writers[job.writer], job)
            return
        try:
            self._writers[job.writer].check(job.prompt, job.sampling)
            answer = self._engines[job.writer].add(Request(job.prompt, job.sampling, job.seed, job.salt))
        except UserError as error:
            self._tell(number, Fault(0, 400, str(error)))
            return
        except Exception:
            _LOG.exception("fault while beginning an answer")
            self._tell(number, Fault(0, 500, _FAILED))
            return
        self._under[answer] = _Under(number, self._engines[job.writer])

    def _read_one(self) -> None:
        """Read some of a prompt, between two steps: whoever is being answered waits for a chunk of it at most."""
        if not self._readings:
            return
        number, (_, reading) = next(iter(self._readings.items()))
        event: jobs.Event
        try:
            next(reading)
            return
        except StopIteration as end:
            event = end.value
        except UserError as error:
            event = Fault(0, 400, str(error))
        except Exception:
            _LOG.exception("fault while reading a prompt")
            event = Fault(0, 500, _FAILED)
        del self._readings[number]
        self._tell(number, event)

    def _drop(self, number: int) -> None:
        self._readings.pop(number, None)
        for answer, under in self._under.items():
            if under.number == number:
                answer.cancelled = True

    def _step(self, engine: Batching) -> None:
        try:
            events = engine.step()
        except Exception:  # a fault must not end the thread that every later answer needs
            _LOG.exception("fault while writing answers")
            # Also of those that the engine had just let go: what it had drawn for them is lost with the step.
            for answer in [answer for answer, under in self._under.items() if under.engine is engine]:
                self._tell(self._under.pop(answer).number, Fault(0, 500, _FAILED))
            engine.clear()
            return
        for event in events:
            self._pass_on(event)
        for answer in [answer for answer in self._under if answer.cancelled]:
            del self._under[answer]

    def _pass_on(self, event: Event) -> None:
        under = self._under[event.answer]
        under.silent.append(event.token)
        if event.piece:  # a token that shows nothing yet is nobody's news
            self._tell(under.number, Piece(0, event.piece, tuple(under.silent)))
            under.silent = []
        if event.completion is not None:
            self._tell(under.number, Finished(0, event.completion))
            del self._under[event.answer]

    def _tell_stats(self) -> None:
        now, (last, when) = time.monotonic(), self._told
        stats = self._stats()
        if stats != last and (now - when > _STATS_SECONDS or not stats.running):
            self._tell(0, stats)
            self._told = stats, now

    def _stats(self) -> Stats:
        engines = list(self._engines.values())
        uses = [engine.use() for engine in engines]
        return Stats(
            running=sum(engine.running for engine in engines),
            waiting=sum(engine.waiting for engine in engines),
            cache_used=sum(use.taken for use in uses),
            cache_total=sum(use.total for use in uses),
            prefix_queries=sum(use.queries for use in uses),
            prefix_hits=sum(use.hits for use in uses),
        )


def _busy(engine: Batching) -> bool:
    return bool(engine.running or engine.waiting)


def _read(writer: Writer, job: Job) -> Reading:
    if isinstance(writer, VLLM):
        writer.read(job.read)
    if job.read == "embed":
        vector = yield from read.embed(writer, job.prompt)
        return Finished(0, Completion((), "", (), "read"), tuple(vector.tolist()))
    tokens = yield from read.score(writer, job.prompt, job.sampling.top_logprobs)
    ids, logprobs, top = (tuple(column) for column in zip(*tokens, strict=True)) if tokens else ((), (), ())
    return Finished(0, Completion(ids, "", logprobs, "read", top))


def _engine(writer: Writer, setup: Setup) -> Batching:
    if isinstance(writer, VLLM):
        return writer.engine()
    return writer.engine(
        setup.rows,
        budget=_READ_TOKENS[writer.output_weight.device.type],
        cache_bytes=setup.cache_bytes,
        pool_bytes=setup.pool_bytes,
        drafter=_drafter(writer, setup.guess),
        foresight=setup.guess == "mtp",
    )


def _drafter(generator: Generator, guess: str) -> Drafter | None:
    if guess in ("", "lookup", "mtp"):
        return PromptLookup() if guess == "lookup" else None
    small = _load_own(Path(guess))
    if small.tokenizer.hash != generator.tokenizer.hash:
        raise UserError(f"the draft model {guess} has another tokenizer than the model that is served")
    return small.drafter(generator.tokenizer.vocab_size)
