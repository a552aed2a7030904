"""Finished stages of a run with models that know nothing, which is enough to examine them."""

from functools import partial

import pytest
import stages
import torch

from danlu import hub
from danlu.model import Decoder, preset
from danlu.tokens import Tokenizer


@pytest.fixture(scope="session")
def make_stage():
    """make_stage(directory, settings, inputs) -> Stage ``eval``."""
    return partial(stages.make_stage, name="eval")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Directories of finished stages, by name."""
    root = tmp_path_factory.mktemp("run")
    documents = stages.poem_documents()[:120]
    places = stages.read_and_spelt(root, documents) | {"sft": stages.taught(root, documents)}
    tokenizer = Tokenizer.load(places["tokenizer"] / "model")
    for seed, name in enumerate(("pretrain", "sft", "ppo", "compress")):
        torch.manual_seed(seed)
        model = Decoder(preset("llama-tiny", vocab_size=tokenizer.vocab_size))
        places[name] = root / name
        hub.save(model, places[name] / "model", tokenizer, card={"title": name})
    return places | {"aligned": places.pop("ppo")}
