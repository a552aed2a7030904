"""Learning from preferences beside TRL: whether DPO's loss goes the same way, and seconds a step.

In:  nothing; models have random weights, the same on both sides, and so are the pairs.
Out: ``results/rl-*.json`` and the table; with ``--record FILE``, TRL's losses with all that is needed to repeat them.
Left out: quality; PPO and GRPO.

    python bench/rl.py [--rounds 3] [--steps 3] [--pairs 32] [--dtype auto] [--record FILE]

Ours and theirs run in turn in one process, on the same pairs in the same order. A step is everything that a pair costs
in one epoch: the reference, which we read before the first step and TRL in every step, forward, backward, clip and
AdamW. TRL comes with gradient checkpointing, which costs time; it is measured without it too.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl

from danlu import hub
from danlu.align.comparisons import Ranking
from danlu.align.likelihoods import AT_ONCE, all_logprobs
from danlu.align.paired import Comparisons, Objective, pair_loss
from danlu.device import choose
from danlu.model import Decoder, ModelConfig, parameters
from danlu.tokens import chat
from danlu.tokens.bpe import train_bpe
from danlu.tokens.tokenizer import Tokenizer
from danlu.train.loop import train_step
from danlu.train.optim import build_optimizer
from danlu.train.schedule import learning_rate
from danlu.train.task import LoopSettings, Task
from table import row, save

Pairs = list[tuple[list[int], list[int], list[int]]]  # prompt, chosen, rejected
SMALL: dict[str, Any] = {
    "vocab_size": 320, "n_layers": 2, "d_model": 32, "max_seq_len": 64, "n_heads": 2, "n_kv_heads": 2, "head_dim": 16,
    "d_ff": 64,
}  # fmt: skip
LARGE: dict[str, Any] = {
    "vocab_size": 8192, "n_layers": 6, "d_model": 384, "max_seq_len": 256, "n_heads": 6, "n_kv_heads": 6,
    "head_dim": 64, "d_ff": 1024,
}  # fmt: skip
BETA, TRL_NAMES = 0.1, {"dpo": "sigmoid", "ipo": "ipo"}


def draw(n: int, vocab_size: int, prompt: int, answer: int, varied: bool) -> Pairs:
    """Random pairs; varied: of all lengths up to these."""
    rng = random.Random(0)

    def ids(longest: int) -> list[int]:
        return [rng.randrange(1, vocab_size) for _ in range(rng.randint(2, longest) if varied else longest)]

    return [(ids(prompt), ids(answer), ids(answer)) for _ in range(n)]


def decoder(shape: dict[str, Any], std: float) -> Decoder:
    """A model with weights that are not too alike."""
    torch.manual_seed(0)
    model = Decoder(ModelConfig(**shape))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, std)
    return model


def loop_settings(steps: int, batch: int, lr: float) -> LoopSettings:
    """What both sides do."""
    return LoopSettings(steps=steps, batch_size=batch, lr=lr, warmup=2, weight_decay=0.0)


def ours(model: Decoder, pairs: Pairs, settings: LoopSettings, loss: str, micro: int = 0) -> tuple[list[float], float]:
    """Losses of the steps, and seconds."""
    started = time.perf_counter()
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
    return found, time.perf_counter() - started


class Trainer(trl.DPOTrainer):  # type: ignore[misc]
    """TRL's, on token ids as they are and in the order given."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(dataset or self.train_dataset)


class Clock(transformers.TrainerCallback):  # type: ignore[misc]
    """Seconds of training alone: TRL's trainer takes its time before and after, and a short run would be all that."""

    seconds = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.seconds -= time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.seconds += time.perf_counter()


