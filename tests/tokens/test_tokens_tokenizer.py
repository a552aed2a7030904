"""The tokenizer: nothing is lost, nothing is forged, training repeats itself, transformers agrees."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from danlu.errors import UserError
from danlu.tokens import Tokenizer, chat
from danlu.tokens.bpe import split_pattern, train_bpe

TORTURE = (
    "",
    "\x00",
    "a\x00b\r\n\r\n\t  c  ",
    "👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 \ufeff\u200b\u2028",
    "二〇二四年１２３ 12345 ½ ٣٤",
    "𠀀𪜀 鿿 々〆 한국어 ไทย עברית",
    "<|end|><|user|><|im_end|>",
    "it's DON'T we'Ll ﬁ ß İ",
    "x" * 5000,
    "丹" * 20_000,
)
"""Texts that have broken tokenizers."""

hostile = st.lists(st.one_of(st.text(), st.sampled_from(chat.SPECIALS)), max_size=6).map("".join)


@pytest.fixture(scope="module")
def saved(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    tokenizer.save(folder)
    return folder


@pytest.mark.parametrize("text", TORTURE, ids=range(len(TORTURE)))
def test_round_trip_of_torture(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text, text]) == [ids, ids]
    assert int(tokenizer.byte_lengths[ids].sum()) == len(text.encode())


def test_half_a_surrogate_pair_is_replaced(tokenizer: Tokenizer) -> None:
    for ids in (tokenizer.encode("a\ud800b"), tokenizer.encode_batch(["a\ud800b"])[0]):
        assert tokenizer.decode(ids) == "a\ufffdb"


@settings(max_examples=150, deadline=None)
@given(text=hostile)
def test_text_never_yields_a_special(tokenizer: Tokenizer, text: str) -> None:
    specials = set(tokenizer.specials.values())
    for ids in (tokenizer.encode(text), tokenizer.encode_batch([text])[0]):
        assert specials.isdisjoint(ids)
        assert tokenizer.decode(ids) == text


def test_vocabulary(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size % 64 == 0
    assert len({tokenizer.pad, tokenizer.bos, tokenizer.eos}) == 3
    assert tokenizer.eos == tokenizer.specials["<|end|>"]
    pieces = [tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)]
    assert {bytes([byte]) for byte in range(256)} <= set(pieces)
    assert [id for id, piece in enumerate(pieces) if not piece] == sorted(tokenizer.specials.values())


def test_every_special_has_a_user_or_fills_up(tokenizer: Tokenizer) -> None:
    assert {name for name in tokenizer.specials if not name.startswith("<|reserved_")} == set(chat.SPECIALS)


@pytest.mark.parametrize("han_run", [1, 2, 4])
def test_han_run_caps_tokens(han_run: int) -> None:
    slogan = "天地玄黄宇宙洪荒" * 50
    backend = train_bpe([slogan], vocab_size=1024, han_run=han_run, min_frequency=2, specials=chat.SPECIALS)
    tokenizer = Tokenizer(backend, chat.TOKENIZER_CONFIG)
    longest = max(len(tokenizer.decode([id])) for id in tokenizer.encode(slogan))
    assert longest == han_run


def test_han_does_not_swallow_neighbours(tokenizer: Tokenizer) -> None:
    rule = tokenizer._backend.pre_tokenizer.pre_tokenize_str
    cuts = [(a, b) for _, (a, b) in rule("他say你好吗hello，二〇1234")]
    text = "他say你好吗hello，二〇1234"
    assert [text[a:b] for a, b in cuts] == ["他", "say", "你好", "吗", "hello", "，", "二〇", "12", "34"]
    assert split_pattern(2) in tokenizer.spec.replace("\\\\", "\\")


@pytest.mark.parametrize("asked", [320, 512, 513, 100_000])
def test_vocabulary_size(texts: tuple[str, ...], asked: int) -> None:
    backend = train_bpe(texts, vocab_size=asked, han_run=4, min_frequency=2, specials=chat.SPECIALS)
    size = Tokenizer(backend, chat.TOKENIZER_CONFIG).vocab_size
    assert size % 64 == 0
    assert size < asked + 64
    if asked <= 512:
        assert size == asked


def test_training_repeats_itself(tokenizer: Tokenizer, texts: tuple[str, ...]) -> None:
    """The texts in another order, and another process with other hash seeds, give the same bytes."""
    asked = {"vocab_size": 512, "han_run": 2, "min_frequency": 2, "specials": chat.SPECIALS}
    assert train_bpe(texts[::-1], **asked) == tokenizer.spec
    program = (
        "import sys, json; from danlu.tokens.bpe import train_bpe\n"
        "texts, asked = json.load(sys.stdin)\n"
        "sys.stdout.write(train_bpe(texts, **asked))"
    )
    sent = json.dumps([texts, asked])
    done = subprocess.run([sys.executable, "-c", program], input=sent, capture_output=True, text=True)
    assert done.stdout == tokenizer.spec, done.stderr


def test_save_and_load(tokenizer: Tokenizer, saved: Path, tmp_path: Path) -> None:
    again = Tokenizer.load(saved)
    again.save(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (tmp_path / name).read_bytes() == (saved / name).read_bytes()
    assert again.hash == tokenizer.hash
    assert (again.bos, again.eos, again.pad) == (tokenizer.bos, tokenizer.eos, tokenizer.pad)


@pytest.fixture(scope="module")
def theirs(saved: Path) -> AutoTokenizer:
    return AutoTokenizer.from_pretrained(saved)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_transformers_agrees(tokenizer: Tokenizer, theirs: AutoTokenizer, data: st.DataObject) -> None:
    text = data.draw(st.text().filter(lambda text: "<|" not in text))
    assert theirs(text)["input_ids"] == tokenizer.encode(text)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    assert theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)


def test_transformers_sees_the_same_roles(tokenizer: Tokenizer, theirs: AutoTokenizer) -> None:
    assert len(theirs) == tokenizer.vocab_size
    roles = (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)
    assert roles == (tokenizer.bos, tokenizer.eos, tokenizer.pad)


def test_foreign_folder(chatml_folder: Path) -> None:
    tokenizer = Tokenizer.load(chatml_folder)
    assert tokenizer.eos == tokenizer.specials["<|im_end|>"]
    assert tokenizer.pad == tokenizer.specials["<|endoftext|>"]  # the folder's own pad is its eos
    assert tokenizer.decode(tokenizer.encode("<|im_end|>春")) == "<|im_end|>春"


def test_eos_from_generation_config_and_template_from_file(chatml_folder: Path, tmp_path: Path) -> None:
    shutil.copy(chatml_folder / "tokenizer.json", tmp_path)
    end = Tokenizer.load(chatml_folder).specials["<|im_end|>"]
    with pytest.raises(UserError, match="no eos_token"):
        Tokenizer.load(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [end, 0]}))
    (tmp_path / "chat_template.jinja").write_text("hello")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.eos == tokenizer.bos == end
    assert tokenizer.config["chat_template"] == "hello"


def test_base_vocabulary_with_one_special_pads_with_its_rarest_token(texts: tuple[str, ...]) -> None:
    backend = json.loads(train_bpe(texts, vocab_size=320, han_run=1, min_frequency=2, specials=["<|endoftext|>"]))
    backend["added_tokens"] = backend["added_tokens"][:1]
    tokenizer = Tokenizer(json.dumps(backend), {"eos_token": "<|endoftext|>"})
    assert tokenizer.pad != tokenizer.eos == tokenizer.bos
    assert tokenizer.token_bytes(tokenizer.pad)


def _without_byte_level(spec: dict) -> None:
    spec["decoder"] = {"type": "Fuse"}


def _forgeable(spec: dict) -> None:
    spec["added_tokens"].append({**spec["added_tokens"][0], "id": spec["model"]["vocab"]["T"], "content": "T"})


@pytest.mark.parametrize(("damage", "what"), [(_without_byte_level, "byte-level"), (_forgeable, "forge")])
def test_refused_vocabularies(saved: Path, tmp_path: Path, damage, what: str) -> None:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    spec = json.loads((saved / "tokenizer.json").read_text(encoding="utf-8"))
    damage(spec)
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(UserError, match=what):
        Tokenizer.load(tmp_path)


def test_damaged_folders_are_named(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=str(tmp_path)):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text((saved / "tokenizer.json").read_text()[:1000])
    with pytest.raises(UserError, match=str(tmp_path)):
        Tokenizer.load(tmp_path)
