"""What goes between the server and the worker that holds the models: answers to write or prompts to read, and what
becomes of them.

In:  plain records, or lines of JSON from a process of its own.
Out: the other of the two.
Left out: sockets and threads (``engine``, ``worker``).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from danlu.infer import Completion, Sampling, Token


@dataclass(frozen=True)
class Job:
    """One answer to write, or one prompt that is only to be read.

    Attributes:
        model: the name under which it is served.
        prompt: token ids.
        sampling: how to draw.
        seed: of the draws.
        salt: whoever has another one shares nothing of what is cached of this prompt.
        weights: which of the worker's models writes it, if that is not the one called ``model``: a name may pass from
            one model to the next while both are held.
        read: write nothing, but tell of the prompt its vector (``"embed"``) or how likely each of its tokens is, with
            ``sampling.top_logprobs`` others in its place (``"score"``); empty to write.
    """

    model: str
    prompt: tuple[int, ...]
    sampling: Sampling
    seed: int
    salt: str = ""
    read: str = ""
    weights: str = ""

    @property
    def writer(self) -> str:
        """What the worker calls the model that writes it."""
        return self.weights or self.model


@dataclass(frozen=True)
class Piece:
    """Some text of answer ``index``, and the tokens that said it."""

    index: int
    text: str
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Finished:
    """Answer ``index`` is whole, or prompt ``index`` is read.

    Attributes:
        completion: the answer; of a prompt that was scored, its tokens but for the first.
        vector: of a prompt that was embedded, (D,), of length 1.
    """

    index: int
    completion: Completion
    vector: tuple[float, ...] = ()


@dataclass(frozen=True)
class Fault:
    """Answer ``index`` cannot be written.

    Attributes:
        status: of HTTP: 400 if the request is at fault, 500 if the worker is.
        message: for the client; of our own faults, nothing but that there was one.
    """

    index: int
    status: int
    message: str


@dataclass(frozen=True)
class Stats:
    """How busy a worker is.

    Attributes:
        running: answers being written.
        waiting: answers that wait for a row.
        cache_used, cache_total: tokens that have room reserved, and how many could have.
        prefix_queries, prefix_hits: blocks of prompts that were looked for, and found, since the start.
    """

    running: int = 0
    waiting: int = 0
    cache_used: int = 0
    cache_total: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0


@dataclass(frozen=True)
class Loaded:
    """A model that was asked for is there.

    Attributes:
        key: what the worker calls it.
        place: its directory.
    """

    key: str
    place: str


Event = Piece | Finished | Fault | Stats | Loaded
_EVENTS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Piece, Finished, Fault, Stats, Loaded)}


def write_job(job: Job) -> dict[str, Any]:
    """A job as JSON values."""
    return asdict(job)


def read_job(value: dict[str, Any]) -> Job:
    """A job from JSON values."""
    sampling = value["sampling"]
    bias = tuple((int(id), float(weight)) for id, weight in sampling["logit_bias"])
    read = Sampling(**{**sampling, "stop": tuple(sampling["stop"]), "logit_bias": bias})
    rest = {key: value[key] for key in ("seed", "salt", "read", "weights")}
    return Job(value["model"], tuple(value["prompt"]), read, **rest)


def write_event(event: Event) -> bytes:
    """An event as a line of JSON."""
    return json.dumps({"kind": type(event).__name__, **asdict(event)}, ensure_ascii=False).encode() + b"\n"


def read_event(line: bytes) -> Event:
    """An event from a line of JSON."""
    value = json.loads(line)
    kind = _EVENTS[value.pop("kind")]
    if kind is Piece:
        value["tokens"] = tuple(_token(*token) for token in value["tokens"])
    if kind is Finished:
        value |= {"completion": _completion(**value["completion"]), "vector": tuple(value["vector"])}
    event: Event = kind(**value)
    return event


def _token(id: int, logprob: float, top: list[list[Any]]) -> Token:
    return Token(id, logprob, tuple((other, score) for other, score in top))


def _completion(tokens: list[int], logprobs: list[float], top: list[list[list[Any]]], **rest: Any) -> Completion:
    tops = tuple(tuple((id, score) for id, score in likely) for likely in top)
    return Completion(tokens=tuple(tokens), logprobs=tuple(logprobs), top=tops, **rest)
