"""The Makefile installs again whenever the page would be built again, and keeps bytecode; tests go by files."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[2]
FILES = ("a/test_1.py", "a/test_2.py", "chain/test_3.py", "chain/test_4.py")


@pytest.fixture
def page_sources(monkeypatch):
    monkeypatch.syspath_prepend(str(HOUSE))
    import hatch_build

    yield {path for pattern in hatch_build._SOURCES for path in (HOUSE / "web").glob(pattern) if path.is_file()}
    sys.modules.pop("hatch_build")


def test_every_source_of_the_page_is_a_prerequisite(page_sources):
    rules = subprocess.run(
        ["make", "--dry-run", "--print-data-base", ".venv/.installed"], cwd=HOUSE, capture_output=True, text=True,
        check=True,
    ).stdout  # fmt: skip
    wanted = re.search(r"^\.venv/\.installed: (.+)$", rules, re.M)
    assert wanted is not None
    assert {path.relative_to(HOUSE).as_posix() for path in page_sources} <= set(wanted[1].split())


def test_what_is_compiled_is_kept():
    said = subprocess.run(
        ["make", "--silent", "--eval=told:;@echo told:$$PYTHONDONTWRITEBYTECODE", "told"], cwd=HOUSE,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert said == "told:\n"


def test_files_stay_whole_and_the_chain_is_one_and_begins(tmp_path):
    """Asked of pytest itself, since what shares tests out has fallen silent before."""
    files = [tmp_path / "tests" / name for name in FILES]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("import time\n" + "".join(f"def test_{i}(): time.sleep(0.1)\n" for i in range(4)))
    shutil.copy(HOUSE / "tests" / "conftest.py", tmp_path / "tests")
    said = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "xdist", "-n", "2", "-v", "--import-mode=importlib"], cwd=tmp_path,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    done = re.findall(r"^\[(gw\d)\].* PASSED tests/([^:]+)::", said, re.M)
    assert all(len({worker for worker, other in done if other == file}) == 1 for file in FILES)
    chains = next(worker for worker, file in done if file == FILES[2])
    assert [file for worker, file in done if worker == chains][:8] == [*4 * [FILES[2]], *4 * [FILES[3]]]
