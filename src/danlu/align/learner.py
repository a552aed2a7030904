"""A policy that learns from its own samples: the update that every optimiser of practice shares.

In:  an ``Experience``, the frozen reference model, the KL coefficient.
Out: moved weights, and the numbers that tell whether the update was sound.
Left out: settings (``answering``); what an answer was worth and the loss (``ppo``, ``grpo``, ``online``); sampling
(``rollout``); the order of iterations and checkpoints on disk (``practice``).

The first epoch walks the rows in the very micro-batches in which the old log-probabilities were computed: the first
ratio is 1 to the last bit. Several processes have the whole experience and walk a share of the micro-batches each.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from danlu.align import losses, scoring
from danlu.align.answering import PracticeSettings
from danlu.align.averaging import WeightMean
from danlu.align.losses import PolicyLoss
from danlu.align.rollout import Experience
from danlu.align.scoring import Opening, Reading, Sequences
from danlu.errors import UserError
from danlu.model.decoder import Decoder
from danlu.streams import stream_seed
from danlu.train import adapters
from danlu.train.optim import Optimizer
from danlu.train.parallel import ALONE, World


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
        world: the processes that learn together; each walks its share of the micro-batches of every step.
        others: models that are trained beside the policy, by role.

    Attributes:
        skipped_in_a_row: by role, steps with a gradient that was not finite since the last one with one that was.
    """

    per_prompt = 1
    """Answers sampled per prompt."""
    rounds = 1
    """How often an iteration may sample until its batch holds only answers that say something."""
    reading: Reading = scoring
    """How: one by one, by default."""

    def __init__(
        self, stage: str, policy: Decoder, settings: PracticeSettings, world: World = ALONE, **others: Decoder
    ) -> None:
        self._stage, self.policy, self.settings, self.world = stage, policy, settings, world
        self._roles = {"policy": policy, **others}
        self._optimizers = {role: _adam(model) for role, model in self._roles.items()}
        self.skipped_in_a_row = dict.fromkeys(self._roles, 0)  # each its own: a sound critic hides no broken policy
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

    def _old_logprobs(self, experience: Experience, reference: Decoder) -> tuple[Tensor, Tensor, Opening]:
        """Log-probabilities (B, R) of the policy and of the reference, of whole steps' micro-batches."""
        sequences, score, world = experience.sequences, self.reading.response_logprobs, self.world
        steps = self._first_epoch(sequences)
        parts = [rows for step in steps for rows in step]
        frozen = scoring.without_gradient(score, reference, sequences, parts, training_forward=True, world=world)
        if self.settings.entropy:  # the first step wants more than was said
            return scoring.without_gradient(score, self.policy, sequences, parts, True, world), frozen, Opening()
        old, opening = scoring.opened(score, self.policy, sequences, steps, world)
        return old, frozen, opening

    def _first_epoch(self, sequences: Sequences) -> list[list[Tensor]]:
        """The micro-batches of every step of the first epoch, of all processes."""
        blocks = scoring.split(torch.arange(len(sequences)), self.settings.mini_batch)
        return [self._micro_batches(sequences, block) for block in blocks]

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
        return self.reading.parts_by_length(sequences, self.settings.rows(self.world), rows)

    def _policy_step(self, scored: Any, index: Tensor, lr: float, mix: Sequences | None) -> dict[str, float] | None:
        """One optimizer step of the policy, or None and no step if it would start from too far away."""
        options, sequences, sums = self.settings, scored.experience.sequences, torch.zeros(3)
        n_tokens: Tensor = scored.mask[index].sum()
        for rows in self.world.deal(self._micro_batches(sequences, index)):
            logprobs, entropy = self._logprobs(sequences.rows(rows), scored.opening.take(rows))
            result = self._policy_loss(logprobs, scored, rows, index.numel(), n_tokens)
            ((result.loss - options.entropy * entropy) / n_tokens).backward()  # type: ignore[no-untyped-call]
            sums += torch.stack([result.loss.detach(), result.clipped, result.approx_kl]).cpu()
        self.world.sum_tensors([sums])
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
        for rows in self.world.deal(self._micro_batches(mix, torch.arange(len(mix)))):
            loss = -scoring.response_logprobs(self.policy, mix.rows(rows)).sum()
            (self.settings.mix * loss / n_tokens).backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        (total,) = self.world.sum_numbers([total], mix.mask.device)
        return {"mix_loss": total / n_tokens}

    def _step(self, role: str, lr: float, option: str) -> float:
        """Clip and step by all processes' gradient; one that is not finite changes nothing. Returns the norm before.

        Raises:
            UserError: that was so for ``max_skips`` steps in a row; names the option of the learning rate.
        """
        self.world.sum_gradients(self._optimizers[role].params.values())
        norm = torch.nn.utils.clip_grad_norm_(self._roles[role].parameters(), self.settings.grad_clip)
        finite = bool(torch.isfinite(norm))
        if finite:
            self._optimizers[role].step(lr)
        self._optimizers[role].zero_grad()
        skipped = self.skipped_in_a_row[role] = 0 if finite else self.skipped_in_a_row[role] + 1
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
