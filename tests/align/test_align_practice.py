"""The loop of practice seen from outside: a planted over-optimisation is noticed, and stopped if that is wanted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from danlu import hub
from danlu.align.grpo import Grouped, GRPOSettings
from danlu.align.ppo import PPOSettings, ppo
from danlu.align.practice import Practice
from danlu.align.rollout import Sampled
from danlu.align.trunk import START
from danlu.evals.judge import JUDGES, Judge
from danlu.files import write_json
from danlu.infer import Generator
from danlu.model.decoder import Decoder
from danlu.run import Stage
from danlu.tokens.tokenizer import Tokenizer

MakeModel = Callable[..., Decoder]
MakeStage = Callable[..., Stage]
SETTINGS = GRPOSettings(
    judge="tired", iterations=16, batch_size=32, mini_batch=32, group_size=8, max_new_tokens=8, lr=1.5e-2,
    approx_kl_limit=10.0, kl_coefficient=0.0, kl_budget=1e9, probe_every=1, probe_prompts=20, probe_tokens=0,
    dtype="float32",
)  # fmt: skip


def tired(prompt: str, answer: str) -> dict[str, float]:
    """What the reward does not know of, in points of a hundred: people like one 花 and tire of more."""
    flowers = answer.count("花")
    return {"total": 100.0 - 5.0 * abs(flowers - 1)}


@pytest.fixture
def hack(
    sft_dir: Path, make_stage: MakeStage, make_model: MakeModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Practice for a reward that can be had by writing 花 everywhere; returns its figures and looks."""
    monkeypatch.setitem(JUDGES, "tired", Judge("tired", (), bool, tired))
    wanted = tokenizer.encode("花")[0]

    def score(sampled: Sampled) -> Tensor:
        return (sampled.sequences.tokens == wanted).sum(1).float()

    def run(**changes: object) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        settings = SETTINGS.model_copy(update=changes)
        stage = make_stage("grpo", settings, {"sft": sft_dir}, folder=f"stops-{settings.stop_on_alarm}")
        trained = Grouped(make_model(), stage.settings)  # type: ignore[arg-type]
        sampler = Generator(trained.policy, tokenizer, trained.policy.compute_dtype)
        figures = Practice(stage, tokenizer, trained, make_model(), score, sampler).run()
        return figures, json.loads((stage.dir / "monitor.json").read_text(encoding="utf-8"))["looks"]

    return run


def test_a_planted_over_optimisation_is_stopped_before_the_judge_falls_by_five_points(hack: Any) -> None:
    left_alone, looks = hack(probe_every=4)
    assert left_alone["alarms"]
    assert left_alone["after"]["judge"] < max(look["judge"] for look in looks) - 5.0  # kept by reward alone: the hack
    stopped, looks = hack(stop_on_alarm=True)
    assert stopped["stopped_after"] == stopped["alarms"][0] < SETTINGS.iterations
    assert stopped["kept"] < stopped["stopped_after"]
    assert min(stopped["after"]["judge"], looks[-1]["judge"]) > max(look["judge"] for look in looks) - 5.0
    again, _ = hack(stop_on_alarm=True)  # a run that was stopped has nothing more to do
    assert again["stopped_after"] == stopped["stopped_after"]


def test_an_audit_is_looked_at_and_not_learnt_from(
    sft_dir: Path, reward_dir: Path, make_stage: MakeStage, make_model: MakeModel, tokenizer: Tokenizer
) -> None:
    settings = PPOSettings(
        judge="prose", iterations=2, batch_size=8, mini_batch=8, max_new_tokens=6, probe_every=1, probe_prompts=4,
        dtype="float32",
    )  # fmt: skip
    inputs = {"sft": sft_dir, "reward": reward_dir}
    alone = make_stage("ppo", settings, inputs, folder="alone")
    ppo(alone)
    hub.save(make_model("scalar", seed=4), reward_dir / "audit", tokenizer, card={"stage": "reward"})
    write_json(reward_dir / "audit" / "reward.json", {"mean": 0.1, "std": 0.2})
    audited = make_stage("ppo", settings, inputs, folder="audited")
    ppo(audited)
    looks = json.loads((audited.dir / "monitor.json").read_text(encoding="utf-8"))["looks"]
    assert all(look["audit"] != look["reward"] and look["audit_error"] > 0 for look in looks)
    weights = "model/model.safetensors"
    assert (alone.dir / weights).read_bytes() == (audited.dir / weights).read_bytes()


def test_practice_goes_on_from_a_champion_and_is_held_to_the_sft_model(
    sft_dir: Path, reward_dir: Path, make_stage: MakeStage, make_model: MakeModel, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    settings = PPOSettings(
        judge="prose", iterations=1, batch_size=8, mini_batch=8, max_new_tokens=6, probe_every=1, probe_prompts=4,
        lr=1e-9, kl_budget=1e-3, probe_tokens=0, dtype="float32",
    )  # fmt: skip
    champion = make_model(seed=9)
    hub.save(champion, tmp_path / "champion", tokenizer, card={})
    inputs = {"sft": sft_dir, "reward": reward_dir}
    stage = replace(make_stage("ppo", settings, inputs, folder="on"), outside={START: tmp_path / "champion"})
    figures = ppo(stage)
    assert min(figures["before"]["kl"], figures["after"]["kl"]) > 0.01, "from the SFT model, and no budget hides it"
    kept = hub.load(stage.dir / "model").state_dict()
    assert all(torch.allclose(kept[name], tensor, atol=1e-6) for name, tensor in champion.state_dict().items())
