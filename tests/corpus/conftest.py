from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from danlu.console import Console
from danlu.corpus import CorpusSettings, build
from danlu.files import read_json
from danlu.records import Document, read_documents
from danlu.run import Metrics, Stage

Built = tuple[dict[str, Any], list[Document], dict[str, Any], Path]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Built]:
    """Run the corpus stage: figures, documents, audit, and the stage's directory."""

    def run(out: str = "out", **settings: Any) -> Built:
        folder = tmp_path / out
        folder.mkdir(exist_ok=True)
        metrics = Metrics(folder / "metrics.jsonl")
        stage = Stage("corpus", folder, CorpusSettings(**settings), {}, {}, 0, metrics, Console(quiet=True))
        figures = build(stage)
        return figures, list(read_documents(folder / "documents")), read_json(folder / "audit.json"), folder

    return run
