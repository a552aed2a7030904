"""A conversation with a model: the history, kept within the context.

In:  what the user says.
Out: what the model answers, whole or piece by piece.
Left out: conversations of many people at once (``serve``), which turns of a dialogue a context holds (``fitting``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from danlu import device
from danlu.console import Console
from danlu.errors import UserError
from danlu.hub import load_pretrained
from danlu.infer.answer import Request
from danlu.infer.engine import follow
from danlu.infer.fitting import reserve
from danlu.infer.generate import Generator
from danlu.infer.sampler import Sampling
from danlu.infer.shots import left_out, with_shots
from danlu.records import Message
from danlu.streams import stream_seed
from danlu.tokens.chat import encode_prompt

_TOP_P = 0.95
_READ_TOKENS, _POOL_BYTES = 1024, 1 << 28


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
        shots: Sequence[Message] = (),
        notice: Callable[[str], None] | None = None,
    ) -> None:
        """Load a chat model.

        Args:
            path: its directory.
            system: what the model is told before the first turn; never dropped.
            temperature: 0 is greedy.
            max_new_tokens: how long an answer may get.
            seed: the same seed and the same words give the same conversation.
            shots: turns of examples that stand before the first one (see ``shots``).
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
        self._shots, self._seed, self._notice = tuple(shots), seed, notice or Console().say
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
        kept = with_shots(tokenizer, self._shots, messages, context - wanted, whole=False)
        prompt = encode_prompt(tokenizer, kept)
        if len(prompt) + wanted > context:
            raise UserError(
                f"this message takes {len(prompt)} tokens and the answer needs {wanted}, "
                f"and the model's context is {context}; say it in fewer words"
            )
        if dropped := left_out(messages, kept):
            self._notice(f"the context of {context} tokens is full: {dropped} old messages are left out")
        return prompt, context - len(prompt)
