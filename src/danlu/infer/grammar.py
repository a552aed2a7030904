"""Answers that keep to a JSON schema: before every draw, the tokens that cannot come next are ruled out.

In:  a schema's text; logits of the next token; the tokens that were drawn.
Out: the logits with everything else at minus infinity.
Left out: the grammar itself: the package llguidance (extra ``grammar``) compiles schemas and computes the masks.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor

from danlu.errors import UserError
from danlu.tokens.tokenizer import Tokenizer

ANY_OBJECT = '{"type": "object"}'
"""The schema of answers that are JSON of whatever kind."""
# One spelling, the common one: a small model that may write blanks where it likes writes them until it is cut off.
_SPELLING: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def available() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("llguidance") is not None


class Grammar:
    """The state of one answer that keeps to a schema.

    Args:
        schema: JSON.
        tokenizer: of the model that answers.
        stop_ids: tokens that may follow once the answer is whole.

    Raises:
        UserError: the package is missing, or the schema says something that cannot be kept to.
    """

    def __init__(self, schema: str, tokenizer: Tokenizer, stop_ids: tuple[int, ...]) -> None:
        if not available():
            raise UserError("answers by a JSON schema need llguidance; pip install 'danlu[grammar]'")
        from llguidance import LLMatcher

        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, defaults=_SPELLING)
        except ValueError as error:
            raise UserError(f"the JSON schema cannot be read: {error}") from None
        self._matcher = LLMatcher(_tokenizer(tokenizer, stop_ids), grammar, log_level=0)
        self._stop_ids = stop_ids
        if self._matcher.is_error():
            reason = " ".join(self._matcher.get_error().split())[:300]
            raise UserError(f"the JSON schema cannot be kept to: {reason}")

    def apply(self, logits: Tensor) -> Tensor:
        """Logits (V,) of which only those stay that may come next."""
        allowed = torch.zeros(len(logits), dtype=torch.bool)
        broken = self._matcher.is_error()  # a schema too intricate to follow any further: the answer ends here
        if not broken:
            bias = bytearray(self._matcher.compute_logit_bias())
            allowed = torch.frombuffer(bias, dtype=torch.uint8)[: len(logits)] > 0
        allowed[list(self._stop_ids)] = broken or self._matcher.is_accepting()
        return logits.masked_fill(~allowed.to(logits.device), -torch.inf)

    def take(self, token: int) -> None:
        """The answer goes on with ``token``."""
        if token not in self._stop_ids:
            self._matcher.consume_token(token)


@functools.lru_cache(maxsize=8)
def _tokenizer(tokenizer: Tokenizer, stop_ids: tuple[int, ...]) -> Any:
    """The vocabulary as llguidance wants it: made once, it takes a second for 100,000 tokens."""
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer, stop_ids)))


class _Vocabulary:
    """A tokenizer by its bytes; special tokens are none of the text's."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: tuple[int, ...]) -> None:
        self.eos_token_id, self.bos_token_id = stop_ids[0], None
        raw = [tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)]
        self.special_token_ids = [id for id, spelling in enumerate(raw) if not spelling]
        self.tokens = [spelling or f"<special {id}>".encode() for id, spelling in enumerate(raw)]
        self._encode = tokenizer.encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)
