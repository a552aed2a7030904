"""Stages without the pipeline: one to run, and a few finished ones on poems for it to read."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from danlu.console import Console
from danlu.corpus.generated import poems
from danlu.files import write_json
from danlu.recipe import Settings
from danlu.records import Document, write_conversations, write_documents
from danlu.run import Metrics, Stage
from danlu.tokens import TokenizerSettings, TokensSettings, build_shards, build_tokenizer
from danlu.train.instructions import PoemMix, compile_rhymes, poem_tasks

SEED, HELDOUT_TASKS = 7, 80


def make_stage(
    directory: Path, settings: Settings, inputs: Mapping[str, Path] | None = None, name: str = "", seed: int = SEED
) -> Stage:
    """A stage in a directory of its own, silent."""
    directory.mkdir(parents=True, exist_ok=True)
    metrics = Metrics(directory / "metrics.jsonl")
    return Stage(name, directory, settings, inputs or {}, {}, seed, metrics, Console(quiet=True))


def run_stage(
    function: Callable[[Stage], object], directory: Path, settings: Settings, inputs: Mapping[str, Path], name: str
) -> None:
    """Run a stage by its function, for a process of its own."""
    function(make_stage(directory, settings, inputs, name))


def poem_documents(headed: bool = True) -> list[Document]:
    """The generated poems; headed: with title and author above, as in the Complete Tang Poems."""
    return [
        Document(
            f"poem-{i}", "\n".join([*([row["title"], row["author"]] if headed else []), *row["paragraphs"]]),
            "generated:poems", "zh", "", {"title": row["title"], "author": row["author"]},
        )
        for i, row in enumerate(poems())
    ]  # fmt: skip


def read_and_spelt(root: Path, documents: Sequence[Document], heldout: float = 0.2) -> dict[str, Path]:
    """Finished stages corpus, tokenizer and tokens, by name."""
    places = {name: root / name for name in ("corpus", "tokenizer", "tokens")}
    write_documents(places["corpus"] / "documents", documents)
    write_json(places["corpus"] / "split.json", {"heldout_share": heldout})
    build_tokenizer(make_stage(places["tokenizer"], TokenizerSettings(vocab_size=512, han_run=1), places, "tokenizer"))
    build_shards(make_stage(places["tokens"], TokensSettings(), places, "tokens"))
    return places


def taught(root: Path, documents: Sequence[Document]) -> Path:
    """The directory of a stage ``sft`` with its conversations, but no model."""
    book = compile_rhymes(documents)
    tasks = [task for document in documents for task in poem_tasks(document, PoemMix(), book, seed=0)]
    folder = root / "sft" / "conversations"
    write_conversations(folder / "train.jsonl", tasks[:-HELDOUT_TASKS])
    write_conversations(folder / "heldout.jsonl", tasks[-HELDOUT_TASKS:])
    return root / "sft"
