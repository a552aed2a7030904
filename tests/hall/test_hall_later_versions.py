"""A later version has more settings; work that was finished before stays finished."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from danlu import pipeline
from danlu.console import Console
from danlu.errors import UserError
from danlu.files import hash_value, write_json
from danlu.pipeline import execute, read_recipe, stages_of
from danlu.places import find_model
from danlu.run import Run


def run(out: Path, *more: str) -> None:
    execute(read_recipe("tiny", more), out, Console(), until="tokenizer")


def forget(manifest: Path, *keys: str) -> None:
    """What an earlier version would have written, that did not know some settings."""
    said = json.loads(manifest.read_text(encoding="utf-8"))
    for key in keys:
        del said["settings"][key]
    parts = {k: said[k] for k in ("stage", "settings", "parents", "outside", "seed", "version")}
    write_json(manifest, {**said, "fingerprint": hash_value(parts)})


def test_a_setting_at_its_default_that_was_not_known_then_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "run")
    forget(tmp_path / "run" / "tokenizer" / "manifest.json", "min_frequency")
    capsys.readouterr()
    run(tmp_path / "run")
    assert capsys.readouterr().err.count("up to date") == 2
    run(tmp_path / "run", "tokenizer.min_frequency=7")
    assert "min_frequency changed from None to 7" in capsys.readouterr().err


def test_settings_inside_settings() -> None:
    now = {"model": {"width": 3, "cap": 0.0, "new": 1}, "steps": 5, "weight": 0.3}
    then = {"model": {"width": 3, "cap": 0.0}, "steps": 5}
    usual = {"model": {"width": 8, "cap": 0.0, "new": 1}, "steps": 9, "weight": 0.3}
    assert pipeline._known_then(now, then, usual) == then
    other = copy.deepcopy(now)
    other["model"]["new"] = 2
    assert pipeline._known_then(other, then, usual) == {**then, "model": other["model"]}


def test_what_a_stage_only_looks_at_is_no_part_of_what_it_was_made_from(tmp_path: Path) -> None:
    """Work of versions that did not look at it stays finished."""
    for name in ("sft", "reward"):
        write_json(tmp_path / name / "manifest.json", {"state": "done", "output": f"hash of {name}"})
    recipe = read_recipe("tiny")
    [ppo] = [spec for spec in stages_of(recipe) if spec.name == "ppo"]
    assert pipeline._stage(Run(tmp_path), ppo, recipe, {}, Console()).inputs.keys() == {"sft", "reward", "tokens"}
    identity = pipeline._identity(Run(tmp_path), ppo, recipe, {})
    assert identity["parents"] == {"sft": "hash of sft", "reward": "hash of reward"}
    adopted = stages_of(read_recipe("tiny", [f"base={tmp_path}"]))
    assert [spec.sees for spec in adopted if spec.name == "ppo"] == [()]  # it has read nothing here


def test_a_run_that_is_being_made_again_says_where_its_older_models_are(tmp_path: Path) -> None:
    for name in ("pretrain", "sft"):
        (tmp_path / name / "model").mkdir(parents=True)
    (tmp_path / "sft" / "model" / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"is being made again .* or use an older model: .*sft/model"):
        find_model(tmp_path)


def test_out_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match="is a file; choose another --out"):
        run(tmp_path / "file")
