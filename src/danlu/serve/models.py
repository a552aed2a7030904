"""The models that are served, and how a dialogue becomes a job for one of them.

In:  model directories by name.
Out: ``Models``: look one up, encode a dialogue for it, leave out or refuse what does not fit its context.
Left out: writing the answer (``engine``), the weights, which only the ``worker`` holds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyio.to_thread import run_sync

from danlu import hub
from danlu.align.champion import CHAMPION
from danlu.errors import UserError, nearest
from danlu.infer import reserve, with_shots
from danlu.model import parameters
from danlu.records import Message
from danlu.serve.jobs import Job
from danlu.serve.problems import Refusal
from danlu.serve.wire import Asking
from danlu.tokens import chat
from danlu.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class Served:
    """A model that answers.

    Attributes:
        name: what clients call it.
        hash: identity of its weights, stored with every answer that is judged.
        context: prompt and answer together, in tokens.
        shots: turns of examples that stand before every dialogue as far as there is room.
        weights: what the worker calls the model, if not by ``name``.
    """

    name: str
    hash: str
    context: int
    parameters: int
    loaded: int
    tokenizer: Tokenizer
    shots: tuple[Message, ...] = ()
    weights: str = ""

    def facts(self) -> dict[str, Any]:
        """What the page shows."""
        return {"id": self.name, "hash": self.hash, "parameters": self.parameters, "context": self.context}

    def listing(self) -> dict[str, Any]:
        """OpenAI's model object."""
        return {"id": self.name, "object": "model", "created": self.loaded, "owned_by": "danlu"}

    def instructions(self, turns: Sequence[Message]) -> str:
        """What the system says in a dialogue: its own words, or else those of the examples before it."""
        first = [one for one in (*turns[:1], *self.shots[:1]) if one.role == "system"]
        return first[0].content if first else ""

    async def fit(self, asked: Asking, turns: Sequence[Message]) -> Sequence[Message]:
        """The turns to answer: all of them, or, if the client allows it, the newest that leave room for an answer."""
        if not asked.may_leave_out():
            return turns
        limit = self.context - reserve(self.context, asked.limit())
        system = self.shots[: len(self.shots) % 2]  # examples go when it gets tight, but what the system says stays
        kept: Sequence[Message] = await run_sync(with_shots, self.tokenizer, system, turns, limit, False)
        return kept if turns[0].role == "system" else kept[len(system) :]

    async def job(self, asked: Asking, turns: Sequence[Message], seed: int) -> Job:
        """A job that answers ``turns`` in the way that ``asked`` says.

        Raises:
            Refusal: the dialogue, with the answer asked for, is longer than the model's context; or a bias is on a
                token that does not exist.
        """
        self.check_bias(asked.logit_bias)
        # Tokenising a long text takes a while: not on the event loop, where everybody else waits.
        prompt = await run_sync(self._prompt, turns, asked.limit())
        room = self.context - len(prompt)
        if asked.may_leave_out():  # turns were left out for the least that an answer needs; it may take all there is
            wanted, limit = reserve(self.context, asked.limit()), min(asked.limit() or room, room)
        else:
            wanted = limit = asked.limit() or max(room, 1)
        if wanted > room:
            raise self.too_long(len(prompt), wanted, asked.may_leave_out())
        return Job(self.name, tuple(prompt), asked.sampling(limit), seed, weights=self.weights)

    def check_bias(self, logit_bias: Mapping[str, float] | None) -> None:
        """Refuse a bias on a token that does not exist."""
        beyond = [id for id in logit_bias or () if int(id) >= self.tokenizer.vocab_size]
        if beyond:
            message = f"there is no token {beyond[0]}: the vocabulary has {self.tokenizer.vocab_size}"
            raise Refusal(400, message, "invalid_value", "logit_bias")

    def too_long(self, prompt: int, wanted: int, alone: bool = False) -> Refusal:
        """``prompt`` and ``wanted`` tokens do not fit; ``alone``: no older turns are left that could be dropped."""
        mend = "say it in fewer words" if alone else "shorten the conversation or ask for a shorter answer"
        message = (
            f"this model's context is {self.context} tokens, and {prompt + wanted} were asked for ({prompt} in the "
            f"messages, {wanted} for the answer); {mend}"
        )
        return Refusal(400, message, "context_length_exceeded", "messages")

    def _prompt(self, turns: Sequence[Message], limit: int | None) -> list[int]:
        """Ids of a dialogue, with as many examples before it as leave room for an answer of ``limit`` tokens."""
        room = self.context - (limit or reserve(self.context, None))
        return chat.encode_prompt(self.tokenizer, with_shots(self.tokenizer, self.shots, turns, room, whole=True))


class Models:
    """The models by name, in the order given; the first one is the page's own choice.

    A candidate is here too while there is one, but nobody can ask for it: people meet it in comparisons, blind.
    """

    def __init__(self, served: Sequence[Served]) -> None:
        self._served = {one.name: one for one in served}
        self._candidate: Served | None = None
        self._share = 0.0

    @staticmethod
    def load(places: Mapping[str, Path], shots: Sequence[Message] = ()) -> Models:
        """Read model directories.

        Args:
            places: by name.
            shots: turns of examples for all of them.

        Raises:
            UserError: there is none, or one cannot be loaded, gives scores instead of words or cannot chat.
        """
        if not places:
            raise UserError("nothing to serve: name at least one model directory")
        return Models([read_served(name, place, tuple(shots)) for name, place in places.items()])

    def get(self, name: str) -> Served:
        """The model called ``name``.

        Raises:
            Refusal: there is none (404).
        """
        if name not in self._served:
            message = f"there is no model '{name}' here{nearest(name, self._served)}"
            raise Refusal(404, message, "model_not_found", "model")
        return self._served[name]

    def name_of(self, hash: str) -> str:
        """What a model is called; one that is no longer served is called by its hash."""
        known = [*self._served.values(), *([self._candidate] if self._candidate else [])]
        return next((served.name for served in known if served.hash == hash), hash[:12])

    def reign(self, champion: Served, candidate: Served | None, share: float) -> None:
        """From now on ``champion`` answers under its name, and ``candidate`` instead of it in ``share`` of the seats
        opposite to it."""
        self._served = {champion.name: champion} | self._served | {champion.name: champion}
        self._candidate, self._share = candidate, share

    def opposite(self, served: Served, lot: float) -> Served:
        """Who answers beside ``served`` in a comparison of one model with itself; ``lot`` is drawn from 0 to 1."""
        tried = self._candidate if served.name == CHAMPION and lot < self._share else None
        return tried or served

    def all(self) -> list[Served]:
        """Every model."""
        return list(self._served.values())


def read_served(name: str, place: Path, shots: tuple[Message, ...]) -> Served:
    """What has to be known of a model directory to serve it.

    Raises:
        UserError: it cannot be loaded, gives scores instead of words or cannot chat.
    """
    config, head = hub.read_config(place)
    if head != "lm":
        raise UserError(f"{place} is a reward model: it gives scores, not words; serve the policy it was made for")
    tokenizer = Tokenizer.load(place)
    chat.stop_ids(tokenizer)  # refuses a tokenizer without turns now, not at the first question
    return Served(
        name=name,
        hash=hub.model_hash(place),
        context=config.max_seq_len,
        parameters=parameters(config).total,
        loaded=int(time.time()),
        tokenizer=tokenizer,
        shots=shots,
    )
