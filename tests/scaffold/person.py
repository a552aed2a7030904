"""Ways to run danlu as a person would: in a process of its own, by its verbs."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import warm

STAGES = ["corpus", "tokenizer", "tokens", "pretrain", "sft", "rankings", "reward", "ppo", "compress", "eval"]
MODELS = ["pretrain/model", "sft/model", "reward/model", "ppo/model", "compress/model"]
LONGEST = 500  # seconds


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "danlu.cli", *map(str, words)]


def danlu_from_cold(*words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a verb in a Python of its own, as a shell does, and check its exit code."""
    done = subprocess.run(command(*words), capture_output=True, text=True, timeout=LONGEST, check=False)
    return _checked(done, code)


def danlu(
    *words: object, code: int = 0, dies_once: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a verb in a process of its own, whose imports are done, and check its exit code.

    With ``dies_once``, a pattern of paths, the process is ended by kill -9 when there is one, and ``code`` is -9.
    """
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder) / name for name in ("stdout", "stderr")]
        for path in said:
            path.touch()
        pattern = None if dies_once is None else str(dies_once)
        process = warm.start(_verb, list(map(str, words)), said, dies_once=pattern, environment=environment)
        process.join(LONGEST)
        hangs = process.is_alive()
        process.kill()
        process.join()
        stdout, stderr = (path.read_text(encoding="utf-8") for path in said)
    assert not hangs, f"{command(*words)} was not over after {LONGEST} s\n{stdout}\n{stderr}"
    return _checked(subprocess.CompletedProcess(command(*words), process.exitcode or 0, stdout, stderr), code)


def _verb(words: Sequence[str], said: Sequence[Path]) -> None:
    for stream, path in zip((1, 2), said, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), stream)
    sys.argv = ["danlu", *words]
    from danlu import cli

    cli.main()


def _checked(done: subprocess.CompletedProcess[str], code: int) -> subprocess.CompletedProcess[str]:
    assert done.returncode == code, f"{done.args} gave {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def weights(run: Path) -> dict[str, bytes]:
    return {name: (run / name / "model.safetensors").read_bytes() for name in MODELS}
