"""One request and the answer that grows from it, token by token.

In:  token ids of a prompt, options and a seed; then the tokens that are drawn for it.
Out: pieces of text, the reason for the end, a ``Completion``.
Left out: where tokens come from (``engine``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from danlu.infer.detokenize import Detokenizer
from danlu.infer.grammar import Grammar
from danlu.infer.penalties import Penalties
from danlu.infer.sampler import Sampling, uniforms
from danlu.tokens.tokenizer import Tokenizer

Likely = tuple[tuple[int, float], ...]
"""The likeliest tokens in a place and their log-probabilities."""


class Token(NamedTuple):
    """A token that was drawn.

    Attributes:
        id: which.
        logprob: its log-probability under the model at the sampling temperature, before truncation (see ``sampler``).
        top: the likeliest tokens in its place and their log-probabilities, if the sampling asks for some.
    """

    id: int
    logprob: float
    top: Likely = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer.

    Attributes:
        tokens: the ids, with the stop token if one came.
        text: what they say, without stop token and stop string.
        logprobs: of each token under the model at the sampling temperature, before truncation (see ``sampler``).
        finish_reason: ``"stop"`` (a stop token or stop string) or ``"length"`` (``max_new_tokens``).
        top: for each token the likeliest in its place, if the sampling asks for some.
        cached: tokens of the prompt that were not read because an earlier answer had left them behind.
    """

    tokens: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...]
    finish_reason: str
    top: tuple[Likely, ...] = ()
    cached: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """What an answer is wanted to.

    Attributes:
        prompt: token ids, at least one.
        sampling: how to draw.
        seed: the same seed gives the same answer, whatever else is under way.
        salt: prompts share what is cached of them only within one salt, so that nobody can tell by the time that an
            answer takes what somebody else has asked.
        streamed: whether text is wanted with every token, or only at the end.
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    seed: int
    salt: str = ""
    streamed: bool = True


class Answer:
    """An answer under way.

    Attributes:
        request: what it answers.
        tokens: drawn so far.
        finish_reason: empty until it has ended.
        read: how many tokens of prompt and answer have left their keys and values in the cache.
        cached: how many of them were there before.
        drafts: guesses at the next tokens, to be confirmed by the next draw.
        penalties: of this answer, if it asks for any and ``steer`` was called.
        grammar: what it has to keep to, likewise.
        cancelled: nobody waits for it any more.
        opening: logits (1, V) of the first token, for others who ask the same.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer, stop_ids: Sequence[int]) -> None:
        sampling = request.sampling
        self.request, self.tokens, self.finish_reason, self.cancelled = request, list[int](), "", False
        self.read = self.cached = 0
        self.drafts: list[int] = []
        self.opening: Tensor | None = None
        self.penalties: Penalties | None = None
        self.grammar: Grammar | None = None
        self._tokenizer, self._stop_ids = tokenizer, stop_ids
        self._logprobs: list[float] = []
        self._top: list[Likely] = []
        self._pieces: list[str] = []
        self._detokenizer = Detokenizer(tokenizer, sampling.stop) if request.streamed or sampling.stop else None
        self._uniforms: list[float] = uniforms([request.seed], sampling.max_new_tokens)[0].tolist()

    def steer(self, device: torch.device) -> None:
        """Set up what the request asks for beyond the draw itself; for engines that draw here, on ``device``.

        Raises:
            UserError: the JSON schema cannot be kept to.
        """
        sampling, tokenizer = self.request.sampling, self._tokenizer
        if Penalties.wanted([sampling]):
            self.penalties = Penalties([sampling], [self.request.prompt], tokenizer, tokenizer.vocab_size, device)
        if sampling.grammar:
            self.grammar = Grammar(sampling.grammar, tokenizer, tuple(self._stop_ids))

    @property
    def need(self) -> int:
        """Positions that prompt and answer take at most."""
        return len(self.request.prompt) + self.request.sampling.max_new_tokens

    @property
    def left(self) -> int:
        """Tokens that may still be drawn."""
        return self.request.sampling.max_new_tokens - len(self.tokens)

    @property
    def steered(self) -> bool:
        """Whether what may be drawn depends on what was drawn before, so that guesses cannot be judged at once."""
        return self.penalties is not None or self.grammar is not None

    def sequence(self) -> list[int]:
        """Prompt and answer."""
        return [*self.request.prompt, *self.tokens]

    def uniform(self, ahead: int) -> float:
        """The number that decides the token ``ahead`` places after the next."""
        return self._uniforms[min(len(self.tokens) + ahead, len(self._uniforms) - 1)]

    def take(self, token: Token) -> str:
        """Add a token; returns the text that it makes safe to show."""
        self.tokens.append(token.id)
        self._logprobs.append(token.logprob)
        self._top.append(token.top)
        stopped = token.id in self._stop_ids
        piece = self._say(token.id, stopped)
        if stopped or (self._detokenizer is not None and self._detokenizer.stopped):
            self.finish_reason = "stop"
        elif not self.left:
            self.finish_reason = "length"
        return piece

    def completion(self) -> Completion:
        """The answer as far as it has come."""
        said = self.tokens[:-1] if self.tokens and self.tokens[-1] in self._stop_ids else self.tokens
        text = self._tokenizer.decode(said) if self._detokenizer is None else "".join(self._pieces)
        top = tuple(self._top) if self.request.sampling.top_logprobs else ()
        return Completion(tuple(self.tokens), text, tuple(self._logprobs), self.finish_reason, top, self.cached)

    def _say(self, token: int, stopped: bool) -> str:
        if self._detokenizer is None:
            return ""
        piece = "" if stopped else self._detokenizer.feed(token)
        if stopped or not self.left:
            piece += self._detokenizer.finish()
        self._pieces.append(piece)
        return piece
