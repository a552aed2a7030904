"""Finished stages of a run with models that know nothing, which is enough to examine them."""

import pytest
import torch

from danlu import hub
from danlu.console import Console
from danlu.corpus.generated import poems
from danlu.files import write_json
from danlu.model import Decoder, preset
from danlu.records import Document, write_conversations, write_documents
from danlu.run import Metrics, Stage
from danlu.tokens import Tokenizer, TokenizerSettings, TokensSettings, build_shards, build_tokenizer
from danlu.train.instructions import PoemMix, compile_rhymes, poem_tasks


def _make_stage(directory, settings, inputs, name="eval"):
    directory.mkdir(parents=True, exist_ok=True)
    return Stage(name, directory, settings, inputs, {}, 7, Metrics(directory / "metrics.jsonl"), Console(quiet=True))


@pytest.fixture(scope="session")
def make_stage():
    """make_stage(directory, settings, inputs, name) -> Stage."""
    return _make_stage


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Directories of finished stages, by name."""
    root = tmp_path_factory.mktemp("run")
    rows = list(poems())[:120]
    documents = [
        Document(f"poem-{i}", "\n".join(row["paragraphs"]), "generated:poems", "zh", "", {"title": row["title"]})
        for i, row in enumerate(rows)
    ]
    places = {name: root / name for name in ("corpus", "tokenizer", "tokens", "pretrain", "sft", "ppo", "compress")}
    write_documents(places["corpus"] / "documents", documents)
    write_json(places["corpus"] / "split.json", {"heldout_share": 0.2})
    build_tokenizer(_make_stage(places["tokenizer"], TokenizerSettings(vocab_size=512, han_run=1), places, "tokenizer"))
    build_shards(_make_stage(places["tokens"], TokensSettings(), places, "tokens"))
    tokenizer = Tokenizer.load(places["tokenizer"] / "model")
    tasks = [
        task for document in documents for task in poem_tasks(document, PoemMix(), compile_rhymes(documents), seed=0)
    ]
    write_conversations(places["sft"] / "conversations" / "train.jsonl", tasks[:-80])
    write_conversations(places["sft"] / "conversations" / "heldout.jsonl", tasks[-80:])
    for place, name in enumerate(("pretrain", "sft", "ppo", "compress")):
        torch.manual_seed(place)
        model = Decoder(preset("llama-tiny", vocab_size=tokenizer.vocab_size))
        hub.save(model, places[name] / "model", tokenizer, card={"title": name})
    return places
