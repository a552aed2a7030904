"""What models say about finished answers: log-probabilities, values, rewards. One numeric path for all of alignment.

In:  prompts and responses as token ids, right-padded into ``Sequences``; any ``Decoder``.
Out: (B, R) tensors aligned with the response tokens, or (B,) rewards; differentiable where the caller wants it.
Left out: sampling (``rollout``) and losses.

Old, new and reference log-probabilities all come from ``response_logprobs``: same forward, same dtype, temperature 1.
Only response positions meet the vocabulary, so the full logits never exist.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from danlu.model.decoder import Decoder
from danlu.model.losses import linear_logprobs, linear_logprobs_entropy
from danlu.records import Answer, Conversation, Message
from danlu.tokens import chat
from danlu.tokens.tokenizer import Tokenizer
from danlu.train.parallel import ALONE, World

Scoring = Callable[[Decoder, "Sequences"], Tensor]


@dataclass(frozen=True)
class Sequences:
    """Prompts with their responses.

    Attributes:
        tokens: (B, T) int64, each row a prompt, its response, then padding.
        prompt_lengths: (B,) int64.
        mask: (B, R) bool, True where row b has an r-th response token; a prefix of each row, never empty.
    """

    tokens: Tensor
    prompt_lengths: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> Tensor:
        """(B,) tokens of prompt and response together."""
        return self.prompt_lengths + self.mask.sum(1)

    def rows(self, index: Tensor) -> Sequences:
        """Some of the rows, without padding that none of them needs (R stays)."""
        longest = int(self.lengths[index].max())
        return Sequences(self.tokens[index, :longest], self.prompt_lengths[index], self.mask[index])

    def to(self, device: str) -> Sequences:
        """The same rows elsewhere."""
        return Sequences(self.tokens.to(device), self.prompt_lengths.to(device), self.mask.to(device))

    def predicting(self) -> Tensor:
        """(N,) positions in the flattened (B * T) whose *next* token is a response token, row by row."""
        offsets = torch.arange(self.mask.shape[1], device=self.mask.device)
        starts = torch.arange(len(self), device=self.mask.device) * self.tokens.shape[1] + self.prompt_lengths - 1
        return (starts[:, None] + offsets)[self.mask]


class Reading(Protocol):
    """How answers are read: one by one (this module), or beside those to the same prompt (``siblings``)."""

    def response_logprobs(self, model: Decoder, sequences: Sequences) -> Tensor:
        """(B, R) log-probabilities."""

    def response_logprobs_entropy(self, model: Decoder, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """The same with entropies."""

    def parts_by_length(self, sequences: Sequences, size: int, rows: Tensor | None = None) -> list[Tensor]:
        """Rows of each forward."""


class Opening:
    """What one forward said before the update, differentiable still: the first step need not make it again.

    The first step starts from the very weights that scored, so this saves a forward and moves no bit. Kept only where a
    step is one micro-batch of this process, whose activations training has room for anyway.

    Args:
        found: a row for each of ``rows``.
        rows: of the experience.
    """

    def __init__(self, found: Tensor | None = None, rows: Tensor | None = None) -> None:
        self._found, self._rows = found, rows

    def take(self, rows: Tensor) -> Tensor | None:
        """It, once, if it is of these rows; afterwards, when weights have moved, None."""
        found, known, self._found, self._rows = self._found, self._rows, None, None
        return found if known is not None and torch.equal(known, rows) else None


def pad(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], padding: int, device: str = "cpu"
) -> Sequences:
    """Put prompts and responses side by side, right-padded with the token ``padding``.

    Raises:
        ValueError: an empty prompt or response.
    """
    if not all(prompts) or not all(responses):
        raise ValueError("every prompt and every response needs at least one token")
    rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    width = max(map(len, rows))
    sizes = torch.tensor([len(response) for response in responses], device=device)
    return Sequences(
        tokens=torch.tensor([row + [padding] * (width - len(row)) for row in rows], device=device),
        prompt_lengths=torch.tensor([len(prompt) for prompt in prompts], device=device),
        mask=torch.arange(int(sizes.max()), device=device) < sizes[:, None],
    )


def join(parts: Sequence[Sequences], padding: int) -> Sequences:
    """Several batches as one, in order, right-padded with the token ``padding``."""
    width, longest = max(p.tokens.shape[1] for p in parts), max(p.mask.shape[1] for p in parts)
    return Sequences(
        tokens=torch.cat([F.pad(p.tokens, (0, width - p.tokens.shape[1]), value=padding) for p in parts]),
        prompt_lengths=torch.cat([p.prompt_lengths for p in parts]),
        mask=torch.cat([F.pad(p.mask, (0, longest - p.mask.shape[1]), value=False) for p in parts]),
    )


def answer_ids(
    tokenizer: Tokenizer, prompt: Sequence[Message], answer: Answer, room: int
) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of an answer to it, at most ``room`` together.

    An answer sampled with this tokenizer keeps its very tokens (a cut-off one stays cut off); any other text is encoded
    as a finished turn. What does not fit is dropped from the prompt's left; the answer is what is being judged.
    """
    prompt_ids = chat.encode_prompt(tokenizer, prompt)
    if answer.token_ids and not _is_anothers(answer, tokenizer):
        response = list(answer.token_ids)
    else:
        turns = (*prompt, Message("assistant", answer.text))
        ids, trained = chat.encode_conversation(tokenizer, Conversation(turns))
        end = max(place for place, train in enumerate(trained) if train) + 1
        response = ids[len(prompt_ids) : end]
    response = response[: room - 1]
    return prompt_ids[-(room - len(response)) :], response


