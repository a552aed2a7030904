"""The mean of a policy's weights: by hand, and in practice, where it is looked at and kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from danlu.align.averaging import WeightMean
from danlu.align.grpo import Grouped, GRPOSettings
from danlu.align.practice import Practice
from danlu.align.rollout import Sampled
from danlu.infer.generate import Generator
from danlu.model.decoder import Decoder
from danlu.run import Stage
from danlu.tokens.tokenizer import Tokenizer

SETTINGS = GRPOSettings(
    judge="prose", iterations=4, batch_size=32, mini_batch=16, group_size=8, max_new_tokens=6, lr=2e-2, epochs=2,
    approx_kl_limit=10.0, kl_coefficient=0.0, kl_budget=1e9, probe_every=4, probe_prompts=20, probe_tokens=0,
    dtype="float32",
)  # fmt: skip


def test_the_mean_is_exponential_and_lends_its_place() -> None:
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(1.0)
    model.bias.requires_grad_(False)
    mean = WeightMean(model, 0.75)
    for value, expected in ((3.0, 1.5), (7.5, 3.0)):  # 0.75 * 1 + 0.25 * 3, 0.75 * 1.5 + 0.25 * 7.5
        with torch.no_grad():
            model.weight.fill_(value)
        mean.update()
        assert {name: tensor.item() for name, tensor in mean.tensors().items()} == {"weight": expected}
    with mean.in_place():
        assert model.weight.item() == 3.0
    assert model.weight.item() == 7.5
    again = WeightMean(model, 0.75)
    again.load(mean.tensors())
    with again.in_place():
        assert model.weight.item() == 3.0


def test_looks_and_the_model_are_of_the_mean_and_the_policy_goes_on_alone(
    sft_dir: Path, make_stage: Callable[..., Stage], make_model: Callable[..., Decoder], tokenizer: Tokenizer
) -> None:
    wanted, found = tokenizer.encode("花")[0], {}

    def score(sampled: Sampled) -> Tensor:
        return (sampled.sequences.tokens == wanted).sum(1).float()

    for ema in (0.0, 0.5):
        settings = SETTINGS.model_copy(update={"ema": ema})
        stage = make_stage("grpo", settings, {"sft": sft_dir}, folder=f"ema-{ema}")
        trained = Grouped(make_model(), settings)
        sampler = Generator(trained.policy, tokenizer, trained.policy.compute_dtype)
        practice = Practice(stage, tokenizer, trained, make_model(), score, sampler)
        assert practice.run()["kept"] == settings.iterations
        looks = json.loads((stage.dir / "monitor.json").read_text(encoding="utf-8"))["looks"]
        learnt = [(row["reward"], row["policy_loss"]) for row in stage.metrics.read()]
        found[ema] = learnt, looks[-1]["kl"], trained.tensors()
    (learnt, far, own), (same, near, tensors) = found[0.0], found[0.5]
    assert learnt == same  # what is looked at teaches nothing
    assert 0.0 < near < far
    assert not [name for name in own if name.startswith("mean/")]
    for name in make_model().state_dict():  # after practice the policy is what was kept
        assert torch.equal(tensors[f"policy/{name}"], tensors[f"mean/{name}"])
        assert not torch.equal(tensors[f"policy/{name}"], own[f"policy/{name}"])
