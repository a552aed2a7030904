"""Alignment on a GPU: every learner goes the way that it goes on a CPU, whatever of the model is trained.

A stage runs twice, on either device and in fp32, from the same files. The answers are the same then, since the numbers
that decide are addressed and the rounding of a logit is far finer than they are. How far the weights end up apart is
told as a share of the way that they went. An element of a step is g / (|g| + eps), with the eps of Adam's, so rounding
turns it where the gradient is hardly larger than its own error. With noise of 1e-6 in every product, sum and softmax,
ten times the rounding of fp32, the shares were 0.00001 to 0.001; ``NEAR`` is ten times the largest, and what the 3e-4
of TF32 would go beyond.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from mortal import whole_and_killed
from safetensors.torch import load_file
from torch import Tensor
from workshop import MakeStage

from danlu import hub
from danlu.align import scoring, siblings
from danlu.align.best_of import BestOfSettings, best_of
from danlu.align.direct import DPOSettings, dpo
from danlu.align.grpo import METHODS, GRPOSettings, grpo
from danlu.align.heads import FILE
from danlu.align.online import OnlineDPOSettings, online_dpo
from danlu.align.ppo import PPOSettings, ppo
from danlu.align.reward import RewardSettings, reward
from danlu.align.rollout import Prompt, Rollouts
from danlu.align.scoring import Sequences
from danlu.infer.generate import Generator
from danlu.model import Decoder
from danlu.tokens.tokenizer import Tokenizer

NEAR = 0.01
LORA = {"kind": "lora", "rank": 4, "alpha": 8.0}
DORA = {"kind": "dora", "rank": 4, "alpha": 8.0, "base_bits": 4}
PRACTICE: dict[str, Any] = {
    "judge": "prose", "iterations": 2, "batch_size": 8, "micro_batch": 4, "max_new_tokens": 6, "lr": 1e-3,
    "approx_kl_limit": 10.0, "probe_every": 2, "probe_prompts": 4, "probe_tokens": 64, "dtype": "float32",
}  # fmt: skip
PPO = PRACTICE | {"mini_batch": 4, "critic_lr": 1e-3}
LOOP: dict[str, Any] = {
    "batch_size": 8, "micro_batch": 4, "warmup": 0, "steps": 2, "log_every": 1, "max_new_tokens": 4, "dtype": "float32",
}  # fmt: skip
REWARD: dict[str, Any] = LOOP | {
    "lr": 1e-3, "scale_prompts": 8, "heads": 3, "ties": "davidson", "margin": 0.1, "centring": 0.01, "audit_share": 0.4,
}  # fmt: skip
GROUPED = PRACTICE | {"group_size": 4}
LEARNERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "ppo": (ppo, PPOSettings, PPO),
    "ppo and all that it can add": (ppo, PPOSettings, PPO | {"mix": 0.1, "entropy": 0.01, "ema": 0.5, "epochs": 2}),
    **{name: (grpo, GRPOSettings, GROUPED | {"method": name}) for name in METHODS},
    "grpo with a mean": (grpo, GRPOSettings, GROUPED | {"ema": 0.5, "epochs": 2}),
    "online dpo": (online_dpo, OnlineDPOSettings, GROUPED | {"mini_batch": 8}),
    "online ipo": (online_dpo, OnlineDPOSettings, GROUPED | {"mini_batch": 8, "loss": "ipo"}),
}
Inputs = Mapping[str, Path]


def share_apart(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> float:
    """How far tensors ended up apart, as a share of the way that they went; of an adapter only B is known to be 0."""
    assert ours.keys() == theirs.keys()
    way = {name: theirs[name] - start.get(name, 0) for name in theirs if goes(name, start)}
    gone, apart = (torch.cat([t.flatten() for t in ts]).norm() for ts in (
        way.values(), (ours[name] - theirs[name] for name in theirs)
    ))  # fmt: skip
    assert gone > 0
    return float(apart / gone)


def goes(name: str, start: Mapping[str, Tensor]) -> bool:
    return name in start or "lora_B" in name


def weights(folder: Path) -> dict[str, Tensor]:
    return dict(hub.load(folder / "model").state_dict())


def on_both(run: Callable[..., Any], make: Callable[..., Any], tmp_path: Path) -> tuple[list[Path], list[Any]]:
    """A stage's directory and figures on a CPU and on a GPU."""
    found = [run(make(device=device, folder=f"on-{device}")) for device in ("cpu", "cuda")]
    return [tmp_path / f"on-{device}" for device in ("cpu", "cuda")], found


def begin(
    make_stage: MakeStage, name: str, kind: Any, said: Mapping[str, Any], inputs: Inputs, device: str = "cuda",
    **more: Any,
) -> Any:  # fmt: skip
    return make_stage(name, kind(**said, device=device), inputs, **more)


