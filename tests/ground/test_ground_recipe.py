"""Recipes that extend recipes: the nearest word counts, and silence says nothing."""

from dataclasses import fields
from pathlib import Path

import pytest

from danlu.errors import UserError
from danlu.model.config import ModelConfig
from danlu.pipeline import SECTIONS, read_recipe, stages_of
from danlu.recipe import _ELSEWHERE
from danlu.train.adapters import AdapterSettings


def recipe(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_a_child_overrules_its_parent_however_it_spells_the_key(tmp_path):
    recipe(tmp_path, "parent.yaml", "seed: 1\n")
    child = recipe(tmp_path, "child.yaml", "extends: parent.yaml\nrun: {seed: 2}\n")
    assert read_recipe(child).sections["run"].seed == 2
    assert read_recipe(child, ["seed=3"]).sections["run"].seed == 3


def test_an_empty_section_says_nothing(tmp_path):
    child = recipe(tmp_path, "child.yaml", "extends: tang\npretrain:\n")
    assert read_recipe(child).sections["pretrain"] == read_recipe("tang").sections["pretrain"]


def test_overrides_from_python_are_taken_as_they_are(tmp_path):
    said = {"corpus": {"source": tmp_path, "include": ("*.txt",)}, "seed": 3, "base": None}
    resolved = read_recipe("tiny", [said, {"sft": {"source": "𠀀.jsonl"}}, {"corpus": {"min_chars": None}}])
    assert resolved.sections["corpus"].source == str(tmp_path)
    assert resolved.sections["corpus"].include == ("*.txt",)
    assert resolved.sections["run"].seed == 3
    assert resolved.sections["sft"].source == "𠀀.jsonl", "a letter beyond 16 bits"
    assert said == {"corpus": {"source": tmp_path, "include": ("*.txt",)}, "seed": 3, "base": None}
    again = read_recipe(recipe(tmp_path, "again.yaml", resolved.text))
    assert again.resolved() == resolved.resolved()
    with pytest.raises(UserError, match=r"pretrain\.steps is of type object"):
        read_recipe("tiny", [{"pretrain": {"steps": object()}}])
    with pytest.raises(UserError, match="did you mean 'steps'"):
        read_recipe("tiny", [{"pretrain": {"stps": 3}}])


def test_home_is_known_wherever_a_file_can_be_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe(tmp_path, "parent.yaml", "corpus: {source: ~/texts}\nbase: ~/model\n")
    child = recipe(tmp_path, "child.yaml", "extends: ~/parent.yaml\nsft: {source: ~/own.jsonl}\n")
    sections = read_recipe(child, ["run.votes=~/votes.db"]).sections
    for name, key, file in (
        ("corpus", "source", "texts"), ("pretrain", "base", "model"), ("sft", "source", "own.jsonl"),
        ("run", "votes", "votes.db"),
    ):  # fmt: skip
        assert sections[name].reads() == {key: tmp_path / file}
    assert read_recipe("tiny", ["run.votes=sqlite:///~/votes.db"]).sections["run"].votes == "sqlite:///~/votes.db"


@pytest.mark.parametrize("value", ["[]", "0", "fast"])
def test_a_section_must_be_a_mapping(tmp_path, value):
    with pytest.raises(UserError, match=r"section 'pretrain' .* must be a mapping"):
        read_recipe(recipe(tmp_path, "odd.yaml", f"extends: tang\npretrain: {value}\n"))


def test_a_recipe_without_a_word_is_one_that_runs_on_any_text(tmp_path):
    sections = read_recipe(recipe(tmp_path, "empty.yaml", "")).sections
    assert {sections[name].judge for name in ("rankings", "ppo", "compress", "eval")} == {"prose"}
    assert sections["sft"].source == "prose"


def test_a_run_goes_on_with_one_aligned_model(tmp_path):
    needs = {spec.name: spec.needs for spec in stages_of(read_recipe("tiny"))}
    assert "aligned" not in {need for each in needs.values() for need in each}
    assert "ppo" in needs["compress"]
    with pytest.raises(UserError, match=r"run.aligned.*did you mean 'ppo'"):
        stages_of(read_recipe("tiny", ["run.aligned=pop"]))


def test_learning_without_samples_needs_no_reward_model(tmp_path):
    stages = [spec.name for spec in stages_of(read_recipe("tiny", ["run.goal=dpo"]))]
    assert stages == ["corpus", "tokenizer", "tokens", "pretrain", "sft", "rankings", "dpo"]
    needs = {spec.name: spec.needs for spec in stages_of(read_recipe("tiny", ["run.aligned=dpo"]))}
    assert "dpo" in needs["compress"]
    assert "ppo" not in needs


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("ppo.learning_rate=1", "lr"), ("grpo.beta=1", "kl_coefficient"), ("ppo.max_steps=1", "iterations"),
        ("sft.max_steps=1", "steps"), ("best_of.num_generations=1", "n"), ("grpo.num_generations=1", "group_size"),
        ("sft.adapter.lora_alpha=1", "alpha"), ("pretrain.model.hidden_size=1", "d_model"), ("sft.stepps=1", "steps"),
    ],
)  # fmt: skip
def test_a_key_by_the_name_that_other_tools_give_it_is_understood_and_refused(said: str, meant: str):
    with pytest.raises(UserError, match=f"unknown key .*; did you mean '{meant}'"):
        read_recipe("tang", [said])


def test_what_other_tools_call_our_keys_are_none_of_ours_and_the_keys_exist():
    keys = {field.name for field in fields(ModelConfig)}
    waiting = [*SECTIONS.values(), AdapterSettings]
    keys |= {key for section in waiting for key in section.model_fields}
    assert {key for ours in _ELSEWHERE.values() for key in ours} <= keys
    assert _ELSEWHERE.keys() & keys == {"beta"}, "which dpo has"
