"""Token shards: what is written is read, and damage is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from danlu.errors import UserError
from danlu.tokens import Tokenizer, chat, read_shards, write_shards
from danlu.tokens.bpe import train_bpe

SEQUENCES = [[1, 2, 3], [4], [], [5, 6, 300, 0]]
MASKS = [[0, 1, 1], [0], [], [1, 0, 0, 1]]


@pytest.mark.parametrize("masks", [None, MASKS])
def test_write_and_read(tokenizer: Tokenizer, tmp_path: Path, masks: list[list[int]] | None) -> None:
    write_shards(tmp_path / "s", zip(SEQUENCES, masks or [None] * 4, strict=True), tokenizer)
    shards = read_shards(tmp_path / "s", tokenizer, verify=True)
    assert shards.tokens.dtype == np.dtype("<u2")
    assert shards.tokens.tolist() == [1, 2, 3, 4, 5, 6, 300, 0]
    assert shards.ends.tolist() == [3, 4, 4, 8]
    assert (shards.mask is None) == (masks is None)
    if shards.mask is not None:
        assert shards.mask.tolist() == [0, 1, 1, 0, 1, 0, 0, 1]
    learnt = shards.tokens if shards.mask is None else shards.tokens[shards.mask == 1]
    expected = sum(len(tokenizer.token_bytes(int(id))) for id in learnt)
    assert (shards.manifest["tokens"], shards.manifest["documents"], shards.manifest["bytes"]) == (8, 4, expected)
    assert shards.manifest["pad"] == tokenizer.pad


def test_bytes_are_the_texts(tokenizer: Tokenizer, tmp_path: Path) -> None:
    texts = ["春眠不觉晓", "hello\x00 👩‍👩‍👧‍👦", ""] * 700  # more than one chunk
    encoded = (([tokenizer.bos, *ids, tokenizer.eos], None) for ids in tokenizer.encode_batch(texts))
    manifest = write_shards(tmp_path / "s", encoded, tokenizer)
    assert manifest["bytes"] == sum(len(text.encode()) for text in texts)
    assert manifest["documents"] == len(texts)
    assert write_shards(tmp_path / "t", [([1], None)], tokenizer, n_bytes=77)["bytes"] == 77


def test_large_vocabularies_take_four_bytes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    spec = json.loads(tokenizer.spec)
    spec["model"]["vocab"]["ÃÃÃ"] = 70_000
    large = Tokenizer(json.dumps(spec), tokenizer.config)
    write_shards(tmp_path / "s", [([70_000, 1], None)], large)
    assert read_shards(tmp_path / "s").tokens.tolist() == [70_000, 1]


def test_empty(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert write_shards(tmp_path / "s", [], tokenizer)["documents"] == 0
    assert read_shards(tmp_path / "s").tokens.size == 0


@pytest.mark.parametrize(
    "sequences",
    [
        [([512], None)],
        [([-1], None)],
        [([1, 2], [1])],
        [([1], [1]), ([2], None)],
        [([1], None)] * 1024 + [([1], [1])],
    ],
    ids=["id too large", "id below zero", "short mask", "one mask missing", "mask in a later chunk"],
)
def test_wrong_sequences_are_refused_and_leave_nothing(tokenizer: Tokenizer, tmp_path: Path, sequences: list) -> None:
    with pytest.raises(ValueError):
        write_shards(tmp_path / "s", sequences, tokenizer)
    assert list(tmp_path.iterdir()) == []


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["tokens.bin", "tokens.idx", "tokens.mask"])
@pytest.mark.parametrize("damage", [_truncate, Path.unlink, _flip])
def test_damage_is_named(tokenizer: Tokenizer, tmp_path: Path, name: str, damage) -> None:
    write_shards(tmp_path / "s", zip(SEQUENCES, MASKS, strict=True), tokenizer)
    damage(tmp_path / "s" / name)
    with pytest.raises(UserError, match=rf"{name} is damaged"):
        read_shards(tmp_path / "s", verify=damage is _flip)


def test_wrong_folders_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_shards(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": "danlu-tokens", "version": 99}')
    with pytest.raises(UserError, match="version"):
        read_shards(tmp_path)
    write_shards(tmp_path / "s", [([1], None)], tokenizer)
    other = Tokenizer(
        train_bpe(["other"], vocab_size=320, han_run=1, min_frequency=2, specials=chat.SPECIALS), chat.TOKENIZER_CONFIG
    )
    with pytest.raises(UserError, match="another tokenizer"):
        read_shards(tmp_path / "s", other)
