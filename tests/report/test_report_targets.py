"""Targets: strict where they say so, left out where nothing was measured."""

import re
from pathlib import Path

from danlu.report.targets import Target, targets

RESULT = {
    "recipe": "tang", "aligned": "ppo", "minutes_total": 11.0,
    "form_rate": {"sft": 0.8, "ppo": 0.9}, "rhyme_rate": {"sft": 0.1, "ppo": 0.2},
    "distinct_2": {"sft": 1.0, "ppo": 0.89}, "copy_rate": {"sft": 0.0, "ppo": 0.0},
    "reward": {"accuracy": 0.6, "baselines": {"longer": 0.5, "likelihood": 0.6}},
    "compression": {"dense": 2.0, "int8": 2.0, "magnitude": 2.2, "sparsegpt": 2.2},
}  # fmt: skip


def test_a_promise_is_kept_to_the_letter():
    assert Target("x", 1.0, ">=", 1).met
    assert not Target("x", 1.0, "<", 1).met
    assert not Target("x", 1.0, ">", 1).met


def test_targets_of_a_whole_run():
    rows = {target.what: target.as_row() for target in targets(RESULT)}
    missed = {what for what, row in rows.items() if not row["met"]}
    assert missed == {
        "distinct-2 after PPO / SFT",
        "reward accuracy - best baseline",  # equal to a baseline is not better
        "SparseGPT 50 % / magnitude 50 %, bits per byte",
    }
    assert rows["rhyme rate after PPO / SFT"] == {
        "what": "rhyme rate after PPO / SFT", "target": ">= 2", "value": 2.0, "met": True,
    }  # fmt: skip


def test_what_was_not_measured_is_not_promised():
    assert targets({"recipe": "mine"}) == []
    assert targets({"recipe": "tang", "minutes_total": 1.0}) == []  # of a run that has not ended
    assert targets(RESULT)[0].what == "minutes, all stages"
    assert targets(RESULT | {"recipe": "mine"})[0].what == "form rate after PPO"
    assert targets({"recipe": "mine", "aligned": "grpo", "form_rate": {"sft": 0.8, "ppo": 0.9}}) == []  # an old exam
    assert targets({"recipe": "tiny", "reward": {"accuracy": 0.5, "baselines": {}}}) == []


def test_the_readmes_show_the_targets_that_a_run_prints():
    promised = {f"{target.what} {target.as_row()['target']}" for target in targets(RESULT)}
    for name in ("README.md", "README.zh.md"):
        text = (Path(__file__).parents[2] / name).read_text(encoding="utf-8")
        assert set(re.findall(r"^target +(.+): \S+ \((?:met|MISSED)\)$", text, re.M)) == promised, name
