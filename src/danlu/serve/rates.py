"""How much one key may ask: requests and tokens a minute, each a bucket that fills as time passes.

In:  callers, jobs that are about to be written, tokens as they are written, a clock.
Out: ``Metered``, an engine that counts; 429 with ``Retry-After``; ``x-ratelimit-*`` headers.
Left out: the queue that all share (``engine``), who is asking (``accounts``).

Every answer counts as a request: ``n`` of them count n times. So does every text that is looked at, embedded or scored.
Of tokens the prompt's are paid when it is asked and an answer's as it is written, whatever was allowed for it. So the
bucket may go below nothing: an answer that has begun is finished, and the next one waits until the debt is paid.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from danlu.serve.engine import Answers
from danlu.serve.jobs import Finished, Job, Piece
from danlu.serve.people import Caller
from danlu.serve.problems import Refusal

REQUESTS, TOKENS = 120, 200_000
_MINUTE = 60.0

Clock = Callable[[], float]


class Writes(Protocol):
    """What takes jobs: an engine, or one that counts."""

    def submit(self, jobs: Sequence[Job]) -> Answers:
        """Queue jobs, all or none."""


class Bucket:
    """Holds a minute's worth and fills evenly.

    Args:
        size: how much a minute.
        clock: seconds, of any beginning.
    """

    def __init__(self, size: int, clock: Clock = time.monotonic) -> None:
        self.size, self._clock = size, clock
        self._level, self._seen = float(size), clock()

    @property
    def level(self) -> float:
        """What is in it; below nothing while there are debts."""
        moment = self._clock()
        self._level = min(self.size, self._level + (moment - self._seen) * self.size / _MINUTE)
        self._seen = moment
        return self._level

    def wait(self, amount: float) -> float:
        """Seconds until ``amount`` may be taken, 0 if it may be now; more than the bucket holds counts as full."""
        missing = min(amount, self.size) - self.level
        return max(0.0, missing * _MINUTE / self.size)

    def take(self, amount: float) -> None:
        """Take, whether or not it is there."""
        self._level = self.level - amount


@dataclass(frozen=True)
class Meter:
    """The two buckets of one key; None for what is not limited."""

    requests: Bucket | None
    tokens: Bucket | None

    def admit(self, requests: int, tokens: int) -> None:
        """See whether so much may be asked now; nothing is taken yet.

        Raises:
            Refusal: not now (429); ``Retry-After`` says when.
        """
        for bucket, amount, what in ((self.requests, requests, "requests"), (self.tokens, tokens, "tokens")):
            wait = bucket.wait(amount) if bucket is not None else 0.0
            if bucket is not None and wait > 0:
                seconds = math.ceil(wait)
                message = f"this key may have {bucket.size:,} {what} a minute; try again in {seconds} s"
                raise Refusal(429, message, "rate_limit_exceeded", headers={"retry-after": str(seconds)})

    def pay(self, requests: int, tokens: int = 0) -> None:
        """Take what is asked now.

        Raises:
            Refusal: as ``admit``.
        """
        self.admit(requests, tokens)
        self.spend(requests, tokens)

    def spend(self, requests: int = 0, tokens: int = 0) -> None:
        """Take what was written, whether or not it is there; less than nothing is given back."""
        if self.requests is not None:
            self.requests.take(requests)
        if self.tokens is not None:
            self.tokens.take(tokens)

    def headers(self) -> dict[str, str]:
        """What is left, as OpenAI's server says it."""
        told = {}
        for bucket, what in ((self.requests, "requests"), (self.tokens, "tokens")):
            if bucket is not None:
                told[f"x-ratelimit-limit-{what}"] = str(bucket.size)
                told[f"x-ratelimit-remaining-{what}"] = str(max(0, int(bucket.level)))
                told[f"x-ratelimit-reset-{what}"] = f"{bucket.wait(bucket.size):.3f}s"
        return told


class Rates:
    """The meters of all keys.

    Args:
        requests: a minute, of keys that say nothing else; 0 for no limit.
        tokens: likewise.
        clock: seconds, of any beginning.
    """

    def __init__(self, requests: int = REQUESTS, tokens: int = TOKENS, clock: Clock = time.monotonic) -> None:
        self._requests, self._tokens, self._clock = requests, tokens, clock
        self._meters: dict[tuple[str, str, int, int], Meter] = {}

    def of(self, caller: Caller) -> Meter:
        """The meter of a caller; whoever sits at this machine is not limited."""
        if not caller.owner:
            return Meter(None, None)
        requests = self._requests if caller.requests is None else caller.requests
        tokens = self._tokens if caller.tokens is None else caller.tokens
        name = (caller.key, "" if caller.key else caller.owner, requests, tokens)
        if name not in self._meters:  # as many as there are keys and users
            self._meters[name] = Meter(self._bucket(requests), self._bucket(tokens))
        return self._meters[name]

    def _bucket(self, size: int) -> Bucket | None:
        return Bucket(size, self._clock) if size else None


class Metered:
    """An engine whose every job is somebody's.

    Args:
        engine: what writes.
        meter: of whoever is asking now.
    """

    def __init__(self, engine: Writes, meter: Callable[[], Meter]) -> None:
        self._engine, self._meter = engine, meter

    def admit(self, jobs: Sequence[Job]) -> None:
        """Take what it costs to ask for jobs, before anybody looks at them: a prompt that a gate blocks is paid too.

        Raises:
            Refusal: too much for this minute (429).
        """
        self._meter().pay(*_price(jobs))

    def submit(self, jobs: Sequence[Job]) -> Answers:
        """Queue jobs that were admitted, all or none.

        Raises:
            Refusal: the engine's own (503), which costs nothing.
        """
        meter, (requests, tokens) = self._meter(), _price(jobs)
        try:
            return _Counted(self._engine.submit(jobs), meter)
        except Refusal:
            meter.spend(-requests, -tokens)
            raise


def _price(jobs: Sequence[Job]) -> tuple[int, int]:
    """Requests and tokens that jobs cost when they are asked for."""
    return len(jobs), sum(len(job.prompt) for job in jobs)


class _Counted(Answers):
    """Answers whose tokens are paid as they come."""

    def __init__(self, source: Answers, meter: Meter) -> None:
        super().__init__(source.jobs)
        self._source, self._meter = source, meter

    def cancel(self) -> None:
        self.cancelled = True
        self._source.cancel()

    async def __aiter__(self) -> AsyncIterator[Piece | Finished]:
        paid = [0] * len(self.jobs)
        async for event in self._source:
            written = event.completion.tokens if isinstance(event, Finished) else event.tokens
            owed = len(written) - (paid[event.index] if isinstance(event, Finished) else 0)
            paid[event.index] += owed
            self._meter.spend(tokens=owed)
            yield event
