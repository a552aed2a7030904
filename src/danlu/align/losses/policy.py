"""Formulas of learning from samples: KL, token rewards, advantages with a critic, PPO's two losses, the KL controller.

In:  tensors of shape (B, R): B sequences, R response tokens, right-padded; ``mask`` is True on real tokens.
Out: sums (never means) for what is trained on, so that splitting a batch into micro-batches changes nothing.
Left out: advantages without a critic (``group``), models, sampling and the order of steps (``learner``). The KL
controller is here, being one formula.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

# A single broken token must not make the loss infinite: log-ratios are clamped before exp (OpenRLHF does the same).
_LOG_RATIO_LIMIT = 20.0


def kl_k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """``log p - log q`` at tokens sampled from p: unbiased, signed (Schulman, "Approximating KL divergence", 2020)."""
    return logprobs - reference


def kl_k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """``q/p - 1 - log(q/p)`` at tokens sampled from p: unbiased, never negative, lower variance (same source)."""
    log_ratio = (reference - logprobs).clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT)
    return log_ratio.exp() - 1.0 - log_ratio


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``x`` where ``mask`` is True; 0 if it never is."""
    return x.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def importance_weights(logprobs: Tensor, drawn: Tensor, mask: Tensor, cap: float) -> Tensor:
    """``min(p / q, cap)`` of every token that q drew and p learns from; 1 on padding.

    Truncated importance sampling (Ionides, 2008, "Truncated Importance Sampling"): where another engine draws, its q is
    the policy up to rounding, and without the weight the gradient would be that of its objective. The cap bounds the
    variance at the price of a little bias; it is needed above 1 only, where one token would count as many.

    Args:
        logprobs: (B, R) of the policy by the training forward.
        drawn: (B, R) by the engine that drew.
        mask: (B, R).
        cap: largest weight.
    """
    return (logprobs - drawn).masked_fill(~mask, 0.0).clamp(max=_LOG_RATIO_LIMIT).exp().clamp(max=cap)


class Mismatch(NamedTuple):
    """How far two engines differ on the same tokens: nats per token, and the share of tokens that differ a lot."""

    nats: Tensor
    outside: Tensor


