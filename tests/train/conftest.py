"""A small corpus of poems on disk, with its tokenizer and shards, and stages to run on it."""

import pytest
import stages
import warm

from danlu.model.config import ModelConfig
from danlu.train import PretrainSettings, SFTSettings, pretrain

_SHAPE = {"n_layers": 2, "d_model": 32, "n_heads": 2, "n_kv_heads": 1, "head_dim": 16, "d_ff": 64, "max_seq_len": 128}


def _pretrain_settings(**changes):
    plain = {
        "model": {"preset": "llama-tang", **_SHAPE}, "seq_len": 64, "steps": 8, "batch_size": 8, "warmup": 2,
        "lr": 1e-2, "eval_every": 4, "eval_batches": 2, "save_every": 4, "log_every": 1,
    }  # fmt: skip
    return PretrainSettings(**(plain | changes))


def _sft_settings(**changes):
    plain = {
        "source": "poems", "seq_len": 96, "steps": 6, "batch_size": 8, "warmup": 2, "eval_every": 6, "save_every": 3,
        "log_every": 1, "eval_batches": 1,
    }  # fmt: skip
    return SFTSettings(**(plain | changes))


@pytest.fixture(scope="session")
def make_stage():
    """make_stage(directory, settings, inputs, name) -> Stage, ``pretrain`` unless it is named."""
    return lambda directory, settings, inputs=None, name="pretrain": stages.make_stage(
        directory, settings, inputs, name
    )


@pytest.fixture(scope="session")
def pretrain_settings():
    """pretrain_settings(**changes) -> PretrainSettings of a tiny run."""
    return _pretrain_settings


@pytest.fixture(scope="session")
def sft_settings():
    """sft_settings(**changes) -> SFTSettings of a tiny run."""
    return _sft_settings


@pytest.fixture(scope="session")
def start_process():
    """start_process(directory, settings, inputs, dies_once): ``pretrain`` in a process of its own."""

    def start(directory, settings, inputs, dies_once):
        return warm.start(stages.run_stage, pretrain, directory, settings, inputs, "pretrain", dies_once=str(dies_once))

    return start


@pytest.fixture(scope="session")
def documents():
    return stages.poem_documents()


@pytest.fixture(scope="session")
def inputs(tmp_path_factory, documents):
    """Finished stages corpus, tokenizer and tokens."""
    return stages.read_and_spelt(tmp_path_factory.mktemp("run"), documents, heldout=0.1)


@pytest.fixture
def tiny_config():
    return ModelConfig(vocab_size=64, **_SHAPE)
