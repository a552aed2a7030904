"""A small model that has really learnt: pre-trained on a corpus of poems, with the stages around it."""

from functools import partial

import pytest
import stages

from danlu.train import PretrainSettings, pretrain

_SHAPE = {
    "preset": "llama-tang", "n_layers": 2, "d_model": 64, "n_heads": 2, "n_kv_heads": 2, "head_dim": 32, "d_ff": 160,
}  # fmt: skip
_TRAINING = {
    "seq_len": 64,
    "steps": 80,
    "batch_size": 16,
    "lr": 4e-3,
    "warmup": 10,
    "save_every": 500,
    "eval_every": 500,
}


@pytest.fixture(scope="session")
def make_stage():
    """make_stage(directory, settings, inputs) -> Stage ``compress``."""
    return partial(stages.make_stage, name="compress")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Directories of finished stages, by name; the pre-trained model stands in for the aligned one."""
    root = tmp_path_factory.mktemp("run")
    documents = stages.poem_documents(headed=False)
    places = stages.read_and_spelt(root, documents)
    settings = PretrainSettings(model=_SHAPE, dtype="float32", **_TRAINING)
    pretrain(stages.make_stage(root / "ppo", settings, places, "pretrain"))
    return {"aligned": root / "ppo", "sft": stages.taught(root, documents), "tokens": places["tokens"]}