def checkpoint(folder: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of the last one, by whose they are."""
    (place,) = sorted((folder / "ckpt").iterdir())[-1:]
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in load_file(place / "tensors.safetensors").items():
        part, _, rest = name.partition("/")
        found.setdefault(part, {})[rest] = tensor
    return found


def assert_alike(folders: list[Path], start: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Practice looked the same and went the same way."""
    first, second = (json.loads((folder / "monitor.json").read_text(encoding="utf-8"))["looks"] for folder in folders)
    for expected, ours in zip(first, second, strict=True):
        assert [one["answer"] for one in ours["examples"]] == [one["answer"] for one in expected["examples"]]
        for key, value in expected.items():
            if isinstance(value, float) and key != "sqrt_kl":  # which makes much of a kl of nearly 0
                assert ours[key] == pytest.approx(value, rel=2e-3, abs=2e-3), key
    theirs, mine = map(checkpoint, folders)
    parts = [part for part in ("policy", "critic", "mean") if part in theirs]
    for part in parts:
        assert share_apart(mine[part], theirs[part], start["critic" if part == "critic" else "policy"]) < NEAR, part


@pytest.mark.parametrize("name", LEARNERS)
def test_practice_goes_the_cpus_way(
    name: str, sft_dir: Path, reward_dir: Path, make_stage: MakeStage, tmp_path: Path
) -> None:
    run, kind, said = LEARNERS[name]
    make = partial(begin, make_stage, run.__name__, kind, said, {"sft": sft_dir, "reward": reward_dir})
    folders, _ = on_both(run, make, tmp_path)
    critic = weights(reward_dir) | {"score.weight": torch.zeros_like(weights(reward_dir)["score.weight"])}
    assert_alike(folders, {"policy": weights(sft_dir), "critic": critic})


@pytest.fixture
def adapted_reward(sft_dir: Path, rankings: Path, make_stage: MakeStage) -> Path:
    """A reward model of three heads that is an adapter, trained on the GPU."""
    pytest.importorskip("peft")
    stage = begin(
        make_stage, "reward", RewardSettings, REWARD | {"adapter": LORA}, {"sft": sft_dir, "rankings": rankings}
    )
    reward(stage)
    return Path(stage.dir)


@pytest.mark.parametrize("adapter", [LORA, DORA, LORA | {"base_bits": 16}], ids=["lora", "dora in 4 bits", "16 bits"])
def test_models_on_one_trunk_go_the_cpus_way(
    adapter: dict[str, Any], sft_dir: Path, adapted_reward: Path, make_stage: MakeStage, tmp_path: Path
) -> None:
    """In 32 bits the reward model shares the trunk too; otherwise it stays a model of its own."""
    said = PPO | {"adapter": adapter, "rewards": [{"kappa": 0.5}], "lr": 1e-2, "critic_lr": 1e-2, "ema": 0.5}
    inputs = {"sft": sft_dir, "reward": adapted_reward}
    folders, _ = on_both(ppo, partial(begin, make_stage, "ppo", PPOSettings, said, inputs), tmp_path)
    assert_alike(folders, {"policy": {}, "critic": {}})
    for folder in folders:
        assert all(
            tensor.isfinite().all() for tensor in load_file(folder / "adapter/adapter_model.safetensors").values()
        )


def test_practice_that_was_killed_goes_on(sft_dir: Path, adapted_reward: Path, make_stage: MakeStage) -> None:
    said = PPO | {"adapter": LORA, "iterations": 5, "ema": 0.5}
    inputs = {"sft": sft_dir, "reward": adapted_reward}
    (whole, _), (killed, _) = whole_and_killed(ppo, partial(begin, make_stage, "ppo", PPOSettings, said, inputs))
    theirs, mine = checkpoint(whole.dir), checkpoint(killed.dir)
    for part in ("policy", "critic", "mean"):
        assert share_apart(mine[part], theirs[part], {}) < NEAR  # a GPU adds in no fixed order


@pytest.mark.parametrize("loss", ["dpo", "ipo", "kto", "orpo", "simpo"])
def test_direct_losses_go_the_cpus_way(
    loss: str, sft_dir: Path, rankings: Path, make_stage: MakeStage, tmp_path: Path
) -> None:
    said = LOOP | {"loss": loss, "lr": 1e-3, "probe_prompts": 4}
    make = partial(begin, make_stage, "dpo", DPOSettings, said, {"sft": sft_dir, "rankings": rankings})
    folders, (expected, ours) = on_both(dpo, make, tmp_path)
    for key in ("val_loss", "val_margin", "val_chosen", "val_rejected"):
        if key in expected:
            assert ours[key] == pytest.approx(expected[key], rel=1e-3, abs=1e-4), key
    assert ours["after"]["kl"] == pytest.approx(expected["after"]["kl"], rel=1e-2, abs=1e-3)
    assert share_apart(weights(folders[1]), weights(folders[0]), weights(sft_dir)) < NEAR


def test_dpo_of_an_adapter_in_four_bits_with_dropout_learns(
    sft_dir: Path, rankings: Path, make_stage: MakeStage
) -> None:
    """Which inputs are dropped no CPU can tell; bf16, as a GPU is used."""
    pytest.importorskip("peft")
    said = LOOP | {"adapter": LORA | {"base_bits": 4, "dropout": 0.1}, "lr": 2e-2, "steps": 12, "dtype": "bfloat16"}
    figures = dpo(begin(make_stage, "dpo", DPOSettings, said, {"sft": sft_dir, "rankings": rankings}))
    assert figures["val_accuracy"] > 0.9


@pytest.mark.parametrize("changes", [{}, {"heads": 1, "ties": "skip"}], ids=["heads and ties", "plain"])
def test_reward_models_go_the_cpus_way(
    changes: dict[str, Any], sft_dir: Path, rankings: Path, make_stage: MakeStage, tmp_path: Path
) -> None:
    said, inputs = REWARD | changes, {"sft": sft_dir, "rankings": rankings}
    folders, (expected, ours) = on_both(
        reward, partial(begin, make_stage, "reward", RewardSettings, said, inputs), tmp_path
    )
    for key in ("val_loss", "mean", "std", "nu"):
        if key in expected:
            assert ours[key] == pytest.approx(expected[key], rel=1e-2, abs=1e-3), key
    start = {name: tensor for name, tensor in weights(sft_dir).items() if name in weights(folders[0])}
    assert share_apart(weights(folders[1]), weights(folders[0]), start) < NEAR
    if not changes:
        every, theirs = (load_file(folder / "model" / FILE) for folder in (folders[1], folders[0]))
        for name, tensor in theirs.items():
            torch.testing.assert_close(every[name], tensor, atol=1e-3, rtol=1e-3)


def test_the_best_of_many_is_the_cpus(sft_dir: Path, reward_dir: Path, make_stage: MakeStage, tmp_path: Path) -> None:
    said = {
        "judge": "prose", "most_prompts": 40, "n": 4, "max_new_tokens": 8, "batch_size": 4, "lr": 1e-3, "steps": 2,
        "warmup": 0, "probe_prompts": 4, "probe_tokens": 64, "dtype": "float32", "seq_len": 64,
    }  # fmt: skip
    inputs = {"sft": sft_dir, "reward": reward_dir}
    folders, _ = on_both(best_of, partial(begin, make_stage, "best_of", BestOfSettings, said, inputs), tmp_path)
    kept = [
        [json.loads(line)["response"] for line in (folder / "samples" / "00000.jsonl").open(encoding="utf-8")]
        for folder in folders
    ]
    assert kept[0] == kept[1]
    assert share_apart(weights(folders[1]), weights(folders[0]), weights(sft_dir)) < NEAR


@pytest.fixture
def answers(make_model: Callable[..., Decoder], tokenizer: Tokenizer, prompts: list[Prompt]) -> Sequences:
    """On the GPU, six to each of four prompts, in no order."""
    rollouts = Rollouts(Generator(make_model(), tokenizer), lambda _: torch.zeros(24), 6, tokenizer.pad, "cuda")
    return rollouts.collect(prompts[:4] * 6, 1, "test").sequences


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_siblings_say_what_each_says_by_itself(
    dtype: torch.dtype, make_model: Callable[..., Decoder], answers: Sequences
) -> None:
    """And in fp32 what each says on a CPU."""
    found = []
    assert siblings.answers_a_row(make_model().config, 8, 6, 6) > 1
    at_home = Sequences(answers.tokens.cpu(), answers.prompt_lengths.cpu(), answers.mask.cpu())
    for reading, rows in ((scoring, at_home), (scoring, answers), (siblings, answers)):
        model = make_model().to(rows.tokens.device).compute_in(dtype if rows is answers else torch.float32)
        logprobs, entropies = reading.response_logprobs_entropy(model, rows)
        pull = torch.linspace(-1, 2, rows.mask.numel(), device=rows.mask.device).view(rows.mask.shape)
        (pull * (logprobs + 0.5 * entropies)).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append([each.detach().cpu() for each in (logprobs, entropies, gradient)])
    for expected, alone, beside in zip(*found, strict=True):
        for ours in (alone, beside):
            assert (ours - expected).norm() < (1e-5 if dtype == torch.float32 else 3e-2) * expected.norm()
