"""The two stages, from documents on disk to batches, and again after an interruption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from stages import make_stage

from danlu.corpus.split import is_heldout
from danlu.errors import UserError
from danlu.files import hash_paths, read_json, write_json
from danlu.recipe import Settings
from danlu.records import Document, write_documents
from danlu.run import Stage
from danlu.tokens import Tokenizer, TokenizerSettings, TokensSettings, build_shards, build_tokenizer, read_shards

SHARE = 0.1


def poems(n: int) -> list[Document]:
    han = "春眠不觉晓处闻啼鸟夜来风雨声花落知多少床前明月光疑是地上霜举头望低思故乡"
    lines = ["".join(han[(i * k + j * j) % len(han)] for j in range(5)) for i, k in zip(range(n), range(3, n + 3))]  # noqa: B905
    return [Document(f"id{i}", f"{line}，\n{line[::-1]}。", "made", "zh") for i, line in enumerate(lines)]


def stage(root: Path, name: str, settings: Settings) -> Stage:
    inputs = {other: root / other for other in ("corpus", "tokenizer")}
    return make_stage(root / name, settings, inputs, name, seed=0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_documents(tmp_path / "corpus" / "documents", poems(300))
    write_json(tmp_path / "corpus" / "split.json", {"heldout_share": SHARE})
    return tmp_path


def test_documents_become_shards(root: Path) -> None:
    made = build_tokenizer(stage(root, "tokenizer", TokenizerSettings(vocab_size=384, han_run=1)))
    figures = build_shards(stage(root, "tokens", TokensSettings()))
    tokenizer = Tokenizer.load(root / "tokenizer" / "model")
    assert made["vocab_size"] == tokenizer.vocab_size <= 384
    for split in ("train", "val"):
        shards = read_shards(root / "tokens" / "shards" / split, tokenizer, verify=True)
        kept = [d.text for d in poems(300) if is_heldout(d.id, SHARE) == (split == "val")]
        expected = [[tokenizer.bos, *tokenizer.encode(text), tokenizer.eos] for text in kept]
        assert shards.tokens.tolist() == [id for ids in expected for id in ids]
        assert figures[f"{split}_documents"] == len(kept) > 0
        assert figures[f"{split}_tokens"] == len(shards.tokens)
        assert figures[f"{split}_bytes"] == sum(len(text.encode()) for text in kept)
    assert figures["bytes_per_token"] == pytest.approx(figures["train_bytes"] / figures["train_tokens"], abs=1e-4)
    report = read_json(root / "tokenizer" / "report.json")
    assert report["languages"]["zh"]["documents"] == figures["train_documents"]
    assert report["longest_han_tokens"] == []  # han_run 1


def test_heldout_text_does_not_train_the_vocabulary(root: Path) -> None:
    heldout = [replace(d, text="囍" * 50) if is_heldout(d.id, SHARE) else d for d in poems(300)]
    write_documents(root / "corpus" / "documents", heldout)
    build_tokenizer(stage(root, "tokenizer", TokenizerSettings(vocab_size=1024, han_run=1)))
    assert len(Tokenizer.load(root / "tokenizer" / "model").encode("囍")) == 3


def test_again_gives_the_same_bytes_and_keeps_what_is_finished(root: Path) -> None:
    settings = TokenizerSettings(vocab_size=384)
    build_tokenizer(stage(root, "tokenizer", settings))
    model = hash_paths(root / "tokenizer", ("model", "report.json"))
    build_tokenizer(stage(root, "tokenizer", settings))
    assert hash_paths(root / "tokenizer", ("model", "report.json")) == model
    tokens = stage(root, "tokens", TokensSettings())
    figures = build_shards(tokens)
    kept = (tokens.dir / "shards" / "train" / "tokens.bin").stat().st_mtime_ns
    shards = hash_paths(tokens.dir, ("shards",))
    for file in (tokens.dir / "shards" / "val").iterdir():
        file.unlink()
    (tokens.dir / "shards" / "val").rmdir()
    assert build_shards(tokens) == figures
    assert hash_paths(tokens.dir, ("shards",)) == shards
    assert (tokens.dir / "shards" / "train" / "tokens.bin").stat().st_mtime_ns == kept


def test_sample_is_bounded(root: Path) -> None:
    long = [replace(document, text=document.text * 1000) for document in poems(300)]
    write_documents(root / "corpus" / "documents", long)
    settings = TokenizerSettings(vocab_size=384, han_run=1, sample_chars=1_000_000, document_chars=10_000)
    made = build_tokenizer(stage(root, "tokenizer", settings))
    per_char = len(long[0].text.encode()) / len(long[0].text)
    assert made["sample_bytes"] / per_char == pytest.approx(1_000_000, rel=0.25)


def test_what_is_missing_is_said(root: Path) -> None:
    build_tokenizer(stage(root, "tokenizer", TokenizerSettings(vocab_size=384)))
    write_json(root / "corpus" / "split.json", {"heldout_share": 0.0})
    with pytest.raises(UserError, match="val split"):
        build_shards(stage(root, "tokens", TokensSettings()))
    write_json(root / "corpus" / "split.json", {"heldout_share": 1.0})
    with pytest.raises(UserError, match="no text for training"):
        build_tokenizer(stage(root, "tokenizer", TokenizerSettings()))
    (root / "corpus" / "split.json").unlink()
    with pytest.raises(UserError, match=r"split\.json"):
        build_tokenizer(stage(root, "tokenizer", TokenizerSettings()))
