"""Habits that can be checked by reading the source."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

import danlu

ROOT = Path(danlu.__file__).parent
HOUSE = Path(__file__).parents[2]
FILES = sorted(ROOT.rglob("*.py"))
FORBIDDEN = {
    r"\bpickle\b(?!\b.*=\s*False)": "no pickle anywhere",
    r"torch\.load\(": "no torch.load: it unpickles",
    r"trust_remote_code": "never",
    r"strict\s*=\s*False": "anything missing is an error",
    r"\bTODO\b|\bFIXME\b": "open work goes into docs/log.md",
    r"NotImplementedError": "no stubs",
}


def allowed(line: str) -> bool:
    return "allow_pickle=False" in line or line.lstrip().startswith(("#", '"""')) or "no pickle" in line.lower()


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_forbidden_words(path):
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        for pattern, why in FORBIDDEN.items():
            assert allowed(line) or not re.search(pattern, line), f"{path.name}:{number}: {why}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_and_public_names_are_documented(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    text = ast.get_docstring(tree) or ""
    assert text, f"{path} has no docstring"
    for word in ("In:", "Out:", "Left out:"):
        assert word in text, f"{path}: the module docstring does not say '{word}'"
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.name}: {node.name} has no docstring"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_fit(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400, f"{path} has outgrown its shape"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= 60, f"{path.name}: {node.name} has {lines} lines"


def test_no_utils():
    assert not [p for p in FILES if p.stem in ("utils", "util", "helpers", "common", "misc")]


def test_no_machine_paths_in_tracked_files():
    listing = subprocess.run(["git", "ls-files"], cwd=HOUSE, capture_output=True, text=True, check=True).stdout
    assert "pyproject.toml" in listing
    root = f"{HOUSE.parent}/"
    for name in listing.splitlines():
        path = HOUSE / name
        if path.is_file() and path.stat().st_size < 2_000_000 and len(root) > 6:
            assert root.encode() not in path.read_bytes(), f"{name} holds a path of this machine"
