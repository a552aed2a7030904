"""PPO's learner: policy and critic, what they said about an experience, and the update.

In:  an ``Experience``, the frozen reference model, the KL coefficient.
Out: moved weights, and the numbers that tell whether the update was sound.
Left out: sampling (``rollout``), the order of iterations, checkpoints on disk (``ppo``).

Policy and critic share no weights, so no coefficient balances their losses. The first epoch walks the rows in the very
micro-batches in which the old log-probabilities were computed: the first ratio is 1 to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from danlu.align import losses, scoring
from danlu.align.rollout import Experience
from danlu.align.scoring import Sequences
from danlu.device import ComputeSettings
from danlu.errors import UserError
from danlu.infer.vllm import require_vllm
from danlu.model.decoder import Decoder
from danlu.streams import stream_seed
from danlu.train.optim import Optimizer


class PPOSettings(ComputeSettings):
    """The section ``ppo``; defaults suit a few million parameters, a tenth of the learning rates suits 100M and up."""

    judge: str = "prose"
    """Judge that chooses which prompts to practise on, and that watches from outside; it never moves a weight."""
    iterations: int = Field(60, ge=1)
    """How often to sample, score and learn."""
    batch_size: int = Field(192, ge=2)
    """Answers sampled per iteration."""
    mini_batch: int = Field(64, ge=1)
    """Answers per optimizer step."""
    micro_batch: int = Field(32, ge=1)
    """Answers per forward and backward; smaller needs less memory and changes nothing else."""
    epochs: int = Field(1, ge=1)
    """Passes over an experience."""
    max_new_tokens: int = Field(48, ge=1)
    """Where an answer is cut off."""
    lr: float = Field(5e-5, gt=0)
    """The policy's learning rate, falling linearly to 0."""
    critic_lr: float = Field(2e-4, gt=0)
    """The critic's learning rate, falling linearly to 0."""
    grad_clip: float = Field(1.0, gt=0)
    """Largest gradient norm, for policy and critic each."""
    clip: float = Field(0.2, gt=0)
    """Ratios beyond 1 -+ this earn nothing more."""
    dual_clip: float = Field(3.0, gt=1)
    """The loss of a token with negative advantage is capped at this times the advantage."""
    value_clip: float = Field(0.2, gt=0)
    """How far a value may move from its old self within an iteration."""
    gamma: float = Field(1.0, ge=0, le=1)
    """Discount per token."""
    lam: float = Field(0.95, ge=0, le=1)
    """GAE's lambda."""
    max_skips: int = Field(5, ge=1)
    """Steps in a row with a gradient that is not finite, after which PPO stops."""
    approx_kl_limit: float = Field(0.05, gt=0)
    """Nats per token between old and new policy at which an update stops before its step."""
    kl_coefficient: float = Field(0.05, ge=0)
    """Price of a nat of distance from the SFT model, at the start."""
    kl_target: float = Field(6.0, gt=0)
    """Nats per answer that the coefficient steers towards."""
    kl_horizon: int = Field(2000, ge=0)
    """Answers over which the coefficient may change by its own size; 0 keeps it fixed."""
    kl_budget: float = Field(12.0, gt=0)
    """A policy further than this from the SFT model, in nats per answer, is never chosen."""
    missing_end_penalty: float = Field(1.0, ge=0)
    """Taken from the score of an answer that did not end by itself."""
    entropy: float = Field(0.0, ge=0)
    """Reward per nat of entropy of the policy's next token; 0 is off."""
    mix: float = Field(0.0, ge=0)
    """Weight of the likelihood of people's own answers, mixed into the update (InstructGPT's ptx); 0 is off."""
    sampler: Literal["danlu", "vllm"] = "danlu"
    """What draws the answers: danlu's own engine on the policy's very tensors, or vLLM (extra ``vllm``) on a copy."""
    probe_every: int = Field(10, ge=1)
    """Iterations between looks from outside, and between checkpoints."""
    probe_prompts: int = Field(96, ge=1)
    """Held-out prompts per look."""

    def require(self) -> None:
        """The sampler is installed."""
        if self.sampler == "vllm":
            require_vllm()