def altered(
    tokenizer: Tokenizer, prompt: Sequence[Message], answers: Sequence[Answer],
    ids: Sequence[tuple[list[int], list[int]]], room: int,
) -> tuple[bool, int]:  # fmt: skip
    """What ``answer_ids`` did not take as it was: whether the prompt was cut, and how many answers have tokens of
    another tokenizer, so that their words were read anew.
    """
    full = any(len(asked) + len(answered) >= room for asked, answered in ids)
    cut = full and min(len(asked) for asked, _ in ids) < len(chat.encode_prompt(tokenizer, prompt))
    return cut, sum(bool(answer.token_ids) and _is_anothers(answer, tokenizer) for answer in answers)


def _is_anothers(answer: Answer, tokenizer: Tokenizer) -> bool:
    return answer.sampling.get("tokenizer") != tokenizer.hash


def response_logprobs(model: Decoder, sequences: Sequences) -> Tensor:
    """(B, R) fp32 log-probability of every response token at temperature 1; 0 on padding."""
    logprobs = linear_logprobs(*_states_and_targets(model, sequences))
    return _spread(logprobs, sequences.mask)


def response_logprobs_entropy(model: Decoder, sequences: Sequences) -> tuple[Tensor, Tensor]:
    """``response_logprobs``, and the entropy in nats of the distribution behind each token; both (B, R)."""
    logprobs, entropy = linear_logprobs_entropy(*_states_and_targets(model, sequences))
    return _spread(logprobs, sequences.mask), _spread(entropy, sequences.mask)


def response_values(critic: Decoder, sequences: Sequences) -> Tensor:
    """(B, R) fp32 value of the state in which each response token is chosen; 0 on padding."""
    states = critic.hidden(sequences.tokens).states
    return _spread(critic.values(states).flatten()[sequences.predicting()], sequences.mask)


def rewards(model: Decoder, sequences: Sequences) -> Tensor:
    """(B,) fp32 reward of whole answers, read at the last real token."""
    found: Tensor = model(sequences.tokens, sequences.lengths)
    return found


def last_states(model: Decoder, sequences: Sequences) -> Tensor:
    """(B, D) hidden states of the last real tokens, from which a head reads its reward."""
    states = model.hidden(sequences.tokens).states
    return states[torch.arange(len(sequences), device=states.device), sequences.lengths - 1]


