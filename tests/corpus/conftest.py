from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stages import make_stage

from danlu.corpus import CorpusSettings, build
from danlu.files import read_json
from danlu.records import Document, read_documents

Built = tuple[dict[str, Any], list[Document], dict[str, Any], Path]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Built]:
    """Run the corpus stage: figures, documents, audit, and the stage's directory."""

    def run(out: str = "out", **settings: Any) -> Built:
        folder = tmp_path / out
        figures = build(make_stage(folder, CorpusSettings(**settings), name="corpus", seed=0))
        return figures, list(read_documents(folder / "documents")), read_json(folder / "audit.json"), folder

    return run
