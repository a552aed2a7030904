"""Twenty steps of DPO and IPO go the way they go in TRL: same pairs in the same order, same model, same optimizer.

The losses in ``dpo_trl.json`` are TRL's own (its version is in the file), recorded by ``bench/rl.py --record``.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from danlu.align.comparisons import Ranking
from danlu.align.likelihoods import all_logprobs
from danlu.align.paired import Comparisons, Objective, pair_loss
from danlu.model import Decoder, ModelConfig
from danlu.train.loop import train_step
from danlu.train.optim import build_optimizer
from danlu.train.schedule import learning_rate
from danlu.train.task import LoopSettings, Task

TRL = json.loads(Path(__file__).with_name("dpo_trl.json").read_text(encoding="utf-8"))


def policy() -> Decoder:
    torch.manual_seed(0)
    model = Decoder(ModelConfig(**TRL["shape"]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, TRL["std"])
    return model


@pytest.mark.parametrize("loss", TRL["losses"])
def test_the_loss_follows_trls(loss: str) -> None:
    model, size = policy(), TRL["batch_size"]
    rankings = [Ranking((p, p), (chosen, rejected), (0, 1)) for p, chosen, rejected in TRL["times"] * TRL["pairs"]]
    lessons = Comparisons(rankings, all_logprobs(model, rankings, 16, 0))
    settings = LoopSettings(steps=TRL["steps"], batch_size=size, lr=TRL["lr"], warmup=2, weight_decay=0.0)
    task = Task(
        lambda step: lessons.batches(range(step * size, (step + 1) * size), 2, 0, "cpu"),
        partial(pair_loss, objective=Objective(loss, TRL["beta"])), lambda _: {},
    )  # fmt: skip
    optimizer = build_optimizer(model, settings)
    for step, expected in enumerate(TRL["losses"][loss]):
        done = train_step(model, task, optimizer, settings, step, learning_rate(step + 1, settings))
        assert done.loss == pytest.approx(expected, abs=1e-3)
    assert TRL["losses"][loss][-1] < 0.5 * TRL["losses"][loss][0]
