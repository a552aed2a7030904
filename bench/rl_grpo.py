"""TRL's side of GRPO: an iteration of its ``GRPOTrainer``.

In:  a model directory, prompts.
Out: a run of one iteration, made ready, and its seconds.
Left out: our side (``rl_ours``).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import transformers
import trl

from rl_ours import share_of_even
from rl_setup import BETA, LR, NEW, Clock, common_options, watched


class Trainer(trl.GRPOTrainer):  # type: ignore[misc]
    """TRL's, on token ids as they are: a prompt is a text of numbers."""

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [[int(id) for id in prompt.split()] for prompt in prompts], None, {}


def even(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A reward that costs nothing."""
    return [share_of_even(ids) for ids in completion_ids]


def theirs(
    policy: Path, scratch: Path, prompts: list[list[int]], group: int, epochs: int, half: bool, saving: bool
) -> Callable[[], dict[str, float]]:
    """One iteration, made ready: sampling, scoring, a step per epoch; it gives seconds of the whole and of sampling."""
    learnt = transformers.AutoModelForCausalLM.from_pretrained(policy)
    args = trl.GRPOConfig(
        per_device_train_batch_size=group * len(prompts), num_generations=group, num_iterations=epochs,
        max_steps=epochs, max_completion_length=NEW, beta=BETA, learning_rate=LR, temperature=1.0, logging_steps=1,
        loss_type="grpo", generation_kwargs={"min_new_tokens": NEW}, **common_options(scratch, half, saving),
    )  # fmt: skip
    rows, clock = datasets.Dataset.from_list([{"prompt": " ".join(map(str, ids))} for ids in prompts]), Clock()
    tokenizer = transformers.AutoTokenizer.from_pretrained(policy, padding_side="left")
    watch = watched(learnt)
    trainer = Trainer(learnt, even, args, rows, processing_class=tokenizer, callbacks=[clock])

    def run() -> dict[str, float]:
        trainer.train()
        return {"seconds": clock.seconds, "sampling": watch()}

    return run
