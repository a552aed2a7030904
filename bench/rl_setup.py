"""What all sides of ``bench/rl.py`` start from: models with random weights as both sides load them, and clocks.

In:  a shape.
Out: model directories, prompts, TRL's options that are the same for every trainer, seconds.
Left out: the sides (``rl_dpo``, ``rl_ppo``, ``rl_grpo``).
"""

from __future__ import annotations

import random
import string
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from danlu import hub
from danlu.model import Decoder, ModelConfig
from danlu.tokens import chat
from danlu.tokens.bpe import train_bpe
from danlu.tokens.tokenizer import Tokenizer

SMALL: dict[str, Any] = {
    "vocab_size": 320, "n_layers": 2, "d_model": 32, "max_seq_len": 64, "n_heads": 2, "n_kv_heads": 2, "head_dim": 16,
    "d_ff": 64,
}  # fmt: skip
LARGE: dict[str, Any] = {
    "vocab_size": 8192, "n_layers": 6, "d_model": 384, "max_seq_len": 256, "n_heads": 6, "n_kv_heads": 6,
    "head_dim": 64, "d_ff": 1024,
}  # fmt: skip

SHAPES: dict[str, dict[str, Any]] = {
    "14M": LARGE,
    "110M": {
        "vocab_size": 32768, "n_layers": 12, "d_model": 768, "max_seq_len": 256, "n_heads": 12, "n_kv_heads": 12,
        "head_dim": 64, "d_ff": 2048,
    },
}  # fmt: skip

BETA, NEW, LR = 0.05, 64, 1e-6  # of practice: price of a nat, tokens of an answer, learning rate


def decoder(shape: dict[str, Any], std: float, head: str = "lm") -> Decoder:
    """A model with weights that are not too alike."""
    torch.manual_seed(0)
    model = Decoder(ModelConfig(**shape), head)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, std)
    return model


def tokenizer_of(vocab_size: int) -> Tokenizer:
    """A tokenizer of so many ids, each of which can be drawn, from words that nobody reads."""
    rng = random.Random(0)
    words = " ".join("".join(rng.choices(string.ascii_lowercase, k=6)) for _ in range(vocab_size))
    text = train_bpe([words], vocab_size=vocab_size, han_run=1, min_frequency=1, specials=chat.SPECIALS)
    return Tokenizer(text, chat.TOKENIZER_CONFIG)


def store(model: Decoder, folder: Path, tokenizer: Tokenizer) -> Path:
    """The model as a directory that both sides load."""
    hub.save(model, folder, tokenizer, card={"title": "bench"})
    return folder


def draw(n: int, tokenizer: Tokenizer, length: int) -> list[list[int]]:
    """Random prompts of that many ids, none of them special."""
    rng = random.Random(0)
    plain = [id for id in range(tokenizer.vocab_size) if id not in tokenizer.specials.values()]
    return [rng.choices(plain, k=length) for _ in range(n)]


def common_options(scratch: Path, half: bool, saving: bool) -> dict[str, Any]:
    """TRL's options for every trainer: nothing is written, told or loaded beside the work.

    Args:
        scratch: a directory.
        half: whether bf16 is on.
        saving: whether gradient checkpointing is on.
    """
    return {
        "output_dir": str(scratch), "bf16": half, "gradient_checkpointing": saving, "report_to": [],
        "log_level": "error", "save_strategy": "no", "disable_tqdm": True, "seed": 0,
        "dataloader_pin_memory": False, "use_cpu": not torch.cuda.is_available(),
    }  # fmt: skip


class Clock(transformers.TrainerCallback):  # type: ignore[misc]
    """Seconds of the last training alone: TRL's trainer takes its time before and after, which rules a short run."""

    seconds = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.seconds = -now()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.seconds += now()


def now() -> float:
    """Seconds; whatever a GPU was asked for has been done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def watched(model: Any) -> Callable[[], float]:
    """Time a model's ``generate``, and see that its answers have all their tokens; gives seconds since last asked."""
    seconds, plain = 0.0, model.generate

    def generate(*args: Any, **options: Any) -> Any:
        nonlocal seconds
        started = now()
        found = plain(*args, **options)
        seconds += now() - started
        sequences = getattr(found, "sequences", found)
        given = options["input_ids"].shape[1]
        assert sequences.shape[1] == given + NEW, "answers are shorter than ours"
        return found

    def since() -> float:
        nonlocal seconds
        found, seconds = seconds, 0.0
        return found

    model.generate = generate
    return since
