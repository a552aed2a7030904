"""Ways to run danlu as a person would: in a process of its own, by its verbs."""

import os
import subprocess
import sys
from pathlib import Path

STAGES = ["corpus", "tokenizer", "tokens", "pretrain", "sft", "rankings", "reward", "ppo", "compress", "eval"]
MODELS = ["pretrain/model", "sft/model", "reward/model", "ppo/model", "compress/model"]


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "danlu.cli", *map(str, words)]


def danlu(*words: object, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a verb in a process of its own and check its exit code."""
    done = subprocess.run(
        command(*words), capture_output=True, text=True, timeout=500, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == code, f"danlu {words} gave {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def weights(run: Path) -> dict[str, bytes]:
    return {name: (run / name / "model.safetensors").read_bytes() for name in MODELS}
