"""Practice without a critic: each method's gradient written out, and the stage with its bad days."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from mortal import whole_and_killed, without_times
from pydantic import ValidationError
from torch import Tensor

from danlu import hub
from danlu.align import losses, scoring
from danlu.align.grpo import METHODS, Grouped, GRPOSettings, groups_of, grpo
from danlu.align.practice import Practice
from danlu.align.rollout import Experience, Prompt, Rollouts, Sampled, Score
from danlu.errors import UserError
from danlu.evals.perplexity import text_bits_per_byte
from danlu.infer.generate import Generator
from danlu.model.decoder import Decoder
from danlu.run import Stage
from danlu.tokens.shards import write_shards
from danlu.tokens.tokenizer import Tokenizer

SETTINGS = GRPOSettings(
    judge="prose", iterations=6, batch_size=8, mini_batch=8, micro_batch=3, group_size=4, max_new_tokens=6, lr=1e-3,
    approx_kl_limit=10.0, probe_every=2, probe_prompts=2, probe_tokens=0, dtype="float32",
)  # fmt: skip
MakeModel = Callable[..., Decoder]
MakeStage = Callable[..., Stage]


@pytest.fixture
def experience(make_model: MakeModel, tokenizer: Tokenizer, prompts: list[Prompt]) -> Experience:
    """Four answers each to four prompts; all answers to the last score the same."""
    scores = torch.randn(16, generator=torch.Generator().manual_seed(5))
    scores[12:] = 0.3
    rollouts = Rollouts(Generator(make_model(), tokenizer, torch.float32), lambda _: scores, 6, tokenizer.pad)
    return rollouts.collect([prompt for prompt in prompts[:4] for _ in range(4)], 1, "test")


def learner(make_model: MakeModel, **changes: object) -> Grouped:
    return Grouped(make_model(), SETTINGS.model_copy(update={"batch_size": 16, "mini_batch": 16} | changes))


# ------------------------------------------------------------------------------------------------- update


def written_out(method: str, logprobs: Tensor, reference: Tensor, experience: Experience, beta: float) -> Tensor:
    """The loss whose gradient a first step should take, as the papers write it (all ratios are 1)."""
    mask, groups, scores = experience.sequences.mask, groups_of(experience), experience.scores
    n, lengths = len(scores), mask.sum(1)
    kl = losses.kl_k3(logprobs, reference).masked_fill(~mask, 0.0)
    paid = scores - beta * losses.kl_k1(logprobs.detach(), reference).sum(1)
    late = losses.overlong_penalty(lengths, 6, 1)
    tells = losses.telling(scores, groups)
    match method:
        case "grpo":
            a = losses.group_advantages(scores, groups, scale=True)
            return (((-a[:, None] * logprobs + beta * kl) * mask).sum(1) / lengths).mean()
        case "dr_grpo":
            a = losses.group_advantages(scores, groups, scale=False)
            return ((-a[:, None] * logprobs + beta * kl) * mask).sum() / (n * 6)
        case "dapo":
            a = losses.group_advantages(scores + late, groups, scale=True) * tells
            return ((-a[:, None] * logprobs + beta * kl) * mask).sum() / mask.sum()
        case "rloo":
            a = losses.leave_one_out(paid, groups) * tells
            return (-a * logprobs.sum(1)).mean()
        case _:
            return (-paid * logprobs.sum(1)).mean()  # REINFORCE before it has a baseline


@pytest.mark.parametrize("method", METHODS)
def test_the_first_step_takes_the_gradient_of_the_paper(
    method: str, make_model: MakeModel, experience: Experience
) -> None:
    trained, reference = learner(make_model, method=method), make_model(seed=9)
    scored = trained.score(experience, reference, beta=0.3)
    step = trained.update(scored, 0, seed=0)
    assert step["approx_kl"] == step["clipped"] == 0.0  # the first ratio is 1
    fresh = make_model()
    logprobs = scoring.response_logprobs(fresh, experience.sequences)
    written_out(method, logprobs, scored.reference, experience, 0.3).backward()
    expected = torch.nn.utils.get_total_norm([p.grad for p in fresh.parameters() if p.grad is not None])
    assert step["policy_norm"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_splitting_into_micro_batches_changes_nothing(
    method: str, make_model: MakeModel, experience: Experience
) -> None:
    moved = []
    for size in (1, 5, 16):
        trained = learner(make_model, method=method, micro_batch=size)
        trained.update(trained.score(experience, make_model(seed=9), beta=0.1), 0, seed=0)
        moved.append(torch.cat([p.detach().flatten() for p in trained.policy.parameters()]))
    torch.testing.assert_close(moved[0], moved[1], rtol=0, atol=2e-6)
    torch.testing.assert_close(moved[0], moved[2], rtol=0, atol=2e-6)


def test_reinforce_compares_with_all_scores_before(make_model: MakeModel, experience: Experience) -> None:
    trained = learner(make_model, method="reinforce")
    first = trained.score(experience, trained.policy, beta=0.0)
    second = trained.score(experience, trained.policy, beta=0.0)
    torch.testing.assert_close(first.advantages[:, 0], experience.scores)
    torch.testing.assert_close(second.advantages[:, 0], experience.scores - experience.scores.mean())
    again = learner(make_model, method="reinforce")
    again.restore(trained.state())
    third = again.score(experience, again.policy, beta=0.0)
    torch.testing.assert_close(third.advantages, second.advantages)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"method": "reinforce"}, "one step per experience"),
        ({"batch_size": 10}, "no multiple of group_size 4"),
        ({"group_size": 1}, "group_size must be 2 or more"),
        ({"prompts": "sfd"}, "did you mean 'sft'"),
        ({"method": "reinforce", "mini_batch": 8, "clip": 0.1}, "clip says nothing to reinforce, which takes one step"),
        ({"method": "reinforce", "mini_batch": 8, "clip_high": 0.3}, "clip_high says nothing to reinforce"),
        ({"method": "reinforce", "mini_batch": 8, "approx_kl_limit": 0.1}, "approx_kl_limit says nothing to reinforce"),
        ({"method": "rloo", "sampling_rounds": 2}, "sampling_rounds says nothing to rloo, which samples once"),
    ],
)
def test_settings_that_cannot_be_are_refused(said: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        GRPOSettings.model_validate({"batch_size": 8, "group_size": 4, "mini_batch": 4} | said)


@pytest.mark.parametrize("method", METHODS)
def test_what_a_run_wrote_down_is_read_back(method: str) -> None:
    """A manifest holds what nobody said too; the laboratory says what other methods do anyway."""
    made = GRPOSettings.model_validate({"method": method, "mini_batch": 192, "sampling_rounds": 1})
    assert GRPOSettings.model_validate(made.model_dump(mode="json")) == made
    assert GRPOSettings.model_validate(GRPOSettings(method=method, mini_batch=192).model_dump()).sampling_rounds == 4


# -------------------------------------------------------------------------------------------------- stage


def practice(stage: Stage, make_model: MakeModel, tokenizer: Tokenizer, score: Score) -> tuple[Practice, Grouped]:
    trained = Grouped(make_model(), stage.settings)  # type: ignore[arg-type]
    sampler = Generator(trained.policy, tokenizer, torch.float32)
    return Practice(stage, tokenizer, trained, make_model(), score, sampler), trained


@pytest.mark.parametrize("method", ["dapo", "reinforce"])  # one that samples in rounds, one that remembers
def test_a_killed_run_goes_on_to_the_same_bytes(
    method: str, sft_dir: Path, reward_dir: Path, make_stage: MakeStage
) -> None:
    settings = SETTINGS.model_copy(update={"method": method, "iterations": 5})
    inputs = {"sft": sft_dir, "reward": reward_dir}
    (whole, _), (killed, _) = whole_and_killed(grpo, partial(make_stage, "grpo", settings, inputs))
    for file in ("model/model.safetensors", "ckpt/000005/tensors.safetensors", "monitor.json"):
        assert (whole.dir / file).read_bytes() == (killed.dir / file).read_bytes(), file
    assert without_times(whole.metrics.read()) == without_times(killed.metrics.read())
    assert whole.metrics.read()[0]["kl"] == 0.0


def test_equal_rewards_take_no_step(
    sft_dir: Path, make_stage: MakeStage, make_model: MakeModel, tokenizer: Tokenizer
) -> None:
    stage = make_stage("grpo", SETTINGS.model_copy(update={"mix": 1.0}), {"sft": sft_dir})
    run, trained = practice(stage, make_model, tokenizer, lambda sampled: torch.full((len(sampled.texts),), 0.1))
    assert run.run()["iterations_without_step"] == 6
    for ours, theirs in zip(trained.policy.parameters(), make_model().parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert not [name for name in trained.tensors() if name.startswith("policy-adam/")]


def test_an_answer_without_a_score_is_left_out_and_counted(
    sft_dir: Path, make_stage: MakeStage, make_model: MakeModel, tokenizer: Tokenizer
) -> None:
    def score(sampled: Sampled) -> Tensor:
        scores = (sampled.sequences.tokens.sum(1) % 7).float()
        scores[1] = math.nan
        return scores

    stage = make_stage("grpo", SETTINGS, {"sft": sft_dir})
    run, trained = practice(stage, make_model, tokenizer, score)
    assert run.run()["answers_without_score"] == 6
    rows = stage.metrics.read()
    assert [row["dropped"] for row in rows] == [1.0] * 6
    assert all(math.isfinite(row["reward"]) and not row.get("skipped_steps") for row in rows)
    assert max(row["steps"] for row in rows) == 1.0
    assert all(bool(torch.isfinite(p).all()) for p in trained.policy.parameters())


def test_a_score_that_is_never_a_number_stops_the_run(
    sft_dir: Path, make_stage: MakeStage, make_model: MakeModel, tokenizer: Tokenizer
) -> None:
    looks = iter([1.0])

    def score(sampled: Sampled) -> Tensor:
        return torch.full((len(sampled.texts),), next(looks, math.nan))

    stage = make_stage("grpo", SETTINGS.model_copy(update={"max_skips": 2, "probe_every": 6}), {"sft": sft_dir})
    run, _ = practice(stage, make_model, tokenizer, score)
    with pytest.raises(UserError, match="no answer got a score that is a number for 2 iterations in a row"):
        run.run()


def test_dapo_samples_until_every_group_says_something(
    sft_dir: Path, make_stage: MakeStage, make_model: MakeModel, tokenizer: Tokenizer
) -> None:
    def score(sampled: Sampled) -> Tensor:
        return (sampled.sequences.mask.sum(1) > 5).float()  # most answers are cut off: many groups agree

    shares = {}
    for method in ("grpo", "dapo"):
        changes = {"method": method, "iterations": 2}
        stage = make_stage("grpo", SETTINGS.model_copy(update=changes), {"sft": sft_dir}, folder=method)
        practice(stage, make_model, tokenizer, score)[0].run()
        shares[method] = [row["telling"] for row in stage.metrics.read() if "telling" in row]
    assert min(shares["grpo"]) < 1.0
    assert set(shares["dapo"]) == {1.0}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_planted_reward_rises(seed: int, make_model: MakeModel, tokenizer: Tokenizer, prompts: list[Prompt]) -> None:
    wanted = tokenizer.encode("花")[0]

    def score(sampled: Sampled) -> Tensor:
        return (sampled.sequences.tokens == wanted).sum(1).float()

    trained = learner(make_model, iterations=40, lr=5e-3, batch_size=32, mini_batch=32, micro_batch=32, epochs=2)
    sampler = Generator(trained.policy, tokenizer, torch.float32)
    rollouts, reference, means = Rollouts(sampler, score, 6, tokenizer.pad), make_model(), []
    for iteration in range(12):
        sampler.refresh()
        experience = rollouts.collect([p for p in prompts for _ in range(4)], seed, "planted", iteration)
        means.append(float(experience.scores.mean()))
        trained.update(trained.score(experience, reference, beta=0.01), iteration, seed=iteration)
    assert sum(means[-3:]) / 3 > sum(means[:3]) / 3 + 0.5


def test_the_stage_leaves_a_model(sft_dir: Path, reward_dir: Path, make_stage: MakeStage) -> None:
    settings = SETTINGS.model_copy(update={"iterations": 2, "probe_tokens": 512})
    stage = make_stage("grpo", settings, {"sft": sft_dir, "reward": reward_dir})
    figures = grpo(stage)
    policy, sft = hub.load(stage.dir / "model"), hub.load(sft_dir / "model")
    moved = any(not torch.equal(a, b) for a, b in zip(policy.parameters(), sft.parameters(), strict=True))
    assert moved == (figures["kept"] > 0)
    assert figures["before"]["sqrt_kl"] == 0.0
    assert figures["before"]["heldout_bpb"] > 0.0
    assert "documents_bpb" not in figures["before"]  # the run has read none


def test_a_look_measures_what_is_forgotten_of_documents(
    tmp_path: Path, sft_dir: Path, reward_dir: Path, make_stage: MakeStage, tokenizer: Tokenizer
) -> None:
    text = "春夏秋冬。山水花月。"
    document = [tokenizer.bos, *tokenizer.encode(text), tokenizer.eos]
    write_shards(tmp_path / "tokens" / "shards" / "val", [(document, None)], tokenizer)
    settings = SETTINGS.model_copy(update={"iterations": 1, "probe_tokens": 512})
    stage = make_stage("grpo", settings, {"sft": sft_dir, "reward": reward_dir, "tokens": tmp_path / "tokens"})
    grpo(stage)
    first, last = json.loads((stage.dir / "monitor.json").read_text(encoding="utf-8"))["looks"]
    wanted = text_bits_per_byte(hub.load(sft_dir / "model"), tokenizer, text)["bpb"]
    assert first["documents_bpb"] == pytest.approx(wanted, rel=1e-5)
    assert last["documents_bpb"] != first["documents_bpb"]
    card = (stage.dir / "model" / "README.md").read_text(encoding="utf-8")
    assert "heldout_bpb" in card
    assert "documents_bpb" not in card, "what is only seen changes nothing that is made"
