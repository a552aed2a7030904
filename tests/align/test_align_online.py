"""Online DPO: which answers make a pair, the gradient written out, and the stage with its bad days."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mortal import whole_and_killed, without_times
from pydantic import ValidationError
from torch import Tensor

from danlu import hub
from danlu.align import scoring
from danlu.align.online import OnlineDPOSettings, OnlinePairs, online_dpo
from danlu.align.practice import Practice
from danlu.align.rollout import Experience, Prompt, Rollouts, Sampled
from danlu.infer.generate import Generator
from danlu.model.decoder import Decoder
from danlu.run import Stage
from danlu.tokens.tokenizer import Tokenizer

SETTINGS = OnlineDPOSettings(
    judge="prose", iterations=6, batch_size=8, mini_batch=8, micro_batch=3, max_new_tokens=6, lr=1e-3,
    approx_kl_limit=10.0, probe_every=2, probe_prompts=2, probe_tokens=0, dtype="float32",
)  # fmt: skip
MakeModel = Callable[..., Decoder]
MakeStage = Callable[..., Stage]


@pytest.fixture
def experience(make_model: MakeModel, tokenizer: Tokenizer, prompts: list[Prompt]) -> Experience:
    """Three answers each to four prompts; all answers to the last score the same."""
    scores = torch.tensor([0.1, 0.9, 0.5, 2.0, -1.0, 0.0, 0.3, 0.3, 0.2, 0.7, 0.7, 0.7])
    rollouts = Rollouts(Generator(make_model(), tokenizer, torch.float32), lambda _: scores, 6, tokenizer.pad)
    return rollouts.collect([prompt for prompt in prompts[:4] for _ in range(3)], 1, "test")


PAIRS = [[1, 0], [3, 4], [6, 8]]  # best and worst; of equals the first


def learner(make_model: MakeModel, **changes: object) -> OnlinePairs:
    update = {"batch_size": 12, "mini_batch": 12, "group_size": 3} | changes
    return OnlinePairs(make_model(), SETTINGS.model_copy(update=update))


def written_out(loss: str, logprobs: Tensor, reference: Tensor, mask: Tensor, beta: float) -> Tensor:
    """The mean over ``PAIRS``, as the papers write it."""
    found = []
    for better, worse in PAIRS:
        ratios = [(logprobs[row] - reference[row])[mask[row]] for row in (better, worse)]
        if loss == "dpo":
            found.append(-F.logsigmoid(beta * (ratios[0].sum() - ratios[1].sum())))
        else:
            found.append((ratios[0].mean() - ratios[1].mean() - 1 / (2 * beta)) ** 2)
    return torch.stack(found).mean()


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
@pytest.mark.parametrize("micro_batch", [1, 5, 12])  # a pair is never parted
def test_the_first_step_takes_the_gradient_of_the_paper(
    loss: str, micro_batch: int, make_model: MakeModel, experience: Experience
) -> None:
    trained, reference = learner(make_model, loss=loss, micro_batch=micro_batch, group_size=3), make_model(seed=9)
    scored = trained.score(experience, reference, beta=0.3)
    assert scored.pairs.tolist() == PAIRS
    step = trained.update(scored, 0, seed=0)
    fresh, mask = make_model(), experience.sequences.mask
    expected = written_out(
        loss, scoring.response_logprobs(fresh, experience.sequences), scored.reference, mask, beta=0.3
    )
    expected.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in fresh.parameters() if p.grad is not None])
    assert step["policy_loss"] == pytest.approx(expected.item(), rel=1e-4)
    assert step["policy_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert step["approx_kl"] == pytest.approx(0.0, abs=1e-6)


def test_at_first_no_answer_is_ahead(make_model: MakeModel, experience: Experience) -> None:
    for loss, first in (("dpo", math.log(2)), ("ipo", 25.0)):  # (1 / (2 * 0.1))^2
        trained = learner(make_model, loss=loss)
        scored = trained.score(experience, make_model(), beta=0.1)
        told = trained.summary(scored)
        assert (told["pairs"], told["ties"], told["margin"], told["accuracy"]) == (3.0, 1.0, 0.0, 0.5)
        assert trained.update(scored, 0, seed=0)["policy_loss"] == pytest.approx(first, rel=1e-5)


def test_a_step_takes_whole_pairs_and_epochs_mix_them(make_model: MakeModel, experience: Experience) -> None:
    trained = learner(make_model, mini_batch=5, epochs=2)
    scored = trained.score(experience, make_model(), beta=0.1)
    batches = [batch.tolist() for batch in trained._mini_batches(trained._units(scored), seed=3)]
    assert batches[:2] == [PAIRS[:2], PAIRS[2:]]
    assert [len(batch) for batch in batches] == [2, 1, 2, 1]
    assert sorted(batches[2] + batches[3]) == PAIRS
    assert trained.update(scored, 0, seed=3)["steps"] == 4.0


def test_settings_that_cannot_be_are_refused() -> None:
    for said, problem in (
        ({"batch_size": 9}, "no multiple of group_size 2"), ({"group_size": 1}, "greater than or equal to 2"),
        ({"kl_coefficient": 0}, "greater than 0"), ({"clip": 0.1}, "Extra inputs"),
    ):  # fmt: skip
        with pytest.raises(ValidationError, match=problem):
            OnlineDPOSettings.model_validate(said)


def test_a_killed_run_goes_on_to_the_same_bytes(sft_dir: Path, reward_dir: Path, make_stage: MakeStage) -> None:
    """With a mean of the weights, which is part of what goes on."""
    settings = SETTINGS.model_copy(update={"iterations": 5, "group_size": 4, "epochs": 2, "ema": 0.5})
    inputs = {"sft": sft_dir, "reward": reward_dir}
    (whole, _), (killed, _) = whole_and_killed(online_dpo, partial(make_stage, "online_dpo", settings, inputs))
    for file in ("model/model.safetensors", "ckpt/000005/tensors.safetensors", "monitor.json"):
        assert (whole.dir / file).read_bytes() == (killed.dir / file).read_bytes(), file
    assert without_times(whole.metrics.read()) == without_times(killed.metrics.read())
    assert whole.metrics.read()[0]["kl"] == 0.0
    assert hub.load(whole.dir / "model").head_kind == "lm"


def test_equal_scores_give_no_pair_and_are_counted(
    sft_dir: Path, make_stage: MakeStage, make_model: MakeModel, tokenizer: Tokenizer
) -> None:
    stage = make_stage("online_dpo", SETTINGS.model_copy(update={"mix": 1.0}), {"sft": sft_dir})
    trained = OnlinePairs(make_model(), stage.settings)  # type: ignore[arg-type]
    sampler = Generator(trained.policy, tokenizer, torch.float32)

    def score(sampled: Sampled) -> Tensor:
        return torch.full((len(sampled.texts),), 0.1)

    figures = Practice(stage, tokenizer, trained, make_model(), score, sampler).run()
    assert figures["iterations_without_step"] == 6
    assert figures["prompts_without_pair"] == 6 * 4
    for ours, theirs in zip(trained.policy.parameters(), make_model().parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_planted_reward_rises(seed: int, make_model: MakeModel, tokenizer: Tokenizer, prompts: list[Prompt]) -> None:
    wanted = tokenizer.encode("花")[0]

    def score(sampled: Sampled) -> Tensor:
        return (sampled.sequences.tokens == wanted).sum(1).float()

    changes = {"iterations": 40, "lr": 5e-3, "batch_size": 32, "mini_batch": 32, "micro_batch": 32, "epochs": 2}
    trained = learner(make_model, **changes, group_size=4)
    sampler, reference, means = Generator(trained.policy, tokenizer, torch.float32), make_model(), []
    rollouts = Rollouts(sampler, score, 6, tokenizer.pad)
    for iteration in range(12):
        sampler.refresh()
        experience = rollouts.collect([p for p in prompts for _ in range(4)], seed, "planted", iteration)
        means.append(float(experience.scores.mean()))
        trained.update(trained.score(experience, reference, beta=0.1), iteration, seed=iteration)
    assert sum(means[-3:]) / 3 > sum(means[:3]) / 3 + 0.5
