"""One uninterrupted run of the recipe ``tiny``, shared by the chain tests, and ways to run danlu as a person would."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("chain") / "tiny"
    danlu("run", "tiny", "--out", out)
    return out