def theirs(
    folder: Path, scratch: Path, pairs: Pairs, settings: LoopSettings, loss: str, **options: Any
) -> Callable[[], tuple[list[float], float]]:
    """A run of TRL's trainer, made ready; it gives the losses of the steps, and seconds."""
    rows = [{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in pairs]
    model, reference = (transformers.AutoModelForCausalLM.from_pretrained(folder) for _ in range(2))
    groups = [{"params": [*model.parameters()], "weight_decay": 0.0}]
    rule = torch.optim.AdamW(groups, settings.lr, (settings.beta1, settings.beta2), 1e-8, fused=True)
    rate = torch.optim.lr_scheduler.LambdaLR(rule, lambda step: learning_rate(step + 1, settings) / settings.lr)
    args = trl.DPOConfig(
        output_dir=str(scratch), per_device_train_batch_size=settings.batch_size, max_steps=settings.steps,
        max_grad_norm=settings.clip, beta=BETA, loss_type=[TRL_NAMES[loss]], logging_steps=1, report_to=[],
        log_level="error", save_strategy="no", max_length=None, disable_tqdm=True, seed=0, dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(), **options,
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


def store(model: Decoder, folder: Path) -> None:
    """The model as a directory that TRL loads; it wants a tokenizer, and never uses it."""
    text = train_bpe(["a b"], vocab_size=300, han_run=1, min_frequency=1, specials=chat.SPECIALS)
    hub.save(model, folder, None, card={"title": "bench"})
    Tokenizer(text, chat.TOKENIZER_CONFIG).save(folder)


def curves(scratch: Path) -> dict[str, Any]:
    """TRL's losses over 20 steps of 4 pairs, each pair seen five times, with what they come from."""
    pairs, settings = draw(16, SMALL["vocab_size"], 8, 12, varied=True), loop_settings(20, 4, 1e-2)
    store(decoder(SMALL, 0.1), scratch / "small")
    run = partial(theirs, scratch / "small", scratch, 5 * pairs, settings, bf16=False, gradient_checkpointing=False)
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


def speeds(rounds: int, steps: int, batch: int, dtype: str, scratch: Path) -> list[dict[str, Any]]:
    """Seconds a step of pairs of 64 + 64 tokens: ours and TRL's in turn, the first round thrown away."""
    pairs = draw(batch * steps, LARGE["vocab_size"], 64, 64, varied=False)
    settings, place, folder = loop_settings(steps, batch, 1e-5), choose(dtype=dtype), scratch / "large"
    store(decoder(LARGE, 0.02), folder)
    half, micro = place.compute_dtype == torch.bfloat16, 8 if place.kind == "cpu" else 0
    peers = {"as it comes": True, "without gradient checkpointing": False}
    seen: dict[str, list[float]] = {}
    for turn in range(rounds + 1):
        policy = hub.load(folder, device=place.kind).compute_in(place.compute_dtype)
        runs: dict[str, Callable[[], Any]] = {"ours": partial(ours, policy, pairs, settings, "dpo", micro)}
        for name, saving in peers.items():
            runs[name] = theirs(folder, scratch, pairs, settings, "dpo", bf16=half, gradient_checkpointing=saving)
        for name, run in runs.items():
            _, seconds = run()
            if turn:
                seen.setdefault(name, []).append(seconds / steps)
        del policy, runs
        gc.collect()
    print({name: [round(x, 2) for x in values] for name, values in seen.items()}, flush=True)
    size, computed = parameters(ModelConfig(**LARGE)).total / 1e6, str(place.compute_dtype).removeprefix("torch.")
    what, mine = f"DPO, {size:.0f}M, {batch} pairs of 64 + 64, {computed}", statistics.median(seen["ours"])
    return [
        row(what, seen["ours"], "s/step", "2.5 x TRL's speed", statistics.median(seen[name]) >= 2.5 * mine,
            statistics.median(seen[name]), f"TRL {trl.__version__}, {name}")
        for name in peers
    ]  # fmt: skip


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=32, help="of a step")
    parser.add_argument("--dtype", default="auto", help="of matrix products, on both sides")
    parser.add_argument("--record", type=Path, help="only record TRL's losses in this file")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recorded = curves(Path(folder))
        found = apart(recorded)
        print(json.dumps(found), flush=True)
        if asked.record:
            asked.record.write_text(json.dumps(recorded) + "\n", encoding="utf-8")
            return
        rows = [
            row(f"{loss}: our loss beside TRL's, 20 steps", [difference], "largest difference", "<= 1e-3",
                difference <= 1e-3, note=f"TRL {trl.__version__}")
            for loss, difference in found.items()
        ]  # fmt: skip
        print(save("rl", rows + speeds(asked.rounds, asked.steps, asked.pairs, asked.dtype, Path(folder))))


if __name__ == "__main__":
    main()
