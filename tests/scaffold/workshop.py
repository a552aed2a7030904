"""A workshop for alignment: a tiny tokenizer, tiny models on disk, people with a taste, a stage to work in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from danlu import hub
from danlu.align.rollout import Prompt
from danlu.console import Console
from danlu.files import write_json
from danlu.model.config import ModelConfig
from danlu.model.decoder import Decoder
from danlu.recipe import Settings
from danlu.records import Answer, Conversation, Message, Preference, write_conversations, write_preferences
from danlu.run import Metrics, Stage
from danlu.tokens import chat
from danlu.tokens.bpe import train_bpe
from danlu.tokens.tokenizer import Tokenizer

LETTERS = "春夏秋冬山水花月风云"

MakeStage = Callable[..., Stage]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    text = train_bpe([LETTERS * 8, "写：，。\n"], vocab_size=320, han_run=1, min_frequency=2, specials=chat.SPECIALS)
    return Tokenizer(text, chat.TOKENIZER_CONFIG)


def small_shape(tokenizer: Tokenizer) -> ModelConfig:
    return ModelConfig(
        vocab_size=tokenizer.vocab_size, n_layers=2, d_model=32, max_seq_len=64, n_heads=2, n_kv_heads=2,
        head_dim=16, d_ff=64,
    )  # fmt: skip


@pytest.fixture
def make_model(tokenizer: Tokenizer) -> Callable[..., Decoder]:
    """A model with weights that make every answer possible and none likely."""

    def make(head: str = "lm", seed: int = 0, **changes: Any) -> Decoder:
        torch.manual_seed(seed)
        model = Decoder(replace(small_shape(tokenizer), **changes), head)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0.0, 0.1)
        return model

    return make


def letters_conversations(n: int) -> list[Conversation]:
    """``n`` different small tasks: the answer goes on with the letters of the prompt."""
    ring = LETTERS * 3
    tasks = []
    for i in range(n):
        start, size = i % 10, 2 + i // 10 % 4
        asked, answer = ring[start : start + size], ring[start + size : start + size + 4]
        tasks.append(Conversation((Message("user", f"写{i}：{asked}"), Message("assistant", answer + "。")), "test"))
    return tasks


@pytest.fixture
def sft_dir(tmp_path: Path, make_model: Callable[..., Decoder], tokenizer: Tokenizer) -> Path:
    """A finished sft stage."""
    folder = tmp_path / "sft"
    hub.save(make_model(), folder / "model", tokenizer, card={"stage": "sft"})
    conversations = letters_conversations(120)
    write_conversations(folder / "conversations" / "train.jsonl", conversations[:100])
    write_conversations(folder / "conversations" / "heldout.jsonl", conversations[100:])
    return folder


@pytest.fixture
def make_stage(tmp_path: Path) -> MakeStage:
    """A stage in a directory of its own."""

    def make(
        name: str, settings: Settings, inputs: Mapping[str, Path], outside: Mapping[str, Path] | None = None,
        folder: str = "", metrics: Callable[[Path], Metrics] = Metrics,
    ) -> Stage:  # fmt: skip
        place = tmp_path / (folder or name)
        place.mkdir(exist_ok=True)
        return Stage(
            name=name, dir=place, settings=settings, inputs=inputs, outside=outside or {}, seed=7,
            metrics=metrics(place / "metrics.jsonl"), console=Console(quiet=True),
        )  # fmt: skip

    return make


@pytest.fixture
def prompts(tokenizer: Tokenizer) -> list[Prompt]:
    turns = [(Message("user", f"写：{letter}"),) for letter in "春夏秋冬山水花月"]
    return [Prompt(turn, turn[0].content, tuple(chat.encode_prompt(tokenizer, turn))) for turn in turns]


@pytest.fixture
def reward_dir(tmp_path: Path, make_model: Callable[..., Decoder], tokenizer: Tokenizer) -> Path:
    folder = tmp_path / "reward"
    hub.save(make_model("scalar", seed=1), folder / "model", tokenizer, card={"stage": "reward"})
    write_json(folder / "model" / "reward.json", {"mean": 0.0, "std": 0.5})
    return folder


def flowers(n: int) -> list[Preference]:
    """People who like flowers: of three answers the one with more 花 wins."""
    texts = ("花花花", "花水水", "山山山")
    return [
        Preference(
            f"{i}", (Message("user", f"写{i}：春"),), tuple(Answer(texts[(k + i) % 3]) for k in range(3)),
            tuple((k + i) % 3 for k in range(3)), split="heldout" if i % 4 == 0 else "train",
        )
        for i in range(n)
    ]  # fmt: skip


@pytest.fixture
def rankings(tmp_path: Path) -> Path:
    """What they prefer, as a finished stage."""
    write_preferences(tmp_path / "rankings" / "preferences.jsonl", flowers(64))
    return tmp_path / "rankings"
