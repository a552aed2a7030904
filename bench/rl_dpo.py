"""DPO on both sides: ours and TRL's trainer on the same pairs in the same order.

In:  pairs of token ids, settings of the loop.
Out: losses of the steps and seconds; TRL's curves with all that is needed to repeat them, and how far ours are apart.
Left out: rounds and rows of the table (``rl``).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl

from danlu.align.comparisons import Ranking
from danlu.align.likelihoods import AT_ONCE, all_logprobs
from danlu.align.paired import Comparisons, Objective, pair_loss
from danlu.model import Decoder
from danlu.train.loop import train_step
from danlu.train.optim import build_optimizer
from danlu.train.schedule import learning_rate
from danlu.train.task import LoopSettings, Task
from rl_setup import SMALL, Clock, common_options, decoder, now, store, tokenizer_of

Pairs = list[tuple[list[int], list[int], list[int]]]  # prompt, chosen, rejected
BETA, TRL_NAMES = 0.1, {"dpo": "sigmoid", "ipo": "ipo"}


def draw(n: int, vocab_size: int, prompt: int, answer: int, varied: bool) -> Pairs:
    """Random pairs; varied: of all lengths up to these."""
    rng = random.Random(0)

    def ids(longest: int) -> list[int]:
        return [rng.randrange(1, vocab_size) for _ in range(rng.randint(2, longest) if varied else longest)]

    return [(ids(prompt), ids(answer), ids(answer)) for _ in range(n)]


def loop_settings(steps: int, batch: int, lr: float) -> LoopSettings:
    """What both sides do."""
    return LoopSettings(steps=steps, batch_size=batch, lr=lr, warmup=2, weight_decay=0.0)


def ours(model: Decoder, pairs: Pairs, settings: LoopSettings, loss: str, micro: int = 0) -> tuple[list[float], float]:
    """Losses of the steps, and seconds."""
    started = now()
    rankings = [Ranking((prompt, prompt), (chosen, rejected), (0, 1)) for prompt, chosen, rejected in pairs]
    lessons = Comparisons(rankings, all_logprobs(model, rankings, AT_ONCE, 0))
    device, size = model.output_weight.device.type, settings.batch_size

    def batches(step: int) -> list[Any]:
        return lessons.batches(range(step * size, (step + 1) * size), micro or size, 0, device)

    task = Task(batches, partial(pair_loss, objective=Objective(loss, BETA)), lambda _: {})
    optimizer = build_optimizer(model, settings)
    found = [
        train_step(model, task, optimizer, settings, step, learning_rate(step + 1, settings)).loss
        for step in range(settings.steps)
    ]
    return found, now() - started


class Trainer(trl.DPOTrainer):  # type: ignore[misc]
    """TRL's, on token ids as they are and in the order given."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(dataset or self.train_dataset)


def theirs(
    folder: Path, scratch: Path, pairs: Pairs, settings: LoopSettings, loss: str, half: bool, saving: bool
) -> Callable[[], tuple[list[float], float]]:
    """A run of TRL's trainer, made ready; it gives the losses of the steps, and seconds."""
    rows = [{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in pairs]
    model, reference = (transformers.AutoModelForCausalLM.from_pretrained(folder) for _ in range(2))
    groups = [{"params": [*model.parameters()], "weight_decay": 0.0}]
    rule = torch.optim.AdamW(groups, settings.lr, (settings.beta1, settings.beta2), 1e-8, fused=True)
    rate = torch.optim.lr_scheduler.LambdaLR(rule, lambda step: learning_rate(step + 1, settings) / settings.lr)
    args = trl.DPOConfig(
        per_device_train_batch_size=settings.batch_size, max_steps=settings.steps, max_grad_norm=settings.clip,
        beta=BETA, loss_type=[TRL_NAMES[loss]], logging_steps=1, max_length=None,
        **common_options(scratch, half, saving),
    )  # fmt: skip
    tokenizer, clock = transformers.AutoTokenizer.from_pretrained(folder), Clock()
    trainer = Trainer(
        model, reference, args, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer,
        optimizers=(rule, rate), callbacks=[clock],
    )  # fmt: skip

    def run() -> tuple[list[float], float]:
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], clock.seconds

    return run


def curves(scratch: Path) -> dict[str, Any]:
    """TRL's losses over 20 steps of 4 pairs, each pair seen five times, with what they come from."""
    pairs, settings = draw(16, SMALL["vocab_size"], 8, 12, varied=True), loop_settings(20, 4, 1e-2)
    store(decoder(SMALL, 0.1), scratch / "small", tokenizer_of(300))  # wanted, and never used
    run = partial(theirs, scratch / "small", scratch, 5 * pairs, settings, half=False, saving=False)
    found = {loss: run(loss)()[0] for loss in TRL_NAMES}
    return {
        "trl": trl.__version__, "transformers": transformers.__version__, "shape": SMALL, "std": 0.1, "beta": BETA,
        "steps": 20, "batch_size": 4, "lr": 1e-2, "pairs": pairs, "times": 5, "losses": found,
    }  # fmt: skip


def apart(recorded: dict[str, Any]) -> dict[str, float]:
    """The largest difference between our losses and TRL's, by loss."""
    settings = loop_settings(recorded["steps"], recorded["batch_size"], recorded["lr"])
    pairs, found = recorded["times"] * recorded["pairs"], {}
    for loss, peers in recorded["losses"].items():
        mine, _ = ours(decoder(SMALL, 0.1), pairs, settings, loss)
        found[loss] = max(abs(a - b) for a, b in zip(mine, peers, strict=True))
    return found
