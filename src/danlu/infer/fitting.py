"""Which turns of a dialogue a context holds: the newest.

In:  a dialogue, and how many tokens its prompt may take.
Out: the dialogue without its oldest turns.
Left out: saying so to whoever is concerned (``chat``, ``serve``).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from danlu.records import Message
from danlu.tokens.chat import encode_prompt
from danlu.tokens.tokenizer import Tokenizer


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
