"""TRL's side of PPO: an update of its ``PPOTrainer``, which 1.12.0 was the last to have.

In:  model directories, prompts.
Out: a run of one update, made ready, and its seconds.
Left out: our side (``rl_ours``).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets
import torch
import transformers
from trl.experimental.ppo import PPOConfig, PPOTrainer

from rl_setup import BETA, LR, NEW, Clock, common_options, watched


def theirs(
    policy: Path, reward: Path, scratch: Path, prompts: list[list[int]], epochs: int, half: bool, narrow: bool
) -> Callable[[], dict[str, float]]:
    """One update, made ready: sampling, scoring, all epochs; it gives seconds of the whole and of sampling.

    ``half`` is its flag for bf16; ``narrow`` loads weights in bf16, as its example does if told to.
    """
    dtype = torch.bfloat16 if narrow else torch.float32
    learnt, frozen = (transformers.AutoModelForCausalLM.from_pretrained(policy, dtype=dtype) for _ in range(2))
    judge, critic = (
        transformers.AutoModelForSequenceClassification.from_pretrained(reward, num_labels=1, dtype=dtype)
        for _ in range(2)
    )
    args = PPOConfig(
        per_device_train_batch_size=len(prompts), num_mini_batches=1, num_ppo_epochs=epochs, response_length=NEW,
        total_episodes=len(prompts), num_sample_generations=0, temperature=1.0, kl_coef=BETA, learning_rate=LR,
        local_rollout_forward_batch_size=len(prompts), **common_options(scratch, half, saving=False),
    )  # fmt: skip
    rows, clock = datasets.Dataset.from_list([{"input_ids": ids} for ids in prompts]), Clock()
    tokenizer = transformers.AutoTokenizer.from_pretrained(policy, padding_side="left")
    watch = watched(learnt)
    trainer = PPOTrainer(
        args, tokenizer, learnt, frozen, judge, rows, critic, eval_dataset=rows, callbacks=[clock],
    )  # fmt: skip

    def run() -> dict[str, float]:
        trainer.train()
        return {"seconds": clock.seconds, "sampling": watch()}

    return run
