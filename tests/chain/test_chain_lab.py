"""``danlu lab`` on the run of the recipe ``tiny``: arms are made, looked at, compared, and made once."""

import json
import os
from pathlib import Path

import pytest
from person import STAGES
from typer.testing import CliRunner

from danlu.cli import app
from danlu.errors import UserError
from danlu.records import Answer, Message, Preference, write_preferences

pytestmark = pytest.mark.slow
LITTLE = ("--answers", "32", "--looks", "2", "--prompts", "8")


def lab(*words: object) -> str:
    """Run a verb here, which saves the time of starting it; returns what it said to a program."""
    done = CliRunner().invoke(app, ["lab", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


@pytest.fixture
def run(tiny_run, tmp_path) -> Path:
    """The shared run by links, so that its arms and results are this test's."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    for name in (*STAGES, "recipe.yaml", "resolved.json"):
        os.symlink(tiny_run / name, folder / name)
    return folder


def manifests(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.glob("lab/**/manifest.json")}


def test_methods_are_compared_and_a_second_time_nothing_is_done(run):
    words = ("methods", run, "--method", "reinforce", "--method", "dpo", "--kl", "0", *LITTLE)
    said = lab(*words)
    assert [line.split(" | ")[0] for line in said.splitlines()[2:5]] == ["| sft", "| reinforce", "| dpo"]
    found = json.loads((run / "lab" / "methods" / "results.json").read_text())
    assert [look["kl"] == 0 for look in found["paths"]["dpo"][0]] == [True, False]
    assert found["methods"]["dpo"]["at"]["0"] == [found["sft"][0]["judge"]], "it begins at the SFT model"
    dpo = run / "lab" / "methods" / "dpo"
    assert (dpo / "sft").is_symlink()
    assert not (dpo / "rankings").is_symlink(), "what is compared was sampled for it"
    before = manifests(run)
    looks = (dpo / "looks.json").stat().st_mtime_ns
    assert lab(*words) == said
    assert manifests(run) == before
    assert (dpo / "looks.json").stat().st_mtime_ns == looks
    whole = (dpo / "looks.json").read_text()
    known = json.loads(whole)
    (dpo / "looks.json").write_text(json.dumps({**known, "looks": known["looks"][:-1]}))
    (dpo / "sft").unlink()
    (dpo / "sft").symlink_to("nowhere")  # as after a move of the run
    assert lab(*words) == said
    assert (dpo / "looks.json").read_text() == whole, "whoever is killed makes the look that is missing, the same"


def test_goodhart_leaves_figures_and_a_picture(run):
    words = ("goodhart", run, "--n", "24", "--method", "ppo", "--method", "best_of", "--among", "4", *LITTLE)
    said = lab(*words)
    assert [line.split(" | ")[:2] for line in said.splitlines()[2:4]] == [["| ppo", "24"], ["| best_of", "24"]]
    place = run / "lab" / "goodhart"
    ppo, best_of = json.loads((place / "results.json").read_text())["arms"]
    assert [look["iteration"] for look in best_of["looks"]] == [1, 2, 4]
    assert [look["reward"] for look in best_of["looks"]] == sorted(look["reward"] for look in best_of["looks"])
    assert len(ppo["looks"]) == 2
    learnt = json.loads((place / "24" / "reward" / "manifest.json").read_text())["figures"]
    made = json.loads((place / "24" / "rankings" / "manifest.json").read_text())["figures"]["comparisons"]
    assert learnt["comparisons"] + learnt["heldout"] <= ppo["rankings"] == made
    settings = json.loads((place / "24-ppo" / "ppo" / "manifest.json").read_text())["settings"]
    assert (settings["kl_coefficient"], settings["kl_horizon"]) == (0.0, 0)
    assert (place / "goodhart.svg").read_text().startswith("<svg")
    before = manifests(run)
    assert lab(*words) == said
    assert manifests(run) == before


def test_what_is_compared_stands_on_the_same_ground(run):
    with pytest.raises(UserError, match="'sft' lies below what is compared; make another run with that sft"):
        lab("methods", run, "sft.lr=0.1", "--method", "dpo", *LITTLE)
    with pytest.raises(UserError, match=r"grpo.lr would change nothing: .* set ppo.lr"):
        lab("methods", run, "grpo.lr=0.1", "--method", "grpo", *LITTLE)
    with pytest.raises(UserError, match=r"looks at whole policies; give it ppo.adapter.kind=none"):
        lab("methods", run, "ppo.adapter.kind=lora", "--method", "best_of", "--method", "grpo", *LITTLE)
    vote = Preference("v", (Message("user", "hm"),), (Answer("a"), Answer("b")), (0, 1), "r")
    (run / "feedback").mkdir()
    write_preferences(run / "feedback" / "votes.jsonl", [vote])
    with pytest.raises(UserError, match=r"stage 'reward' of .* is out of date \(votes changed\)"):
        lab("methods", run, "--method", "ppo", *LITTLE)
    (run / "rankings").unlink()
    with pytest.raises(UserError, match="has no finished stage 'rankings'; danlu run makes it"):
        lab("methods", run, "--method", "ppo", *LITTLE)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("methods", "nowhere"), "nowhere is not a run directory"),
        (("methods", "a=b"), "name a run"),
        (("methods", "x", "x"), "x is named twice"),
        (("goodhart", "x", "y"), "takes one run, and these are 2"),
        (("methods", "x", "--method", "pppo"), "unknown method 'pppo'; did you mean 'ppo'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_a_sentence(words, sentence):
    with pytest.raises(UserError, match=sentence):
        lab(*words)
