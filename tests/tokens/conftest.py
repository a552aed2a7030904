"""A small tokenizer of ours, a small ChatML one, and shards of realistic lengths."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from danlu.tokens import Shards, Tokenizer, chat, read_shards, write_shards
from danlu.tokens.bpe import train_bpe

TEXTS = (
    "春眠不觉晓，处处闻啼鸟。\n夜来风雨声，花落知多少。\n",
    "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。\n",
    "The user asked the assistant for a poem, and the system said: it's 2024, don't write one.\n",
    "白日依山尽，黄河入海流。\n欲穷千里目，更上一层楼。\n",
) * 8
CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a furnace.<|im_end|>\n' }}"
    "{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def texts() -> tuple[str, ...]:
    """What the small tokenizers are trained on."""
    return TEXTS


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    backend = train_bpe(TEXTS, vocab_size=512, han_run=2, min_frequency=2, specials=chat.SPECIALS)
    return Tokenizer(backend, chat.TOKENIZER_CONFIG)


@pytest.fixture(scope="session")
def chatml_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as other projects write it: pad equal to eos, no named bos, a template with a system prompt."""
    folder = tmp_path_factory.mktemp("chatml")
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    backend = train_bpe(TEXTS, vocab_size=448, han_run=1, min_frequency=2, specials=names)
    (folder / "tokenizer.json").write_text(backend, encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "special": True},
        "pad_token": "<|im_end|>",
        "chat_template": CHATML_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture
def make_shards(tokenizer: Tokenizer, tmp_path: Path) -> Callable[..., Shards]:
    """Shards of documents of given lengths; ids differ from document to document so that a mix-up shows."""

    def make(lengths: list[int], masks: list[list[int]] | None = None) -> Shards:
        rng = np.random.default_rng(7)
        sequences = [rng.integers(0, tokenizer.vocab_size, n).tolist() for n in lengths]
        masked = zip(sequences, masks or [None] * len(lengths), strict=True)
        write_shards(tmp_path / "shards", masked, tokenizer)
        return read_shards(tmp_path / "shards")

    return make
