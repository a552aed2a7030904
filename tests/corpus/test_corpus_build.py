from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from stages import make_stage

from danlu.console import Console
from danlu.corpus import CorpusSettings, build, generated, is_heldout
from danlu.corpus.split import read_share
from danlu.errors import UserError
from danlu.files import hash_paths

POEM = {
    "text": "{title}\n{author}\n{paragraphs}",
    "keep": ["title", "author"],
    "compare": "{paragraphs}",
    "profile": "poems",
}
SPRING_DAWN = {
    "title": "春曉",
    "author": "孟浩然",
    "paragraphs": ["春眠不覺曉，處處聞啼鳥。", "夜來風雨聲，花落知多少。"],
    "id": 7,
}


def write_lines(path: Path, rows: list[object]) -> None:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")


def test_generated_corpora_lose_exactly_their_planted_copies(make: Callable) -> None:
    for source, extra in (("generated:stories", {}), ("generated:poems", POEM)):
        figures, documents, audit, folder = make(source.partition(":")[2], source=source, **extra)
        assert figures["exact_duplicates"] == figures["near_duplicates"] == generated.COPIES
        assert figures["documents"] == len(documents) == figures["records"] - 2 * generated.COPIES
        assert figures["dropped"] == {"exact_duplicate": generated.COPIES, "near_duplicate": generated.COPIES}
        assert figures["characters"] == sum(len(document.text) for document in documents)
        assert figures["heldout"] == sum(is_heldout(document.id, 0.02) for document in documents)
        assert read_share(folder) == 0.02  # where the rooms that split documents read it
        steps = [(step["step"], step["documents"]) for step in audit["funnel"]]
        assert steps[0] == ("read", figures["records"])
        assert steps[-1] == ("near copies out", figures["documents"])
        assert sum(size * n for size, n in ((int(s), n) for s, n in audit["clusters"].items())) == sum(
            document.attributes["cluster_size"] for document in documents if document.attributes["cluster_size"] > 1
        )
        assert not (folder / ".spool").exists()


def test_two_builds_give_the_same_bytes(make: Callable) -> None:
    first = make("one", source="generated:poems", **POEM)[3]
    second = make("two", source="generated:poems", **POEM)[3]
    (second / ".spool").mkdir()
    (second / ".spool" / "half").write_text("left by a killed run", encoding="utf-8")
    assert hash_paths(first, ("documents",)) == hash_paths(second, ("documents",))
    make("two", source="generated:poems", **POEM)
    assert hash_paths(first, ("documents",)) == hash_paths(second, ("documents",))


def test_spring_dawn(make: Callable, tmp_path: Path) -> None:
    write_lines(tmp_path / "poems.jsonl", [SPRING_DAWN])
    _, (document,), audit, _ = make(source=str(tmp_path / "poems.jsonl"), simplify=True, **POEM)
    assert document.text == "春晓\n孟浩然\n春眠不觉晓，处处闻啼鸟。\n夜来风雨声，花落知多少。"
    assert document.attributes["title"] == "春晓"
    assert document.attributes["author"] == "孟浩然"
    assert document.attributes["n_chars"] == 29
    assert document.language == "zh"
    assert audit["languages"] == {"zh": 1}


def test_the_same_poem_under_two_names_is_one(make: Callable, tmp_path: Path) -> None:
    other = {**SPRING_DAWN, "title": "无题", "author": "佚名"}
    write_lines(tmp_path / "poems.jsonl", [SPRING_DAWN, other])
    figures, *_ = make(source=str(tmp_path / "poems.jsonl"), **POEM)
    assert (figures["documents"], figures["exact_duplicates"]) == (1, 1)
    figures, *_ = make("unlike", source=str(tmp_path / "poems.jsonl"), **{**POEM, "compare": "", "dedup": "exact"})
    assert figures["documents"] == 2


def test_removed_patterns(make: Callable, tmp_path: Path) -> None:
    noted = {**SPRING_DAWN, "paragraphs": ["春眠不覺曉，處處聞啼鳥。", "夜來風雨聲，花落知多少。（見《全唐詩》。）。"]}
    write_lines(tmp_path / "poems.jsonl", [noted])
    _, (document,), _, _ = make(source=str(tmp_path / "poems.jsonl"), remove=["（[^）]*）。?"], **POEM)
    assert document.text.endswith("花落知多少。")
    assert "（" not in document.text