@dataclass(frozen=True)
class Scored:
    """An experience with everything that was computed before the update; (B, R) each.

    Attributes:
        logprobs: of the policy that sampled, by the training forward.
        reference: of the SFT model.
        values: of the critic.
        advantages: whitened over the whole batch.
        returns: what the critic should have said.
    """

    experience: Experience
    logprobs: Tensor
    reference: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor

    @property
    def mask(self) -> Tensor:
        """(B, R) True on response tokens."""
        return self.experience.sequences.mask


class Learner:
    """Policy, critic and their optimizers.

    Args:
        policy: a copy of the SFT model, trained in place.
        critic: a copy of the reward model, trained in place.
        settings: of the stage.

    The critic keeps the reward model's trunk and gets a head of zeros (Huang et al., "The N implementation details of
    RLHF with PPO"). The reward model's head has only ever been read at the end of an answer; in the middle it says
    anything, and unlearning that took a third of a short run (explained variance -4.7 at first, 0 after ten iterations
    of 192 poems). Zero is the mean of the normalised score.
    """

    def __init__(self, policy: Decoder, critic: Decoder, settings: PPOSettings) -> None:
        self.policy, self.critic, self.settings = policy, critic, settings
        torch.nn.init.zeros_(critic.score.weight)
        self._roles = {"policy": policy, "critic": critic}
        self._optimizers = {"policy": _adam(policy), "critic": _adam(critic)}
        self._skipped_in_a_row = dict.fromkeys(self._roles, 0)  # each its own: a sound critic hides no broken policy

    def score(self, experience: Experience, reference: Decoder, beta: float) -> Scored:
        """Log-probabilities, values, rewards with their KL share, advantages."""
        options, sequences = self.settings, experience.sequences
        blocks = scoring.split(torch.arange(len(sequences)), options.mini_batch)
        parts = [rows for block in blocks for rows in self._micro_batches(sequences, block)]
        old, frozen = (
            scoring.without_gradient(scoring.response_logprobs, model, sequences, parts, training_forward=True)
            for model in (self.policy, reference)
        )
        values = scoring.without_gradient(scoring.response_values, self.critic, sequences, parts)
        rewards = losses.token_rewards(experience.scores, losses.kl_k1(old, frozen), sequences.mask, beta)
        advantages, returns = losses.gae(rewards, values, sequences.mask, options.gamma, options.lam)
        white = losses.whiten(advantages, sequences.mask)
        return Scored(experience, old, frozen, values, white, returns)

    def update(self, scored: Scored, iteration: int, seed: int, mix: Sequences | None = None) -> dict[str, float]:
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
        for index in self._mini_batches(len(scored.mask), seed):
            taken = self._policy_step(scored, index, self.settings.lr * decay, mix)
            if taken is None:
                stopped = 1.0
                break
            steps.append(taken | self._critic_step(scored, index, self.settings.critic_lr * decay))
        means = {key: sum(step[key] for step in steps) / len(steps) for key in steps[0]} if steps else {}
        norms = [step[f"{role}_norm"] for step in steps for role in self._roles]
        skipped = sum(not math.isfinite(norm) for norm in norms)
        return means | {"steps": float(len(steps)), "stopped": stopped, "skipped_steps": float(skipped)}

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs of the learner, by name."""
        result: dict[str, Tensor] = {}
        for role, model in self._roles.items():
            result |= {f"{role}/{name}": tensor for name, tensor in model.state_dict().items()}
            result |= {f"{role}-adam/{name}": tensor for name, tensor in self._optimizers[role].tensors().items()}
        return result

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of ``tensors``."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            parts.setdefault(part, {})[rest] = tensor
        for role, model in self._roles.items():
            model.load_state_dict(parts[role])
            self._optimizers[role].load(parts.get(f"{role}-adam", {}))

    def _mini_batches(self, n_rows: int, seed: int) -> Iterator[Tensor]:
        """Rows of every optimizer step; rows come in random order already, so the first epoch keeps it."""
        for epoch in range(self.settings.epochs):
            order = torch.arange(n_rows)
            if epoch:
                order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(stream_seed(seed, epoch)))
            yield from scoring.split(order, self.settings.mini_batch)

    def _micro_batches(self, sequences: Sequences, rows: Tensor) -> list[Tensor]:
        return scoring.parts_by_length(sequences, self.settings.micro_batch, rows)

    def _policy_step(self, scored: Scored, index: Tensor, lr: float, mix: Sequences | None) -> dict[str, float] | None:
        """One optimizer step of the policy, or None and no step if it would start from too far away."""
        options, sequences, sums = self.settings, scored.experience.sequences, torch.zeros(3)
        n_tokens = scored.mask[index].sum()
        for rows in self._micro_batches(sequences, index):
            logprobs, entropy = self._logprobs(sequences.rows(rows))
            result = losses.ppo_policy_loss(
                logprobs, scored.logprobs[rows], scored.advantages[rows], scored.mask[rows], options.clip,
                options.dual_clip,
            )  # fmt: skip
            ((result.loss - options.entropy * entropy) / n_tokens).backward()  # type: ignore[no-untyped-call]
            sums += torch.stack([result.loss.detach(), result.clipped, result.approx_kl]).cpu()
        loss, clipped, approx_kl = (sums / n_tokens.cpu()).tolist()
        if approx_kl > options.approx_kl_limit:
            self._optimizers["policy"].zero_grad()
            return None
        mixed = self._mix_in(mix) if mix is not None else {}
        norm = self._step("policy", lr)
        return {"policy_loss": loss, "clipped": clipped, "approx_kl": approx_kl, "policy_norm": norm} | mixed

    def _logprobs(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, R), and the summed entropy if it is wanted: it costs a second pass over the logits."""
        if not self.settings.entropy:
            return scoring.response_logprobs(self.policy, sequences), torch.zeros(())
        logprobs, entropy = scoring.response_logprobs_entropy(self.policy, sequences)
        return logprobs, entropy.sum()

    def _critic_step(self, scored: Scored, index: Tensor, lr: float) -> dict[str, float]:
        options, sequences, total = self.settings, scored.experience.sequences, 0.0
        n_tokens = scored.mask[index].sum()
        for rows in self._micro_batches(sequences, index):
            values = scoring.response_values(self.critic, sequences.rows(rows))
            loss = losses.ppo_value_loss(
                values, scored.values[rows], scored.returns[rows], scored.mask[rows], options.value_clip
            )
            (loss / n_tokens).backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        return {"value_loss": total / int(n_tokens), "critic_norm": self._step("critic", lr)}

    def _mix_in(self, mix: Sequences) -> dict[str, float]:
        """Add the gradient of people's own answers (InstructGPT, arXiv 2203.02155, eq. 2's second term)."""
        total, n_tokens = 0.0, int(mix.mask.sum())
        for rows in self._micro_batches(mix, torch.arange(len(mix))):
            loss = -scoring.response_logprobs(self.policy, mix.rows(rows)).sum()
            (self.settings.mix * loss / n_tokens).backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        return {"mix_loss": total / n_tokens}

    def _step(self, role: str, lr: float) -> float:
        """Clip and step; a gradient that is not finite changes nothing. Returns the norm before clipping.

        Raises:
            UserError: that was so for ``max_skips`` steps in a row.
        """
        norm = torch.nn.utils.clip_grad_norm_(self._roles[role].parameters(), self.settings.grad_clip)
        finite = bool(torch.isfinite(norm))
        if finite:
            self._optimizers[role].step(lr)
        self._optimizers[role].zero_grad()
        skipped = self._skipped_in_a_row[role] = 0 if finite else self._skipped_in_a_row[role] + 1
        if skipped >= self.settings.max_skips:
            raise UserError(
                f"ppo: the {role}'s gradient was not finite for {skipped} steps in a row; the last checkpoint is "
                f"untouched; lower {'ppo.lr' if role == 'policy' else 'ppo.critic_lr'}"
            )
        return float(norm)


def _adam(model: Decoder) -> Optimizer:
    """Adam with epsilon 1e-5: at the default the first, tiny gradients take steps as long as any (N+ details)."""
    params = dict(model.named_parameters())
    rule = torch.optim.AdamW(params.values(), betas=(0.9, 0.95), eps=1e-5, weight_decay=0.0, fused=True)
    return Optimizer(params, [rule])


def explained_variance(scored: Scored) -> float:
    """Share of the returns' variance that the critic foresaw: 1 perfect, 0 no better than a constant."""
    mask = scored.mask
    returns, errors = scored.returns[mask], (scored.returns - scored.values)[mask]
    variance = returns.var(correction=0)
    return float(1.0 - errors.var(correction=0) / variance) if variance > 0 else 0.0
