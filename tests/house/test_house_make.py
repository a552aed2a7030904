"""The Makefile installs again whenever the page would be built again."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[2]


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
