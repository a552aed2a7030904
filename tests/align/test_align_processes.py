"""Two processes, as ``torchrun`` starts them: a run as one makes it, and one of them alone with what is not shared."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pair import meet, play
from torch.distributed import TCPStore

import danlu.report
from danlu import hub
from danlu.align.reward import RewardSettings, reward
from danlu.console import Console
from danlu.pipeline import execute, read_recipe
from danlu.records import Answer, Message, Preference, write_preferences
from danlu.run import Stage
from danlu.train.parallel import World

_CHILD = """
import json, sys
from pathlib import Path
from danlu.align.reward import RewardSettings, reward
from danlu.console import Console
from danlu.pipeline import execute, read_recipe
from danlu.run import Metrics, Stage
root, recipe, settings = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
execute(read_recipe("tiny", recipe), root / "two", Console(quiet=True), "pretrain")
inputs = {name: root / name for name in ("sft", "rankings")}
place, settings = root / "reward-two", RewardSettings(**settings)
reward(Stage("reward", place, settings, inputs, {}, 7, Metrics(place / "metrics.jsonl"), Console(quiet=True)))
"""
# A mixture of experts: loss, gradient and the experts' counts must all be summed over the processes.
RECIPE = [
    "pretrain.model={preset: deepseek-tiny, d_model: 32}", "pretrain.steps=4", "pretrain.batch_size=8",
    "pretrain.micro_batch=2", "pretrain.warmup=0", "pretrain.lr=1e-3", "pretrain.seq_len=64", "pretrain.log_every=1",
    "pretrain.dtype=float32", "pretrain.eval_batches=1",
]  # fmt: skip
# One micro-batch for one process, as in the recipe tang: two have to cut it.
REWARD: dict[str, Any] = {
    "batch_size": 6, "micro_batch": 8, "lr": 1e-3, "warmup": 0, "scale_prompts": 4, "max_new_tokens": 4, "steps": 3,
    "dtype": "float32", "log_every": 1, "audit_share": 0.4,
}  # fmt: skip


def start(root: Path) -> tuple[list[subprocess.Popen[bytes]], TCPStore]:
    """Two processes, and the store at which they meet."""
    meeting, told = meet()
    command = [sys.executable, "-c", _CHILD, str(root), json.dumps(RECIPE), json.dumps(REWARD)]
    return [subprocess.Popen(command, env=os.environ | told | {"RANK": str(rank)}) for rank in range(2)], meeting


def assert_same(one: Path, two: Path) -> None:
    """Losses, gradients, tokens of every step, and in the end the weights."""
    ours, theirs = (
        [row for row in map(json.loads, (place / "metrics.jsonl").open(encoding="utf-8")) if "loss" in row]
        for place in (one, two)
    )
    assert [row["step"] for row in ours] == [row["step"] for row in theirs] == [*range(1, len(ours) + 1)]
    assert len(ours) > 2
    for alone, shared in zip(ours, theirs, strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], abs=1e-5)
        assert shared["grad_norm"] == pytest.approx(alone["grad_norm"], abs=1e-5)
        assert shared["tokens"] == alone["tokens"]


def test_two_processes_take_the_steps_of_one(
    tmp_path: Path, sft_dir: Path, make_stage: Callable[..., Stage]
) -> None:  # fmt: skip
    write_preferences(tmp_path / "rankings" / "preferences.jsonl", [
        Preference(
            f"{i}", (Message("user", f"写{i}：春"),), tuple(Answer(text * (1 + i % 3)) for text in "花水山"),
            (0, 1, 2), split="heldout" if i % 4 == 0 else "train",
        )
        for i in range(40)
    ])  # fmt: skip
    execute(read_recipe("tiny", RECIPE), tmp_path / "one", Console(quiet=True), "tokens")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    pair, meeting = start(tmp_path)
    try:
        execute(read_recipe("tiny", RECIPE), tmp_path / "one", Console(quiet=True), "pretrain")
        alone = make_stage("reward", RewardSettings(**REWARD), {"sft": sft_dir, "rankings": tmp_path / "rankings"})
        reward(alone)
        assert [process.wait(timeout=300) for process in pair] == [0, 0]
    finally:
        for process in pair:
            process.kill()
        del meeting
    made = {
        tmp_path / "one" / "pretrain": tmp_path / "two" / "pretrain",
        alone.dir: tmp_path / "reward-two",
        alone.dir / "audit-training": tmp_path / "reward-two" / "audit-training",
    }
    for one, two in made.items():
        assert_same(one, two)
    models = ("one/pretrain/model", "two/pretrain/model"), ("reward/model", "reward-two/model")
    for weights in ([hub.load(tmp_path / name).state_dict() for name in pairs] for pairs in models):
        for name, weight in weights[0].items():
            assert (weight - weights[1][name]).abs().max() < 1e-4, name
    done = json.loads((tmp_path / "two" / "pretrain" / "manifest.json").read_text(encoding="utf-8"))
    assert done["state"] == "done"
    assert done["figures"]["steps"] == 4


def test_of_a_run_from_python_one_process_writes_the_report(tmp_path: Path, sft_dir: Path) -> None:
    def both(world: World) -> None:
        if not world.main:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # writes nothing, or fails
        made = danlu.run("tiny", tmp_path / "run", base=str(sft_dir / "model"), run={"goal": "pretrain"})
        assert (made.dir / "report.html").is_file() or not world.main

    play(both)