def test_every_document_has_a_decision(make: Callable, tmp_path: Path) -> None:
    good = [f"Document number {n} tells of the {w} and of nothing else." for n, w in enumerate(["sea", "hill", "moon"])]
    rows: list[object] = [
        *good,
        good[0].upper(),
        "short",
        "= - = - = - = - = - = - = -",
        {"body": "no text"},
        {"text": {}},
        3,
    ]
    write_lines(tmp_path / "rows.jsonl", rows)
    with open(tmp_path / "rows.jsonl", "a", encoding="utf-8") as handle:
        handle.write('\n{"text": "half')
    figures, documents, audit, folder = make(source=str(tmp_path / "rows.jsonl"))
    assert figures["dropped"] == {"empty": 1, "exact_duplicate": 1, "too_short": 1}
    assert figures["quarantined"] == 4
    assert audit["quarantined"] == {"not a record": 1, "missing field": 1, "field is not text": 1, "not JSON": 1}
    assert len((folder / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()) == 4
    decisions = pq.read_table(folder / "decisions.parquet").to_pylist()
    assert len(decisions) == figures["records"] == 6
    assert Counter(row["reason"] for row in decisions) == Counter({"": 3, **figures["dropped"]})
    assert {row["id"] for row in decisions if row["kept"]} == {document.id for document in documents}
    (short,) = (row for row in decisions if row["reason"] == "too_short")
    assert (short["value"], short["limit"]) == (5, 20)
    (copy,) = (row for row in decisions if row["reason"] == "exact_duplicate")
    assert copy["copy_of"] == documents[0].id
    assert audit["reasons"]["too_short"]["samples"][0]["text"] == "short"


def test_what_is_set_aside_is_told_with_the_file_that_says_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lines(tmp_path / "rows.jsonl", ["Long enough to be read as a document.", 3])
    stage = make_stage(tmp_path / "corpus", CorpusSettings(source=str(tmp_path / "rows.jsonl")), name="corpus")
    build(replace(stage, console=Console()))
    told = "corpus: set aside unread (1 not a record): rows.jsonl (1); each with its place in "
    assert told + "corpus/quarantine.jsonl" in capsys.readouterr().err
    assert json.loads((tmp_path / "corpus" / "quarantine.jsonl").read_text(encoding="utf-8"))["place"] == "line 2"


def test_folders_of_text(make: Callable, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "note.txt").write_text("One line that is long enough to keep.", encoding="utf-8")
    (texts / "gbk.txt").write_bytes("春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。".encode("gb18030"))
    (texts / "book.md").write_text("\n\n".join(f"In chapter {n} the weather was {n * n}." for n in range(900)), "utf-8")
    (texts / "picture.png").write_bytes(b"\x89PNG\0")
    figures, documents, audit, _ = make(source=str(texts), piece_chars=3000)
    assert figures["quarantined"] == 1
    assert len(documents) > 5
    assert max(len(document.text) for document in documents) <= 3000
    assert audit["notes"] == ["gbk.txt: not UTF-8, read as GB18030"]
    assert {document.language for document in documents} == {"en", "zh"}


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "holds no file to read"),
        ({"a.png": b"\0\1\2", "b.bin": b"\0"}, r"nothing of .* survives \(2 files: 2 not text\); give files of text"),
        ({"a.txt": b"tiny", "b.txt": b""}, r"survives \(2 files: 1 empty, 1 too short\)|1 too short, 1 empty"),
        ({"a.jsonl": b"not json\n"}, "1 not JSON"),
        ({"a.jsonl": b'{"txt": "a text that is long enough"}\n'}, "unknown field 'text'.*did you mean 'txt'"),
        ({"a.json": b""}, "1 not JSON"),
        ({"a.csv": b""}, "no records"),
        ({"a.parquet": b"PAR1 broken"}, "1 damaged file"),
    ],
)
def test_corpora_of_nothing(make: Callable, tmp_path: Path, files: dict[str, bytes], told: str) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for name, data in files.items():
        (texts / name).write_bytes(data)
    with pytest.raises(UserError, match=told):
        make(source=str(texts))


def test_a_kept_field_that_no_record_has(make: Callable) -> None:
    with pytest.raises(UserError, match=r"unknown field 'titel'.*did you mean 'title'"):
        make(source="generated:stories", keep=["titel"])


def test_no_dedup(make: Callable) -> None:
    figures, *_ = make(source="generated:stories", dedup="off")
    assert figures["documents"] == figures["records"]
