"""The two stages of this room: documents to a tokenizer, documents and tokenizer to token shards.

In:  the corpus stage's documents, and the share of them that is held out.
Out: ``model/`` (a tokenizer folder) and ``report.json``; ``shards/train`` and ``shards/val``.
Left out: rows and batches; the length of a row is the trainer's choice (``pack``, ``loader``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from danlu.console import Task
from danlu.corpus.split import is_heldout, read_share
from danlu.errors import UserError
from danlu.files import write_json
from danlu.recipe import Settings
from danlu.records import Document, read_documents
from danlu.run import Stage
from danlu.streams import stream_seed
from danlu.tokens import chat
from danlu.tokens.bpe import train_bpe
from danlu.tokens.report import describe
from danlu.tokens.shards import Masked, read_shards, write_shards
from danlu.tokens.tokenizer import Tokenizer

_REPORT_CHARS = 2_000_000  # enough for every figure to settle; encoding more takes longer than training on it


class TokenizerSettings(Settings):
    """How the vocabulary is trained."""

    vocab_size: int = Field(8192, ge=320, le=1_048_576)
    """Ids, special tokens included; rounded up to a multiple of 64. A small corpus may give fewer."""

    han_run: int = Field(4, ge=1, le=16)
    """Most Han characters that one token may cover; 1 makes every character a token (poems: one per beat)."""

    min_frequency: int = Field(2, ge=1)
    """A pair seen less often than this in the sample is not merged."""

    sample_chars: int = Field(1_000_000_000, ge=1_000_000)
    """Most characters to train on; a larger corpus is sampled by document."""

    document_chars: int = Field(10_000, ge=1_000, le=100_000)
    """Characters read from the start of each document, so that one long book does not decide the vocabulary."""


class TokensSettings(Settings):
    """Nothing to choose: the shards follow from the documents, the held-out share and the tokenizer."""


def build_tokenizer(stage: Stage) -> dict[str, Any]:
    """Train the vocabulary on training documents and write it as a Hugging Face tokenizer folder.

    Raises:
        UserError: there are no training documents.
    """
    settings = stage.settings
    assert isinstance(settings, TokenizerSettings)
    available = sum(len(document.text) for document in _openings(stage, settings))
    if not available:
        raise UserError("the corpus has no text for training; change corpus.source or its filters")
    chars = min(available, settings.sample_chars)
    stage.console.say(f"training a vocabulary of {settings.vocab_size:,} on {chars:,} characters")
    with stage.console.task("read for the vocabulary", chars, "characters") as task:
        backend = train_bpe(
            _told(_sample(stage, settings, chars / available), task),
            vocab_size=settings.vocab_size,
            han_run=settings.han_run,
            min_frequency=settings.min_frequency,
            specials=chat.SPECIALS,
        )
    tokenizer = Tokenizer(backend, chat.TOKENIZER_CONFIG)
    tokenizer.save(stage.dir / "model")
    report = describe(tokenizer, _sample(stage, settings, min(chars, _REPORT_CHARS) / available))
    write_json(stage.dir / "report.json", report)
    said = ("vocab_size", "bytes_per_token", "unused_tokens", "sample_bytes")
    return {**{name: report[name] for name in said}, "hash": tokenizer.hash}


def build_shards(stage: Stage) -> dict[str, Any]:
    """Encode every document as ``bos text eos`` into the training or the validation shard.

    A shard that an interrupted run has finished is kept.

    Raises:
        UserError: no document is left for training, or none for validation.
    """
    tokenizer = Tokenizer.load(stage.inputs["tokenizer"] / "model")
    figures: dict[str, Any] = {}
    for split in ("train", "val"):
        folder = stage.dir / "shards" / split
        if not folder.exists():
            with stage.console.task(f"encode {split}", unit="tokens") as task:
                write_shards(folder, _sequences(stage, split, tokenizer, task), tokenizer)
        manifest = read_shards(folder, tokenizer).manifest
        if not manifest["documents"]:
            raise UserError(f"no document is left for the {split} split; change corpus.heldout or add documents")
        figures |= {f"{split}_{what}": manifest[what] for what in ("tokens", "bytes", "documents")}
    return {**figures, "bytes_per_token": round(figures["train_bytes"] / figures["train_tokens"], 4)}


def _told(documents: Iterator[Document], task: Task) -> Iterator[str]:
    """The documents' texts, one by one, with progress."""
    for document in documents:
        task.advance(len(document.text))
        yield document.text


def _sequences(stage: Stage, split: str, tokenizer: Tokenizer, task: Task) -> Iterator[Masked]:
    for batch, encoded in tokenizer.encode_documents(_documents(stage, split)):
        task.advance(len(batch), units=sum(map(len, encoded)))
        for ids in encoded:
            yield [tokenizer.bos, *ids, tokenizer.eos], None


def _documents(stage: Stage, split: str) -> Iterator[Document]:
    """Documents of one split; the corpus stage decides how many are held out, the document's id decides which."""
    corpus: Path = stage.inputs["corpus"]
    share = read_share(corpus)
    for document in read_documents(corpus / "documents"):
        if is_heldout(document.id, share) == (split == "val"):
            yield document


def _openings(stage: Stage, settings: TokenizerSettings) -> Iterator[Document]:
    for document in _documents(stage, "train"):
        yield replace(document, text=document.text[: settings.document_chars])


def _sample(stage: Stage, settings: TokenizerSettings, share: float) -> Iterator[Document]:
    """A share of the training documents; each is in or out by its id, so that the sample is the same in any order."""
    for document in _openings(stage, settings):
        if stream_seed(stage.seed, "tokenizer", document.id) < share * 2**63:
            yield document
