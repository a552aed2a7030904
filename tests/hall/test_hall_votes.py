"""Where votes are kept: never in a model directory, which is moved, deleted or published."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from danlu import pipeline, places, serve
from danlu.cli import app
from danlu.console import Console
from danlu.errors import UserError
from danlu.places import votes_of
from danlu.run import Run


def model_at(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with a model of two stages, one of them replaced."""
    run = Run(tmp_path / "runs" / "tang")
    for stage in ("ppo", "compress", ".replaced/ppo"):
        model_at(run.dir / stage / "model")
    (run.dir / "resolved.json").write_text("{}")
    return run


@pytest.mark.parametrize("served", [".", "ppo/model", "compress/model", ".replaced/ppo/model"])
def test_votes_on_any_model_of_a_run_are_the_runs(run, served):
    assert votes_of(run.dir / served).resolve() == run.dir / "feedback" / "preferences.db"


def test_votes_survive_their_stage_being_made_again(run):
    votes = votes_of(run.dir / "ppo" / "model")
    votes.parent.mkdir()
    votes.write_text("what people said")
    run.set_aside("ppo")  # moves it
    model_at(run.dir / "ppo" / "model")
    run.set_aside("ppo")  # deletes what was moved
    assert votes.read_text() == "what people said"


def test_votes_on_a_model_of_nobodys_lie_beside_it(tmp_path, monkeypatch):
    model = model_at(tmp_path / "models" / "theirs")
    expected = tmp_path / "models" / "theirs.feedback" / "preferences.db"
    assert votes_of(model) == expected
    monkeypatch.chdir(model)
    assert votes_of(Path(".")) == expected


def test_the_server_is_given_the_place_unless_another_is_named(run, monkeypatch):
    given = []
    monkeypatch.setattr(
        serve, "run_server", lambda models, store, port, options, **_: given.append((str(store), options.accounts))
    )
    monkeypatch.setattr(places, "servable_models", lambda where: {"model": where})
    for words in ([], ["--store", "elsewhere.db"]):
        assert CliRunner().invoke(app, ["serve", str(run.dir / "ppo" / "model"), *words]).exit_code == 0
    told = f"--run {run.dir / 'ppo' / 'model'}"
    assert given == [(str(run.dir / "feedback" / "preferences.db"), told), ("elsewhere.db", "")]


def test_votes_on_a_model_directory_are_exported_from_where_they_are_kept(run):
    asked = CliRunner().invoke(app, ["feedback", "export", str(run.dir / "ppo" / "model")])
    assert str(run.dir / "feedback" / "preferences.db") in str(asked.exception)


def test_a_recipe_on_disk_has_no_password_and_the_run_uses_it_all_the_same(tmp_path, monkeypatch):
    url = "postgresql://keeper:correct-horse@host/votes"
    recipe = pipeline.read_recipe("tiny", [f"run.votes={url}", "run.seed=3"])
    monkeypatch.setattr(pipeline, "_run_stage", lambda *_: None)
    pipeline.execute(recipe, tmp_path / "run", Console(quiet=True))
    assert recipe.sections["run"].votes == url
    for name in ("recipe.yaml", "resolved.json"):
        text = (tmp_path / "run" / name).read_text(encoding="utf-8")
        assert "postgresql://keeper@host/votes" in text
        assert "correct-horse" not in text
    again = pipeline.read_recipe(str(tmp_path / "run" / "recipe.yaml"))
    assert again.sections["run"].seed == 3


def test_a_mistyped_override_does_not_repeat_what_may_be_a_password():
    with pytest.raises(UserError, match=r"override 'votes=\.\.\.' is not of the form") as caught:
        pipeline.read_recipe("tiny", ["votes=postgresql://keeper:correct-horse@host/votes"])
    assert "correct-horse" not in str(caught.value)
