"""Every verb, as a person types it; ``run``, ``serve`` and ``feedback`` have chain tests of their own."""

import json
import re

import pytest
from person import STAGES, danlu, danlu_from_cold

from danlu import __version__

pytestmark = pytest.mark.slow


def test_plan_names_every_stage_and_runs_nothing(tmp_path):
    said = danlu("plan", "tang", "--price", "2", DANLU_RUNS=str(tmp_path)).stdout
    lines = said.splitlines()
    assert [line.split()[0] for line in lines if line.split()[0] in STAGES] == STAGES
    assert "1,377,408 parameters" in said
    assert re.search(r"about [1-9]\d* minutes of matrix products, \d+\.\d\d at 2 an hour", lines[-1])
    assert not list(tmp_path.iterdir())


def test_plan_says_more_for_more_steps():
    def minutes(*overrides: str) -> float:
        said = danlu("plan", "tang", *overrides).stdout
        return float(next(line for line in said.splitlines() if line.startswith("pretrain")).split()[5])

    assert minutes("pretrain.steps=60000") > 10 * minutes("pretrain.steps=600")


def test_chat_is_repeatable_and_takes_a_stage(tiny_run):
    words = ("chat", tiny_run, "Continue: The lamp was lit.", "--stage", "sft", "--seed", "3")
    first = danlu_from_cold(*words).stdout
    assert first.strip()
    assert danlu(*words).stdout == first
    assert "did you mean 'sft'" in danlu("chat", tiny_run, "hello", "--stage", "stf", code=2).stderr


def test_eval_measures_ones_own_text(tiny_run, tmp_path):
    own, noise = tmp_path / "own.txt", tmp_path / "noise.txt"
    own.write_text("The old man lit the lamp and waited for the ferry.\n" * 5, encoding="utf-8")
    noise.write_text("qzx vvk 7#@ jjq wpf zzk\n" * 5, encoding="utf-8")
    measured = (danlu("eval", tiny_run, "--text", path, "--stage", "sft").stdout for path in (own, noise))
    ours, theirs = map(json.loads, measured)
    assert ours["bytes"] == own.stat().st_size
    assert 0 < ours["bpb"] < theirs["bpb"]
    assert "is empty" in danlu("eval", tiny_run, "--text", _empty(tmp_path), code=2).stderr


def test_export_copies_a_model_once(tiny_run, tmp_path):
    out = tmp_path / "mine"
    danlu("export", tiny_run, out, "--stage", "ppo")
    name = "model.safetensors"
    assert (out / name).read_bytes() == (tiny_run / "ppo" / "model" / name).read_bytes()
    assert danlu("chat", out, "Continue: The lamp was lit.").stdout.strip()
    assert "exists" in danlu("export", tiny_run, out, code=2).stderr


def test_schema_describes_every_section():
    schema = json.loads(danlu_from_cold("schema").stdout)
    assert set(STAGES) <= schema["properties"].keys()
    steps = json.dumps(schema["properties"]["pretrain"]["properties"]["steps"])
    assert "description" in steps


def test_doctor_measures_this_machine():
    said = danlu("doctor").stdout
    speed = re.search(r"matmul +(\d+) GFLOP/s in float32", said)
    assert speed is not None
    assert int(speed[1]) > 0
    for what in ("device", "memory", "versions", "npm", "browser"):
        assert f"\n{what}" in f"\n{said}"


def test_the_version_is_told_and_nothing_but_help_to_who_asks_for_nothing():
    assert danlu("--version").stdout == f"danlu {__version__}\n"
    asked = danlu(code=2)
    assert "Commands" in asked.stdout
    assert not asked.stderr


def _empty(folder):
    path = folder / "empty.txt"
    path.touch()
    return path
