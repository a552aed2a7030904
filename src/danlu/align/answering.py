"""What stages can be told that learn from the model's own answers.

In:  a section of a recipe.
Out: ``AnsweringSettings``, which prompts are answered and what an answer earns; ``PracticeSettings``, how a policy
practises on them.
Left out: what only one optimiser knows (``ppo``, ``grpo``, ``online``, ``best_of``); the learning (``learner``).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from danlu.align import prompts
from danlu.align.rewards import RewardTerm, files_of
from danlu.device import ComputeSettings
from danlu.errors import UserError
from danlu.infer.vllm import require_vllm
from danlu.recipe import Settings
from danlu.train import adapters
from danlu.train.checkpoint import KEEP
from danlu.train.parallel import ALONE, World


class AnsweringSettings(Settings):
    """What every stage can be told that learns from the model's own answers: to which prompts, and what they earn."""

    judge: str = "prose"
    """Judge that chooses which prompts to practise on, and that watches from outside; it never moves a weight."""
    prompts: str = "sft"
    """sft, the conversations of the SFT model; votes, what people asked who voted; self, what the SFT model asks by
    itself; or a file of yours, .jsonl or one prompt a line."""
    self_prompts: int = Field(1000, ge=1)
    """How often the SFT model asks, for prompts self."""
    missing_end_penalty: float = Field(1.0, ge=0)
    """Taken from the score of an answer that did not end by itself."""
    rewards: tuple[RewardTerm, ...] = (RewardTerm(),)
    """What answers earn: the reward model's score, functions of yours, or a weighted sum."""
    probe_prompts: int = Field(96, ge=1)
    """Held-out prompts per look."""

    @field_validator("prompts")
    @classmethod
    def _is_known(cls, value: str) -> str:
        return prompts.check_source(value)

    def reads(self) -> dict[str, Path]:
        """The user's prompts and the files with the user's functions."""
        return prompts.file_of(self.prompts) | files_of(self.rewards)


class PracticeSettings(AnsweringSettings, ComputeSettings, adapters.Adaptable):
    """What every stage of practice can be told; defaults suit a few million parameters, a tenth of the learning rates
    suits 100M and up.
    """

    iterations: int = Field(60, ge=1)
    """How often to sample, score and learn."""
    batch_size: int = Field(192, ge=2)
    """Answers sampled per iteration."""
    mini_batch: int = Field(64, ge=1)
    """Answers per optimizer step."""
    micro_batch: int = Field(32, ge=1)
    """Answers per forward and backward; smaller needs less memory. As many as ``mini_batch`` spare an update a forward,
    and nothing else changes."""
    epochs: int = Field(1, ge=1)
    """Passes over an experience."""
    max_new_tokens: int = Field(48, ge=1)
    """Where an answer is cut off."""
    lr: float = Field(5e-5, gt=0)
    """The policy's learning rate, falling linearly to 0."""
    grad_clip: float = Field(1.0, gt=0)
    """Largest gradient norm, of each model that is trained."""
    max_skips: int = Field(5, ge=1)
    """Steps in a row with a gradient that is not finite, or iterations in a row without one score that is a number,
    after which practice stops."""
    approx_kl_limit: float = Field(0.05, gt=0)
    """Nats per token between old and new policy at which an update stops before its step."""
    kl_coefficient: float = Field(0.05, ge=0)
    """Price of a nat of distance from the SFT model, at the start; 0 is no leash."""
    kl_target: float = Field(6.0, gt=0)
    """Nats per answer that the coefficient steers towards."""
    kl_horizon: int = Field(2000, ge=0)
    """Answers over which the coefficient may change by its own size; 0 keeps it fixed."""
    kl_budget: float = Field(12.0, gt=0)
    """A policy further than this from the SFT model, in nats per answer, is never chosen."""
    entropy: float = Field(0.0, ge=0)
    """Reward per nat of entropy of the policy's next token; 0 is off."""
    mix: float = Field(0.0, ge=0)
    """Weight of the likelihood of people's own answers, mixed into the update (InstructGPT's ptx); 0 is off."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Share of its past that a mean of the policy's weights keeps at every iteration that learns something; it begins
    at the weights that practice sets out from. The mean is what looks measure and what is kept; the policy itself
    samples and learns. InstructGPT's is 0.992; 0 is off."""
    sampler: Literal["danlu", "vllm"] = "danlu"
    """What draws the answers: danlu's own engine on the policy's very tensors, or vLLM (extra ``vllm``) on a copy."""
    probe_every: int = Field(10, ge=1)
    """Iterations between looks from outside, and between checkpoints."""
    checkpoints: int = Field(KEEP, ge=1)
    """Newest checkpoints that are kept; more of them let the path be looked at afterwards."""
    probe_tokens: int = Field(4096, ge=0)
    """Tokens of held-out conversations, and as many of documents, whose bits per byte a look measures; 0: none."""
    stop_on_alarm: bool = False
    """Whether an alarm of over-optimisation ends practice; what was kept before it stays."""

    def in_groups_of(self, size: int) -> None:
        """Refuse a batch that answers some prompt less often than the others.

        Raises:
            ValueError: naming both settings.
        """
        if self.batch_size % size:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of group_size {size}")

    @field_validator("adapter")
    @classmethod
    def _drops_nothing(cls, value: adapters.AdapterSettings) -> adapters.AdapterSettings:
        if value.dropout:
            raise ValueError("a policy learns by ratios to what it said itself, without dropout; set dropout to 0")
        return value

    def rows(self, world: World = ALONE) -> int:
        """Answers of a forward: ``micro_batch``, and with several processes no more than gives each as many forwards.

        Sums over rows do not depend on how these are cut.
        """
        if world.size == 1:
            return self.micro_batch
        step = min(self.mini_batch, self.batch_size)
        rounds = math.ceil(step / (self.micro_batch * world.size))
        return math.ceil(step / (rounds * world.size))

    def check_processes(self, world: World, stage: str) -> None:
        """Refuse, before anything is made, what several processes cannot share.

        Args:
            world: the processes.
            stage: the section's name, for errors.

        Raises:
            UserError: another engine draws the answers, or there are fewer GPUs than processes.
        """
        world.check_device(self.machine().kind)
        if self.sampler == "vllm":
            raise UserError(
                f"{stage}.sampler is vllm, which has processes of its own and takes no part in {world.size} of ours; "
                "set it to danlu, or start one process, without torchrun"
            )

    def check_packages(self) -> None:
        """The sampler is installed, and what adapters need."""
        super().check_packages()
        if self.sampler == "vllm":
            require_vllm()
