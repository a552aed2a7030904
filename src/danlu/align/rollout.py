"""The one rollout: draw prompts, sample answers, score them. Every stage of practice uses it.

In:  prompts, a ``Sampler``, a function that scores finished answers, and an iteration number.
Out: ``Experience``: right-padded sequences, whether each was finished, its score.
Left out: where scores come from (``rewards``); log-probabilities, advantages and updates (``learner``).

Everything is addressed by (seed, iteration, row): a sample depends neither on its neighbours nor on what was sampled
before, so a resumed run makes the same experience, and so do several processes that share the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from danlu.align import scoring
from danlu.align.scoring import Sequences
from danlu.infer.generate import Sampler
from danlu.infer.sampler import Sampling
from danlu.records import Conversation, Message
from danlu.streams import stream_seed
from danlu.tokens import chat
from danlu.tokens.tokenizer import Tokenizer
from danlu.train.parallel import ALONE, World


@dataclass(frozen=True)
class Prompt:
    """A prompt to practise on: its turns, the user's last words, its token ids."""

    messages: tuple[Message, ...]
    text: str
    ids: tuple[int, ...]


def gather_prompts(
    conversations: Iterable[Conversation], tokenizer: Tokenizer, accepts: Callable[[str], bool], longest: int
) -> list[Prompt]:
    """The different prompts of some conversations that a judge accepts and that fit ``longest`` tokens, in order."""
    turns = dict.fromkeys(c.messages[:-1] for c in conversations if accepts(c.messages[-2].content))
    return list(fitting_prompts(turns, tokenizer, longest))


def fitting_prompts(turns: Iterable[tuple[Message, ...]], tokenizer: Tokenizer, longest: int) -> Iterator[Prompt]:
    """Those of some prompts that fit ``longest`` tokens, in order."""
    for messages, ids in chat.encode_fitting(tokenizer, turns, longest):
        yield Prompt(messages, messages[-1].content, tuple(ids))


class Cursor:
    """Goes through ``n`` things in epochs, each in its own seeded order; a pure function of where it is.

    Args:
        n: how many things there are.
        address: of the random stream, such as (seed, "ppo").
        first: things that come before all others in the first epoch.
    """

    def __init__(self, n: int, *address: object, first: Collection[int] = ()) -> None:
        self.n, self.address, self.first = n, address, frozenset(first)

    def batch(self, step: int, size: int) -> list[int]:
        """Indices of the ``size`` things of one step."""
        places = range(step * size, (step + 1) * size)
        orders = {epoch: self._order(epoch) for epoch in {place // self.n for place in places}}
        return [orders[place // self.n][place % self.n] for place in places]

    def _order(self, epoch: int) -> list[int]:
        order = np.random.default_rng(stream_seed(*self.address, "order", epoch)).permutation(self.n)
        indices = [int(index) for index in order]
        return indices if epoch else sorted(indices, key=lambda index: index not in self.first)  # a stable sort


@dataclass(frozen=True)
class Sampled:
    """Answers of a model, as somebody who scores them gets them.

    Attributes:
        sequences: prompts and sampled responses, stop token included.
        finished: (B,) bool, whether the model stopped by itself.
        prompts: the prompts, row by row.
        texts: the answers in words.
        drawn: (B, R) log-probabilities of the responses' tokens as the sampler tells them, 0 on padding.
    """

    sequences: Sequences
    finished: Tensor
    prompts: tuple[Prompt, ...]
    texts: tuple[str, ...]
    drawn: Tensor


Score = Callable[[Sampled], Tensor]  # (B,) fp32; not a number for an answer that could not be scored


@dataclass(frozen=True)
class Experience(Sampled):
    """What an iteration learns from.

    Attributes:
        scores: (B,) fp32.
    """

    scores: Tensor

    def rows(self, keep: Tensor) -> Experience:
        """Those of its answers where ``keep`` (B,) is True; at least one is."""
        index = keep.nonzero().squeeze(1)
        return Experience(
            sequences=self.sequences.rows(index),
            finished=self.finished[index],
            prompts=tuple(self.prompts[i] for i in index.tolist()),
            texts=tuple(self.texts[i] for i in index.tolist()),
            drawn=self.drawn[index],
            scores=self.scores[index],
        )

    def to(self, device: str) -> Experience:
        """The same experience elsewhere."""
        tensors = {name: getattr(self, name).to(device) for name in ("sequences", "finished", "drawn", "scores")}
        return replace(self, **tensors)


def join(parts: Sequence[Experience], padding: int) -> Experience:
    """Several experiences as one, in order."""
    if len(parts) == 1:
        return parts[0]
    sequences = scoring.join([part.sequences for part in parts], padding)
    longest = sequences.mask.shape[1]
    return Experience(
        sequences=sequences,
        finished=torch.cat([part.finished for part in parts]),
        prompts=tuple(prompt for part in parts for prompt in part.prompts),
        texts=tuple(text for part in parts for text in part.texts),
        drawn=torch.cat([F.pad(part.drawn, (0, longest - part.drawn.shape[1])) for part in parts]),
        scores=torch.cat([part.scores for part in parts]),
    )


@dataclass(frozen=True)
class Rollouts:
    """Samples one answer per prompt from the model's own distribution and scores it.

    Temperature 1 and nothing truncated: any other choice would make the importance ratio of the update wrong.

    Attributes:
        sampler: samples from the current policy.
        score: scores the answers, cut-off ones too.
        max_new_tokens: where an answer is cut off.
        padding: token that fills rows up.
        device: where the experience goes.
        world: the processes that share the rows, all of which have to collect.
    """

    sampler: Sampler
    score: Score
    max_new_tokens: int
    padding: int
    device: str = "cpu"
    world: World = ALONE

    def collect(self, prompts: Sequence[Prompt], *address: object) -> Experience:
        """Practise once on each prompt; repeat a prompt to sample it more than once.

        Several processes practise on consecutive rows each, so that most answers to one prompt, which is read once, are
        one process's. All get the whole experience.

        Args:
            prompts: one per row.
            address: of the random stream, such as (seed, "ppo", iteration).
        """
        seeds = [stream_seed(*address, row) for row in range(len(prompts))]
        if self.world.size == 1:
            return self._practise(prompts, seeds)
        start, end = (len(prompts) * place // self.world.size for place in (self.world.rank, self.world.rank + 1))
        mine = [self._practise(prompts[start:end], seeds[start:end]).to("cpu")] if start < end else []
        return join([part.to(self.device) for part in self.world.gather(mine, patiently=True)], self.padding)

    def _practise(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Experience:
        """Answer every prompt with the seed of its row, and score the answers."""
        ids = [prompt.ids for prompt in prompts]
        done = self.sampler.generate(ids, Sampling(max_new_tokens=self.max_new_tokens), seeds)
        sequences = scoring.pad(ids, [completion.tokens for completion in done], self.padding, self.device)
        finished = torch.tensor([completion.finish_reason == "stop" for completion in done], device=self.device)
        texts = tuple(completion.text for completion in done)
        told = torch.tensor([logprob for completion in done for logprob in completion.logprobs], device=self.device)
        drawn = torch.zeros(sequences.mask.shape, device=self.device).masked_scatter(sequences.mask, told)
        sampled = Sampled(sequences, finished, tuple(prompts), texts, drawn)
        return Experience(**vars(sampled), scores=self.score(sampled))
