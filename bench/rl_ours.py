"""Our side of practice beside TRL: one iteration of PPO or GRPO, with answers of a fixed length.

In:  model directories, prompts.
Out: ``Ours``, which iterates and tells where the seconds went.
Left out: what a stage does between iterations: looks from outside, checkpoints, metrics.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from danlu import hub
from danlu.align.grpo import Grouped, GRPOSettings
from danlu.align.learner import Learner
from danlu.align.ppo import ActorCritic, PPOSettings
from danlu.align.rewards import RewardScore
from danlu.align.rollout import Prompt, Rollouts, Sampled, Score
from danlu.device import Device
from danlu.infer.generate import Generator
from danlu.model import Decoder
from danlu.tokens.tokenizer import Tokenizer
from rl_setup import BETA, LR, NEW, now

FAR = 1e9  # an update never stops early: TRL's does not


class Ours:
    """A policy, what scores its answers, and its learner.

    Attributes:
        seconds: of sampling, scoring and updating, added up.
    """

    def __init__(
        self, learner: Learner, reference: Decoder, score: Score, tokenizer: Tokenizer, prompts: list[list[int]]
    ) -> None:
        self._learner, self._reference, self._score = learner, reference, score
        self._sampler = Generator(learner.policy, tokenizer, learner.policy.compute_dtype)
        self._sampler.stop_ids = ()  # every answer has all its tokens
        device = learner.policy.output_weight.device.type
        self._rollouts = Rollouts(self._sampler, self._timed_score, NEW, tokenizer.pad, device)
        self._prompts = [Prompt((), "", tuple(ids)) for ids in prompts for _ in range(learner.per_prompt)]
        self.seconds = {"sampling": 0.0, "scoring": 0.0, "update": 0.0}
        self._iteration = 0

    def run(self) -> float:
        """Sample, score, learn; returns seconds."""
        started = now()
        self._sampler.refresh()
        before = self.seconds["scoring"]
        experience = self._rollouts.collect(self._prompts, 0, "bench", self._iteration)
        assert bool(experience.sequences.mask.all()), "answers are shorter than the other side's"
        sampled = now()
        self.seconds["sampling"] += sampled - started - (self.seconds["scoring"] - before)
        scored = self._learner.score(experience, self._reference, BETA)
        ready = now()
        self._learner.update(scored, self._iteration, seed=self._iteration)
        ended = now()
        self.seconds["scoring"] += ready - sampled
        self.seconds["update"] += ended - ready
        self._iteration += 1
        return ended - started

    def _timed_score(self, sampled: Sampled) -> Tensor:
        started = now()
        scores = self._score(sampled)
        self.seconds["scoring"] += now() - started
        return scores


def ppo(policy: Path, reward: Path, tokenizer: Tokenizer, prompts: list[list[int]], epochs: int, place: Device) -> Ours:
    """PPO with a reward model and a critic of the policy's size."""
    settings = PPOSettings(
        batch_size=len(prompts), mini_batch=len(prompts), micro_batch=len(prompts), epochs=epochs,
        max_new_tokens=NEW, lr=LR, critic_lr=LR, approx_kl_limit=FAR, kl_coefficient=BETA, iterations=10**6,
    )  # fmt: skip
    learnt, frozen, critic, judge = (_load(folder, place) for folder in (policy, policy, reward, reward))
    score = RewardScore(judge, mean=0.0, std=1.0, micro_batch=settings.micro_batch)
    return Ours(ActorCritic(learnt, critic, settings), frozen, score, tokenizer, prompts)


def grpo(
    policy: Path, tokenizer: Tokenizer, prompts: list[list[int]], group: int, epochs: int, place: Device
) -> Ours:  # fmt: skip
    """GRPO with a reward that costs nothing."""
    n = group * len(prompts)
    settings = GRPOSettings(
        batch_size=n, mini_batch=n, micro_batch=n, group_size=group, epochs=epochs, max_new_tokens=NEW,
        lr=LR, approx_kl_limit=FAR, kl_coefficient=BETA, iterations=10**6,
    )  # fmt: skip
    learnt, frozen = (_load(policy, place) for _ in range(2))
    return Ours(Grouped(learnt, settings), frozen, even, tokenizer, prompts)


def even(sampled: Sampled) -> Tensor:
    """The share of an answer's ids that are even: a score that differs from answer to answer."""
    tokens, starts = sampled.sequences.tokens, sampled.sequences.prompt_lengths.tolist()
    rows = zip(tokens.tolist(), starts, strict=True)
    return torch.tensor([share_of_even(ids[start : start + NEW]) for ids, start in rows], device=tokens.device)


def share_of_even(ids: list[int]) -> float:
    """The same of one answer."""
    return sum(id % 2 == 0 for id in ids) / len(ids)


def _load(folder: Path, place: Device) -> Decoder:
    return hub.load(folder, device=place.kind).compute_in(place.compute_dtype)
