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
from danlu.errors import UserError, nearest
from danlu.infer import fit, reserve
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
    """

    name: str
    hash: str
    context: int
    parameters: int
    loaded: int
    tokenizer: Tokenizer

    def facts(self) -> dict[str, Any]:
        """What the page shows."""
        return {"id": self.name, "hash": self.hash, "parameters": self.parameters, "context": self.context}

    def listing(self) -> dict[str, Any]:
        """OpenAI's model object."""
        return {"id": self.name, "object": "model", "created": self.loaded, "owned_by": "danlu"}

    async def fit(self, asked: Asking, turns: Sequence[Message]) -> Sequence[Message]:
        """The turns to answer: all of them, or, if the client allows it, the newest that leave room for an answer."""
        if not asked.may_leave_out():
            return turns
        limit = self.context - reserve(self.context, asked.limit())
        return await run_sync(fit, self.tokenizer, turns, limit)

    async def job(self, asked: Asking, turns: Sequence[Message], seed: int) -> Job:
        """A job that answers ``turns`` in the way that ``asked`` says.

        Raises:
            Refusal: the dialogue, with the answer asked for, is longer than the model's context; or a bias is on a
                token that does not exist.
        """
        beyond = [id for id in asked.logit_bias or () if int(id) >= self.tokenizer.vocab_size]
        if beyond:
            message = f"there is no token {beyond[0]}: the vocabulary has {self.tokenizer.vocab_size}"
            raise Refusal(400, message, "invalid_value", "logit_bias")
        # Tokenising a long text takes a while: not on the event loop, where everybody else waits.
        prompt = await run_sync(chat.encode_prompt, self.tokenizer, turns)
        room = self.context - len(prompt)
        if asked.may_leave_out():  # turns were left out for the least that an answer needs; it may take all there is
            wanted, limit = reserve(self.context, asked.limit()), min(asked.limit() or room, room)
        else:
            wanted = limit = asked.limit() or max(room, 1)
        if wanted > room:
            raise _too_long(self, len(prompt), wanted, asked.may_leave_out())
        return Job(self.name, tuple(prompt), asked.sampling(limit), seed)


class Models:
    """The models by name, in the order given; the first one is the page's own choice."""

    def __init__(self, served: Sequence[Served]) -> None:
        self._served = {one.name: one for one in served}

    @staticmethod
    def load(places: Mapping[str, Path]) -> Models:
        """Read model directories.

        Raises:
            UserError: there is none, or one cannot be loaded, gives scores instead of words or cannot chat.
        """
        if not places:
            raise UserError("nothing to serve: name at least one model directory")
        return Models([_load(name, place) for name, place in places.items()])

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
        return next((served.name for served in self._served.values() if served.hash == hash), hash[:12])

    def all(self) -> list[Served]:
        """Every model."""
        return list(self._served.values())


def _load(name: str, place: Path) -> Served:
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
    )


def _too_long(served: Served, prompt: int, wanted: int, alone: bool) -> Refusal:
    """``alone``: there are no older turns left that could be dropped."""
    mend = "say it in fewer words" if alone else "shorten the conversation or ask for a shorter answer"
    message = (
        f"this model's context is {served.context} tokens, and {prompt + wanted} were asked for ({prompt} in the "
        f"messages, {wanted} for the answer); {mend}"
    )
    return Refusal(400, message, "context_length_exceeded", "messages")
