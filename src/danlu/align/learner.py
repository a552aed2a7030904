"""A policy that learns from its own samples: its settings, and the update that every optimiser of practice shares.

In:  an ``Experience``, the frozen reference model, the KL coefficient.
Out: moved weights, and the numbers that tell whether the update was sound.
Left out: what an answer was worth and the loss (``ppo``, ``grpo``, ``online``); sampling (``rollout``); the order of
iterations and checkpoints on disk (``practice``).

The first epoch walks the rows in the very micro-batches in which the old log-probabilities were computed: the first
ratio is 1 to the last bit.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from danlu.align import losses, prompts, scoring
from danlu.align.averaging import WeightMean
from danlu.align.losses import PolicyLoss
from danlu.align.rewards import RewardTerm, files_of
from danlu.align.rollout import Experience
from danlu.align.scoring import Opening, Reading, Sequences
from danlu.device import ComputeSettings
from danlu.errors import UserError
from danlu.infer.vllm import require_vllm
from danlu.model.decoder import Decoder
from danlu.recipe import Settings
from danlu.streams import stream_seed
from danlu.train import adapters
from danlu.train.checkpoint import KEEP
from danlu.train.optim import Optimizer


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

    def check_packages(self) -> None:
        """The sampler is installed, and what adapters need."""
        super().check_packages()
        if self.sampler == "vllm":
            require_vllm()


@dataclass(frozen=True)
class Scored:
    """An experience with everything that was computed before the update.

    Attributes:
        logprobs: (B, R) of the policy that sampled, by the training forward.
        reference: (B, R) of the SFT model.
        advantages: (B, R), how much better than expected.
        opening: ``logprobs`` of the first step.
    """

    experience: Experience
    logprobs: Tensor
    reference: Tensor
    advantages: Tensor
    opening: Opening = field(default_factory=Opening, kw_only=True)

    @property
    def mask(self) -> Tensor:
        """(B, R) True on response tokens."""
        return self.experience.sequences.mask


class Learner(ABC):
    """A policy with its optimizer; what is learnt from an experience is decided by who fills in the blanks.

    Args:
        stage: its name, for errors.
        policy: a copy of the SFT model, trained in place.
        settings: of the stage.
        others: models that are trained beside the policy, by role.
    """

    per_prompt = 1
    """Answers sampled per prompt."""
    rounds = 1
    """How often an iteration may sample until its batch holds only answers that say something."""
    reading: Reading = scoring
    """How: one by one, by default."""

    def __init__(self, stage: str, policy: Decoder, settings: PracticeSettings, **others: Decoder) -> None:
        self._stage, self.policy, self.settings = stage, policy, settings
        self._roles = {"policy": policy, **others}
        self._optimizers = {role: _adam(model) for role, model in self._roles.items()}
        self._skipped_in_a_row = dict.fromkeys(self._roles, 0)  # each its own: a sound critic hides no broken policy
        self._mean = WeightMean(policy, settings.ema) if settings.ema else None

    @abstractmethod
    def score(self, experience: Experience, reference: Decoder, beta: float) -> Any:
        """Log-probabilities and advantages: a ``Scored``.

        Args:
            experience: at least one row.
            reference: the SFT model.
            beta: KL coefficient now.
        """

    @abstractmethod
    def _policy_loss(self, logprobs: Tensor, scored: Any, rows: Tensor, n_answers: int, n_tokens: Tensor) -> PolicyLoss:
        """The loss of some rows, such that its sum over an optimizer step, divided by ``n_tokens``, is the step's.

        Args:
            logprobs: (rows, R) now, differentiable.
            scored: from ``score``.
            rows: which of its rows.
            n_answers, n_tokens: of the whole optimizer step.
        """

    def tells(self, experience: Experience) -> Tensor:
        """(B,) bool, whether there is anything to learn from an answer: others were scored otherwise."""
        differ = bool((experience.scores != experience.scores[0]).any())
        return torch.full_like(experience.finished, differ)

    def update(self, scored: Any, iteration: int, seed: int, mix: Sequences | None = None) -> dict[str, float]:
        """Some epochs of mini-batch steps; stops, before the step, when the policy has moved too far.

        Args:
            scored: from ``score``.
            iteration: decides the learning rate.
            seed: of the order of rows in later epochs.
            mix: people's own answers, for the mixed-in likelihood.
        """
        decay = 1.0 - iteration / self.settings.iterations
        steps: list[dict[str, float]] = []
        stopped = 0.0
        for index in self._mini_batches(self._units(scored), seed):
            taken = self._policy_step(scored, index, self.settings.lr * decay, mix)
            if taken is None:
                stopped = 1.0
                break
            steps.append(taken | self._further_step(scored, index, decay))
        means = {key: sum(step[key] for step in steps) / len(steps) for key in steps[0]} if steps else {}
        norms = [step[f"{role}_norm"] for step in steps for role in self._roles]
        skipped = sum(not math.isfinite(norm) for norm in norms)
        if self._mean is not None:
            self._mean.update()
        return means | {"steps": float(len(steps)), "stopped": stopped, "skipped_steps": float(skipped)}

    def summary(self, scored: Any) -> dict[str, float]:
        """What an iteration looked like before its update; means over tokens count tokens, not padding."""
        experience, mask = scored.experience, scored.mask
        k1, k3 = (estimate(scored.logprobs, scored.reference) for estimate in (losses.kl_k1, losses.kl_k3))
        return {
            "reward": float(experience.scores.mean()),
            "reward_std": float(experience.scores.std(correction=0)),
            "kl": float(k1.sum(1).mean()),
            "kl_k3": float(k3.sum(1).mean()),
            "entropy": float(-losses.masked_mean(scored.logprobs, mask)),
            "length": float(mask.sum(1).float().mean()),
            "finished": float(experience.finished.float().mean()),
        }

    def shown(self) -> AbstractContextManager[None]:
        """While it lasts the policy is what is to be looked at and kept: the mean of its weights, if there is one."""
        return nullcontext() if self._mean is None else self._mean.in_place()

    def state(self) -> dict[str, Any]:
        """What a resumed run needs beside the tensors, as JSON data."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of ``state``."""
        del state  # nothing to remember

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs of the learner, by name."""
        result: dict[str, Tensor] = {}
        for role, model in self._roles.items():
            result |= {f"{role}/{name}": tensor for name, tensor in adapters.moving(model).items()}
            result |= {f"{role}-adam/{name}": tensor for name, tensor in self._optimizers[role].tensors().items()}
        if self._mean is not None:
            result |= {f"mean/{name}": tensor for name, tensor in self._mean.tensors().items()}
        return result

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of ``tensors``."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            parts.setdefault(part, {})[rest] = tensor
        for role, model in self._roles.items():
            adapters.move_to(model, parts[role])
            self._optimizers[role].load(parts.get(f"{role}-adam", {}))
        if self._mean is not None:
            self._mean.load(parts["mean"])

    def _old_logprobs(self, experience: Experience, reference: Decoder) -> tuple[Tensor, Tensor, Opening, list[Tensor]]:
        """Log-probabilities (B, R) of the policy and of the reference, and the parts in which they were computed."""
        sequences, score = experience.sequences, self.reading.response_logprobs
        blocks = scoring.split(torch.arange(len(sequences)), self.settings.mini_batch)
        parts = [rows for block in blocks for rows in self._micro_batches(sequences, block)]
        frozen = scoring.without_gradient(score, reference, sequences, parts, training_forward=True)
        if self.settings.entropy:  # the first step wants more than was said
            return scoring.without_gradient(score, self.policy, sequences, parts, True), frozen, Opening(), parts
        old, opening = scoring.opened(score, self.policy, sequences, parts, self.settings.mini_batch)
        return old, frozen, opening, parts

    def _units(self, scored: Any) -> Tensor:
        """(N, k) the rows that are learnt from, k at a time: those that one loss needs together."""
        return torch.arange(len(scored.mask))[:, None]

    def _mini_batches(self, units: Tensor, seed: int) -> Iterator[Tensor]:
        """(n, k) units of every optimizer step; they come in random order already, so the first epoch keeps it."""
        size = max(1, self.settings.mini_batch // units.shape[1])
        for epoch in range(self.settings.epochs):
            order = torch.arange(len(units))
            if epoch:
                order = torch.randperm(len(units), generator=torch.Generator().manual_seed(stream_seed(seed, epoch)))
            yield from (units[part] for part in scoring.split(order, size))

    def _micro_batches(self, sequences: Sequences, rows: Tensor) -> list[Tensor]:
        return self.reading.parts_by_length(sequences, self.settings.micro_batch, rows)

    def _policy_step(self, scored: Any, index: Tensor, lr: float, mix: Sequences | None) -> dict[str, float] | None:
        """One optimizer step of the policy, or None and no step if it would start from too far away."""
        options, sequences, sums = self.settings, scored.experience.sequences, torch.zeros(3)
        n_tokens: Tensor = scored.mask[index].sum()
        for rows in self._micro_batches(sequences, index):
            logprobs, entropy = self._logprobs(sequences.rows(rows), scored.opening.take(rows))
            result = self._policy_loss(logprobs, scored, rows, index.numel(), n_tokens)
            ((result.loss - options.entropy * entropy) / n_tokens).backward()  # type: ignore[no-untyped-call]
            sums += torch.stack([result.loss.detach(), result.clipped, result.approx_kl]).cpu()
        loss, clipped, approx_kl = (sums / n_tokens.cpu()).tolist()
        if approx_kl > options.approx_kl_limit:
            self._optimizers["policy"].zero_grad()
            return None
        mixed = self._mix_in(mix) if mix is not None else {}
        norm = self._step("policy", lr, "lr")
        return {"policy_loss": loss, "clipped": clipped, "approx_kl": approx_kl, "policy_norm": norm} | mixed

    def _further_step(self, scored: Any, index: Tensor, decay: float) -> dict[str, float]:
        """Steps of what is trained beside the policy, on the same rows."""
        return {}

    def _logprobs(self, sequences: Sequences, known: Tensor | None) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, R), and the summed entropy if it is wanted: it costs a second pass over the logits."""
        if not self.settings.entropy:
            found = self.reading.response_logprobs(self.policy, sequences) if known is None else known
            return found, torch.zeros(())
        logprobs, entropy = self.reading.response_logprobs_entropy(self.policy, sequences)
        return logprobs, entropy.sum()

    def _mix_in(self, mix: Sequences) -> dict[str, float]:
        """Add the gradient of people's own answers (InstructGPT, arXiv 2203.02155, eq. 2's second term)."""
        total, n_tokens = 0.0, int(mix.mask.sum())
        for rows in self._micro_batches(mix, torch.arange(len(mix))):
            loss = -scoring.response_logprobs(self.policy, mix.rows(rows)).sum()
            (self.settings.mix * loss / n_tokens).backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        return {"mix_loss": total / n_tokens}

    def _step(self, role: str, lr: float, option: str) -> float:
        """Clip and step; a gradient that is not finite changes nothing. Returns the norm before clipping.

        Raises:
            UserError: that was so for ``max_skips`` steps in a row; names the option of the learning rate.
        """
        norm = torch.nn.utils.clip_grad_norm_(self._roles[role].parameters(), self.settings.grad_clip)
        finite = bool(torch.isfinite(norm))
        if finite:
            self._optimizers[role].step(lr)
        self._optimizers[role].zero_grad()
        skipped = self._skipped_in_a_row[role] = 0 if finite else self._skipped_in_a_row[role] + 1
        if skipped >= self.settings.max_skips:
            raise UserError(
                f"{self._stage}: the {role}'s gradient was not finite for {skipped} steps in a row; the last "
                f"checkpoint is untouched; lower {self._stage}.{option}"
            )
        return float(norm)


def _adam(model: Decoder) -> Optimizer:
    """Adam with epsilon 1e-5: at the default the first, tiny gradients take steps as long as any (N+ details)."""
    params = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    rule = torch.optim.AdamW(params.values(), betas=(0.9, 0.95), eps=1e-5, weight_decay=0.0, fused=True)
    return Optimizer(params, [rule])
