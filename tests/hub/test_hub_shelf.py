"""Models by name: fetched once, imported once, good enough to talk to."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch

from danlu import hub
from danlu.console import Console
from danlu.errors import UserError
from danlu.model import Decoder, preset
from danlu.places import find_model, servable_models
from danlu.tokens.bpe import train_bpe
from danlu.tokens.chat import SPECIALS, TOKENIZER_CONFIG
from danlu.tokens.tokenizer import Tokenizer


@pytest.fixture
def gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path / "cache"))
    backend = train_bpe(["one two"], vocab_size=320, han_run=1, min_frequency=2, specials=SPECIALS)
    hub.save(Decoder(preset("llama-tiny", vocab_size=320)), tmp_path / "model",
             Tokenizer(backend, TOKENIZER_CONFIG), card={"title": "t"})  # fmt: skip
    hub.export_gguf(tmp_path / "model", tmp_path / "small.gguf", "F16")
    return tmp_path / "small.gguf"


def test_a_file_is_imported_once_and_again_when_it_changes(gguf_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = find_model(gguf_file)
    assert hub.load(first).config.n_layers == 2
    assert servable_models(gguf_file) == {"small": first}
    assert find_model(gguf_file) == first
    assert capsys.readouterr().err.count("importing") == 1
    gguf_file.write_bytes(gguf_file.read_bytes() + bytes(32))
    assert find_model(gguf_file) != first


def test_what_cannot_be_had_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="no file at nowhere"):
        find_model(Path("nowhere.gguf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="could not fetch hf:nobody/nothing"):
        hub.obtain(Path("hf:nobody/nothing"), Console(quiet=True))
    with pytest.raises(UserError, match="did you mean 'smollm2'"):
        find_model(Path("smollm"))
    with pytest.raises(UserError, match="is one model; --stage chooses among those of a run"):
        find_model(Path("smollm2"), "sft")


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france() -> None:
    """In the words of the README; with fetching and importing it, unless this machine has done so before."""
    started = time.monotonic()
    told = subprocess.run(
        [sys.executable, "-m", "danlu.cli", "chat", "smollm2", "What is the capital of France?", "--temperature", "0"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert "Paris" in told.stdout
    assert time.monotonic() - started < 120


def test_a_model_of_the_hub_is_fetched_and_imported(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub is played by a folder; everything after its answer is real."""
    asked: list[tuple[str, list[str]]] = []

    def snapshot_download(
        name: str,
        *,
        repo_type: str,
        allow_patterns: list[str],
        cache_dir: Path | None,
        local_dir: Path | None,
        **_: str,
    ) -> str:
        asked.append((repo_type, allow_patterns))
        place = local_dir or Path(cache_dir or "", name, "snapshots", "a" * 40)
        shutil.copytree(tmp_path / "model", place, dirs_exist_ok=True)
        return str(place)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    found = find_model(Path("hf:me/model-1.7B"))
    assert servable_models(Path("hf:me/model-1.7B")) == {"model-1.7B": found}
    assert torch.equal(hub.load(found).embed.weight, hub.load(tmp_path / "model").embed.weight)
    assert {kind for kind, _ in asked} == {"model"}
    assert not any(pattern.endswith((".py", ".bin")) for _, patterns in asked for pattern in patterns)
    times = len(asked)
    assert find_model(Path("hf:me/model-1.7B")) == found
    assert len(asked) == times
