"""One trunk under four models: what they share, what they do not, and that a killed run goes on to the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from mortal import whole_and_killed, without_times
from pydantic import ValidationError
from safetensors.torch import load_file

from danlu import costs, device, hub
from danlu.align import scoring, trunk
from danlu.align.answering import PracticeSettings
from danlu.align.best_of import BestOfSettings, best_of
from danlu.align.direct import DPOSettings, dpo
from danlu.align.grpo import GRPOSettings, grpo
from danlu.align.ppo import PPOSettings, ppo
from danlu.align.reward import RewardSettings, reward
from danlu.errors import UserError
from danlu.files import read_json
from danlu.hub.adapter import with_adapter
from danlu.model.config import ModelConfig
from danlu.model.decoder import Decoder
from danlu.run import Stage
from danlu.train.adapters import AdapterSettings

pytest.importorskip("peft")
LORA = {"kind": "lora", "rank": 4, "alpha": 8.0}
PPO: dict[str, Any] = {
    "judge": "prose", "iterations": 5, "batch_size": 4, "mini_batch": 2, "micro_batch": 2, "epochs": 1,
    "max_new_tokens": 5, "lr": 1e-2, "approx_kl_limit": 10.0, "probe_every": 2, "probe_prompts": 2, "dtype": "float32",
    "probe_tokens": 0, "adapter": LORA,
}  # fmt: skip
REWARD: dict[str, Any] = {
    "batch_size": 16, "lr": 1e-2, "warmup": 2, "scale_prompts": 8, "max_new_tokens": 4, "dtype": "float32", "steps": 12,
    "save_every": 20, "adapter": LORA,
}  # fmt: skip
TOKENS = torch.tensor([[5, 6, 7, 8, 9, 10]])


@pytest.fixture
def adapted_reward(sft_dir: Path, rankings: Path, make_stage: Callable[..., Stage]) -> Path:
    """A finished reward stage that trained an adapter."""
    stage = make_stage("reward", RewardSettings(**REWARD), {"sft": sft_dir, "rankings": rankings})
    figures = reward(stage)
    assert figures["accuracy"] > 0.9
    return stage.dir


def scores(model: Decoder) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS)


def places(model: Decoder) -> set[int]:
    return {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}


def test_four_models_stand_on_the_very_same_weights(
    sft_dir: Path, adapted_reward: Path, make_stage: Callable[..., Stage]
) -> None:
    stage = make_stage("ppo", PPOSettings(**PPO), {"sft": sft_dir, "reward": adapted_reward})
    sft, whole = hub.load(sft_dir / "model"), hub.load(adapted_reward / "model")
    policy, reference = trunk.policy_and_reference(stage, stage.settings.adapter, device.choose("cpu", "float32"))
    judge, critic = (
        trunk.reward_model(stage, device.choose("cpu", "float32"), reference),
        trunk.critic(stage, policy, stage.settings.adapter),
    )
    trunk_places = places(reference)
    for model in (policy, judge, critic):
        assert places(model) > trunk_places
    moved = [{p.data_ptr() for p in model.parameters() if p.requires_grad} for model in (policy, critic)]
    assert not moved[0] & moved[1]
    assert not any(p.requires_grad for model in (reference, judge) for p in model.parameters())
    # Nothing has moved: the policy is the SFT model to the last bit; reward model and critic's states are the judge's.
    sequences = scoring.pad([[5, 6]], [[7, 8, 9]], 0)
    first = [scoring.response_logprobs(model, sequences) for model in (sft, reference, policy)]
    assert torch.equal(first[0], first[1])
    assert torch.equal(first[0], first[2])
    torch.testing.assert_close(scores(judge), scores(whole), atol=1e-5, rtol=1e-5)
    assert torch.equal(critic.hidden(TOKENS).states, judge.hidden(TOKENS).states)
    assert not torch.equal(judge.hidden(TOKENS).states, sft.hidden(TOKENS).states)


def test_a_killed_run_goes_on_to_the_same_bytes(
    sft_dir: Path, adapted_reward: Path, make_stage: Callable[..., Stage]
) -> None:
    inputs, settings = {"sft": sft_dir, "reward": adapted_reward}, PPOSettings(**PPO)
    (whole, _), (killed, _) = whole_and_killed(ppo, partial(make_stage, "ppo", settings, inputs))
    files = ("model/model.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json",
             "ckpt/000005/tensors.safetensors", "monitor.json")  # fmt: skip
    for name in files:
        assert (whole.dir / name).read_bytes() == (killed.dir / name).read_bytes(), name
    rows = without_times(whole.metrics.read())
    assert rows == without_times(killed.metrics.read())
    assert rows[0]["kl"] == 0.0
    assert rows[-1]["kl"] != 0.0
    kept = load_file(whole.dir / "ckpt/000005/tensors.safetensors")
    assert all(".lora_" in name or name.startswith("critic") for name in kept)
    assert {name for name in kept if name.startswith("critic/") and ".lora_" not in name} == {"critic/score.weight"}
    look = read_json(whole.dir / "monitor.json")["looks"][0]
    assert look["kl"] == 0.0


def test_a_reward_model_of_its_own_is_left_alone(
    sft_dir: Path, reward_dir: Path, make_stage: Callable[..., Stage], capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = {"sft": sft_dir, "reward": reward_dir}
    stage = make_stage("ppo", PPOSettings(**PPO), inputs)
    policy, reference = trunk.policy_and_reference(stage, stage.settings.adapter, device.choose("cpu", "float32"))
    judge = trunk.reward_model(stage, device.choose("cpu", "float32"), reference)
    assert torch.equal(scores(judge), scores(hub.load(reward_dir / "model")))
    critic = trunk.critic(stage, policy, stage.settings.adapter)
    assert torch.equal(critic.hidden(TOKENS).states, reference.hidden(TOKENS).states)  # a fresh adapter
    assert torch.equal(scores(critic), torch.zeros(1))
    changes = {"iterations": 1, "group_size": 2, "adapter": LORA | {"kind": "dora", "base_bits": 4}}
    told = {key: value for key, value in PPO.items() if key != "mini_batch"}
    practised = make_stage("grpo", GRPOSettings(**(told | changes)), inputs)
    figures = grpo(practised)
    assert figures["before"]["kl"] == 0.0
    small = with_adapter(hub.load(sft_dir / "model"), practised.dir / "adapter")  # on 32 bits: near, and not the same
    assert small.config == hub.load(practised.dir / "model").config


def test_dpo_in_four_bits_with_dropout_learns_and_goes_on_to_the_same_bytes(
    sft_dir: Path, rankings: Path, make_stage: Callable[..., Stage]
) -> None:
    settings = DPOSettings(
        batch_size=8, micro_batch=4, lr=2e-2, warmup=2, steps=12, eval_every=6, save_every=3, log_every=1,
        probe_prompts=4, max_new_tokens=4, dtype="float32",
        adapter=AdapterSettings(kind="lora", rank=4, alpha=8, dropout=0.2, base_bits=4, targets=("q", "v", "up")),
    )  # fmt: skip
    inputs = {"sft": sft_dir, "rankings": rankings}
    (whole, figures), (killed, again) = whole_and_killed(dpo, partial(make_stage, "dpo", settings, inputs))
    assert figures["val_accuracy"] > 0.9
    assert figures["after"]["kl"] > 0
    assert again | {"tokens_per_second": 0} == figures | {"tokens_per_second": 0}
    for name in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (whole.dir / name).read_bytes() == (killed.dir / name).read_bytes()
    adapted = {name.split(".")[-3] for name in load_file(whole.dir / "adapter/adapter_model.safetensors")}
    assert adapted == {"q_proj", "v_proj", "up_proj"}


def test_what_cannot_be_is_refused(sft_dir: Path, reward_dir: Path, make_stage: Callable[..., Stage]) -> None:
    for said, complaint in (
        ({"kind": "lora", "dropout": 0.1}, "without dropout"),
        ({"rank": 4}, "kind is none"),
        ({"kind": "dora", "base_bits": 8}, "8 bits"),
        ({"kind": "lora", "targets": ("qq",)}, "q_a"),
    ):
        with pytest.raises(ValidationError, match=complaint):
            PracticeSettings(adapter=said)
    stage = make_stage("ppo", PPOSettings(**(PPO | {"adapter": LORA | {"targets": ["kv_a"]}})), {"sft": sft_dir})
    with pytest.raises(UserError, match=r"targets names kv_a, .* these can: down, gate, k, o, q, up, v"):
        trunk.policy_and_reference(stage, stage.settings.adapter, device.choose("cpu", "float32"))


def tensors_of(folder: Path) -> int:
    """Bytes of all tensors below a folder."""
    return sum(t.nbytes for file in folder.rglob("*.safetensors") for t in load_file(file).values())


@pytest.mark.parametrize("told", [{"ema": 0.5}, {"adapter": LORA}], ids=["ema", "lora"])
def test_the_disk_that_practice_asks_for_is_what_it_writes(
    told: dict[str, Any], sft_dir: Path, reward_dir: Path, shape: ModelConfig, make_stage: Callable[..., Stage]
) -> None:
    settings = PPOSettings(**(PPO | {"adapter": {}, "iterations": 2, "probe_every": 1, "checkpoints": 1} | told))
    stage = make_stage("ppo", settings, {"sft": sft_dir, "reward": reward_dir})
    ppo(stage)
    twice = tensors_of(stage.dir) + tensors_of(stage.dir / "ckpt")  # the one that is kept, and the one being written
    assert costs.stored(shape, settings) == pytest.approx(twice, rel=0.02)
    more = (settings.model_copy(update={"checkpoints": n, "iterations": 4}) for n in (2, 4, 9))
    two, four, nine = (costs.stored(shape, one) for one in more)
    assert two < four == nine, "there are no more than four"


def test_the_disk_that_training_asks_for_is_what_it_writes(
    sft_dir: Path, rankings: Path, shape: ModelConfig, make_stage: Callable[..., Stage]
) -> None:
    told = REWARD | {"adapter": {}, "steps": 3, "save_every": 2, "checkpoints": 3, "audit_share": 0.3}
    stage = make_stage("reward", RewardSettings(**told), {"sft": sft_dir, "rankings": rankings})
    reward(stage)
    assert costs.stored(shape, stage.settings) == pytest.approx(tensors_of(stage.dir), rel=0.02)


def test_the_best_of_n_teach_an_adapter_on_the_trunk(
    sft_dir: Path, adapted_reward: Path, make_stage: Callable[..., Stage]
) -> None:
    settings = BestOfSettings(
        judge="prose", most_prompts=32, n=4, max_new_tokens=12, batch_size=4, lr=2e-2, epochs=2, warmup=0,
        probe_prompts=2, seq_len=64, dtype="float32", adapter=LORA | {"dropout": 0.1},
    )  # fmt: skip
    stage = make_stage("best_of", settings, {"sft": sft_dir, "reward": adapted_reward})
    figures = best_of(stage)
    assert figures["before"]["kl"] == 0.0 != figures["after"]["kl"]
    whole = hub.load(stage.dir / "model")
    merged = with_adapter(hub.load(sft_dir / "model"), stage.dir / "adapter")
    torch.testing.assert_close(merged(TOKENS), whole(TOKENS), atol=1e-5, rtol=1e-5)
    assert all(".lora_" in name for name in load_file(next((stage.dir / "ckpt").glob("*/tensors.safetensors"))))
