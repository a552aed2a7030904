"""Examples stand before the dialogue, and are the first to go."""

from __future__ import annotations

import json

import pytest

from danlu.errors import UserError
from danlu.infer import left_out, read_shots, with_shots
from danlu.records import Message
from danlu.tokens import chat
from danlu.tokens.bpe import train_bpe
from danlu.tokens.tokenizer import Tokenizer

EXAMPLE = [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}]
ASKED = [Message("user", "3+3")]
SYSTEM = Message("system", "Count.")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_bpe(["ab"], vocab_size=320, han_run=1, min_frequency=9, specials=chat.SPECIALS),
                     chat.TOKENIZER_CONFIG)  # fmt: skip


def write(path, *rows) -> object:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def length(tokenizer, messages) -> int:
    return len(chat.encode_prompt(tokenizer, messages))


def test_all_conversations_in_order(tmp_path, tokenizer):
    other = [{"role": "system", "content": "Count."}, *EXAMPLE]
    shots = read_shots(write(tmp_path / "shots.jsonl", {"messages": other}, {"messages": EXAMPLE}))
    assert [turn.role for turn in shots] == ["system", "user", "assistant", "user", "assistant"]
    whole = with_shots(tokenizer, shots, ASKED, 10_000, whole=True)
    assert whole == [*shots, *ASKED]
    own = Message("system", "Own.")
    assert with_shots(tokenizer, shots, [own, *ASKED], 10_000, whole=True) == [own, *shots[1:], *ASKED]
    assert with_shots(tokenizer, (), [own, *ASKED], 1, whole=True) == [own, *ASKED]


def test_examples_go_before_anything_that_was_said(tokenizer):
    shots = [SYSTEM, *(Message(role, f"{i}") for i in range(9) for role in ("user", "assistant"))]
    dialogue = [Message("user", "a"), Message("assistant", "b"), *ASKED]
    everything = length(tokenizer, [*shots, *dialogue])
    alone = length(tokenizer, [SYSTEM, *dialogue])
    for limit in range(alone, everything + 1, 5):
        kept = with_shots(tokenizer, shots, dialogue, limit, whole=True)
        assert kept[0] == SYSTEM
        assert kept[-3:] == dialogue
        assert length(tokenizer, kept) <= limit
        assert left_out(dialogue, kept) == 0
    assert with_shots(tokenizer, shots, dialogue, alone - 1, whole=True) == [SYSTEM, *dialogue]
    shorter = with_shots(tokenizer, shots, dialogue, alone - 1, whole=False)
    assert shorter == [SYSTEM, *ASKED]
    assert left_out(dialogue, shorter) == 2


def test_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match="no conversation file"):
        read_shots(tmp_path / "none.jsonl")
    path = write(tmp_path / "bad.jsonl", {"messages": EXAMPLE}, {"messages": EXAMPLE[:1]})
    with pytest.raises(UserError, match=r"bad\.jsonl:2: .*every line"):
        read_shots(path)
    systems = [{"messages": [{"role": "system", "content": text}, *EXAMPLE]} for text in ("a", "b")]
    with pytest.raises(UserError, match="different system turns"):
        read_shots(write(tmp_path / "two.jsonl", *systems))
