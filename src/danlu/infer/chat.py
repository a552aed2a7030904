"""A conversation with a model: the history, kept within the context.

In:  what the user says.
Out: what the model answers, whole or piece by piece; ``fit``, which turns of a dialogue a context holds.
Left out: conversations of many people at once (``serve``, which fits theirs in the same way).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from danlu import device
from danlu.console import Console
from danlu.errors import UserError
from danlu.hub import load_pretrained
from danlu.infer.answer import Request
from danlu.infer.engine import follow
from danlu.infer.generate import Generator
from danlu.infer.sampler import Sampling
from danlu.records import Message
from danlu.streams import stream_seed
from danlu.tokens.chat import encode_prompt
from danlu.tokens.tokenizer import Tokenizer

_TOP_P = 0.95
_READ_TOKENS, _POOL_BYTES = 1024, 1 << 28


def reserve(context: int, max_new_tokens: int | None) -> int:
    """Tokens to keep free for an answer: what it may take, or a quarter of the context if that is less."""
    return min(max_new_tokens or context, max(1, context // 4))


def fit(tokenizer: Tokenizer, messages: Sequence[Message], limit: int) -> list[Message]:
    """A dialogue without the oldest turns that keep its prompt from fitting into ``limit`` tokens.

    Args:
        tokenizer: the model's.
        messages: an optional system turn, then user and assistant in turn, the user's last.
        limit: tokens that the prompt may take.

    Returns:
        The system turn and the newest others, beginning with a user's and with the last message always there: if that
        is too long by itself, the caller has to say so.

    Raises:
        UserError: the tokenizer has no chat template that is known here.
    """
    n_system = int(messages[0].role == "system")
    system, turns = messages[:n_system], messages[n_system:]
    starts = range(0, len(turns), 2)

    def fits(start: int) -> bool:
        return len(encode_prompt(tokenizer, [*system, *turns[start:]])) <= limit

    # Mostly everything fits. If not, the fewer turns the shorter, so a long history need not be encoded for each.
    first = 0 if fits(0) else bisect_left(starts, True, lo=1, key=fits)
    return [*system, *turns[starts[min(first, len(starts) - 1)] :]]


class Chat:
    """A model one can talk to.

    Attributes:
        messages: everything said so far, including what no longer fits into the context.
        sampling: how answers are drawn; may be replaced between turns.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        system: str = "",
        temperature: float = 0.8,
        max_new_tokens: int = 256,
        seed: int = 0,
        notice: Callable[[str], None] | None = None,
    ) -> None:
        """Load a chat model.

        Args:
            path: its directory.
            system: what the model is told before the first turn; never dropped.
            temperature: 0 is greedy.
            max_new_tokens: how long an answer may get.
            seed: the same seed and the same words give the same conversation.
            notice: told when old turns are dropped; by default a line on standard error.

        Raises:
            UserError: no model there, or one without a chat template.
        """
        place = device.choose()
        model, tokenizer = load_pretrained(Path(path))
        self.sampling = Sampling(temperature, top_p=_TOP_P, max_new_tokens=max_new_tokens)
        self.generator = Generator(model.to(place.kind), tokenizer, place.compute_dtype)
        # Each turn begins with all that was said before: it is kept, and only the new words are read.
        self._engine = self.generator.engine(1, budget=_READ_TOKENS, pool_bytes=_POOL_BYTES)
        self.messages: list[Message] = [Message("system", system)] if system else []
        self._seed, self._notice = seed, notice or Console().say
        encode_prompt(tokenizer, [*self.messages, Message("user", "?")])  # a base model is told so now, not mid-talk

    def say(self, text: str) -> str:
        """Say something and get the whole answer."""
        return "".join(self.stream(text))

    def stream(self, text: str) -> Iterator[str]:
        """Say something and get the answer piece by piece.

        A turn that is cancelled by closing the iterator is kept as far as it got.

        Raises:
            UserError: nothing was said, or it is too long for the context by itself; nothing is remembered then.
        """
        if not text.strip():
            raise UserError("nothing was said; write something")
        asked = [*self.messages, Message("user", text)]
        prompt, room = self._fit(asked)
        sampling = replace(self.sampling, max_new_tokens=min(self.sampling.max_new_tokens, room))
        seed = stream_seed(self._seed, "chat", len(asked))
        answer = ""
        try:
            for piece, _ in follow(self._engine, Request(tuple(prompt), sampling, seed)):
                answer += piece
                if piece:
                    yield piece
        finally:
            self.messages = [*asked, Message("assistant", answer)]

    def _fit(self, messages: Sequence[Message]) -> tuple[list[int], int]:
        """The prompt that fits, oldest turns dropped if need be, and the tokens left for an answer."""
        context, tokenizer = self.generator.model.config.max_seq_len, self.generator.tokenizer
        wanted = reserve(context, self.sampling.max_new_tokens)
        kept = fit(tokenizer, messages, context - wanted)
        prompt = encode_prompt(tokenizer, kept)
        if len(prompt) + wanted > context:
            raise UserError(
                f"this message takes {len(prompt)} tokens and the answer needs {wanted}, "
                f"and the model's context is {context}; say it in fewer words"
            )
        if dropped := len(messages) - len(kept):
            self._notice(f"the context of {context} tokens is full: {dropped} old messages are left out")
        return prompt, context - len(prompt)
