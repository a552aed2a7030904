"""Memory of PPO with four models of their own beside four on one frozen trunk.

In:  nothing; models have random weights.
Out: ``results/trunk-*.json`` and the table: the most memory that an iteration of the stage ``ppo`` takes.
Left out: quality; speed (the whole stage's seconds are told in the notes, start and checkpoint included).

    python bench/trunk.py [--answers 16] [--tokens 48] [--dtype auto]

Every figure is a process of its own that runs the stage as ``danlu run`` does: sampling, scores, update, two looks, a
checkpoint. On a CPU it is the largest resident set above the one before the first model; on a GPU what torch took.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from danlu import hub
from danlu.align import heads
from danlu.align.ppo import PPOSettings, ppo
from danlu.console import Console
from danlu.files import write_json
from danlu.hub.adapter import write_adapter
from danlu.model import Decoder, ModelConfig, parameters
from danlu.records import Conversation, Message, write_conversations
from danlu.run import Metrics, Stage
from danlu.tokens import chat
from danlu.tokens.bpe import train_bpe
from danlu.tokens.tokenizer import Tokenizer
from danlu.train.adapters import AdapterSettings, attach, identity
from rl_setup import LARGE
from table import row, save

MIB = 1 << 20
SHAPES: dict[str, dict[str, Any]] = {
    "LARGE": LARGE,
    "60M": {"vocab_size": 8192, "n_layers": 12, "d_model": 640, "max_seq_len": 256, "n_heads": 10, "n_kv_heads": 10,
            "head_dim": 64, "d_ff": 1728},
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "four models": {},
    "one trunk, LoRA of rank 16": {"kind": "lora"},
    "one trunk in 16 bits, LoRA": {"kind": "lora", "base_bits": 16},
    "one trunk in 4 bits, LoRA": {"kind": "lora", "base_bits": 4},
}
FULL = next(iter(KINDS))


def prepare(shape: str, kind: str, folder: Path) -> None:
    """Finished stages ``sft`` and ``reward``, the latter an adapter on the former if practice will have one."""
    torch.manual_seed(0)
    sft, settings = Decoder(ModelConfig(**SHAPES[shape])), AdapterSettings(**KINDS[kind])
    text = train_bpe(["a b c d e f g h"], vocab_size=300, han_run=1, min_frequency=1, specials=chat.SPECIALS)
    tokenizer, base = Tokenizer(text, chat.TOKENIZER_CONFIG), folder / "sft" / "model"
    hub.save(sft, base, tokenizer, card={"title": "bench"})
    talks = [Conversation((Message("user", f"say {i}"), Message("assistant", "a b"))) for i in range(80)]
    write_conversations(folder / "sft" / "conversations" / "train.jsonl", talks[:64])
    write_conversations(folder / "sft" / "conversations" / "heldout.jsonl", talks[64:])
    judge = attach(heads.with_scalar_head(sft, seed=1), settings, seed=2)
    hub.save(judge, folder / "reward" / "model", tokenizer, card={"title": "bench"})
    write_json(folder / "reward" / "model" / "reward.json", {"mean": 0.0, "std": 1.0})
    if settings.kind != "none":
        write_adapter(judge, folder / "reward" / "adapter", base, identity(base, settings))


def iterate(kind: str, folder: Path, answers: int, tokens: int, dtype: str) -> dict[str, float]:
    """Run the stage and tell the most memory (MiB), and seconds."""
    settings = PPOSettings(
        judge="prose", iterations=1, batch_size=answers, mini_batch=answers, micro_batch=4, max_new_tokens=tokens,
        probe_every=1, probe_prompts=4, probe_tokens=0, dtype=dtype, adapter=AdapterSettings(**KINDS[kind]),
    )  # fmt: skip
    settings.check_packages()
    import peft  # noqa: F401  (on both sides, so that neither is charged with it)

    place = folder / "ppo"
    place.mkdir()
    inputs = {name: folder / name for name in ("sft", "reward")}
    stage = Stage("ppo", place, settings, inputs, {}, 0, Metrics(place / "metrics.jsonl"), Console(quiet=True))
    started, before = time.perf_counter(), start_counting()
    ppo(stage)
    return {"mib": (most() - before) / MIB, "seconds": time.perf_counter() - started}


def start_counting() -> int:
    """Forget the peak so far; returns the bytes that are taken now."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): resets VmHWM
    return resident("VmRSS")


def most() -> int:
    """The most bytes since ``start_counting``."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident("VmHWM")


def resident(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))


def measure(shape: str, kind: str, asked: argparse.Namespace) -> dict[str, float]:
    """``iterate`` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        prepare(shape, kind, Path(folder))
        told = ["--answers", str(asked.answers), "--tokens", str(asked.tokens), "--dtype", asked.dtype]
        command = [sys.executable, __file__, *told, "--child", kind, "--folder", folder]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(shape, kind, {name: round(value, 1) for name, value in found.items()}, flush=True)
    return found


def compared(shape: str, found: dict[str, dict[str, float]], answers: int, tokens: int) -> list[dict[str, Any]]:
    """Rows of the table: every kind beside four models of their own."""
    size, full = parameters(ModelConfig(**SHAPES[shape])).total / 1e6, found[FULL]["mib"]
    return [
        row(
            f"PPO, {size:.0f}M, {answers} answers of {tokens}: peak memory, {kind}", [found[kind]["mib"]], "MiB",
            "less than four models", found[kind]["mib"] < full, full, FULL,
            f"{found[kind]['seconds']:.0f} s for the stage, {found[FULL]['seconds']:.0f} s with {FULL}",
        )
        for kind in [*KINDS][1:]
    ]  # fmt: skip


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", type=int, default=16, help="of the iteration")
    parser.add_argument("--tokens", type=int, default=48, help="of an answer at most")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(iterate(asked.child, asked.folder, asked.answers, asked.tokens, asked.dtype)))
        return
    rows = []
    for shape in SHAPES:
        rows += compared(shape, {kind: measure(shape, kind, asked) for kind in KINDS}, asked.answers, asked.tokens)
    print(save("trunk", rows))


if __name__ == "__main__":
    main()
