"""Practice by two processes, as ``torchrun`` starts them: the iterations of one; both end where one of them does."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from mortal import without_times
from pair import PLAYED, play
from torch import Tensor

from danlu import hub
from danlu.align import trunk
from danlu.align.answering import PracticeSettings
from danlu.align.grpo import Grouped, GRPOSettings
from danlu.align.learner import Learner
from danlu.align.online import OnlineDPOSettings, OnlinePairs
from danlu.align.ppo import ActorCritic, PPOSettings
from danlu.align.practice import Practice, practise
from danlu.align.rollout import Prompt, Rollouts, Sampled
from danlu.errors import UserError
from danlu.infer.generate import Generator
from danlu.model.decoder import Decoder
from danlu.run import Metrics, Stage
from danlu.tokens.tokenizer import Tokenizer
from danlu.train.parallel import ALONE, World

COMMON: dict[str, Any] = {
    "judge": "prose", "iterations": 3, "max_new_tokens": 6, "lr": 1e-3, "probe_every": 2, "probe_prompts": 3,
    "probe_tokens": 0, "dtype": "float32",
}  # fmt: skip
SETTINGS: dict[str, PracticeSettings] = {
    # Of the ninth answer, a step of its own, the second process has nothing; the third step begins too far away.
    "ppo": PPOSettings(
        **COMMON | {"probe_tokens": 256}, batch_size=9, mini_batch=8, micro_batch=8, epochs=2, mix=0.5, ema=0.5,
        approx_kl_limit=1e-3,
    ),
    "grpo": GRPOSettings(**COMMON, method="dapo", batch_size=16, mini_batch=16, micro_batch=16, group_size=4),
    "online_dpo": OnlineDPOSettings(**COMMON, batch_size=8, mini_batch=8, micro_batch=8),
}  # fmt: skip
MakeStage = Callable[..., Stage]
MakeModel = Callable[..., Decoder]


def practised(stage: Stage) -> Learner:
    """A stage run, and what has learnt in it."""
    found: list[Learner] = []

    def make(policy: Decoder, world: World) -> Learner:
        match stage.settings:
            case PPOSettings() as settings:
                critic = trunk.critic(stage, policy, settings.adapter)
                found.append(ActorCritic(policy, critic, settings, world))
            case GRPOSettings() as settings:
                found.append(Grouped(policy, settings, world))
            case settings:
                found.append(OnlinePairs(policy, cast(OnlineDPOSettings, settings), world))
        return found[0]

    practise(stage, make)
    return found[0]


def digest(tensors: dict[str, Tensor]) -> str:
    """Their bytes in short."""
    return hashlib.sha256(b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))).hexdigest()


class Felled(Metrics):
    """Metrics of a process that is killed when its third iteration has been logged."""

    def log(self, step: int, **numbers: float | int | str | None) -> None:
        super().log(step, **numbers)
        if step == 3:
            os.kill(os.getpid(), signal.SIGKILL)


def assert_near(ours: Any, theirs: Any) -> None:
    """Two JSON values are the same, numbers up to rounding."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_near(ours[key], theirs[key])
    elif isinstance(ours, list):
        for one, other in zip(ours, theirs, strict=True):
            assert_near(one, other)
    else:
        assert theirs == (pytest.approx(ours, abs=1e-5) if isinstance(ours, float) else ours)


def test_two_processes_practise_as_one_does_and_go_on_after_a_kill(
    sft_dir: Path, reward_dir: Path, make_stage: MakeStage
) -> None:
    def begin(name: str, by: str, metrics: type[Metrics] = Metrics) -> Stage:
        inputs = {"sft": sft_dir, "reward": reward_dir}
        return make_stage(name, SETTINGS[name], inputs, folder=f"{name}-{by}", metrics=metrics)

    def every(world: World) -> None:
        if not world.main:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # writes nothing, or fails
        for name in SETTINGS:
            first, second = world.gather([digest(practised(begin(name, "two")).tensors())])
            assert first == second, name

    def felled(world: World) -> None:
        with pytest.raises(UserError, match="another process has ended"):
            practised(begin("ppo", "felled", Felled if world.main else Metrics))

    for name in SETTINGS:
        practised(begin(name, "one"))
    play(every)
    for name in SETTINGS:
        one, two = begin(name, "one"), begin(name, "two")
        ours, theirs = (without_times(stage.metrics.read()) for stage in (one, two))
        assert [row["step"] for row in theirs] == [1, 2, 3]
        assert_near(ours, theirs)
        looks = [json.loads((stage.dir / "monitor.json").read_text(encoding="utf-8")) for stage in (one, two)]
        assert_near(*looks)  # with what was answered
        weights = [hub.load(stage.dir / "model").state_dict() for stage in (one, two)]
        for key, weight in weights[0].items():
            assert (weight - weights[1][key]).abs().max() < 1e-4, key
        if name == "ppo":
            assert any(row["stopped"] for row in theirs)
        if name == "grpo":  # one step each, whose first ratio is 1 to the last bit
            assert all(row["approx_kl"] == row["clipped"] == 0.0 for row in theirs)
    play(felled, ends=(-signal.SIGKILL, PLAYED))
    play(lambda _: practised(begin("ppo", "felled")))
    whole, again = begin("ppo", "two"), begin("ppo", "felled")
    for file in ("model/model.safetensors", "ckpt/000003/tensors.safetensors", "monitor.json"):
        assert (whole.dir / file).read_bytes() == (again.dir / file).read_bytes(), file
    assert without_times(whole.metrics.read()) == without_times(again.metrics.read())


def test_rows_are_shared_and_a_sentence_of_one_process_ends_both(
    sft_dir: Path, reward_dir: Path, make_stage: MakeStage, make_model: MakeModel, tokenizer: Tokenizer,
    prompts: list[Prompt],
) -> None:  # fmt: skip
    sampler = Generator(make_model(), tokenizer, torch.float32)

    def length(sampled: Sampled) -> Tensor:
        return sampled.sequences.mask.sum(1).float()

    def both(world: World) -> None:
        for n in (1, 5):  # the first process has no row of one
            asked = [prompts[row // 2] for row in range(n)]
            one, two = (
                Rollouts(sampler, length, 6, tokenizer.pad, world=by).collect(asked, 1, "x") for by in (ALONE, world)
            )
            for name in ("tokens", "prompt_lengths", "mask"):
                assert torch.equal(getattr(one.sequences, name), getattr(two.sequences, name)), name
            assert one.texts == two.texts
            assert one.prompts == two.prompts
            assert torch.equal(one.finished, two.finished)
            assert torch.equal(one.scores, two.scores)
            assert (one.drawn - two.drawn).abs().max() < 1e-5
        calls = []

        def score(sampled: Sampled) -> Tensor:
            calls.append(len(sampled.texts))
            if not world.main and len(calls) == 3:
                raise UserError("the second process knows no further")
            return length(sampled)

        stage = make_stage("grpo", SETTINGS["grpo"], {"sft": sft_dir, "reward": reward_dir})
        trained = Grouped(make_model(), cast(GRPOSettings, stage.settings), world)
        practice = Practice(stage, tokenizer, trained, make_model(), score, Generator(trained.policy, tokenizer))
        with pytest.raises(UserError, match="another process has ended" if world.main else "knows no further"):
            practice.run()
        assert calls[:2] == ([1, 8] if world.main else [2, 8])

    play(both)