def mismatch(logprobs: Tensor, drawn: Tensor, mask: Tensor, width: float = 0.1) -> Mismatch:
    """``mean |log p - log q|``, and the share of tokens whose ``p / q`` lies outside [1 - width, 1 + width]."""
    gap = (logprobs - drawn).masked_fill(~mask, 0.0)
    ratio = gap.clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT).exp()
    return Mismatch(masked_mean(gap.abs(), mask), masked_mean(((ratio - 1.0).abs() > width).float(), mask))


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Scale to variance 1 over the masked entries of the whole batch, and to mean 0 if ``shift_mean``.

    Advantages shift the mean. Rewards must not: it would erase the sign of the signal (lm-human-preferences).
    Padding comes out as 0.
    """
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    scaled = (x - mean) * torch.rsqrt(variance + 1e-8)
    return (scaled if shift_mean else scaled + mean).masked_fill(~mask, 0.0)


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Reward of every response token: ``-beta * kl`` each, and the answer's score on its last token.

    The last token is the stop token where one was sampled, so stopping is an action that earns (InstructGPT eq. 2,
    with the KL spread over tokens as in Ziegler et al., arXiv 1909.08593).

    Args:
        scores: (B,) of whole answers.
        kl: (B, R) per-token k1.
        mask: (B, R), a prefix of each row.
        beta: KL coefficient.
    """
    rewards = (-beta * kl).masked_fill(~mask, 0.0)
    last = mask.sum(1) - 1
    rows = torch.arange(len(last), device=last.device)
    rewards[rows, last] += scores
    return rewards


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al., arXiv 1506.02438, eq. 16).

    ``delta_t = r_t + gamma V_{t+1} - V_t`` and ``A_t = delta_t + gamma lam A_{t+1}``, with V = 0 after the last token.

    Args:
        rewards: (B, R).
        values: (B, R), V of the state in which token t is chosen.
        mask: (B, R), a prefix of each row.
        gamma: discount.
        lam: 0 gives one-step differences, 1 gives returns minus values.

    Returns:
        Advantages and returns (the critic's targets), both (B, R) and 0 on padding.
    """
    keep = mask.to(values.dtype)
    values = values * keep
    advantages = torch.zeros_like(values)
    following = values.new_zeros(len(values))
    next_value = values.new_zeros(len(values))
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = (delta + gamma * lam * following) * keep[:, t]
        advantages[:, t] = following
        next_value = values[:, t]
    return advantages, (advantages + values) * keep


class PolicyLoss(NamedTuple):
    """Sums over the masked tokens: the loss to minimise, the clipped tokens, and k3 between old and new policy."""

    loss: Tensor
    clipped: Tensor
    approx_kl: Tensor


def ppo_policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip: float, dual_clip: float | None,
    clip_high: float | None = None,
) -> PolicyLoss:  # fmt: skip
    """PPO's clipped surrogate, summed over tokens (Schulman et al., arXiv 1707.06347, eq. 7), with a dual clip.

    With ``rho = exp(new - old)`` the loss is ``max(-A rho, -A clip(rho, 1-clip, 1+clip_high))``; for A < 0 it is capped
    at ``-dual_clip A`` (Ye et al., arXiv 1912.09729, eq. 5), so that one unlikely token cannot dominate the gradient.

    Args:
        logprobs, old_logprobs: (B, R) now, and of the policy that sampled.
        advantages: (B, R); the loss is linear in their size, so a weight of an answer goes in with them.
        mask: (B, R).
        clip: how far a ratio may fall below 1 and still earn.
        dual_clip: None for no cap.
        clip_high: how far it may rise, if not as far as it may fall (DAPO's clip-higher, arXiv 2503.14476, 3.1).
    """
    log_ratio = (logprobs - old_logprobs).masked_fill(~mask, 0.0).clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT)
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - clip, 1.0 + (clip if clip_high is None else clip_high))
    losses = torch.maximum(plain, clipped)
    if dual_clip is not None:
        losses = torch.where(advantages < 0, torch.minimum(losses, -dual_clip * advantages), losses)
    return PolicyLoss(
        loss=losses.masked_fill(~mask, 0.0).sum(),
        clipped=((clipped > plain) & mask).sum(),
        approx_kl=(ratio - 1.0 - log_ratio).detach().sum(),
    )


def ppo_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float) -> Tensor:
    """``1/2 max((V - R)^2, (clip(V, V_old -+ clip) - R)^2)`` summed over tokens (lm-human-preferences).

    The clip keeps the critic from moving further in one iteration than the advantages it gave can vouch for.
    """
    held = torch.clamp(values, old_values - clip, old_values + clip)
    losses = 0.5 * torch.maximum((values - returns) ** 2, (held - returns) ** 2)
    return losses.masked_fill(~mask, 0.0).sum()


@dataclass(frozen=True)
class AdaptiveKL:
    """The KL coefficient and the controller that keeps the KL near a target (Ziegler et al., arXiv 1909.08593, 2.2).

    Attributes:
        beta: the coefficient now.
        target: nats per *sequence*, not per token; the two are mixed up often enough.
        horizon: sequences over which a full-scale error would change beta by its own size; 0 keeps beta fixed.
    """

    beta: float
    target: float
    horizon: int
    floor: float = 1e-3
    ceiling: float = 1.0

    def update(self, kl: float, n_sequences: int) -> AdaptiveKL:
        """The controller after ``n_sequences`` with mean KL ``kl`` (nats per sequence); the error is clipped to 0.2."""
        if not self.horizon or not self.beta:  # a coefficient of 0 is no leash, and stays none
            return self
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        beta = self.beta * (1.0 + error * n_sequences / self.horizon)
        return replace(self, beta=min(max(beta, self.floor), self.ceiling))
