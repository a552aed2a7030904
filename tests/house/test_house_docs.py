"""Docs and recipes are tests: README commands exist, recipes validate, dependencies are explained."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

from danlu.cli import app
from danlu.errors import UserError
from danlu.pipeline import SECTIONS, SHORTCUTS, read_recipe, stages_of
from danlu.recipe import bundled_recipes, json_schema

HOUSE = Path(__file__).parents[2]
READMES = ("README.md", "README.zh.md")


def commands(readme: str) -> list[str]:
    text = (HOUSE / readme).read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, re.S)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.strip()]


@pytest.mark.parametrize("readme", READMES)
def test_readme_commands_exist(readme):
    root = get_command(app)
    targets = set(re.findall(r"^([a-z-]+):", (HOUSE / "Makefile").read_text(encoding="utf-8"), re.M))
    seen = 0
    for line in commands(readme):
        words = shlex.split(line)
        while words and "=" in words[0]:
            words = words[1:]
        if words[0] == "make":
            assert set(words[1:]) <= targets, line
        elif words[0].endswith("danlu"):
            command, rest = root, words[1:]
            while rest and hasattr(command, "commands") and rest[0] in command.commands:
                command, rest = command.commands[rest[0]], rest[1:]
            assert not hasattr(command, "commands"), f"README names a verb that does not exist: {line}"
            known = {option for param in command.params for option in param.opts}
            assert {word for word in rest if word.startswith("--")} <= known, line
            if words[1] in ("run", "plan"):
                read_recipe(words[2], [word for word in words[3:] if "=" in word and not word.startswith("-")])
        else:
            assert words[0] in ("git", "cd", "curl", "pip", "python", "source"), line
        seen += 1
    assert seen >= 4


def test_readmes_give_the_same_commands():
    assert commands("README.md") == commands("README.zh.md")


@pytest.mark.parametrize("name", bundled_recipes())
def test_bundled_recipes_validate(name):
    recipe = read_recipe(name)
    assert stages_of(recipe)[-1].name == (recipe.sections["run"].goal or "eval")


def test_every_setting_is_explained_in_the_schema():
    schema = json_schema(SECTIONS, SHORTCUTS)
    for section in SECTIONS:
        for key, field in schema["properties"][section].get("properties", {}).items():
            assert field.get("description"), f"{section}.{key} has no help text"


def test_misspelt_key_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'steps'"):
        read_recipe("tiny", ["pretrain.stps=3"])
    with pytest.raises(UserError, match="did you mean 'pretrain'"):
        read_recipe("tiny", ["pretran.steps=3"])
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        read_recipe("tinny")


def test_every_dependency_has_its_line():
    project = tomllib.loads((HOUSE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    text = (HOUSE / "docs" / "dependencies.md").read_text(encoding="utf-8").lower()
    for requirement in wanted:
        name = re.split(r"[<>=\[ ]", requirement)[0].lower()
        assert f"| {name} |" in text, f"docs/dependencies.md has no line for {name}"


def test_lock_pins_torch():
    lines = (HOUSE / "requirements.lock").read_text(encoding="utf-8").splitlines()
    assert "torch==2.13.0" in lines
    assert all("==" in line for line in lines if line and not line.startswith("#"))


def test_links_in_docs_lead_somewhere():
    for page in [*HOUSE.glob("*.md"), *(HOUSE / "docs").glob("*.md"), *(HOUSE / "bench").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_recipes_in_the_docs_are_recipes(tmp_path):
    blocks = re.findall(r"```yaml\n(.*?)```", (HOUSE / "docs" / "recipes.md").read_text(encoding="utf-8"), re.S)
    assert blocks
    for block in blocks:
        (tmp_path / "mine.yaml").write_text(block, encoding="utf-8")
        assert read_recipe(str(tmp_path / "mine.yaml")).name == "mine"
