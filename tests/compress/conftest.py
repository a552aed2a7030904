"""A small model that has really learnt: pre-trained on a corpus of poems, with the stages around it."""

import pytest

from danlu.console import Console
from danlu.corpus.generated import poems
from danlu.files import write_json
from danlu.records import Document, write_conversations, write_documents
from danlu.run import Metrics, Stage
from danlu.tokens import TokenizerSettings, TokensSettings, build_shards, build_tokenizer
from danlu.train import PretrainSettings, pretrain
from danlu.train.instructions import PoemMix, compile_rhymes, poem_tasks

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


def _make_stage(directory, settings, inputs, name="compress"):
    directory.mkdir(parents=True, exist_ok=True)
    return Stage(name, directory, settings, inputs, {}, 7, Metrics(directory / "metrics.jsonl"), Console(quiet=True))


@pytest.fixture(scope="session")
def make_stage():
    """make_stage(directory, settings, inputs, name) -> Stage."""
    return _make_stage


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Directories of finished stages, by name; the pre-trained model stands in for the aligned one."""
    root = tmp_path_factory.mktemp("run")
    documents = [
        Document(f"poem-{i}", "\n".join(row["paragraphs"]), "generated:poems", "zh", "", {"title": row["title"]})
        for i, row in enumerate(poems())
    ]
    places = {name: root / name for name in ("corpus", "tokenizer", "tokens", "sft")}
    write_documents(places["corpus"] / "documents", documents)
    write_json(places["corpus"] / "split.json", {"heldout_share": 0.2})
    build_tokenizer(_make_stage(places["tokenizer"], TokenizerSettings(vocab_size=512, han_run=1), places, "tokenizer"))
    build_shards(_make_stage(places["tokens"], TokensSettings(), places, "tokens"))
    settings = PretrainSettings(model=_SHAPE, dtype="float32", **_TRAINING)
    pretrain(_make_stage(root / "ppo", settings, places, "pretrain"))
    tasks = [
        task for document in documents for task in poem_tasks(document, PoemMix(), compile_rhymes(documents), seed=0)
    ]
    write_conversations(places["sft"] / "conversations" / "train.jsonl", tasks[:-80])
    write_conversations(places["sft"] / "conversations" / "heldout.jsonl", tasks[-80:])
    return {"ppo": root / "ppo", "sft": places["sft"], "tokens": places["tokens"]}
