"""A run that has a champion is meant by its champion, whatever its stages hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import danlu
from danlu import cli
from danlu.align.champion import LINEAGE, VERSIONS, Registry
from danlu.errors import UserError
from danlu.files import write_json
from danlu.pipeline import read_recipe
from danlu.places import find_model, place_of, servable_models
from danlu.run import Run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose stages are finished, and a version beside them."""
    folder = tmp_path / "run"
    for stage in ("pretrain", "sft", "ppo", "compress"):
        Run(folder).begin(stage, {"stage": stage, "parents": {}, "settings": {}})
        (folder / stage / "model").mkdir(parents=True)
        Run(folder).finish(stage, "made", {}, 1.0)
    (folder / VERSIONS / "0a1b").mkdir(parents=True)
    write_json(folder / VERSIONS / "0a1b" / LINEAGE, {"model": "0a1b"})
    (folder / "resolved.json").write_text(json.dumps({"recipe": "tiny", "stages": ["ppo"], "sections": {}}))
    return folder


def test_a_refused_candidate_in_the_stages_is_nobodys_model(run):
    assert find_model(run) == run / "compress" / "model"
    assert [*servable_models(run)] == ["compress", "ppo", "sft"]
    Registry(run).crown("0a1b", "first")
    version = run / VERSIONS / "0a1b"
    assert find_model(run) == version
    assert servable_models(run) == {"champion": version, "sft": run / "sft" / "model"}
    assert find_model(run, "ppo") == run / "ppo" / "model", "who asks for a stage gets it"
    Run(run).begin("sft", {"stage": "sft", "parents": {}, "settings": {}})  # made again: the champion goes on
    assert servable_models(run) == {"champion": version}
    (version / LINEAGE).unlink()
    with pytest.raises(UserError, match="no version '0a1b'"):
        find_model(run)


def test_a_run_is_not_taken_over_by_another_recipe(run, tmp_path, monkeypatch, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    monkeypatch.setattr("sys.argv", ["danlu", "run", "tang", "--out", str(run)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    assert capsys.readouterr().err == f"danlu: {run} holds a run of 'tiny'; choose another --out\n"
    with pytest.raises(UserError, match="holds a run of 'tiny'"):
        danlu.run("tang", run)
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    for path in (tmp_path / "tiny.yaml", run / "recipe.yaml", tmp_path / "recipe.yaml"):
        path.write_text("extends: tiny\n")
    for source in ("tiny", str(tmp_path / "tiny.yaml"), str(run / "recipe.yaml")):
        changed, place = place_of(read_recipe(source, ["seed=4"]), source, run)
        assert (changed.name, place) == ("tiny", run), "a changed recipe of the same name, or the run's own copy"
    other = str(tmp_path / "recipe.yaml")
    with pytest.raises(UserError, match="holds a run of 'tiny'"):
        place_of(read_recipe(other), other, run)
