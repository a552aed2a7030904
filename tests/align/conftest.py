"""The workshop, and an empty preference store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from postgres import Place, place, postgres
from workshop import make_model, make_stage, prompts, rankings, reward_dir, sft_dir, small_shape, tokenizer

from danlu.align.preferences import PreferenceStore
from danlu.model.config import ModelConfig
from danlu.tokens.tokenizer import Tokenizer

__all__ = [  # fixtures
    "make_model", "make_stage", "place", "postgres", "prompts", "rankings", "reward_dir", "sft_dir", "tokenizer",
]  # fmt: skip


@pytest.fixture
def store(place: Place) -> Iterator[PreferenceStore]:
    """An empty preference store, in SQLite and in PostgreSQL."""
    opened = PreferenceStore(place)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def shape(tokenizer: Tokenizer) -> ModelConfig:
    return small_shape(tokenizer)
