"""A few examples before the dialogue, which a model takes up without any training (few-shot; Brown et al. 2020).

In:  a file of conversations; a dialogue, and how many tokens its prompt may take.
Out: the dialogue with as many examples before it as fit.
Left out: choosing examples by what is asked.

Examples are the first to go when it gets tight: they are never kept at the cost of what people said.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from danlu.errors import UserError
from danlu.infer.fitting import fit
from danlu.records import Message, read_conversations
from danlu.tokens.tokenizer import Tokenizer


def read_shots(path: Path) -> tuple[Message, ...]:
    """The turns of all conversations of a JSONL file, in order.

    A system turn may stand in the first one: it is the dialogue's unless that has its own.

    Raises:
        UserError: no such file, a line that is no conversation, or system turns that say different things.
    """
    conversations, problems = read_conversations(path)
    if problems:
        raise UserError(f"{problems[0]}; every line of a file of examples must be a conversation")
    turns = [message for one in conversations for message in one.messages]
    systems = list(dict.fromkeys(message for message in turns if message.role == "system"))
    if len(systems) > 1:
        raise UserError(f"{path} holds different system turns; one dialogue can have only one, so leave the others out")
    return (*systems, *(message for message in turns if message.role != "system"))


def with_shots(
    tokenizer: Tokenizer, shots: Sequence[Message], messages: Sequence[Message], limit: int, whole: bool
) -> list[Message]:
    """A dialogue with examples before its first user turn, the oldest left out until its prompt fits.

    Args:
        tokenizer: the model's.
        shots: turns of ``read_shots``.
        messages: an optional system turn, then user and assistant in turn, the user's last.
        limit: tokens that the prompt may take.
        whole: leave out examples only; a dialogue that is too long by itself is given back without any. If not, its
            own oldest turns go after the last example.
    """
    system, turns = _parted(messages)
    shown_system, shown = _parted(shots)
    system = system or shown_system
    if whole and not shown:
        return [*system, *turns]
    kept = fit(tokenizer, [*system, *shown, *turns], limit)
    return [*system, *turns] if whole and len(kept) < len(system) + len(turns) else kept


def left_out(messages: Sequence[Message], kept: Sequence[Message]) -> int:
    """How many turns of a dialogue ``with_shots`` did not keep."""
    return max(0, len(_parted(messages)[1]) - len(_parted(kept)[1]))


def _parted(messages: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    n_system = int(bool(messages) and messages[0].role == "system")
    return list(messages[:n_system]), list(messages[n_system:])
