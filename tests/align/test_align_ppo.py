"""PPO: every trap of notes that can be tested is tested here, on a tiny model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from mortal import whole_and_killed, without_times
from torch import Tensor, nn

from danlu import hub
from danlu.align import losses, scoring
from danlu.align.ppo import ActorCritic, PPOSettings, ppo
from danlu.align.rewards import RewardScore
from danlu.align.rollout import Cursor, Experience, Prompt, Rollouts, Sampled, Score, gather_prompts
from danlu.align.scoring import Opening
from danlu.errors import UserError
from danlu.infer.generate import Generator
from danlu.infer.sampler import Sampling
from danlu.model.decoder import Decoder
from danlu.records import Conversation, Message
from danlu.run import Stage
from danlu.tokens import chat
from danlu.tokens.tokenizer import Tokenizer

SETTINGS = PPOSettings(
    judge="prose", iterations=6, batch_size=8, mini_batch=4, micro_batch=2, epochs=2, max_new_tokens=6, lr=1e-3,
    critic_lr=1e-3, approx_kl_limit=10.0, probe_every=2, probe_prompts=4, dtype="float32",
)  # fmt: skip
MakeModel = Callable[..., Decoder]


def no_score(sampled: Sampled) -> Tensor:
    return torch.zeros(len(sampled.sequences))


@pytest.fixture
def collect(make_model: MakeModel, tokenizer: Tokenizer, prompts: list[Prompt]) -> Callable[..., Experience]:
    """An experience of the first model, scored at random by default."""

    def make(model: Decoder | None = None, score: Score | None = None) -> Experience:
        generator = torch.Generator().manual_seed(5)
        random = torch.randn(len(prompts), generator=generator)
        sampler = Generator(model or make_model(), tokenizer, torch.float32)
        return Rollouts(sampler, score or (lambda _: random), 6, tokenizer.pad).collect(prompts, 1, "test")

    return make


def learner(make_model: MakeModel, **changes: object) -> ActorCritic:
    settings = SETTINGS.model_copy(update=changes)
    return ActorCritic(make_model(), make_model("scalar", seed=1), settings)


# ------------------------------------------------------------------------------------------------ rollout


def test_a_stop_token_is_an_action_and_a_cut_off_answer_has_none(
    collect: Callable[..., Experience], tokenizer: Tokenizer
) -> None:
    experience = collect()
    sequences, stop = experience.sequences, chat.stop_ids(tokenizer)[0]
    last = sequences.tokens[torch.arange(len(sequences)), sequences.lengths - 1]
    assert (last == stop).tolist() == experience.finished.tolist()
    assert (sequences.mask.sum(1)[~experience.finished] == 6).all()
    assert tokenizer.pad != stop


def test_a_sample_depends_on_neither_its_neighbours_nor_the_past(
    make_model: MakeModel, tokenizer: Tokenizer, prompts: list[Prompt]
) -> None:
    rollouts = Rollouts(Generator(make_model(), tokenizer, torch.float32), no_score, 6, tokenizer.pad)
    first = rollouts.collect(prompts, 1, "a")
    rollouts.collect(prompts, 1, "b")
    assert rollouts.collect(prompts, 1, "a").texts == first.texts
    assert rollouts.collect(prompts[:3], 1, "a").texts == first.texts[:3]
    assert rollouts.collect(prompts, 2, "a").texts != first.texts


def test_the_samplers_logprobs_are_the_scorers(
    make_model: MakeModel, tokenizer: Tokenizer, prompts: list[Prompt]
) -> None:
    model, ids = make_model(), [prompt.ids for prompt in prompts]
    sampled = Generator(model, tokenizer, torch.float32).generate(ids, Sampling(max_new_tokens=6), range(len(ids)))
    sequences = scoring.pad(ids, [completion.tokens for completion in sampled], tokenizer.pad)
    scored = scoring.response_logprobs(model, sequences)
    for row, completion in enumerate(sampled):
        expected = torch.tensor(completion.logprobs)
        torch.testing.assert_close(scored[row, : len(expected)], expected, rtol=1e-3, atol=1e-4)


def test_the_score_is_in_units_of_the_sft_models_spread_and_no_end_costs(make_model: MakeModel) -> None:
    model, sequences = make_model("scalar"), scoring.pad([[1], [2]], [[3], [4]], 0)
    raw = scoring.rewards(model, sequences).detach()
    score = RewardScore(model, mean=0.5, std=0.01, micro_batch=1, missing_end_penalty=1.0, clip=2.0)
    expected = ((raw - 0.5) / 0.01).clamp(-2, 2) - torch.tensor([0.0, 1.0])
    torch.testing.assert_close(
        score(Sampled(sequences, torch.tensor([True, False]), (), (), torch.zeros(2, 2))), expected
    )


def test_the_cursor_goes_through_everything_once_per_epoch() -> None:
    cursor = Cursor(10, 7, "x")
    seen = [index for step in range(5) for index in cursor.batch(step, 4)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]
    assert Cursor(10, 7, "x").batch(3, 4) == cursor.batch(3, 4)
    assert Cursor(10, 8, "x").batch(0, 10) != cursor.batch(0, 10)


def test_what_comes_first_does_so_in_the_first_epoch_only() -> None:
    plain, led = Cursor(10, 7, "x"), Cursor(10, 7, "x", first=(2, 5, 8))
    order = plain.batch(0, 10)
    chosen = [index for index in order if index in (2, 5, 8)]
    assert led.batch(0, 10) == chosen + [index for index in order if index not in chosen]
    assert led.batch(1, 10) == plain.batch(1, 10)


def test_prompts_are_those_the_judge_accepts_once_each_and_short_enough(tokenizer: Tokenizer) -> None:
    asked = ["写：春", "写：春", "问：夏", "写：" + "山" * 30]
    conversations = [Conversation((Message("user", text), Message("assistant", "好"))) for text in asked]
    found = gather_prompts(conversations, tokenizer, lambda text: text.startswith("写"), longest=20)
    assert [prompt.text for prompt in found] == ["写：春"]


# ------------------------------------------------------------------------------------------------- update


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_ratio_is_one_to_the_last_bit(
    make_model: MakeModel, collect: Callable[..., Experience], dtype: torch.dtype
) -> None:
    trained = learner(make_model, epochs=1, mini_batch=8)
    trained.policy.compute_in(dtype)
    scored = trained.score(collect(), trained.policy, beta=0.1)
    for rows in scoring.parts_by_length(scored.experience.sequences, 2):
        again = scoring.response_logprobs(trained.policy, scored.experience.sequences.rows(rows))
        assert torch.equal(again, scored.logprobs[rows])
    step = trained.update(scored, 0, seed=0)
    assert step["approx_kl"] == 0.0
    assert step["clipped"] == 0.0


def test_kl_is_exactly_zero_while_policy_and_reference_are_one(
    make_model: MakeModel, collect: Callable[..., Experience]
) -> None:
    scored = learner(make_model).score(collect(), make_model(), beta=0.1)
    assert losses.kl_k1(scored.logprobs, scored.reference).abs().max() == 0.0


def test_the_kl_penalty_and_the_score_become_returns(make_model: MakeModel, collect: Callable[..., Experience]) -> None:
    experience, other = collect(), make_model(seed=9)
    scored = learner(make_model, lam=1.0).score(experience, other, beta=0.5)
    kl = losses.kl_k1(scored.logprobs, scored.reference).sum(1)
    torch.testing.assert_close(scored.returns[:, 0], experience.scores - 0.5 * kl, rtol=1e-4, atol=1e-5)
    assert float(scored.advantages[scored.mask].mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(scored.advantages[scored.mask].std(correction=0)) == pytest.approx(1.0, abs=1e-4)


def test_the_critic_starts_at_the_mean_score_with_the_reward_models_trunk(
    make_model: MakeModel, collect: Callable[..., Experience]
) -> None:
    trained, experience = learner(make_model), collect()
    scored = trained.score(experience, make_model(), beta=0.0)
    assert (scored.values == 0).all()
    tokens = experience.sequences.tokens
    assert torch.equal(trained.critic.hidden(tokens).states, make_model("scalar", seed=1).hidden(tokens).states)
    losses_seen = [trained.update(scored, 0, seed=seed)["value_loss"] for seed in range(10)]
    assert losses_seen[-1] < losses_seen[0]


@pytest.mark.parametrize("role", ["policy", "critic"])
def test_splitting_into_micro_batches_changes_nothing(
    make_model: MakeModel, collect: Callable[..., Experience], role: str
) -> None:
    moved = []
    for size in (1, 3, 8):
        trained = learner(make_model, epochs=1, mini_batch=8, micro_batch=size)
        trained.update(trained.score(collect(), make_model(seed=9), beta=0.1), 0, seed=0)
        moved.append(torch.cat([p.detach().flatten() for p in getattr(trained, role).parameters()]))
    torch.testing.assert_close(moved[0], moved[1], rtol=0, atol=2e-6)
    torch.testing.assert_close(moved[0], moved[2], rtol=0, atol=2e-6)


@pytest.mark.parametrize("mini_batch", [4, 8])
def test_the_first_step_makes_no_forward_again_and_moves_the_same(
    make_model: MakeModel, collect: Callable[..., Experience], mini_batch: int
) -> None:
    moved, forwards = [], []
    for kept in (True, False):
        trained = learner(make_model, micro_batch=8, mini_batch=mini_batch)
        scored = trained.score(collect(), make_model(seed=9), beta=0.1)
        if not kept:
            scored = replace(scored, opening=Opening(), opening_values=Opening())
        models, seen = (trained.policy, trained.critic), [0, 0]

        def count(module: nn.Module, *_: object, models: tuple[Decoder, ...] = models, seen: list[int] = seen) -> None:
            seen[[model.norm for model in models].index(module)] += 1

        for model in models:
            model.norm.register_forward_hook(count)
        trained.update(scored, 0, seed=0)
        moved.append([parameter for model in models for parameter in model.parameters()])
        forwards.append(seen)
    steps = 2 * 8 // mini_batch
    assert forwards == [[steps - 1, steps - 1], [steps, steps]]
    assert all(torch.equal(one, other) for one, other in zip(*moved, strict=True))


def test_an_update_that_went_too_far_stops_before_its_step(
    make_model: MakeModel, collect: Callable[..., Experience]
) -> None:
    trained = learner(make_model, approx_kl_limit=1e-9, mini_batch=4)
    scored = trained.score(collect(), make_model(), beta=0.1)
    first = trained.update(replace(scored, logprobs=scored.logprobs + 0.1), 0, seed=0)
    assert first == {"steps": 0.0, "stopped": 1.0, "skipped_steps": 0.0}
    fresh = learner(make_model)
    for role in ("policy", "critic"):
        for ours, theirs in zip(getattr(trained, role).parameters(), getattr(fresh, role).parameters(), strict=True):
            assert torch.equal(ours, theirs)
    assert trained.tensors().keys() == fresh.tensors().keys()  # not even the moments of Adam were made


def test_a_gradient_that_is_not_finite_changes_nothing(
    make_model: MakeModel, collect: Callable[..., Experience]
) -> None:
    trained = learner(make_model, max_skips=99)
    scored = trained.score(collect(), make_model(), beta=0.1)
    broken = replace(scored, advantages=scored.advantages * math.nan, returns=scored.returns * math.nan)
    trained.update(broken, 0, seed=0)
    for ours, theirs in zip(trained.policy.parameters(), make_model().parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_learning_rate_falls_to_nothing(make_model: MakeModel, collect: Callable[..., Experience]) -> None:
    trained = learner(make_model)
    trained.update(trained.score(collect(), make_model(), beta=0.1), SETTINGS.iterations, seed=0)
    for ours, theirs in zip(trained.policy.parameters(), make_model().parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_mixing_in_raises_the_likelihood_of_peoples_answers(
    make_model: MakeModel, collect: Callable[..., Experience], tokenizer: Tokenizer
) -> None:
    people = scoring.pad([[20, 21]] * 4, [[30, 31], [32], [33, 34], [35]], tokenizer.pad)
    reached = []
    for weight in (0.0, 5.0):
        trained = learner(make_model, mix=weight)
        scored = trained.score(collect(), make_model(), beta=0.1)
        trained.update(scored, 0, seed=0, mix=people if weight else None)
        reached.append(float(scoring.response_logprobs(trained.policy, people).detach().sum()))
    assert reached[1] > reached[0] + 0.05


def test_the_entropy_bonus_raises_entropy(make_model: MakeModel, collect: Callable[..., Experience]) -> None:
    reached = []
    for weight in (0.0, 1.0):
        trained, experience = learner(make_model, entropy=weight), collect()
        trained.update(trained.score(experience, make_model(), beta=0.1), 0, seed=0)
        reached.append(float(scoring.response_logprobs_entropy(trained.policy, experience.sequences)[1].detach().sum()))
    assert reached[1] > reached[0]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_planted_reward_rises(seed: int, make_model: MakeModel, tokenizer: Tokenizer, prompts: list[Prompt]) -> None:
    """Paid for 花, the policy writes 花; the KL shows what it cost."""
    wanted = tokenizer.encode("花")[0]

    def score(sampled: Sampled) -> Tensor:
        return (sampled.sequences.tokens == wanted).sum(1).float()

    trained = learner(make_model, iterations=40, lr=1e-2, critic_lr=1e-2, mini_batch=32, micro_batch=32, epochs=2)
    sampler = Generator(trained.policy, tokenizer, torch.float32)
    rollouts, reference, means = Rollouts(sampler, score, 6, tokenizer.pad), make_model(), []
    for iteration in range(13):
        sampler.refresh()
        experience = rollouts.collect(prompts * 4, seed, "planted", iteration)
        means.append(float(experience.scores.mean()))
        scored = trained.score(experience, reference, beta=0.01)
        trained.update(scored, iteration, seed=iteration)
    assert sum(means[-3:]) / 3 > sum(means[:3]) / 3 + 1.0
    assert float(losses.kl_k1(scored.logprobs, scored.reference).sum(1).mean()) > 0.5


# -------------------------------------------------------------------------------------------------- stage


def test_a_killed_run_goes_on_to_the_same_bytes(
    sft_dir: Path, reward_dir: Path, make_stage: Callable[..., Stage]
) -> None:
    inputs = {"sft": sft_dir, "reward": reward_dir}
    (whole, figures), (killed, again) = whole_and_killed(ppo, partial(make_stage, "ppo", SETTINGS, inputs))
    assert (whole.dir / "model/model.safetensors").read_bytes() == (killed.dir / "model/model.safetensors").read_bytes()
    last = "ckpt/000006/tensors.safetensors"
    assert (whole.dir / last).read_bytes() == (killed.dir / last).read_bytes()
    assert without_times(whole.metrics.read()) == without_times(killed.metrics.read())
    assert (whole.dir / "monitor.json").read_bytes() == (killed.dir / "monitor.json").read_bytes()
    assert figures["beta"] == again["beta"] != SETTINGS.kl_coefficient


def test_the_stage_tells_how_it_went(sft_dir: Path, reward_dir: Path, make_stage: Callable[..., Stage]) -> None:
    stage = make_stage("ppo", SETTINGS.model_copy(update={"mix": 0.5}), {"sft": sft_dir, "reward": reward_dir})
    figures = ppo(stage)
    rows = stage.metrics.read()
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[0]["kl"] == 0.0
    assert rows[-1]["kl"] != 0.0
    assert "mix_loss" in rows[0]
    seen = json.loads((stage.dir / "monitor.json").read_text(encoding="utf-8"))
    assert [row["iteration"] for row in seen["looks"]] == [0, 2, 4, 6]
    assert seen["chosen"] == figures["kept"]
    assert seen["looks"][0]["kl"] == 0.0
    policy, sft = hub.load(stage.dir / "model"), hub.load(sft_dir / "model")
    moved = any(not torch.equal(a, b) for a, b in zip(policy.parameters(), sft.parameters(), strict=True))
    assert moved == (figures["kept"] > 0)


def test_gradients_that_are_not_finite_stop_the_run(make_model: MakeModel, collect: Callable[..., Experience]) -> None:
    learns = learner(make_model, max_skips=2)
    scored = learns.score(collect(), make_model(seed=3), 0.1)
    before = {name: weight.clone() for name, weight in learns.policy.state_dict().items()}
    poisoned = replace(scored, advantages=scored.advantages * float("nan"), returns=scored.returns * float("nan"))
    with pytest.raises(UserError, match="not finite for 2 steps in a row"):
        learns.update(poisoned, 0, seed=1)
    assert all(torch.equal(weight, before[name]) for name, weight in learns.policy.state_dict().items())


def test_a_sound_critic_hides_no_broken_policy(make_model: MakeModel, collect: Callable[..., Experience]) -> None:
    learns = learner(make_model, max_skips=2, mini_batch=2)
    scored = learns.score(collect(), make_model(seed=3), 0.1)
    poisoned = replace(scored, advantages=scored.advantages * float("nan"))
    with pytest.raises(UserError, match=r"the policy.s gradient was not finite for 2 steps in a row.*lower ppo\.lr"):
        learns.update(poisoned, 0, seed=1)
    patient = learner(make_model, max_skips=99, mini_batch=2)
    steps = patient.update(poisoned, 0, seed=1)
    assert steps["skipped_steps"] == steps["steps"] > 1
