"""One uninterrupted run of the recipe ``tiny``, shared by the chain tests."""

from pathlib import Path

import pytest
from person import danlu_from_cold
from workshop import make_model, rankings, reward_dir, sft_dir, tokenizer

__all__ = ["make_model", "rankings", "reward_dir", "sft_dir", "tokenizer"]  # fixtures


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("chain") / "tiny"
    danlu_from_cold("run", "tiny", "--out", out)
    return out