def without_gradient(
    score: Scoring,
    model: Decoder,
    sequences: Sequences,
    parts: Sequence[Tensor],
    training_forward: bool = False,
    world: World = ALONE,
) -> Tensor:
    """Score part by part; the result is detached and in the order of the rows.

    Args:
        score: one of the functions above.
        model: for it.
        sequences: all rows.
        parts: row indices of each forward, from ``parts_by_length``.
        training_forward: take the very route of training, which some kernels leave under inference mode. It matters
            where a difference in the last bit would: between old and new log-probabilities.
        world: processes among which the parts are dealt out; all get the whole.
    """
    found = [_detached(score, model, sequences, rows, training_forward) for rows in world.deal(parts)]
    return _in_order(found, parts, world).to(sequences.tokens.device)


def opened(
    score: Scoring, model: Decoder, sequences: Sequences, steps: Sequence[Sequence[Tensor]], world: World = ALONE
) -> tuple[Tensor, Opening]:
    """Score, by the forward of training, a model that is about to be trained.

    Args:
        score: one of the functions above, of (B, R).
        model: for it.
        sequences: all rows.
        steps: of every optimizer step, row indices of each forward.
        world: processes among which the forwards are dealt out, those of a step as all.

    Returns:
        As ``without_gradient``; and the scores of the first step, if that is one forward of this process.
    """
    parts = [rows for step in steps for rows in step]
    if len(world.deal(steps[0])) != 1:
        return without_gradient(score, model, sequences, parts, training_forward=True, world=world), Opening()
    first, *rest = world.deal(parts)
    opening = score(model, sequences.rows(first))
    found = [opening.detach(), *(_detached(score, model, sequences, rows, training_forward=True) for rows in rest)]
    return _in_order(found, parts, world).to(opening.device), Opening(opening, first)


def parts_by_length(sequences: Sequences, size: int, rows: Tensor | None = None) -> list[Tensor]:
    """Cut rows (all by default) into parts of ``size`` with similar lengths, so that little padding is computed.

    Args:
        sequences: all rows.
        size: rows of a part.
        rows: (N,), or (N, k) where k rows each are to stay together, in their order; the longest counts.
    """
    index = torch.arange(len(sequences)) if rows is None else rows
    units = index.reshape(len(index), -1)
    order = sequences.lengths[units].amax(1).cpu().argsort(stable=True)
    return [part.flatten() for part in split(units[order], max(1, size // units.shape[1]))]


def split(index: Tensor, size: int) -> list[Tensor]:
    """Consecutive parts of ``index``, ``size`` entries each; the last may be shorter."""
    return [index[start : start + size] for start in range(0, len(index), size)]


def _detached(score: Scoring, model: Decoder, sequences: Sequences, rows: Tensor, training_forward: bool) -> Tensor:
    """Some rows scored."""
    with torch.inference_mode(not training_forward):
        return score(model, sequences.rows(rows)).detach()


def _in_order(found: Sequence[Tensor], parts: Sequence[Tensor], world: World) -> Tensor:
    """What all processes found for their shares of the parts, in the order of the rows.

    Put together outside inference mode, so that what is made from it can meet autograd.
    """
    every = found if world.size == 1 else world.gather([one.cpu() for one in found])
    return torch.cat(list(every))[torch.cat(list(parts)).argsort()]


def _states_and_targets(model: Decoder, sequences: Sequences) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states (N, D) that predict response tokens, the output weight (V, D), those tokens (N,)."""
    index = sequences.predicting()
    states = model.hidden(sequences.tokens).states.flatten(0, 1)[index]
    return states, model.output_weight, sequences.tokens.flatten()[index + 1]


def _spread(flat: Tensor, mask: Tensor) -> Tensor:
    """Put (N,) numbers back in their places of a (B, R) tensor of zeros."""
    return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)
